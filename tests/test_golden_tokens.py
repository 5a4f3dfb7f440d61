"""Golden tokens: one small episode per modality and one nested, with the default text model, byte by byte.

A change here breaks every store and checkpoint that exists. Where it is meant, raise the schema and write anew:

    python tests/test_golden_tokens.py
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary, pair_tokens, text_tokens

GOLDEN = Path(__file__).with_name("golden_tokens.json")
VOCABULARY = Vocabulary()
T = 3
"""Timesteps of each episode."""


def ramp(low: float, high: float, *shape: int, dtype: type = np.float64) -> np.ndarray:
    """Values (T, *shape) from `low` to `high`, both ends among them, without any random generator."""
    return np.linspace(low, high, T * int(np.prod(shape))).reshape(T, *shape).astype(dtype)


def pixels(*shape: int) -> np.ndarray:
    """Images (T, *shape)."""
    return (np.arange(T * int(np.prod(shape)), dtype=np.int64) * 7 % 256).reshape(T, *shape).astype(np.uint8)


def control(observation: spaces.Space, action: spaces.Space, observations: Any, actions: Any) -> TokenSequence:
    layout = Layout.from_spaces(observation, action, vocabulary=VOCABULARY, text=TextTokenizer.load())
    return layout.episode_tokens(observations, actions)


def continuous() -> TokenSequence:
    return control(
        spaces.Box(-1, 1, (4,), np.float32),
        spaces.Box(-2, 2, (2,), np.float32),
        ramp(-1, 1, 4, dtype=np.float32),
        ramp(-2, 2, 2, dtype=np.float32),
    )


def continuous_unbounded() -> TokenSequence:
    box = spaces.Box(-np.inf, np.inf, (3,), np.float64)
    return control(box, box, ramp(-300, 300, 3), ramp(-0.01, 0.02, 3))


def discrete() -> TokenSequence:
    return control(
        spaces.MultiDiscrete([[4, 1024], [2, 9]], start=[[0, 0], [-1, 5]]),
        spaces.Discrete(5, start=-2),
        np.array([[[0, 1023], [-1, 5]], [[3, 0], [0, 13]], [[1, 512], [0, 9]]]),
        np.array([-2, 2, 0]),
    )


def binary_and_integers() -> TokenSequence:
    return control(
        spaces.MultiBinary(3),
        spaces.Box(-5000, 5000, (2,), np.int64),
        np.array([[0, 0, 1], [1, 1, 0], [1, 0, 1]], np.int8),
        np.array([[-5000, 5000], [0, 1], [77, -77]]),
    )


def image() -> TokenSequence:
    return control(
        spaces.Box(0, 255, (20, 40, 3), np.uint8), spaces.Discrete(2), pixels(20, 40, 3), np.array([0, 1, 0])
    )


def image_with_alpha() -> TokenSequence:
    return control(
        spaces.Box(0, 255, (16, 16, 4), np.uint8), spaces.Discrete(2), pixels(16, 16, 4), np.array([0, 1, 0])
    )


def mission() -> TokenSequence:
    return control(
        spaces.Text(64), spaces.Discrete(7), ["go to the red ball", "", "pick up a grey key"], np.array([0, 6, 3])
    )


def nested() -> TokenSequence:
    return control(
        spaces.Dict(
            mission=spaces.Text(64),
            camera=spaces.Dict(
                wide=spaces.Box(0, 255, (16, 32, 3), np.uint8), near=spaces.Box(0, 255, (8, 8, 1), np.uint8)
            ),
            Arm=spaces.Tuple((spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3))),
        ),
        spaces.Dict(move=spaces.Box(-0.1, 0.3, (2,), np.float32), grip=spaces.Tuple((spaces.MultiBinary(2),))),
        {
            "mission": ["go to the red ball", "go to the red ball", "stop"],
            "camera": {"wide": pixels(16, 32, 3), "near": pixels(8, 8, 1)},
            "Arm": (ramp(-1, 1, 2, dtype=np.float32), np.array([0, 1, 2])),
        },
        {"move": ramp(-0.1, 0.3, 2, dtype=np.float32), "grip": (np.array([[0, 1], [1, 1], [0, 0]], np.int8),)},
    )


def document() -> TokenSequence:
    return text_tokens(
        "A class definition defines a class object.\nIt is an executable statement.", TextTokenizer.load()
    )


def pair() -> TokenSequence:
    return pair_tokens(pixels(16, 16, 1)[0], "the digit seven", VOCABULARY, TextTokenizer.load())


CASES: dict[str, Callable[[], TokenSequence]] = {
    case.__name__: case
    for case in (
        continuous,
        continuous_unbounded,
        discrete,
        binary_and_integers,
        image,
        image_with_alpha,
        mission,
        nested,
        document,
        pair,
    )
}


def described(sequence: TokenSequence) -> dict[str, Any]:
    """All of a sequence as JSON values; pixels by their hash."""
    return {
        "ids": sequence.ids.tolist(),
        "loss_mask": sequence.loss_mask.astype(int).tolist(),
        "local_positions": sequence.local_positions.tolist(),
        "timestep_starts": sequence.timestep_starts.tolist(),
        "patches": len(sequence.patches),
        "patches_sha256": hashlib.sha256(np.ascontiguousarray(sequence.patches).tobytes()).hexdigest(),
        "patch_intervals": sequence.patch_intervals.tolist(),
    }


def written() -> str:
    """The golden file as it is now: one line per array."""
    cases = []
    for name, case in CASES.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in described(case()).items()]
        cases.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(cases) + "\n}\n"


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_the_golden_file(name: str) -> None:
    assert described(CASES[name]()) == json.loads(GOLDEN.read_text())[name]


def test_the_golden_file_is_byte_identical_and_has_every_case() -> None:
    assert GOLDEN.read_text() == written()
    assert list(json.loads(GOLDEN.read_text())) == list(CASES)


if __name__ == "__main__":
    GOLDEN.write_text(written())
