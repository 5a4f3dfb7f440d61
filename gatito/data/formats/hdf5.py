"""HDF5 files in the layouts of D4RL and robomimic, or flat ones whose fields are named by `--map`.

D4RL        observations, actions, rewards, terminals, timeouts: all episodes end to end
robomimic   data/demo_0/{obs/NAME, next_obs/NAME, actions, rewards, dones}: a group for each episode
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.data.formats.source import (
    REWARD,
    TERMINATED,
    TRUNCATED,
    EpisodeSource,
    ImportConfig,
    RawEpisode,
    SourceField,
    Space,
    Values,
    flags_of,
)
from gatito.data.hdf5 import open_hdf5
from gatito.errors import UserError

DEMO = re.compile(r"demo_(\d+)")
STRETCH = 1 << 16
"""Rows that are looked at at a time."""


def open_hdf5_source(config: ImportConfig, given: tuple[Space, Space] | None) -> EpisodeSource:
    """The source of a file, by what is in it."""
    path = Path(config.location)
    with open_hdf5(path) as root:
        grouped = "data" in root and any(DEMO.fullmatch(name) for name in root["data"])
    return GroupedHdf5(config, path, given) if grouped else FlatHdf5(config, path, given)


class FlatHdf5(EpisodeSource):
    """All episodes end to end in datasets of N rows, as in D4RL."""

    def __init__(self, config: ImportConfig, path: Path, given: tuple[Space, Space] | None) -> None:
        """Open a file; raises `UserError` where nothing says where its episodes end."""
        self.path = path
        with open_hdf5(path) as root:
            found = _fields_of(root, "", rows=_rows(root))
            self.metadata = {"description": f"episodes of {path.name}"}
        names = {f.name for f in found}
        known = {
            "observation": "observations", "action": "actions", REWARD: "rewards",
            TERMINATED: "terminals", TRUNCATED: "timeouts",
        }  # fmt: skip
        guessed = {role: name for role, name in known.items() if name in names}
        super().__init__(config, found, guessed, given)
        self._edges = self._find_edges()

    @property
    def num_episodes(self) -> int:
        """How many there are."""
        return len(self._edges) - 1

    def raw_episodes(self, first: int, last: int) -> Iterator[RawEpisode]:
        """Yield the episodes [first, last), in order; what follows the last end is one that was cut."""
        kept = [f.name for f in self.fields if f.role]
        observed = self._roles.get("observation")
        with open_hdf5(self.path) as root:
            following = None
            if observed is not None and observed.name == "observations" and "next_observations" in root:
                following = _same_shape(root["next_observations"], root["observations"])
            for i in range(first, last):
                begin, end = self._edges[i : i + 2]
                values = {name: _read(root[name], begin, end) for name in kept}
                if following is not None:
                    values["observations"] = np.append(values["observations"], following[end - 1 : end], axis=0)
                if {TERMINATED, TRUNCATED} <= self._roles.keys():  # where a row says both it terminated
                    terminated, truncated = (self._roles[role].name for role in (TERMINATED, TRUNCATED))
                    values[truncated] = values[truncated].astype(np.bool_) & ~values[terminated].astype(np.bool_)
                yield RawEpisode(where=f"{self.path}, episode {i}", values=values)

    def column(self, name: str) -> Iterator[Values]:
        """Yield the values of one field, a stretch at a time."""
        with open_hdf5(self.path) as root:
            yield from _stretches(root[name])

    def _find_edges(self) -> list[int]:
        """Row at which each episode begins, and the number of rows."""
        ends: list[NDArray[np.int64]] = []
        with open_hdf5(self.path) as root:
            N = len(root[self._roles["action"].name])
            for role in (TERMINATED, TRUNCATED):
                if role in self._roles:
                    name = self._roles[role].name
                    flags = flags_of(root[name][:], f"{self.path}, {name}")
                    if len(flags) != N:
                        raise UserError(
                            f"{self.path}: {name} has {len(flags)} rows, there are {N} actions; repair it"
                        )
                    ends.append(np.flatnonzero(flags) + 1)
        edges = sorted({0, N, *(int(end) for found in ends for end in found)})
        limit = self.config.max_episode_steps
        if limit is not None:
            edges = [*(start for first, last in pairwise(edges) for start in range(first, last, limit)), N]
        elif TRUNCATED not in self._roles:
            raise UserError(
                f"{self.path}: no field says which episodes were cut (timeouts); name it with --map truncated=FIELD, "
                "or give the limit with --max-episode-steps"
            )
        return edges


class GroupedHdf5(EpisodeSource):
    """A group for each episode, as in robomimic. All are taken: its filter keys (`mask`) are not looked at."""

    def __init__(self, config: ImportConfig, path: Path, given: tuple[Space, Space] | None) -> None:
        """Open a file."""
        self.path = path
        with open_hdf5(path) as root:
            numbered = {int(match[1]): name for name in root["data"] if (match := DEMO.fullmatch(name))}
            self._demos = [numbered[number] for number in sorted(numbered)]
            first = root["data"][self._demos[0]]
            found = _fields_of(first, "", rows=_rows(first))
            self.metadata = {"description": f"demonstrations of {path.name}"}
        names = {f.name for f in found}
        guessed = {f"observation.{n.removeprefix('obs/')}": n for n in sorted(names) if n.startswith("obs/")}
        known = {"action": "actions", REWARD: "rewards", TERMINATED: "dones"}
        super().__init__(config, found, guessed | {r: n for r, n in known.items() if n in names}, given)

    @property
    def num_episodes(self) -> int:
        """How many there are."""
        return len(self._demos)

    def raw_episodes(self, first: int, last: int) -> Iterator[RawEpisode]:
        """Yield the episodes [first, last), by number; `next_obs` has the observation after the last action."""
        kept = [f.name for f in self.fields if f.role]
        with open_hdf5(self.path) as root:
            for demo in self._demos[first:last]:
                group, where = root["data"][demo], f"{self.path}, {demo}"
                for name in kept:
                    if name not in group:
                        raise UserError(
                            f"{where}: {name} is missing, the first demonstration has it; repair the file"
                        )
                values = {name: _read(group[name], 0, len(group[name])) for name in kept}
                for name in kept:
                    after = name.replace("obs/", "next_obs/", 1)
                    if name.startswith("obs/") and after in group:
                        following = _same_shape(group[after], group[name])
                        values[name] = np.append(values[name], following[-1:], axis=0)
                yield RawEpisode(where=where, values=values)

    def column(self, name: str) -> Iterator[Values]:
        """Yield the values of one field, a stretch at a time."""
        with open_hdf5(self.path) as root:
            for demo in self._demos:
                yield from _stretches(root["data"][demo][name])


def _same_shape(following: Any, observed: Any) -> Any:
    """What was observed after each action; raises `UserError` where it is not as much as before each."""
    shape = getattr(following, "shape", None)
    if shape != observed.shape:
        told = f"{following.name} has shape {shape}, {observed.name} {observed.shape}"
        raise UserError(f"{observed.file.filename}: {told}; repair the file")
    return following


def _rows(group: Any) -> int | None:
    """Rows of `actions`, where there are any."""
    return len(group["actions"]) if "actions" in group and group["actions"].ndim else None


def _fields_of(group: Any, prefix: str, rows: int | None) -> list[SourceField]:
    """The datasets below a group that have as many rows as there are actions; where these are unknown, all."""
    found: list[SourceField] = []
    for name in group:
        member = group[name]
        if hasattr(member, "keys"):
            found += _fields_of(member, f"{prefix}{name}/", rows)
        elif _is_field(member, rows):
            found.append(SourceField(name=prefix + name, dtype=str(member.dtype), shape=member.shape[1:]))
    return found


def _is_field(member: Any, rows: int | None) -> bool:
    """Whether a dataset has numbers, one row for each timestep."""
    if not hasattr(member, "shape") or not member.ndim or member.dtype.kind not in "biuf":
        return False
    return rows is None or len(member) == rows


def _read(dataset: Any, first: int, last: int) -> NDArray[Any]:
    return np.asarray(dataset[first:last])


def _stretches(dataset: Any) -> Iterator[NDArray[Any]]:
    for first in range(0, len(dataset), STRETCH):
        yield _read(dataset, first, first + STRETCH)
