"""Simulators with faults, for the tests of rollouts: importable by the processes that simulate."""

import os
import signal
import time
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec

FAULTY = EVALUATION_SEEDS + 2
"""The seed whose episode goes wrong."""


class Drawn(gym.Env[Any, Any]):
    """Observations that are drawn from the space, for `length` timesteps."""

    length = 10

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.draw(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), (action, self.action_space)
        self.t += 1
        return self.draw(), 1.0, self.t >= self.length, False, {}

    def draw(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        return self.observation_space.sample()


class Points(Drawn):
    """Between four and eight timesteps of three numbers; the reward is the action and a tenth of what is seen."""

    SEEDS: ClassVar[list[int]] = []
    """With which it was reset, in this process."""
    observation_space = spaces.Box(-9.0, 9.0, (3,), np.float32)
    action_space = spaces.Discrete(4)

    def __init__(self, fault: str = "", at: int = 3, seeds: tuple[int, ...] = (FAULTY,)) -> None:
        self.fault, self.at, self.faulty = fault, at, seeds

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.SEEDS.append(seed)
        self.seed, self.length = seed, 4 + seed % 5
        observation, info = super().reset(seed=seed)
        if seed in self.faulty and self.at == 0:
            observation, _ = self._go_wrong(observation, 0.0)
        return observation, info

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        reward = float(action) + float(observation[0]) / 10
        if self.seed in self.faulty and self.t == self.at:
            observation, reward = self._go_wrong(observation, reward)
        return observation, reward, terminated, truncated, info

    def _go_wrong(self, observation: Any, reward: float) -> Any:
        if self.fault == "raises":
            raise RuntimeError("the arm fell off")
        if self.fault == "dies":
            os._exit(11)
        if self.fault == "hangs":
            time.sleep(1000)
        if self.fault == "hangs where no alarm is heard":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            time.sleep(1000)
        if self.fault == "returns NaN":
            observation = observation * np.nan
        if self.fault == "rewards NaN":
            reward = float("nan")
        if self.fault == "returns another shape":
            observation = observation[:2]
        if self.fault == "returns text":
            observation = np.array(["a", "b", "c"])
        return observation, reward


class Grid(Drawn):
    """Ten timesteps of what is where and a mission, with two actions at once."""

    MISSIONS = ("go", "if the expression is a class", "return the next object name")
    observation_space = spaces.Dict(
        at=spaces.MultiDiscrete([4, 4]), mission=spaces.Text(64, charset="abcdefghijklmnopqrstuvwxyz ")
    )
    action_space = spaces.MultiDiscrete([3, 5])

    def __init__(self, render_mode: str | None = None) -> None:
        pass

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float(action[0] * 5 + action[1]), *rest

    def draw(self) -> Any:
        return super().draw() | {"mission": self.MISSIONS[int(self.np_random.integers(len(self.MISSIONS)))]}


def always_three(env: Any) -> Any:
    return lambda observation: np.int64(3)


def points(fault: str = "", at: int = 3, seeds: tuple[int, ...] = (FAULTY,)) -> TaskSpec:
    """A task whose episodes of some seeds go wrong after so many actions."""
    return TaskSpec(id="toy/points", make=partial(Points, fault, at, seeds), expert=always_three)


GRID = TaskSpec(id="toy/grid", make=Grid, expert=always_three)
