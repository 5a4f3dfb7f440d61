"""From a Gymnasium space to its leaves: what kind of tokens each leaf becomes, decided by the space alone."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, singledispatch
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gatito.errors import UserError, nearest
from gatito.tokenizers.patches import grid
from gatito.tokenizers.vocabulary import NUM_DISCRETE

Role = Literal["observation", "action"]
Path = tuple[str | int, ...]
KINDS = ("continuous", "discrete", "image", "text")
UNBOUNDED = float(np.finfo(np.float32).max) / 2
"""A bound from here on is no bound: some simulators write the largest float for infinity."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One leaf of an observation or action space."""

    path: Path
    """Dict keys and Tuple indices that lead to the leaf; empty for a space that is a leaf itself."""
    kind: str
    """One of `KINDS`."""
    dtype: str
    """NumPy dtype of the values; `str` for text."""
    shape: tuple[int, ...]
    """Shape of one value."""
    low: tuple[float | None, ...] = ()
    """Continuous: declared lower bound of each element, None where unbounded."""
    high: tuple[float | None, ...] = ()
    """Continuous: declared upper bound of each element, None where unbounded."""
    mu_law: tuple[bool, ...] = ()
    """Continuous: whether the element is companded."""
    scaled: bool = False
    """Continuous: whether elements that are not companded are scaled from their bounds to [-1, 1]."""
    start: tuple[int, ...] = ()
    """Discrete: smallest value of each element."""
    num_values: tuple[int, ...] = ()
    """Discrete: how many values each element has."""

    @property
    def name(self) -> str:
        """The path as shown to people and used in overrides."""
        return "/".join(map(str, self.path))

    @property
    def size(self) -> int:
        """Number of values, 1 for text."""
        return math.prod(self.shape)

    @property
    def num_tokens(self) -> int | None:
        """Tokens per timestep; None for text, whose length varies."""
        if self.kind == "text":
            return None
        return math.prod(grid(*self.shape[:2])) if self.kind == "image" else self.size

    @cached_property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Continuous: `low` and `high` (size,) as arrays, infinite where unbounded."""
        low = np.array([-np.inf if v is None else v for v in self.low])
        return low, np.array([np.inf if v is None else v for v in self.high])

    @cached_property
    def companded(self) -> NDArray[np.bool_]:
        """Continuous: `mu_law` (size,) as an array."""
        return np.array(self.mu_law, np.bool_)


def fields_of(space: spaces.Space[Any], role: Role, overrides: Mapping[str, str] | None = None) -> tuple[Field, ...]:
    """Return the leaves of a space in lexicographic key order.

    `overrides` maps a path such as `image` to a kind, where the space alone would be read differently (a uint8
    grid of symbols). Raises `UserError` for a space that cannot be serialized.
    """
    overrides = dict(overrides or {})
    leaves = []
    for path, leaf in _leaves(space, ()):
        name = "/".join(map(str, path))
        where = f"{role} space {name!r}" if name else f"{role} space"
        kind = overrides.pop(name, None)
        if kind is not None and kind not in KINDS:
            raise UserError(f"{where}: {nearest(kind, KINDS, 'field kind')}")
        leaves.append(_field(leaf, path, role, where, kind))
    if overrides:
        unknown = next(iter(overrides))
        raise UserError(f"{role} space: {nearest(unknown, [f.name for f in leaves], 'field in overrides')}")
    if not leaves:
        raise UserError(f"the {role} space {space} has no values; nothing to serialize")
    return tuple(leaves)


def evenly_binned(field: Field, low: NDArray[np.float64], high: NDArray[np.float64]) -> Field:
    """The field with its elements scaled from [low, high] (size,) to [-1, 1] and binned, none of them companded."""
    flat = high <= low  # one value, or none at all
    centre = np.where(np.isfinite(low), low, 0.0)
    half = np.maximum(0.5, 1e-6 * np.abs(centre))  # of large numbers 0.5 would be nothing
    return dataclasses.replace(
        field,
        low=tuple(np.where(flat, centre - half, low).tolist()),
        high=tuple(np.where(flat, centre + half, high).tolist()),
        mu_law=(False,) * field.size,
        scaled=True,
    )


def is_evenly_binned(field: Field, plain: Field) -> bool:
    """Whether a field is a plain one after `evenly_binned`."""
    undone = dataclasses.replace(field, low=plain.low, high=plain.high, mu_law=plain.mu_law, scaled=plain.scaled)
    return field.scaled and any(plain.mu_law) and undone == plain


def value_at(tree: Any, path: Path) -> Any:
    """Return the leaf of a nested value; raises `KeyError`, `IndexError` or `TypeError` where it is not there."""
    for key in path:
        tree = tree[key]
    return tree


def build_tree(leaves: Mapping[Path, Any]) -> Any:
    """Undo `value_at` over all paths: nested dicts for keys, tuples for indices."""
    if () in leaves:
        return leaves[()]
    heads: dict[str | int, dict[Path, Any]] = {}
    for path, value in leaves.items():
        heads.setdefault(path[0], {})[path[1:]] = value
    if all(isinstance(head, int) for head in heads):
        return tuple(build_tree(heads[head]) for head in sorted(heads))
    return {head: build_tree(rest) for head, rest in heads.items()}


def image_problem(shape: tuple[int, ...], dtype: str) -> str | None:
    """Say why values of this shape and dtype are no image, or None where they are one."""
    if dtype != "uint8" or len(shape) != 3 or shape[-1] not in (1, 3, 4) or 0 in shape:
        return f"an image is HxWxC uint8 with C of 1, 3 or 4, got shape {shape} of {dtype}"
    return None


def _leaves(space: spaces.Space[Any], path: Path) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    """Walk Dict spaces in key order and Tuple spaces in index order."""
    if path and isinstance(space, spaces.Dict | spaces.Tuple) and not len(space.spaces):
        raise UserError(f"{'/'.join(map(str, path))} is an empty {type(space).__name__}; wrap the environment")
    if isinstance(space, spaces.Dict):
        for key in space.spaces:
            if not isinstance(key, str):
                raise UserError(f"a Dict space has the key {key!r}, allowed is text; wrap the environment")
        for key in sorted(space.spaces):
            yield from _leaves(space.spaces[key], (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, space


@singledispatch
def _field(space: spaces.Space[Any], path: Path, role: Role, where: str, kind: str | None) -> Field:
    raise UserError(
        f"{where} is a {type(space).__name__}, which gatito cannot serialize; supported: Box, Discrete, "
        "MultiDiscrete, MultiBinary, Text, and Dict and Tuple of these; wrap the environment"
    )


def _only(kind: str | None, allowed: str, where: str) -> None:
    if kind not in (None, allowed):
        raise UserError(f"{where} cannot be read as {kind!r}, only as {allowed!r}")


@_field.register
def _(space: spaces.Discrete, path: Path, role: Role, where: str, kind: str | None) -> Field:
    _only(kind, "discrete", where)
    return _discrete(path, (), str(space.dtype), (int(space.start),), (int(space.n),), where)


@_field.register
def _(space: spaces.MultiDiscrete, path: Path, role: Role, where: str, kind: str | None) -> Field:
    _only(kind, "discrete", where)
    sizes, starts = np.ravel(space.nvec).tolist(), np.ravel(space.start).tolist()
    return _discrete(path, space.shape, str(space.dtype), tuple(starts), tuple(sizes), where)


@_field.register
def _(space: spaces.MultiBinary, path: Path, role: Role, where: str, kind: str | None) -> Field:
    _only(kind, "discrete", where)
    size = math.prod(space.shape)
    return _discrete(path, space.shape, str(space.dtype), (0,) * size, (2,) * size, where)


@_field.register
def _(space: spaces.Text, path: Path, role: Role, where: str, kind: str | None) -> Field:
    _only(kind, "text", where)
    if role == "action":
        raise UserError(f"{where} is a Text; actions are numbers, text is written by documents and captions")
    return Field(path=path, kind="text", dtype="str", shape=())


@_field.register
def _(space: spaces.Box, path: Path, role: Role, where: str, kind: str | None) -> Field:
    low, high, dtype = np.ravel(space.low), np.ravel(space.high), str(space.dtype)
    if low.size == 0:
        raise UserError(f"{where} has shape {space.shape}, which holds no value")
    if kind is None:
        kind = _box_kind(space, role)
    if kind == "image":
        problem = image_problem(space.shape, dtype)
        if problem:
            raise UserError(f"{where}: {problem}; wrap the environment or override the field's kind")
        return Field(path=path, kind="image", dtype=dtype, shape=space.shape)
    if kind == "discrete":
        if space.dtype.kind not in "iub":
            raise UserError(f"{where} holds {dtype}; only integers can be read as 'discrete'")
        sizes = tuple(int(h) - int(a) + 1 for a, h in zip(low, high, strict=True))
        return _discrete(path, space.shape, dtype, tuple(int(a) for a in low), sizes, where)
    if kind == "text":
        raise UserError(f"{where} is a Box, which cannot be read as 'text'")
    return _continuous(space, path, role)


def _box_kind(space: spaces.Box, role: Role) -> str:
    """An image, discrete where an integer Box has fewer than `NUM_DISCRETE` values, else continuous."""
    if space.dtype.kind not in "iub":
        return "continuous"
    if role == "observation" and image_problem(space.shape, str(space.dtype)) is None:
        return "image"
    widest = max(int(h) - int(a) + 1 for a, h in zip(np.ravel(space.low), np.ravel(space.high), strict=True))
    return "discrete" if widest < NUM_DISCRETE else "continuous"


def _discrete(
    path: Path, shape: tuple[int, ...], dtype: str, start: tuple[int, ...], sizes: tuple[int, ...], where: str
) -> Field:
    if not sizes or min(sizes) < 1 or max(sizes) > NUM_DISCRETE:
        most = max(sizes, default=0)
        raise UserError(f"{where} has {most} discrete values, allowed 1 to {NUM_DISCRETE}; split the space")
    return Field(path=path, kind="discrete", dtype=dtype, shape=shape, start=start, num_values=sizes)


def _bound(value: Any) -> float | None:
    """A declared bound, or None where it is none."""
    bound = float(value)
    return bound if abs(bound) < UNBOUNDED else None


def _continuous(space: spaces.Box, path: Path, role: Role) -> Field:
    """Observations with all bounds inside [-1, 1] are binned as they are, others companded; bounded action
    elements are scaled to [-1, 1] and binned, unbounded ones companded."""
    low, high = ([_bound(v) for v in np.ravel(limit)] for limit in (space.low, space.high))
    bounds = list(zip(low, high, strict=True))
    if role == "action":
        mu_law = tuple(a is None or b is None for a, b in bounds)
    else:
        inside = all(a is not None and b is not None and a >= -1 and b <= 1 for a, b in bounds)
        mu_law = (not inside,) * len(bounds)
    return Field(
        path=path,
        kind="continuous",
        dtype=str(space.dtype),
        shape=space.shape,
        low=tuple(low),
        high=tuple(high),
        mu_law=mu_law,
        scaled=role == "action",
    )
