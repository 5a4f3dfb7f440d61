"""One episode in the environment's units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


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

    def __len__(self) -> int:
        return len(self.rewards)

    def __repr__(self) -> str:
        return f"Episode({self.task}, id {self.id}, {len(self)} timesteps, return {self.total_return:.3g})"

    @property
    def total_return(self) -> float:
        """Sum of the rewards."""
        return float(self.rewards.sum())


def stack(space: spaces.Space[Any], values: Sequence[Any]) -> Any:
    """Turn T values of a space into one value nested like the space with a leading T axis; `row` undoes it."""
    if isinstance(space, spaces.Dict):
        return {key: stack(inner, [value[key] for value in values]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stack(inner, [value[i] for value in values]) for i, inner in enumerate(space.spaces))
    if isinstance(space, spaces.Text):
        return [str(value) for value in values]
    return np.asarray(values, dtype=space.dtype)


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
