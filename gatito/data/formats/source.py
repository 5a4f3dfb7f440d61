"""A dataset in another format, as an importer sees it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from minari.data_collector import EpisodeBuffer


@dataclass(frozen=True, kw_only=True)
class SourceField:
    """One field of a dataset, as its files call it."""

    name: str
    """Such as `observation.state`, `obs/object` or `image_observations`."""
    dtype: str
    """Of its values: a numpy dtype, `text`, `image` or `video`."""
    shape: tuple[int | None, ...]
    """Of one timestep; None where it varies."""
    role: str = ""
    """What it is taken for: `observation`, `observation.NAME`, `action`, `reward`, `terminated`, `truncated`; empty
    where it is left out."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What `gatito data import` imports; an `EpisodeSource` is opened from it anew in every process."""

    source: str
    """`minari:FOLDER_OR_ID`, `hf:REPO/CONFIG` or `hf:FOLDER`, `lerobot:FOLDER`, `hdf5:FILE`."""
    task: str
    """Task id that the episodes are of."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Role to the name of the field that is taken for it, where the format alone does not say."""
    agent: str | None = None
    """Who acted; null is what the source says."""


class EpisodeSource(ABC):
    """An opened dataset. Nothing in it chooses code to run, and it is never written to."""

    fields: tuple[SourceField, ...]
    """What was found, and what each is taken for."""
    observation_space: gym.Space[Any]
    """Of the imported episodes: from the file where it states one, else from what the values can be."""
    action_space: gym.Space[Any]
    """Likewise."""
    metadata: dict[str, Any]
    """Of the dataset: `algorithm_name`, `gatito_license`, `description`, `gatito_last_observation` (`stored` or
    `repeated`: formats without the observation after the last action get the one before it once more)."""

    @property
    @abstractmethod
    def num_episodes(self) -> int | None:
        """How many there are; None where a stream does not say."""

    @abstractmethod
    def episodes(self, first: int = 0, last: int | None = None) -> Iterator[tuple[EpisodeBuffer, dict[str, Any]]]:
        """Yield episodes [first, last): T + 1 observations and T actions, and what is said of each beside (`agent`).

        Raises `UserError`, naming file, episode, timestep and field, for what cannot be an episode.
        """
