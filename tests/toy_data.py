"""Toy environments and datasets, written by the tests themselves."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from gatito.data.minari_episodes import MinariWriter
from gatito.data.publish import published


class Shape(gym.Env):
    """An environment that is only its two spaces."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space


class Walk(gym.Env):
    """A point that moves by the action; an episode has 5 + seed % 4 steps. It remembers what was executed."""

    def __init__(self, render_mode: str | None = None, nan_reward: bool = False) -> None:
        self.observation_space = spaces.Dict(
            place=spaces.Box(-1.0, 1.0, (2,), np.float32),
            image=spaces.Box(0, 255, (16, 20, 3), np.uint8),
            mission=spaces.Text(32, charset=string.ascii_lowercase + string.digits + " "),
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.nan_reward = nan_reward
        self.executed: list[np.ndarray] = []
        self.seen: list[dict[str, Any]] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.steps, self.limit = 0, 5 + (seed or 0) % 4
        self.executed, self.seen = [], []
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.executed.append(np.array(action))
        self.place = np.clip(self.place + 0.1 * action, -1, 1).astype(np.float32)
        self.steps += 1
        reward = float("nan") if self.nan_reward and self.steps == 3 else 1.0
        return self._observe(), reward, False, self.steps >= self.limit, {}

    def _observe(self) -> dict[str, Any]:
        image = np.full((16, 20, 3), self.steps * 7, np.uint8)
        image[3, :, 1] = np.arange(20)
        observation = {"place": self.place, "image": image, "mission": f"go to {self.limit}"}
        self.seen.append(observation)
        return observation


def walk_expert(observation: dict[str, Any]) -> np.ndarray:
    """Walk home; a function of the observation, so that a test can ask it again."""
    return np.clip(-observation["place"] / 2, -1, 1).astype(np.float32)


def unchecked(space: spaces.Space, values: Sequence[Any]) -> Any:
    """What `stack` gives, of bad values too: files may hold anything."""
    if isinstance(space, spaces.Dict):
        return {key: unchecked(inner, [value[key] for value in values]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(unchecked(inner, [value[i] for value in values]) for i, inner in enumerate(space.spaces))
    return list(values) if isinstance(space, spaces.Text) else np.asarray(values, space.dtype)


def write_minari(
    root: Path,
    name: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    episodes: Sequence[tuple[Sequence[Any], Sequence[Any], Sequence[float]]],
    **metadata: Any,
) -> Path:
    """Write episodes of (T + 1 observations, T actions, T rewards) and return the dataset's folder."""
    with published(root / name) as folder:
        writer = MinariWriter(folder, name, Shape(observation_space, action_space), metadata)
        for observations, actions, rewards in episodes:
            buffer = EpisodeBuffer(
                observations=unchecked(observation_space, observations),
                actions=unchecked(action_space, actions),
                rewards=list(map(float, rewards)),
                terminations=[False] * len(rewards),
                truncations=[False] * (len(rewards) - 1) + [True],
                infos={},
            )
            writer.write(buffer)
        writer.close()
    return root / name
