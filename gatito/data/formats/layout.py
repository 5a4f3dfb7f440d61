"""How a Minari dataset of any spaces stands in columns: JAT's names where its spaces are JAT's, paths elsewhere.

It goes along in the parquet files' metadata as JSON, so that importing them gives what was exported to the bit.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from gymnasium import spaces
from minari.serialization import deserialize_space, serialize_space
from numpy.typing import NDArray

from gatito.data.formats.columns import row_values
from gatito.data.formats.source import (
    FRAME_KEYS,
    FRAMES,
    REWARD,
    TERMINATED,
    TRUNCATED,
    RawEpisode,
    Space,
    Values,
    timesteps_of,
)
from gatito.data.minari_episodes import EXPLORATORY
from gatito.errors import UserError
from gatito.tokenizers.fields import Path, build_tree, image_problem, value_at

MARK = b"gatito"
"""Key of the parquet metadata."""
Kind = Literal["image", "continuous", "discrete", "text"]
LAST = "last_"
"""In front of the column that holds an episode's last observation, after which there is no action."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column, and the leaf of a space that it holds."""

    name: str
    """Of the column."""
    part: Literal["observations", "actions"]
    """Which space."""
    path: Path
    """Of the leaf, or, of stacked frames, of their Dict."""
    kind: Kind
    """Of its values."""
    dtype: str
    """numpy dtype of its values; `str` of texts."""
    shape: tuple[int, ...]
    """Of one value."""
    stacked: bool = False
    """Whether it holds four grey frames as one picture of four channels."""


@dataclass(frozen=True, kw_only=True)
class ColumnLayout:
    """All columns of a dataset."""

    observation_space: Space
    action_space: Space
    columns: tuple[Column, ...]

    @classmethod
    def of(cls, observation_space: Space, action_space: Space, name: "Namer | None" = None) -> "ColumnLayout":
        """Name a column for each leaf of the spaces: as JAT does, or by `name`, which leaves no frames stacked."""
        named = _named if name is None else partial(_each, name=name)
        columns = (*named("observations", observation_space), *named("actions", action_space))
        return cls(observation_space=observation_space, action_space=action_space, columns=columns)

    def to_json(self) -> str:
        """The spaces as Minari writes them, and the columns."""
        return json.dumps(
            {
                "observation_space": serialize_space(self.observation_space),
                "action_space": serialize_space(self.action_space),
                "columns": [asdict(column) for column in self.columns],
            }
        )

    @classmethod
    def from_json(cls, text: bytes | str, where: str, name: "Namer | None" = None) -> "ColumnLayout":
        """Undo `to_json`; raises `UserError`, naming `where`, for what it did not write."""
        try:
            values = json.loads(text)
            seen, done = (deserialize_space(values[name]) for name in ("observation_space", "action_space"))
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
            raise UserError(f"{where}: its gatito metadata cannot be read ({error}); export it again") from None
        layout = cls.of(seen, done, name)
        if json.loads(layout.to_json())["columns"] != values.get("columns"):
            raise UserError(f"{where}: its gatito metadata names other columns than its spaces have; export it again")
        return layout

    def tree(self, part: str, values: Mapping[str, Any]) -> Any:
        """Column name to values with a leading time axis, nested as the space."""
        leaves: dict[Path, Any] = {}
        for column in self.columns:
            if column.part == part:
                found = values[column.name]
                if column.stacked:
                    frames = zip(FRAME_KEYS, np.split(found, FRAMES, axis=-1), strict=True)
                    leaves |= {(*column.path, key): frame for key, frame in frames}
                else:
                    leaves[column.path] = found
        return build_tree(leaves)

    def roles(self, ends: Sequence[str] = ()) -> dict[str, str]:
        """The first column of each space, which stands for all of it once read; then those of rewards and `ends`."""
        firsts = {
            role: next(column.name for column in self.columns if column.part == part)
            for role, part in (("observation", "observations"), ("action", "actions"))
        }
        return firsts | dict(zip((REWARD, TERMINATED, TRUNCATED), ends, strict=False))

    def beside(self) -> list[str]:
        """Columns that hold a value for each episode."""
        lasts = [LAST + column.name for column in self.columns if column.part == "observations"]
        return [*lasts, EXPLORATORY, "seed", "agent"]


def own_episode(layout: ColumnLayout, values: Mapping[str, Values], beside: pa.RecordBatch, where: str) -> RawEpisode:
    """An episode that was exported: its columns of T values, and one row of what is said of it once.

    Raises `UserError` where a column of the latter is missing.
    """
    missing = next((name for name in layout.beside() if name not in beside.schema.names), None)
    if missing is not None:
        raise UserError(f"{where}: column {missing} is missing; export the dataset again")
    found: dict[str, Values] = {}
    for column in layout.columns:
        own = values[column.name]
        found[column.name] = own if isinstance(own, list) else _shaped(column, own, where)
        if column.part == "observations":
            last = row_values(beside, LAST + column.name, where)
            found[column.name] = (
                [*own, *last] if isinstance(own, list) else np.concatenate([found[column.name], np.asarray(last)])
            )
    whole = dict(values)
    whole[layout.roles()["observation"]] = timesteps_of(layout.tree("observations", found))
    whole[layout.roles()["action"]] = timesteps_of(layout.tree("actions", found))
    explored = beside.column(EXPLORATORY)[0]
    return RawEpisode(
        where=where,
        values=whole,
        agent=beside.column("agent")[0].as_py(),
        seed=beside.column("seed")[0].as_py(),
        exploratory=np.asarray(explored.as_py()) if explored.is_valid else None,
    )


def _shaped(column: Column, values: NDArray[Any], where: str) -> NDArray[Any]:
    """Values (T, *shape): LeRobot knows of no number that is not in a list."""
    if values.size != len(values) * math.prod(column.shape):
        raise UserError(f"{where}: {column.name} has shape {values.shape[1:]}, its space has {column.shape}")
    return values.reshape(len(values), *column.shape)


def column_values(column: Column, tree: Any) -> NDArray[Any] | list[str]:
    """The values of a column with a leading time axis; `ColumnLayout.tree` undoes it."""
    found = value_at(tree, column.path)
    if column.stacked:
        return np.concatenate([found[key] for key in FRAME_KEYS], axis=-1)
    return list(found) if column.kind == "text" else np.asarray(found, column.dtype)


Namer = Callable[[Literal["observations", "actions"], Path, Kind], str]
"""Names the column of a leaf."""


def _each(part: Literal["observations", "actions"], space: Space, name: Namer) -> tuple[Column, ...]:
    """A column for each leaf."""
    columns = []
    for path, leaf, _ in _leaves(space, (), stack=False):
        kind = _kind(leaf, False, part)
        dtype, shape = "str" if kind == "text" else str(leaf.dtype), tuple(leaf.shape or ())
        columns.append(Column(name=name(part, path, kind), part=part, path=path, kind=kind, dtype=dtype, shape=shape))
    return tuple(columns)


def _named(part: Literal["observations", "actions"], space: Space) -> tuple[Column, ...]:
    leaves = list(_leaves(space, ()))
    kinds = [_kind(leaf, stacked, part) for _, leaf, stacked in leaves]
    # JAT's names are those of one leaf, or of leaves that are called as their kinds.
    plain = all(path == () or path == (kind,) for (path, _, _), kind in zip(leaves, kinds, strict=True))
    columns = []
    for (path, leaf, stacked), kind in zip(leaves, kinds, strict=True):
        shape = tuple(leaf.shape or ())
        columns.append(
            Column(
                name=f"{kind}_{part}" if plain else "/".join([part, *map(str, path)]),
                part=part,
                path=path,
                kind=kind,
                dtype="str" if kind == "text" else str(leaf.dtype),
                shape=(*shape[:2], FRAMES) if stacked else shape,
                stacked=stacked,
            )
        )
    return tuple(columns)


def _leaves(space: Space, path: Path, stack: bool = True) -> Iterator[tuple[Path, Space, bool]]:
    """Path, leaf, and whether it stands for four frames that are stacked, where they may be."""
    if isinstance(space, spaces.Dict):
        if stack and tuple(space.spaces) == FRAME_KEYS and len(set(map(str, space.spaces.values()))) == 1:
            first = space.spaces[FRAME_KEYS[0]]
            if not image_problem(tuple(first.shape or ()), str(first.dtype)) and (first.shape or ())[-1] == 1:
                yield path, first, True
                return
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key), stack)
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, index), stack)
    else:
        yield path, space, False


def _kind(leaf: Space, stacked: bool, part: str) -> Kind:
    if isinstance(leaf, spaces.Text):
        return "text"
    dtype = np.dtype(leaf.dtype)
    if stacked or (part == "observations" and image_problem(tuple(leaf.shape or ()), str(dtype)) is None):
        return "image"
    return "continuous" if dtype.kind == "f" else "discrete"
