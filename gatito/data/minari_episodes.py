"""Minari datasets to episodes and back. The last, action-less observation is dropped here and nowhere else."""

import contextlib
import errno
import importlib.util
import itertools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from gatito.data.episode import Episode, rows
from gatito.data.hdf5 import open_hdf5
from gatito.data.minari_arrow import (
    FILE,
    METADATA,
    EncodedEpisode,
    encode_episode,
    is_one_file,
    read_episode,
    read_metadata,
    write_episode,
)
from gatito.data.previous_reward import rewarded_episode, rewarded_space
from gatito.errors import UserError, reason_of
from gatito.tokenizers.fields import fields_of

HDF5 = "main_data.hdf5"
"""The file that holds all episodes, in Minari's own default format."""

EXPLORATORY = "exploratory"
"""Info key: (T + 1, 1) booleans, True where a random action was executed."""


@dataclass(frozen=True, kw_only=True)
class MinariSource:
    """An opened Minari dataset. Its environment is never built: the spec in the file is a label."""

    path: Path
    """Folder that holds `data/`."""
    dataset: minari.MinariDataset
    """For its spaces and raw episodes."""
    task: str
    """Task id, from the metadata or the dataset id."""
    agent: str
    """Source agent (`algorithm_name`) of episodes that name none of their own."""
    license: str
    """Of the simulator, where it is known (`gatito_license`)."""
    executed: bool
    """Whether the recorded actions are the executed ones, rather than the expert's."""
    previous_reward: bool = False
    """Whether its observations are given the reward before them, see `previous_reward`."""

    def __len__(self) -> int:
        return int(self.dataset.total_episodes)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of its episodes; raises `UserError` where the reward is to be added to one that has it."""
        space = self.dataset.observation_space
        return rewarded_space(space) if self.previous_reward else space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of its episodes."""
        return self.dataset.action_space

    def stated(self, name: Literal["ref_min_score", "ref_max_score"]) -> float | None:
        """The return of the random policy, or of the expert, that the metadata states; None where it does not.

        Raises `UserError` where it is no finite number.
        """
        value = self.dataset.storage.metadata.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self.path}: its metadata has {name} {value!r}, expected a finite number; repair it")
        return float(value)

    def episodes(self) -> Iterator[Episode]:
        """Yield every episode, in order."""
        for i in range(len(self)):
            yield self.episode(i)

    def episode(self, index: int) -> Episode:
        """Read one episode.

        Raises `UserError` where it is not there, its file is broken, its parts differ in length, it goes on after
        its end, or a reward is NaN.
        """
        if not 0 <= index < len(self):
            raise UserError(f"{self.path}: no episode {index}; it has {len(self)}, 0 to {len(self) - 1}")
        where = f"{self.path}, episode {index}"
        try:
            data, metadata = self.read(index)
        except (
            OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, StopIteration, AttributeError
        ) as error:  # fmt: skip
            # A missing part file of Minari's own arrives as a StopIteration, or as the RuntimeError of a generator.
            raise UserError(f"{where}: cannot be read ({reason_of(error)}); {remedy(self.path)}") from None
        seed = metadata.get("seed")
        if seed is not None and (type(seed) is not int or seed < 0):
            raise UserError(f"{where}: its metadata has the seed {seed!r}, allowed whole numbers from 0; repair it")
        if metadata.get("id", index) != index:
            said = f"its metadata says it is episode {metadata['id']}; episodes are mixed up"
            raise UserError(f"{where}: {said}, {remedy(self.path)}")
        stated, T = metadata.get("total_steps"), len(data["rewards"])
        if stated is not None and stated != T:
            raise UserError(f"{where}: its metadata states {stated} timesteps, its file has {T}; {remedy(self.path)}")
        episode = self._episode(index, data, metadata, where)
        return rewarded_episode(episode) if self.previous_reward else episode

    def metadata(self, index: int) -> dict[str, Any]:
        """What is said of an episode beside its arrays: seed, source agent, number of steps."""
        try:
            return dict(next(iter(self.dataset.storage.get_episode_metadata([index]))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = reason_of(error)
            raise UserError(f"{self.path}, episode {index}: no metadata ({reason}); {remedy(self.path)}") from None

    def read(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arrays of an episode as they are stored, with T + 1 observations, and its metadata."""
        folder, storage = self.path / "data", self.dataset.storage
        if storage.FORMAT == "arrow" and not any((folder / str(index)).glob("*.arrow")):
            raise FileNotFoundError(errno.ENOENT, "", str(folder / str(index) / FILE))
        if storage.FORMAT == "arrow" and not storage.jpeg_encoding and is_one_file(folder, index):
            metadata = read_metadata(folder, index)
            spaces = (storage.observation_space, storage.action_space)
            return read_episode(folder, index, *spaces, metadata.get("sha256")), metadata
        return dict(next(iter(storage.get_episodes([index])))), self.metadata(index)

    def _episode(self, index: int, data: dict[str, Any], metadata: dict[str, Any], where: str) -> Episode:
        rewards = np.asarray(data["rewards"], np.float64)
        T = len(rewards)
        if T == 0:
            raise UserError(f"{where}: it has no timesteps; drop it")
        for name, expected in (("observations", T + 1), ("actions", T)):
            for path, length in lengths(data[name]):
                if length != expected:
                    field = " ".join([name, *path])
                    raise UserError(f"{where}: {field} has {length} rows, expected {expected} of {T} timesteps")
        if not np.isfinite(rewards).all():
            t = int(np.argmin(np.isfinite(rewards)))
            raise UserError(f"{where}, timestep {t}: the reward is {rewards[t]}; repair or drop the episode")
        ends = np.asarray(data["terminations"], np.bool_) | np.asarray(data["truncations"], np.bool_)
        if ends[:-1].any():
            t = int(np.argmax(ends))
            raise UserError(f"{where}, timestep {t}: the episode ends here but goes on until {T - 1}; cut it in two")
        exploratory = np.zeros(T, np.bool_)
        if self.executed and EXPLORATORY in (data["infos"] or {}):
            exploratory = np.asarray(data["infos"][EXPLORATORY]).reshape(-1)[:T].astype(np.bool_)
        return Episode(
            task=self.task,
            id=index,
            agent=str(metadata.get("agent", self.agent)),
            observations=rows(data["observations"], T),
            actions=rows(data["actions"], T),
            rewards=rewards,
            targets=~exploratory,
            seed=metadata.get("seed"),
        )


def lengths(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """The name and number of rows of each leaf of a nested value."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, tuple) else None
    if children is None:
        yield path, len(tree)
        return
    for name, child in children:
        yield from lengths(child, (*path, str(name)))


def episode_from_buffer(buffer: EpisodeBuffer, task: str, agent: str) -> Episode:
    """The episode of a buffer that was just collected with the expert's actions."""
    T = len(buffer.rewards)
    return Episode(
        task=task,
        id=buffer.id or 0,
        agent=agent,
        observations=rows(buffer.observations, T),
        actions=rows(buffer.actions, T),
        rewards=np.asarray(buffer.rewards, np.float64),
        targets=np.ones(T, np.bool_),
        seed=buffer.seed,
    )


def is_dataset(folder: str | Path) -> bool:
    """Whether a folder is a Minari dataset, be it one whose metadata.json is missing."""
    data = Path(folder) / "data"
    return (data / METADATA).is_file() or (data / HDF5).is_file() or any(data.glob(f"*/{METADATA}"))


def remedy(path: Path) -> str:
    """What helps where a dataset is damaged: `collect` leaves what is there alone, and cannot make a foreign one."""
    said = [path / "data" / METADATA, *itertools.islice((path / "data").glob(f"*/{METADATA}"), 1)]
    ours = False
    for file in said:
        with contextlib.suppress(OSError, ValueError):
            ours |= any(mark in file.read_text() for mark in ('"gatito_collection"', '"sha256"'))
    return f"remove {path} and collect it again" if ours else "repair or drop it"


def open_minari(location: str | Path) -> MinariSource:
    """Open a Minari dataset by folder, or by id below `MINARI_DATASETS_PATH`."""
    path = Path(location)
    if not path.exists():
        root = Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari/datasets"))
        path = root / str(location)
    metadata = path / "data" / "metadata.json"
    if not metadata.is_file() and is_dataset(path):
        raise UserError(f"{metadata} is missing though there are episodes beside it; {remedy(path)}")
    if not metadata.is_file():
        raise UserError(f"no Minari dataset at {location}: {metadata} is missing; give the folder that holds 'data/'")
    try:
        values = json.loads(metadata.read_text())
    except ValueError as error:
        raise UserError(f"{metadata}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{metadata}: {type(values).__name__}, expected an object of Minari's metadata")
    for key in ("observation_space", "action_space", "total_episodes"):
        if key not in values:
            raise UserError(f"{metadata}: {key!r} is missing; gatito reads spaces from the file, never from code")
    for key in ("total_episodes", "total_steps"):
        if key in values and (type(values[key]) is not int or values[key] < 0):
            raise UserError(f"{metadata}: {key} is {values[key]!r}, expected a whole number; {remedy(path)}")
    if values.get("data_format") == "hdf5":
        _check_hdf5(path / "data" / HDF5)
    try:
        dataset = minari.MinariDataset(MinariStorage.read(path / "data"))
    except ImportError as error:
        raise UserError(f"{path}: {error}; pip install 'minari[hdf5]'") from None
    except (ValueError, KeyError, AssertionError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: Minari cannot open it ({type(error).__name__}: {error}); {remedy(path)}") from None
    if dataset.total_episodes == 0:
        raise UserError(f"{path}: the dataset has no episodes")
    return MinariSource(
        path=path,
        dataset=dataset,
        task=str(values.get("gatito_task", values.get("dataset_id", path.name))),
        agent=str(values.get("algorithm_name", "unknown")),
        license=str(values.get("gatito_license", "")),
        executed=values.get("gatito_actions", "executed") == "executed",
    )


def _check_hdf5(file: Path) -> None:
    """Raise `UserError` for a file that would have others read; without h5py Minari says what to install."""
    if importlib.util.find_spec("h5py") is not None:
        with open_hdf5(file):
            pass


class HasSpaces(Protocol):
    """An environment, or a source of episodes of one."""

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]


def check_spaces(env: HasSpaces, name: str) -> None:
    """Raise `UserError` for spaces that cannot be tokenized."""
    try:
        fields_of(env.observation_space, "observation")
        fields_of(env.action_space, "action")
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


class MinariWriter:
    """Writes episodes one after the other into a Minari dataset (Arrow, lossless images)."""

    def __init__(self, folder: Path, dataset_id: str, env: HasSpaces, metadata: dict[str, Any]) -> None:
        """Start a dataset in `folder`; `metadata` is added to Minari's own keys.

        Raises `UserError` for spaces that could not be tokenized later; Minari stores all the others.
        """
        check_spaces(env, dataset_id)
        self.folder = folder
        self._spaces = (env.observation_space, env.action_space)
        self._storage = MinariStorage.new(self.folder / "data", *self._spaces, None, "arrow", jpeg_encoding=False)
        self._storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__, **metadata})
        self._episodes = self._steps = self._size_bytes = 0

    def write(self, buffer: EpisodeBuffer, **metadata: Any) -> None:
        """Append an episode; `metadata` is said of it alone, such as its source agent."""
        self.append(encode_episode(buffer, *self._spaces, metadata))

    def append(self, episode: EncodedEpisode) -> None:
        """Append an episode that was encoded in the spaces of this dataset."""
        self._size_bytes += write_episode(self.folder / "data", self._episodes, episode)
        self._episodes += 1
        self._steps += episode.metadata["total_steps"]

    def close(self, **metadata: Any) -> None:
        """Complete the metadata."""
        self._storage.update_metadata(
            {
                "total_episodes": self._episodes,
                "total_steps": self._steps,
                "dataset_size": round(self._size_bytes / 1e6, 1),  # in MB, as Minari counts
                **metadata,
            }
        )
