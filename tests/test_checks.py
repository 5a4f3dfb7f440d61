"""The fast check of a store before every training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from toy import ToyEnv, layout_of, tiny_recipe, toy_sequence, write_store

from gatito.data.checks import check_store
from gatito.data.store import open_store, sha256_of
from gatito.data.tasks import EVALUATION_SEEDS
from gatito.errors import UserError
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train.trainer import train

NAME = "toy-pixels"


@pytest.fixture
def store(tmp_path: Path, text: TextTokenizer, vocabulary: Vocabulary) -> Path:
    env = ToyEnv(spaces.Box(0, 255, (16, 20, 3), np.uint8), spaces.Discrete(5), length=6)
    layout = layout_of(env, vocabulary, text)
    sequences = [toy_sequence(env, layout, seed) for seed in range(4)]
    return write_store(tmp_path / "store", text, vocabulary, {"toy/pixels": (layout, sequences)})


def rewritten(store: Path, name: str, change: Any) -> Path:
    """The store with one file of its dataset changed, and all hashes right: as a broken writer would leave it."""
    folder = store / NAME
    path, described = folder / f"{name}.bin", json.loads((folder / "dataset.json").read_text())
    dtype = {"ids": "uint16"}.get(name, "int64")
    values = np.fromfile(path, dtype)
    change(values)
    values.tofile(path)
    described["sha256"][name] = sha256_of(path)
    (folder / "dataset.json").write_text(json.dumps(described))
    mixture = json.loads((store / "mixture.json").read_text())
    from gatito.data import store as module

    mixture["dataset_sha256"][NAME] = sha256_of(folder / "dataset.json")
    mixture.pop("sha256")
    mixture["sha256"] = module._sha256_of_values(mixture)
    (store / "mixture.json").write_text(json.dumps(mixture))
    return store


def test_a_sound_store_passes(store: Path) -> None:
    check_store(open_store(store))


def put(index: int, value: int) -> Any:
    def change(values: np.ndarray) -> None:
        values[index] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("timestep_tokens", put(3, 0), r"timestep_tokens\.bin: entry 3 is 0 after 8, and offsets must grow"),
        ("timestep_tokens", put(-1, 999), r"timestep_tokens\.bin: from 0 to 999, expected 0 to 96"),
        ("episode_timesteps", put(1, 99), r"episode_timesteps\.bin: entry 2 is 12 after 99"),
        ("timestep_patches", put(0, 1), r"timestep_patches\.bin: from 1 to 48, expected 0 to 48"),
        ("timestep_patches", put(1, 3), r"timestep 0: 2 patch tokens and 3 patches; build the store again"),
        ("episode_seeds", put(2, EVALUATION_SEEDS), rf"episode 2 has seed {EVALUATION_SEEDS}, allowed below"),
        ("ids", put(5, 60000), r"timestep 1: id 60000, allowed up to"),
    ],
)
def test_a_store_whose_files_contradict_each_other_is_refused_before_training(
    name: str, change: Any, message: str, store: Path, tmp_path: Path
) -> None:
    broken = rewritten(store, name, change)
    with pytest.raises(UserError, match=message):
        train(tiny_recipe(steps=1), broken, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_targets_is_refused(tmp_path: Path, text: TextTokenizer, vocabulary: Vocabulary) -> None:
    env = ToyEnv(spaces.Discrete(3), spaces.Discrete(5), length=6)
    layout = layout_of(env, vocabulary, text)
    sequence = toy_sequence(env, layout, 0, targets=np.zeros(6, np.bool_))
    store = write_store(tmp_path / "store", text, vocabulary, {"toy/none": (layout, [sequence])})
    with pytest.raises(UserError, match="toy-none: none of its tokens is a target; leave it out of the mixture"):
        check_store(open_store(store))
