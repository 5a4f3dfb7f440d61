"""Minari datasets of others, with or without their environment: all of it, or the parts that `--map` names."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from gatito.data.formats.source import (
    KEPT,
    EpisodeSource,
    ImportConfig,
    RawEpisode,
    SourceField,
    Space,
    Values,
    timesteps_of,
)
from gatito.data.minari_episodes import EXPLORATORY, open_minari
from gatito.errors import UserError


class MinariEpisodes(EpisodeSource):
    """A dataset by folder, or by id below `MINARI_DATASETS_PATH`."""

    def __init__(self, config: ImportConfig, given: tuple[Space, Space] | None) -> None:
        """Open it; raises `UserError` where it is damaged or none."""
        self.source = open_minari(config.location)
        dataset = self.source.dataset
        stated = dataset.storage.metadata
        self.metadata = {key: stated[key] for key in KEPT if stated.get(key) is not None}
        self._whole = not config.mapping
        found = [
            *_leaves("observations", dataset.observation_space),
            *_leaves("actions", dataset.action_space),
            SourceField(name="rewards", dtype="float64", shape=()),
            SourceField(name="terminations", dtype="bool", shape=()),
            SourceField(name="truncations", dtype="bool", shape=()),
        ]
        first = {part: next(f.name for f in found if f.name.startswith(part)) for part in ("observations", "actions")}
        guessed = {
            "observation": first["observations"], "action": first["actions"], "reward": "rewards",
            "terminated": "terminations", "truncated": "truncations",
        }  # fmt: skip
        if config.mapping and "action" not in config.mapping and first["actions"] != "actions":
            del guessed["action"]
        super().__init__(config, found, guessed, given)

    def stated_spaces(self) -> tuple[Space, Space] | None:
        """Those of the dataset, or of its parts."""
        dataset = self.source.dataset
        if self._whole:
            return dataset.observation_space, dataset.action_space
        parts = {
            role.partition(".")[2]: _space_at(dataset.observation_space, f.name)
            for role, f in self._roles.items()
            if role.startswith("observation")
        }
        seen = parts[""] if "" in parts else spaces.Dict(parts)
        return seen, _space_at(dataset.action_space, self._roles["action"].name)

    @property
    def num_episodes(self) -> int:
        """How many there are."""
        return len(self.source)

    def raw_episodes(self, first: int, last: int) -> Iterator[RawEpisode]:
        """Yield the episodes [first, last), in order."""
        for index in range(first, last):
            where = f"{self.source.path}, episode {index}"
            self.source.episode(index)  # raises for what is broken
            data, metadata = self.source.read(index)
            values = {f.name: _value_at(data, f.name) for f in self.fields if f.role}
            if self._whole:
                roles = self._roles
                values[roles["observation"].name] = timesteps_of(data["observations"])
                values[roles["action"].name] = timesteps_of(data["actions"])
            agent = str(metadata.get("agent", self.source.agent))
            infos = data["infos"] or {}
            explored = np.asarray(infos[EXPLORATORY]).reshape(-1).astype(np.bool_) if EXPLORATORY in infos else None
            yield RawEpisode(
                where=where,
                values=values,
                agent=agent,
                seed=metadata.get("seed"),
                exploratory=None if explored is None else explored[: len(data["rewards"])],
            )

    def column(self, name: str) -> Iterator[Values]:
        """Yield the values of one field, an episode at a time."""
        for index in range(len(self.source)):
            yield _value_at(self.source.read(index)[0], name)


def _leaves(name: str, space: Space) -> list[SourceField]:
    if isinstance(space, spaces.Dict):
        return [f for key, inner in space.spaces.items() for f in _leaves(f"{name}/{key}", inner)]
    if isinstance(space, spaces.Tuple):
        return [f for i, inner in enumerate(space.spaces) for f in _leaves(f"{name}/{i}", inner)]
    dtype = "text" if isinstance(space, spaces.Text) else str(space.dtype)
    return [SourceField(name=name, dtype=dtype, shape=tuple(space.shape or ()))]


def _space_at(space: Space, name: str) -> Space:
    for key in name.split("/")[1:]:
        if not isinstance(space, spaces.Dict | spaces.Tuple):
            raise UserError(f"--map: {name} is no part of the dataset's space {space}")
        space = space.spaces[key] if isinstance(space, spaces.Dict) else space.spaces[int(key)]
    return space


def _value_at(data: Any, name: str) -> Any:
    for key in name.split("/"):
        data = data[int(key)] if isinstance(data, tuple) else data[key]
    return data
