"""The DeepMind Control Suite (Tassa et al. 2018) through shimmy: tasks that a law solves, from state and pixels.

A task is here if its law scores 800 of 1000 or more, the mean of 100 episodes of 1000 steps without noise. Beside
each stands its variant with `-pixels`, the same but for the observation.
"""

import importlib
import os
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from gatito.data.domains import dmc_experts as experts
from gatito.data.domains.opengl import choose_opengl
from gatito.data.tasks import Policy, TaskSpec

PIXELS = 64
"""Width and height of an observation with pixels."""

IMAGE_SIZE = 200
"""Width and height of a frame of a video, pixels."""

SIMPLE = {"shadow": False, "reflection": False}
"""Left out of observations with pixels: without OpenGL hardware they take 6 to 9 times as long with them."""

LAWS: dict[tuple[str, str], tuple[experts.Law, float]] = {
    ("ball_in_cup", "catch"): (experts.ball_in_cup, 0.1),
    ("cartpole", "balance"): (experts.balance, 0.1),
    ("cartpole", "balance_sparse"): (experts.balance, 0.1),
    ("cartpole", "swingup"): (experts.swing_up, 0.05),
    ("cartpole", "swingup_sparse"): (experts.swing_up, 0.0),
    ("finger", "spin"): (experts.finger_spin, 0.0),
    ("fish", "upright"): (experts.fish_upright, 0.1),
    ("lqr", "lqr_2_1"): (experts.springs, 0.1),
    ("pendulum", "swingup"): (experts.pendulum, 0.1),
    ("point_mass", "easy"): (experts.point_mass, 0.1),
    ("point_mass", "hard"): (experts.point_mass, 0.1),
    ("reacher", "easy"): (experts.reacher, 0.1),
    ("reacher", "hard"): (experts.reacher, 0.1),
}
"""The law of each task by domain and name, and the share of random actions that leaves it above 70 % of its score."""

TIME_LIMITS_S = {"lqr": 30.0}
"""Of the domains whose episodes would not end: 1000 steps, as everywhere else."""

CAMERAS = {"lqr": 1}
"""Of the domains whose first camera does not see what moves."""

FORCE_LIMITS = {"lqr": 6.0}
"""Of the domains that allow 1e10: the optimal law never asks for more than 5.5."""


class ControlSuite(gym.Env[Any, Any]):
    """One task, whose episode follows from the seed of `reset`.

    The observation is dm_control's dictionary of float64, or an image (64, 64, 3) of the task's camera.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, domain: str, task: str, pixels: bool = False, render_mode: str | None = None) -> None:
        """Build the task; raises `UserError` where it must draw and OpenGL does not work."""
        name = task_id(domain, task, pixels)
        choose_opengl(f"task {name!r}" if pixels else f"a video of task {name!r}" if render_mode else None)
        from dm_control import _render, suite
        from shimmy.dm_control_compatibility import DmControlCompatibilityV0

        if (pixels or render_mode) and os.environ["MUJOCO_GL"] != _render.BACKEND:
            importlib.reload(_render)  # someone else imported dm_control first, with another backend or none
        options: dict[str, Any] = {
            "random": 0
        }  # what a constructor draws, such as the springs of lqr, stays the same
        if domain in TIME_LIMITS_S:
            options["time_limit"] = TIME_LIMITS_S[domain]
        simulator = suite.load(domain, task, task_kwargs=options)
        self.spec = EnvSpec(
            id=f"gatito/{name.replace('/', '-')}-v0",
            entry_point="gatito.data.domains.dmc:ControlSuite",
            kwargs={"domain": domain, "task": task, "pixels": pixels},
        )
        self.pixels, self.render_mode = pixels, render_mode
        self._camera = CAMERAS.get(domain, 0)
        self.metadata = {**self.metadata, "render_fps": round(1 / simulator.control_timestep())}
        self.physics = simulator.physics
        """What the experts look at."""
        self._suite: Any = DmControlCompatibilityV0(simulator)
        self._cameras: dict[int, Any] = {}
        self.action_space = _bounded(self._suite.action_space, FORCE_LIMITS.get(domain, np.inf))
        self.observation_space = (
            gym.spaces.Box(0, 255, (PIXELS, PIXELS, 3), np.uint8) if pixels else self._suite.observation_space
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start the episode of this seed; without one, the next that follows from the last."""
        observation, _ = self._suite.reset(seed=seed)
        return self._observe(observation), {}

    def step(self, action: NDArray[np.float64]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Hold the action for one control step of the task."""
        observation, reward, terminated, truncated, _ = self._suite.step(action)
        return self._observe(observation), float(reward), terminated, truncated, {}

    def _observe(self, observation: Any) -> Any:
        return self._picture(PIXELS, SIMPLE) if self.pixels else observation

    def render(self) -> NDArray[np.uint8] | None:
        """Return a frame (200, 200, 3), or None without a render mode."""
        return self._picture(IMAGE_SIZE, None) if self.render_mode else None

    def _picture(self, size: int, flags: dict[str, bool] | None) -> NDArray[np.uint8]:
        from dm_control.mujoco import Camera

        if size not in self._cameras:  # keeping them saves a tenth of the time
            self._cameras[size] = Camera(self.physics, height=size, width=size, camera_id=self._camera)
        image: NDArray[np.uint8] = self._cameras[size].render(render_flag_overrides=flags)
        return image.copy()  # the camera draws the next one into the same memory

    def close(self) -> None:
        """Free the simulator and the renderer."""
        self._cameras.clear()
        if self._suite is not None:
            self._suite.close()
        self._suite = None


def _bounded(space: gym.spaces.Box, limit: float) -> gym.spaces.Box:
    return gym.spaces.Box(np.maximum(space.low, -limit), np.minimum(space.high, limit), dtype=np.float64)


def task_id(domain: str, task: str, pixels: bool = False) -> str:
    """Return the id, such as `dmc/ball-in-cup-catch-pixels` of `ball_in_cup` and `catch`."""
    return f"dmc/{domain}-{task}".replace("_", "-") + "-pixels" * pixels


def expert(law: experts.Law, env: gym.Env[Any, Any]) -> Policy:
    """Return the policy that asks the law, whatever is observed."""
    suite: Any = env.unwrapped
    low, high = suite.action_space.low, suite.action_space.high
    return lambda _: np.clip(law(suite.physics), low, high)


def tasks() -> list[TaskSpec]:
    """Return two tasks for each law: from state, and from pixels.

    Left out, with the mean score that was reached: finger turn_easy 803 and turn_hard 728 (30 episodes, by a law of
    60 lines that gets stuck), lqr_6_2 760 (of the optimal law), swimmer6 640.
    """
    return [_task(domain, task, pixels) for domain, task in LAWS for pixels in (False, True)]


def _task(domain: str, task: str, pixels: bool) -> TaskSpec:
    law, noise = LAWS[domain, task]
    return TaskSpec(
        id=task_id(domain, task, pixels),
        make=partial(ControlSuite, domain, task, pixels),
        expert=partial(expert, law),
        noise=noise,
        modules={"dm_control": "dmc", "shimmy": "dmc"},
        returns_of=task_id(domain, task) if pixels else None,
        license="Apache-2.0",
    )
