"""Minari datasets of others, with or without their environment: all of it, or the parts that `--map` names."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from gatito.data.formats.source import (
    EpisodeSource,
    ImportConfig,
    RawEpisode,
    SourceField,
    Space,
    Values,
    kept_metadata,
    timesteps_of,
)
from gatito.data.minari_episodes import EXPLORATORY, open_minari
from gatito.errors import UserError
from gatito.tokenizers.fields import Path, value_at


class MinariEpisodes(EpisodeSource):
    """A dataset by folder, or by id below `MINARI_DATASETS_PATH`."""

    def __init__(self, config: ImportConfig, given: tuple[Space, Space] | None) -> None:
        """Open it; raises `UserError` where it is damaged or none."""
        self.source = open_minari(config.location)
        dataset = self.source.dataset
        stated = dataset.storage.metadata
        self.metadata = kept_metadata(stated, str(self.source.path))
        self._whole = not config.mapping
        leaves = [
            *_leaves(dataset.observation_space, ("observations",)),
            *_leaves(dataset.action_space, ("actions",)),
        ]
        self._leaves = {"/".join(map(str, path)): (path, leaf) for path, leaf in leaves}
        if len(self._leaves) < len(leaves):
            raise UserError(f"{self.source.path}: two fields of its spaces have one name; rename the key with a '/'")
        found = [
            *(_field(name, leaf) for name, (_, leaf) in self._leaves.items()),
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
        parts = {name: self._leaves[f.name][1] for name, f in self.observed.items()}
        seen = parts[""] if "" in parts else spaces.Dict(parts)
        return seen, self._leaves[self._roles["action"].name][1]

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
            values = {f.name: self._values(data, f.name) for f in self.fields if f.role}
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

    def _values(self, data: Any, name: str) -> Any:
        """The values of a field in an episode."""
        return value_at(data, self._leaves[name][0] if name in self._leaves else (name,))

    def column(self, name: str) -> Iterator[Values]:
        """Yield the values of one field, an episode at a time."""
        for index in range(len(self.source)):
            yield self._values(self.source.read(index)[0], name)


def _leaves(space: Space, path: Path) -> Iterator[tuple[Path, Space]]:
    """Where each leaf is, and what it is; a key may hold the '/' that separates the keys of a name."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, space


def _field(name: str, leaf: Space) -> SourceField:
    dtype = "text" if isinstance(leaf, spaces.Text) else str(leaf.dtype)
    return SourceField(name=name, dtype=dtype, shape=tuple(leaf.shape or ()))
