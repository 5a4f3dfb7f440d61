"""The tokenized store: one folder per dataset of flat arrays, memory-mapped, hashed, published by rename.

mixture.json            vocabulary, datasets with their weights, what is held out, SHA-256 of every dataset.json
dataset.json            kind, task, source agents, counts, layout, SHA-256 of every file below
ids, loss_mask, local_positions         (N,) one entry per token
patches, patch_intervals                (P, 16, 16, 3) uint8 pixels and (P, 4), in token order
timestep_tokens, timestep_patches       (T + 1,) offsets of each timestep's tokens and patches
episode_timesteps                       (E + 1,) offsets of each episode's timesteps
episode_agents                          (E,) index into `agents`
episode_seeds, episode_returns          (E,) seed (-1 where it is not known) and sum of rewards (NaN of texts)

A dataset is written once: weights stand in mixture.json, held-out episodes in a dataset of their own, `held-out`.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gatito.errors import UserError
from gatito.tokenizers import TextTokenizer, TokenSequence, Vocabulary
from gatito.tokenizers.patches import PATCH

SCHEMA = 3
MIXTURE = "mixture.json"
HELD_OUT = "held-out"
"""Folder of the held-out episodes of a dataset, below that of the others."""
ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "ids": ("", ()),
    "loss_mask": ("bool", ()),
    "local_positions": ("uint16", ()),
    "patches": ("uint8", (PATCH, PATCH, 3)),
    "patch_intervals": ("uint8", (4,)),
    "timestep_tokens": ("int64", ()),
    "timestep_patches": ("int64", ()),
    "episode_timesteps": ("int64", ()),
    "episode_agents": ("uint16", ()),
    "episode_seeds": ("int64", ()),
    "episode_returns": ("float64", ()),
}
"""File stem to dtype and shape of an entry; ids are uint16 where the vocabulary fits, else uint32."""


def _dtype(name: str, vocabulary: Vocabulary) -> str:
    return ARRAYS[name][0] or ("uint16" if vocabulary.size <= 1 << 16 else "uint32")


def sha256_of(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class StoreWriter:
    """Appends sequences of one dataset to its files; memory stays flat."""

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        """Begin a dataset in a folder that holds none."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.vocabulary = folder, vocabulary
        self._files: dict[str, BinaryIO] = {name: (folder / f"{name}.bin").open("xb") for name in ARRAYS}
        self._hashes = {name: hashlib.sha256() for name in ARRAYS}  # while the bytes are at hand
        self._agents: list[str] = []
        self._tokens = self._patches = self._timesteps = self._episodes = self._targets = 0
        self._modalities = dict.fromkeys(vocabulary.modality_ranges, 0)
        for name in ("timestep_tokens", "timestep_patches", "episode_timesteps"):
            self._append(name, np.zeros(1))

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    @property
    def num_episodes(self) -> int:
        """Episodes, documents or pairs written so far."""
        return self._episodes

    def write(
        self, sequence: TokenSequence, agent: str, seed: int | None = None, total_return: float = math.nan
    ) -> None:
        """Append one episode, document or pair."""
        if agent not in self._agents:
            self._agents.append(agent)
        for name in ("ids", "loss_mask", "local_positions", "patches", "patch_intervals"):
            self._append(name, getattr(sequence, name))
        before = np.concatenate([[0], np.cumsum(sequence.ids == self.vocabulary.patch)])
        starts = sequence.timestep_starts[1:]
        self._append("timestep_tokens", starts + self._tokens)
        self._append("timestep_patches", before[starts] + self._patches)
        self._timesteps += sequence.num_timesteps
        self._append("episode_timesteps", np.array([self._timesteps]))
        self._append("episode_agents", np.array([self._agents.index(agent)]))
        self._append("episode_seeds", np.array([-1 if seed is None else seed]))
        self._append("episode_returns", np.array([total_return]))
        self._tokens += len(sequence)
        self._patches += len(sequence.patches)
        self._targets += int(sequence.loss_mask.sum())
        for name, (start, stop) in self.vocabulary.modality_ranges.items():
            self._modalities[name] += int(np.count_nonzero((sequence.ids >= start) & (sequence.ids < stop)))
        self._episodes += 1

    def close(self, metadata: dict[str, Any]) -> None:
        """Flush and describe the files; `metadata` holds kind, task, layout and the like."""
        for file in self._files.values():
            file.close()
        if self._episodes == 0:
            raise UserError(f"dataset {metadata.get('name')!r} has no episodes left to train on")
        values = {
            "schema": SCHEMA,
            **metadata,
            "agents": self._agents,
            "episodes": self._episodes,
            "timesteps": self._timesteps,
            "tokens": self._tokens,
            "patches": self._patches,
            "targets": self._targets,
            "modalities": self._modalities,
            "sha256": {name: digest.hexdigest() for name, digest in self._hashes.items()},
        }
        (self.folder / "dataset.json").write_text(json.dumps(values, indent=1))

    def _append(self, name: str, values: NDArray[Any]) -> None:
        entries = np.ascontiguousarray(values, _dtype(name, self.vocabulary)).data
        self._files[name].write(entries)
        self._hashes[name].update(entries)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenDataset:
    """One dataset of a store, memory-mapped."""

    folder: Path
    """Where its files are."""
    vocabulary: Vocabulary
    """Id ranges."""
    metadata: dict[str, Any]
    """The contents of `dataset.json`."""
    weight: float = 0.0
    """Share of the rows of a batch; 0 where it is held out."""

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name not in ARRAYS:
            raise AttributeError(name)
        path, dtype = self.folder / f"{name}.bin", _dtype(name, self.vocabulary)
        shape = (-1, *ARRAYS[name][1])
        values = np.zeros(0, dtype) if path.stat().st_size == 0 else np.memmap(path, dtype, "r")
        array = np.asarray(values).reshape(shape)
        self.__dict__[name] = array
        return array

    def __getstate__(self) -> dict[str, Any]:
        """All but the arrays: a worker process maps the files itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ARRAYS}

    @property
    def name(self) -> str:
        """Name of the dataset in its mixture."""
        return str(self.metadata["name"])

    @property
    def kind(self) -> str:
        """`control`, or that of documents: `text`, `pairs` or `documents`."""
        return str(self.metadata["kind"])

    @property
    def num_timesteps(self) -> int:
        """Timesteps in all episodes."""
        return int(self.metadata["timesteps"])

    @property
    def num_episodes(self) -> int:
        """Episodes, documents or pairs."""
        return int(self.metadata["episodes"])

    @cached_property
    def episodes_by_agent(self) -> dict[int, NDArray[np.int64]]:
        """Episode indices of each source agent."""
        agents = self.episode_agents
        return {int(agent): np.flatnonzero(agents == agent) for agent in np.unique(agents)}

    def sequence(self, first: int, last: int) -> TokenSequence:
        """Timesteps [first, last) of the whole dataset."""
        starts = self.timestep_tokens[first : last + 1]
        patch_starts = self.timestep_patches[first : last + 1]
        a, b, p, q = int(starts[0]), int(starts[-1]), int(patch_starts[0]), int(patch_starts[-1])
        return TokenSequence(
            ids=self.ids[a:b].astype(np.int32),
            loss_mask=self.loss_mask[a:b],
            local_positions=self.local_positions[a:b].astype(np.int32),
            patches=self.patches[p:q],
            patch_intervals=self.patch_intervals[p:q],
            timestep_starts=starts - a,
        )

    def episode(self, index: int) -> TokenSequence:
        """All timesteps of one episode."""
        return self.sequence(int(self.episode_timesteps[index]), int(self.episode_timesteps[index + 1]))

    def check_sizes(self) -> None:
        """Compare the size of every file with the counts; raises `UserError` naming the one that is too short."""
        m = self.metadata
        counts = dict.fromkeys(("ids", "loss_mask", "local_positions"), m["tokens"])
        counts |= dict.fromkeys(("patches", "patch_intervals"), m["patches"])
        counts |= dict.fromkeys(("episode_agents", "episode_seeds", "episode_returns"), m["episodes"])
        counts |= {"timestep_tokens": m["timesteps"] + 1, "timestep_patches": m["timesteps"] + 1}
        counts["episode_timesteps"] = m["episodes"] + 1
        for name, count in counts.items():
            path = self.folder / f"{name}.bin"
            if not path.is_file():
                raise UserError(f"{path} is missing; build the store again")
            size = count * np.dtype(_dtype(name, self.vocabulary)).itemsize * math.prod(ARRAYS[name][1])
            if path.stat().st_size != size:
                raise UserError(f"{path} has {path.stat().st_size} bytes, expected {size}; build the store again")

    def verify(self) -> None:
        """Compare every file with its hash; raises `UserError` naming the file that changed."""
        for name, expected in self.metadata["sha256"].items():
            path = self.folder / f"{name}.bin"
            if sha256_of(path) != expected:
                raise UserError(_damaged(path))


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """A built mixture: its datasets, vocabulary and text model."""

    folder: Path
    """Where `mixture.json` is."""
    vocabulary: Vocabulary
    """Id ranges shared by all datasets."""
    text: TextTokenizer
    """The text model shared by all datasets."""
    datasets: tuple[TokenDataset, ...]
    """What is trained on, in the order of the mixture."""
    held_out: tuple[TokenDataset, ...] = ()
    """Held-out episodes and tasks."""

    @cached_property
    def sha256(self) -> str:
        """Hash over all hashes: two stores are the same data where it is equal."""
        where = ("name", "source", "key")  # the same episodes built from another folder are the same data
        kept = [{k: v for k, v in d.metadata.items() if k not in where} | {"weight": d.weight} for d in self.datasets]
        parts = [json.dumps(values, sort_keys=True) for values in kept]
        return hashlib.sha256("".join([self.text.sha256, *parts]).encode()).hexdigest()

    def layouts(self) -> dict[str, dict[str, Any]]:
        """Layout (JSON values) of every control task, held out or not."""
        return layouts_of([*self.datasets, *self.held_out])

    def __iter__(self) -> Iterator[TokenDataset]:
        return iter(self.datasets)


def layouts_of(datasets: Iterable[TokenDataset]) -> dict[str, dict[str, Any]]:
    """Layout (JSON values) of every control task; raises `UserError` where two datasets of a task differ."""
    found: dict[str, TokenDataset] = {}
    for dataset in datasets:
        if dataset.kind == "control":
            first = found.setdefault(dataset.metadata["task"], dataset)
            if first.metadata["layout"] != dataset.metadata["layout"]:
                raise UserError(
                    f"{first.name!r} and {dataset.name!r} are both of task {dataset.metadata['task']!r} and "
                    "differ in their spaces; give one of them another gatito_task in its metadata.json"
                )
    return {task: dataset.metadata["layout"] for task, dataset in found.items()}


def write_mixture(
    folder: Path,
    vocabulary: Vocabulary,
    text: TextTokenizer,
    weights: Mapping[str, float],
    held_out: Mapping[str, Any] | None = None,
) -> None:
    """Write the text model and `mixture.json`, which has a hash of itself and of each `dataset.json`.

    `weights` are those of the datasets, folders below `folder`, that are trained on; `held_out` says by which rule
    others are not (`rule`), and which these are (`datasets`).
    """
    model = folder / "tokenizer.model"
    if not model.is_file():
        model.write_bytes(text.model)
    names = [*weights, *(held_out or {}).get("datasets", [])]
    values = {
        "schema": SCHEMA,
        "vocabulary": vocabulary.to_json(),
        "text_sha256": text.sha256,
        "weights": dict(weights),
        "held_out": dict(held_out or {}),
        "dataset_sha256": {name: sha256_of(folder / name / "dataset.json") for name in names},
    }
    temporary = folder / f".mixture.json.{os.getpid()}"
    temporary.write_text(json.dumps({**values, "sha256": _sha256_of_values(values)}, indent=1))
    temporary.rename(folder / MIXTURE)


def is_store(folder: str | Path) -> bool:
    """Whether a folder is a built store."""
    return (Path(folder) / MIXTURE).is_file()


def read_mixture(folder: Path) -> dict[str, Any]:
    """The contents of `mixture.json`; raises `UserError` where it is damaged or none."""
    path = folder / MIXTURE
    if not path.is_file():
        raise UserError(f"no tokenized store at {folder}: {path} is missing; run gatito data build")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); build the store again") from None
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {schema}, this gatito reads {SCHEMA}; build the store again")
    stated = values.pop("sha256", None)
    if stated != _sha256_of_values(values):
        raise UserError(_damaged(path))
    return dict(values)


def open_store(folder: Path, *, verify: bool = True) -> Store:
    """Open a folder that `gatito data build` wrote; raises `UserError` where it is damaged or none.

    `verify` compares the large files with their hashes; the small ones always are.
    """
    values = read_mixture(folder)
    vocabulary, hashes = Vocabulary(**values["vocabulary"]), values["dataset_sha256"]
    datasets = [
        open_dataset(folder / name, vocabulary, hashes[name], weight) for name, weight in values["weights"].items()
    ]
    held_out = [
        open_dataset(folder / name, vocabulary, hashes[name]) for name in values["held_out"].get("datasets", [])
    ]
    if verify:
        for dataset in (*datasets, *held_out):
            dataset.verify()
    model = folder / "tokenizer.model"
    if model.is_file() and sha256_of(model) != values["text_sha256"]:
        raise UserError(_damaged(model))
    return Store(
        folder=folder,
        vocabulary=vocabulary,
        text=TextTokenizer.load(model),
        datasets=tuple(datasets),
        held_out=tuple(held_out),
    )


def open_dataset(
    folder: Path, vocabulary: Vocabulary, sha256: str | None = None, weight: float = 0.0
) -> TokenDataset:
    """Open one dataset of a store; raises `UserError` where its `dataset.json` has another hash or a file is cut."""
    path = folder / "dataset.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; build the store again")
    if sha256 is not None and sha256 != sha256_of(path):
        raise UserError(_damaged(path))
    metadata = json.loads(path.read_text())
    dataset = TokenDataset(folder=folder, vocabulary=vocabulary, metadata=metadata, weight=weight)
    dataset.check_sizes()
    return dataset


def _sha256_of_values(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path) -> str:
    return f"{path} does not match its SHA-256; the file is damaged, build the store again"
