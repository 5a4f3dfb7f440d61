"""What many tests share: a small text model, its vocabulary, and one space of every supported kind."""

import importlib.util
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from gymnasium import spaces
from toy import write_mixed_store

from gatito.tokenizers import TextTokenizer, Vocabulary

# dm_control has no wheel for Python 3.13.
collect_ignore = [] if importlib.util.find_spec("dm_control") else ["test_control_suites.py"]

# No test reaches the hub: a download is an error, not a wait.
os.environ["HF_HUB_OFFLINE"] = "1"

NUM_PIECES = 300


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and tests run beside each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A SentencePiece model of 300 pieces; the end token is 2."""
    from pydoc_data.topics import topics

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(topics[key] for key in sorted(topics)[:20]).split("\n")),
        model_writer=model,
        vocab_size=NUM_PIECES,
        model_type="bpe",
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    path: Path = tmp_path_factory.mktemp("text") / "small.model"
    path.write_bytes(model.getvalue())
    return TextTokenizer.load(path)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, text: TextTokenizer) -> Path:
    """Vectors, images with missions and text, to train on; never to be written to."""
    return write_mixed_store(tmp_path_factory.mktemp("stores") / "store", vocabulary, text)


@pytest.fixture(scope="session")
def vocabulary(text: TextTokenizer) -> Vocabulary:
    """Text [0, 300), continuous [300, 1324), discrete [1324, 2348), separator 2348."""
    return Vocabulary(text_size=text.size)


MIXED_LOW = np.array([-np.inf, 0.0, -5.0], np.float32)
MIXED_HIGH = np.array([1.0, np.inf, 5.0], np.float32)

SPACES: list[tuple[str, spaces.Space]] = [
    ("box-unit", spaces.Box(-1.0, 1.0, (3,), np.float32)),
    ("box-inside-unit", spaces.Box(-0.5, 0.25, (2,), np.float64)),
    ("box-wide", spaces.Box(-40.0, 200.0, (2, 2), np.float32)),
    ("box-wide-float64", spaces.Box(np.array([-3.0, 0.0]), np.array([3.0, 1e4]), dtype=np.float64)),
    ("box-unbounded", spaces.Box(-np.inf, np.inf, (3,), np.float32)),
    ("box-unbounded-float64", spaces.Box(-np.inf, np.inf, (2,), np.float64)),
    ("box-half-bounded", spaces.Box(MIXED_LOW, MIXED_HIGH, dtype=np.float32)),
    ("box-degenerate", spaces.Box(np.array([-1.0, 0.5]), np.array([1.0, 0.5]), dtype=np.float64)),
    ("box-scalar", spaces.Box(-1.0, 1.0, (), np.float32)),
    ("int-small", spaces.Box(-3, 9, (4,), np.int64)),
    ("int-1023-values", spaces.Box(0, 1022, (2,), np.int32)),
    ("int-1024-values", spaces.Box(0, 1023, (2,), np.int32)),
    ("int-large", spaces.Box(-5000, 100_000, (3,), np.int64)),
    ("image-gray", spaces.Box(0, 255, (16, 32, 1), np.uint8)),
    ("image-rgb", spaces.Box(0, 255, (20, 33, 3), np.uint8)),
    ("image-rgba", spaces.Box(0, 255, (17, 16, 4), np.uint8)),
    ("discrete", spaces.Discrete(5)),
    ("discrete-start", spaces.Discrete(6, start=-2)),
    ("discrete-1024", spaces.Discrete(1024)),
    ("multidiscrete", spaces.MultiDiscrete([3, 1, 7])),
    ("multidiscrete-2d", spaces.MultiDiscrete([[3, 4], [5, 6]], start=[[0, -4], [10, 0]])),
    ("multibinary", spaces.MultiBinary(4)),
    ("multibinary-2d", spaces.MultiBinary((2, 3))),
    ("text", spaces.Text(24)),
    (
        "dict-nested",
        spaces.Dict(
            zeta=spaces.Discrete(3),
            alpha=spaces.Dict(
                b=spaces.Box(-1.0, 1.0, (2,), np.float32),
                a=spaces.Tuple((spaces.Discrete(4), spaces.Box(-9.0, 9.0, (2,), np.float64))),
            ),
        ),
    ),
    (
        "dict-with-image-and-text",
        spaces.Dict(
            image=spaces.Box(0, 255, (16, 20, 3), np.uint8),
            mission=spaces.Text(24),
            direction=spaces.Discrete(4),
        ),
    ),
    ("tuple", spaces.Tuple((spaces.MultiBinary(2), spaces.Box(-1.0, 1.0, (1,), np.float32)))),
]
"""One space of every supported kind. Those that hold text are observations only: see `holds_text`."""


def holds_text(space: spaces.Space) -> bool:
    """Whether a Text is somewhere inside, which an action cannot have."""
    if isinstance(space, spaces.Dict):
        return any(holds_text(inner) for inner in space.values())
    if isinstance(space, spaces.Tuple):
        return any(holds_text(inner) for inner in space.spaces)
    return isinstance(space, spaces.Text)
