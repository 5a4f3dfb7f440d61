"""Simulators with faults, for the tests of rollouts: importable by the processes that simulate."""

import os
import signal
import time
from functools import partial
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from toy import ToyEnv

from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec

FAULTY = EVALUATION_SEEDS + 2
"""The seed whose episode goes wrong, at its third timestep."""


class Points(ToyEnv):
    """Between four and eight timesteps of three numbers; the reward is the action and a tenth of what is seen."""

    SEEDS: ClassVar[list[int]] = []
    """With which it was reset, in this process."""

    def __init__(self, fault: str = "", render_mode: str | None = None) -> None:
        super().__init__(spaces.Box(-9.0, 9.0, (3,), np.float32), spaces.Discrete(4), length=6)
        self.fault = fault

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.SEEDS.append(seed)
        self.seed, self.length = seed, 4 + seed % 5
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        reward = float(action) + float(observation[0]) / 10
        if self.seed == FAULTY and len(self.actions) == 3:
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


class Grid(ToyEnv):
    """Ten timesteps of what is where and a mission, with two actions at once."""

    def __init__(self, render_mode: str | None = None) -> None:
        seen = spaces.Dict(at=spaces.MultiDiscrete([4, 4]), mission=spaces.Text(64, charset="abcdefghijklmnopqrstuvwxyz "))
        super().__init__(seen, spaces.MultiDiscrete([3, 5]), length=10)

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float(action[0] * 5 + action[1]), *rest


def always_three(env: Any) -> Any:
    return lambda observation: np.int64(3)


def points(fault: str = "") -> TaskSpec:
    return TaskSpec(id="toy/points", make=partial(Points, fault), expert=always_three)


GRID = TaskSpec(id="toy/grid", make=Grid, expert=always_three)
