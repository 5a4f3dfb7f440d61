"""Minari datasets to episodes and back. The last, action-less observation is dropped here and nowhere else."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from gatito.data.episode import Episode, rows
from gatito.errors import UserError
from gatito.tokenizers.fields import fields_of

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
    """Source agent (`algorithm_name`)."""
    executed: bool
    """Whether the recorded actions are the executed ones, rather than the expert's."""

    def __len__(self) -> int:
        return int(self.dataset.total_episodes)

    def episodes(self) -> Iterator[Episode]:
        """Yield every episode, in order."""
        for i in range(len(self)):
            yield self.episode(i)

    def episode(self, index: int) -> Episode:
        """Read one episode; raises `UserError` where it is not there, its file is broken or a reward is NaN."""
        if not 0 <= index < len(self):
            raise UserError(f"{self.path}: no episode {index}; it has {len(self)}, 0 to {len(self) - 1}")
        try:
            data = self.dataset[index]
        except (OSError, ValueError, KeyError, IndexError, RuntimeError, StopIteration) as error:
            # A missing part file arrives as a StopIteration, or as the RuntimeError that a generator makes of it.
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.path}, episode {index}: cannot be read ({reason}); collect it again") from None
        return self._episode(index, data)

    def _episode(self, index: int, data: Any) -> Episode:
        T, rewards = len(data.rewards), np.asarray(data.rewards, np.float64)
        if not np.isfinite(rewards).all():
            t = int(np.argmin(np.isfinite(rewards)))
            raise UserError(
                f"{self.path}, episode {index}, timestep {t}: the reward is {rewards[t]}; repair or drop the episode"
            )
        exploratory = np.zeros(T, np.bool_)
        if self.executed and EXPLORATORY in (data.infos or {}):
            exploratory = np.asarray(data.infos[EXPLORATORY]).reshape(-1)[:T].astype(np.bool_)
        return Episode(
            task=self.task,
            id=index,
            agent=self.agent,
            observations=rows(data.observations, T),
            actions=rows(data.actions, T),
            rewards=rewards,
            targets=~exploratory,
        )


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
    )


def open_minari(location: str | Path) -> MinariSource:
    """Open a Minari dataset by folder, or by id below `MINARI_DATASETS_PATH`."""
    path = Path(location)
    if not path.exists():
        root = Path(os.environ.get("MINARI_DATASETS_PATH", Path.home() / ".minari/datasets"))
        path = root / str(location)
    metadata = path / "data" / "metadata.json"
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
    try:
        dataset = minari.MinariDataset(MinariStorage.read(path / "data"))
    except ImportError as error:
        raise UserError(f"{path}: {error}; pip install 'minari[hdf5]'") from None
    except (ValueError, KeyError, AssertionError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: Minari cannot open it ({type(error).__name__}: {error}); collect it again"
        ) from None
    if dataset.total_episodes == 0:
        raise UserError(f"{path}: the dataset has no episodes")
    return MinariSource(
        path=path,
        dataset=dataset,
        task=str(values.get("gatito_task", values.get("dataset_id", path.name))),
        agent=str(values.get("algorithm_name", "unknown")),
        executed=values.get("gatito_actions", "executed") == "executed",
    )


class MinariWriter:
    """Writes episodes in chunks into a Minari dataset (Arrow, lossless images)."""

    def __init__(self, folder: Path, dataset_id: str, env: gym.Env[Any, Any], metadata: dict[str, Any]) -> None:
        """Start a dataset in `folder`; `metadata` is added to Minari's own keys.

        Raises `UserError` for spaces that could not be tokenized later; Minari stores all the others.
        """
        try:
            fields_of(env.observation_space, "observation")
            fields_of(env.action_space, "action")
        except UserError as error:
            raise UserError(f"{dataset_id}: {error}") from None
        self.folder = folder.absolute()  # Minari adds up sizes of absolute paths only
        self._storage = MinariStorage.new(
            self.folder / "data", env.observation_space, env.action_space, None, "arrow", jpeg_encoding=False
        )
        # Minari walks the whole folder after every episode to add up its size: quadratic, 10 s at 600 episodes.
        self._get_size = self._storage.get_size
        self._storage.get_size = lambda: 0.0
        self._storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__, **metadata})

    def write(self, buffers: Iterable[EpisodeBuffer]) -> None:
        """Append a chunk of episodes."""
        self._storage.update_episodes(buffers)

    def close(self) -> None:
        """Complete the metadata."""
        self._storage.update_metadata({"dataset_size": self._get_size()})
