"""One episode in the environment's units."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gatito.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """T timesteps of observation and action. The arrays are never written to."""

    task: str
    """Task id, such as `classic/cartpole`."""
    id: int
    """Index of the episode in its dataset."""
    agent: str
    """Who acted; a prompt comes from another episode of the same agent on the same task."""
    observations: Any
    """Nested as the observation space, each leaf with a leading T axis (text: a list of T)."""
    actions: Any
    """Nested as the action space, each leaf with a leading T axis."""
    rewards: NDArray[np.float64]
    """(T,) rewards."""
    targets: NDArray[np.bool_]
    """(T,) whether the action is to be imitated; False where a random action was executed and recorded."""
    seed: int | None = None
    """Of the environment's reset, where it is known; splits go by it."""

    def __len__(self) -> int:
        return len(self.rewards)

    def __repr__(self) -> str:
        return f"Episode({self.task}, id {self.id}, {len(self)} timesteps, return {self.total_return:.3g})"

    @property
    def total_return(self) -> float:
        """Sum of the rewards."""
        return float(self.rewards.sum())


def stack(space: spaces.Space[Any], values: Sequence[Any], where: str = "value") -> Any:
    """Turn T values of a space into one value nested like the space with a leading T axis; `row` undoes it.

    Raises `UserError`, naming `where` and the timestep, for a value that is not of the space's structure, shape or
    kind of dtype, and for NaN or Inf. Values outside their space are left to `check_values`.
    """
    if isinstance(space, spaces.Dict):
        return {k: stack(inner, _at(k, values, where), f"{where} {k}") for k, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stack(inner, _at(i, values, where), f"{where} {i}") for i, inner in enumerate(space.spaces))
    if isinstance(space, spaces.Text):
        for t, value in enumerate(values):
            if not isinstance(value, str):
                raise UserError(f"{where}, timestep {t}: {type(value).__name__}, expected text")
        return [str(value) for value in values]
    array = _alike(space, values)
    if array is None:
        array = np.array([_leaf(space, v, t, where) for t, v in enumerate(values)], space.dtype)
    return array.reshape(len(array), *(space.shape or ()))


def _alike(space: spaces.Space[Any], values: Sequence[Any]) -> NDArray[Any] | None:
    """The values as one array where all are finite and of the space's shape and dtype; None sends you to look at
    each."""
    kinds = (np.ndarray, np.generic)
    if not all(isinstance(v, kinds) and v.dtype == space.dtype and v.shape == space.shape for v in values):
        return None
    array = np.array(values, space.dtype)
    return array if array.dtype.kind != "f" or np.isfinite(array).all() else None


def check_values(space: spaces.Space[Any], values: Any, where: str, advice: str) -> None:
    """Raise `UserError` for discrete, binary, integer and text values that are impossible in their space.

    `values` are nested like the space with a leading T axis. Numbers of float Boxes are left alone: simulators leave
    their bounds.
    """
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            check_values(inner, values[key], f"{where} {key}", advice)
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            check_values(inner, values[index], f"{where} {index}", advice)
    elif isinstance(space, spaces.Text):
        _check_texts(space, values, where, advice)
    else:
        _check_integers(space, values, where, advice)


def _check_texts(space: spaces.Text, values: Sequence[str], where: str, advice: str) -> None:
    for text in dict.fromkeys(values):
        foreign = sorted(set(text) - space.character_set)
        if space.min_length <= len(text) <= space.max_length and not foreign:
            continue
        has = f"has {''.join(foreign[:8])!r}" if foreign else f"has {len(text)} characters"
        allowed = f"{space.min_length} to {space.max_length} of {''.join(sorted(space.character_set))[:80]!r}"
        t = list(values).index(text)
        raise UserError(f"{where}, timestep {t}: {text[:80]!r} {has}, allowed {allowed}; {advice}")


def _check_integers(space: spaces.Space[Any], values: NDArray[Any], where: str, advice: str) -> None:
    limits = _limits(space)
    if limits is None or not len(values) or (values.min() >= limits[0].max() and values.max() <= limits[1].min()):
        return
    bad = np.argwhere((values < limits[0]) | (values > limits[1]))
    if not len(bad):
        return
    t, *place = bad[0].tolist()
    low, high = (np.broadcast_to(limit, space.shape or ())[tuple(place)] for limit in limits)
    element = f"[{', '.join(map(str, place))}]" if place else ""
    value = values[(t, *place)]
    raise UserError(f"{where}{element}, timestep {t}: value {value}, allowed [{low}, {high}]; {advice}")


def _limits(space: spaces.Space[Any]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Smallest and largest value of each element of a space of whole numbers; None of others."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return np.asarray(0), np.asarray(1)
    if isinstance(space, spaces.Box) and space.dtype.kind in "iu":
        return space.low, space.high
    return None


def _at(key: str | int, values: Sequence[Any], where: str) -> list[Any]:
    found = []
    for t, value in enumerate(values):
        try:
            found.append(value[key])
        except (KeyError, IndexError, TypeError):
            got = f"keys {sorted(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"
            raise UserError(f"{where}, timestep {t}: {got}, {key!r} is missing; wrap the environment") from None
    return found


def _leaf(space: spaces.Space[Any], value: Any, t: int, where: str) -> NDArray[Any]:
    array = np.asarray(value)
    if array.shape != space.shape or array.dtype.kind not in "biuf":
        raise UserError(
            f"{where}, timestep {t}: shape {array.shape} of {array.dtype}, expected {space.shape} of {space.dtype}; "
            "wrap the environment"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise UserError(f"{where}, timestep {t}: NaN or Inf in {array.ravel()[:8]}; repair the environment")
        if np.issubdtype(space.dtype, np.integer) and (array != np.floor(array)).any():
            raise UserError(f"{where}, timestep {t}: {array.ravel()[:8]} has fractions, expected {space.dtype}")
    if np.issubdtype(space.dtype, np.integer):
        limits = np.iinfo(space.dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise UserError(f"{where}, timestep {t}: {array.ravel()[:8]} does not fit into {space.dtype}")
    return array


def copied(tree: Any) -> Any:
    """Return a nested value whose arrays are its own; several times as fast as `copy.deepcopy`."""
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(copied(value) for value in tree)
    if isinstance(tree, np.generic | str | int | float):  # cannot be written to
        return tree
    return tree.copy() if isinstance(tree, np.ndarray) else copy.deepcopy(tree)


def rows(tree: Any, stop: int) -> Any:
    """Return the first `stop` timesteps of a nested value."""
    if isinstance(tree, dict):
        return {key: rows(value, stop) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(rows(value, stop) for value in tree)
    return tree[:stop]


def row(tree: Any, t: int) -> Any:
    """Return timestep `t` of a nested value."""
    if isinstance(tree, dict):
        return {key: row(value, t) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(row(value, t) for value in tree)
    return tree[t]
