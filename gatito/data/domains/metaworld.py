"""The 50 Meta-World manipulation tasks (Yu et al. 2019), scored by success, with their scripted policies."""

import os
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from gatito.data.domains.opengl import opengl_backend
from gatito.data.tasks import Policy, TaskSpec

NAMES = [
    "assembly",
    "basketball",
    "bin-picking",
    "box-close",
    "button-press-topdown",
    "button-press-topdown-wall",
    "button-press",
    "button-press-wall",
    "coffee-button",
    "coffee-pull",
    "coffee-push",
    "dial-turn",
    "disassemble",
    "door-close",
    "door-lock",
    "door-open",
    "door-unlock",
    "drawer-close",
    "drawer-open",
    "faucet-close",
    "faucet-open",
    "hammer",
    "hand-insert",
    "handle-press-side",
    "handle-press",
    "handle-pull-side",
    "handle-pull",
    "lever-pull",
    "peg-insert-side",
    "peg-unplug-side",
    "pick-out-of-hole",
    "pick-place",
    "pick-place-wall",
    "plate-slide-back-side",
    "plate-slide-back",
    "plate-slide-side",
    "plate-slide",
    "push-back",
    "push",
    "push-wall",
    "reach",
    "reach-wall",
    "shelf-place",
    "soccer",
    "stick-pull",
    "stick-push",
    "sweep-into",
    "sweep",
    "window-close",
    "window-open",
]

ML45_TEST = ["bin-picking", "box-close", "door-lock", "door-unlock", "hand-insert"]
"""Meta-World's ML45 holds these out and trains on the other 45."""

GOAL = slice(36, 39)
"""Where the observation has the goal's position."""

IMAGE_SIZE = 200
"""Width and height of a rendered frame, pixels."""

FRAGILE = ("handle-pull-side", "shelf-place")
"""Tasks whose policy never recovers from some slips (success falls to 0.8): collected without noise."""

REACH_GOALS = (
    (-0.09, 0.81, 0.07), (0.09, 0.81, 0.07), (-0.09, 0.89, 0.28), (0.09, 0.89, 0.28), (0.0, 0.81, 0.28),
    (0.0, 0.89, 0.07),
)  # fmt: skip
"""Places (x, y, z), metres, within those that Meta-World draws for `reach`; success is within 5 cm."""

DENSE_HORIZON = 60
"""Timesteps of an episode of `reach` that is paid for how near it is; the expert is there after 20 to 40."""

_PIXELS_PER_METRE = 120


class MetaWorld(gym.Env[NDArray[np.float64], NDArray[np.float32]]):
    """One task, whose goal and object positions are drawn from the seed of `reset`.

    The observation (39,) is hand position, gripper opening, object positions and rotations, the same of the
    timestep before, and the goal position; metres. Where the goal is hidden its position is zero, as in
    Meta-World's own meta-learning benchmarks: only a demonstration of the same goal tells it. The reward is 1 at
    the first success, which ends the episode, and 0 before; Meta-World's own is `info["dense_reward"]`, or the reward
    where there is a horizon.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012

    def __init__(
        self,
        task: str,
        hide_goal: bool = False,
        render_mode: str | None = None,
        goal: int | None = None,
        horizon: int | None = None,
    ) -> None:
        """Build the task, such as `reach`. Frames are drawings of the state where OpenGL does not work.

        With `goal`, an index of `REACH_GOALS`, the goal of `reach` is this one in every episode. With a `horizon` the
        reward is Meta-World's own, from 0 to 10 for how near the goal is, and an episode ends after so many timesteps
        and not before.
        """
        backend = None
        if render_mode or "MUJOCO_GL" in os.environ:  # with a backend that is not there, import mujoco fails
            backend = opengl_backend()
            os.environ["MUJOCO_GL"] = backend or "disable"
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self.spec = EnvSpec(
            id=f"gatito/metaworld-{task}{'-goal-hidden' if hide_goal else ''}-v3",
            entry_point="gatito.data.domains.metaworld:MetaWorld",
            kwargs={"task": task, "hide_goal": hide_goal}
            | ({} if goal is None else {"goal": goal})
            | ({} if horizon is None else {"horizon": horizon}),
        )
        self.horizon, self._timesteps = horizon, 0
        self.hide_goal, self.render_mode, self.goal = hide_goal, render_mode, goal
        self.renders_state = render_mode is not None and backend is None
        """Whether frames are drawings of the state."""
        simulator: Any = ALL_V3_ENVIRONMENTS[f"{task}-v3"]
        self._simulator = simulator(
            render_mode=render_mode if backend else None,
            camera_name="corner2",
            width=IMAGE_SIZE,
            height=IMAGE_SIZE,
        )
        # Meta-World clips observations to its own space, where the goal's part is zero by default; unbounded keeps
        # the goal. Ours is a metre around the table: linear bins of 2 mm, where mu-law ones would be 12 mm wide.
        self._simulator.__dict__["sawyer_observation_space"] = gym.spaces.Box(-np.inf, np.inf, (39,), np.float64)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (39,), np.float64)
        self._simulator._partially_observable = False
        self._simulator._freeze_rand_vec = False
        self._simulator.seeded_rand_vec = True
        self._simulator._set_task_called = True
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.state = np.zeros(39)
        """The observation with its goal."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start the episode of this seed; without one, of a seed drawn from the last."""
        super().reset(seed=seed)
        self._simulator.seed(int(self.np_random.integers(1 << 31)))
        if self.goal is not None:
            self._fix_goal(np.array(REACH_GOALS[self.goal]))
        observation, info = self._simulator.reset()
        self._timesteps = 0
        return self._observe(observation), info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Move the hand by up to 1 cm per axis and drive the gripper."""
        observation, dense_reward, _, truncated, info = self._simulator.step(action)
        success = bool(info["success"] > 0)
        info["dense_reward"] = float(dense_reward)
        self._timesteps += 1
        if self.horizon is not None:
            return self._observe(observation), float(dense_reward), False, self._timesteps >= self.horizon, info
        return self._observe(observation), float(success), success, truncated and not success, info

    def _fix_goal(self, goal: NDArray[np.float64]) -> None:
        """Draw the object's place as Meta-World does, at least 15 cm from the goal, and keep the goal."""
        space = self._simulator._random_reset_space
        while True:
            place = self.np_random.uniform(space.low, space.high)
            if np.linalg.norm(place[:2] - goal[:2]) >= 0.15:
                break
        self._simulator._freeze_rand_vec = True
        self._simulator._last_rand_vec = np.concatenate([place[:3], goal])

    def _observe(self, observation: NDArray[np.float64]) -> NDArray[np.float64]:
        self.state = np.clip(observation, -1.0, 1.0)
        if not self.hide_goal:
            return self.state
        hidden = self.state.copy()
        hidden[GOAL] = 0.0
        return hidden

    def render(self) -> NDArray[np.uint8] | None:
        """Return a frame (200, 200, 3), or None without a render mode."""
        if self.render_mode is None:
            return None
        if not self.renders_state:
            try:
                frame: NDArray[np.uint8] = self._simulator.render()
                return np.ascontiguousarray(frame[::-1, ::-1])  # this camera hangs upside down
            except Exception:  # whatever a broken driver raises
                self.renders_state = True
        return draw_state(self.state)

    def close(self) -> None:
        """Free the renderer."""
        self._simulator.close()


def draw_state(observation: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Draw hand, objects and goal (200, 200, 3): seen from above in the upper half, from the front below."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    canvas = ImageDraw.Draw(image)
    canvas.line((0, IMAGE_SIZE // 2, IMAGE_SIZE, IMAGE_SIZE // 2), "gray")
    points = {"green": observation[GOAL], "orange": observation[11:14], "red": observation[4:7]}
    points["blue"] = observation[:3]
    for colour, (x, y, z) in points.items():
        if not (x or y or z):
            continue  # a task with one object leaves the second at zero
        for height in (y - 0.3, z + 0.05 - IMAGE_SIZE / 2 / _PIXELS_PER_METRE):
            column = IMAGE_SIZE / 2 + x * _PIXELS_PER_METRE
            row = IMAGE_SIZE / 2 - height * _PIXELS_PER_METRE
            canvas.ellipse((column - 4, row - 4, column + 4, row + 4), colour)
    return np.asarray(image)


def expert(task: str, env: gym.Env[Any, Any]) -> Policy:
    """Return Meta-World's scripted policy of the task, clipped to the action space; it knows the goal."""
    from metaworld.policies import ENV_POLICY_MAP

    policy_class: Any = ENV_POLICY_MAP[f"{task}-v3"]
    policy = policy_class()

    def act(_: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.clip(policy.get_action(env.get_wrapper_attr("state")), -1.0, 1.0).astype(np.float32)

    return act


def tasks() -> list[TaskSpec]:
    """Return two tasks of each of the 50, with the goal in the observation and with it hidden, and those of
    `reach` that differ in their hidden goal alone, by success and by Meta-World's own reward."""
    plain = [_task(name, hide_goal) for name in NAMES for hide_goal in (False, True)]
    return plain + [_with_hidden_goal(goal, dense) for dense in (False, True) for goal in range(len(REACH_GOALS))]


def _with_hidden_goal(goal: int, dense: bool) -> TaskSpec:
    return TaskSpec(
        id=_hidden_id(goal, dense),
        make=partial(MetaWorld, "reach", True, goal=goal, horizon=DENSE_HORIZON if dense else None),
        expert=partial(expert, "reach"),
        noise=0.1,
        modules={"metaworld": "metaworld"},
        success=not dense,
    )


def _hidden_id(goal: int, dense: bool) -> str:
    return f"metaworld/reach{'-dense' if dense else ''}-hidden-{goal}"


def _task(name: str, hide_goal: bool) -> TaskSpec:
    return TaskSpec(
        id=f"metaworld/{name}" + ("-goal-hidden" if hide_goal else ""),
        make=partial(MetaWorld, name, hide_goal),
        expert=partial(expert, name),
        noise=0.0 if name in FRAGILE else 0.1,
        modules={"metaworld": "metaworld"},
        success=True,
        returns_of=f"metaworld/{name}" if hide_goal else None,
    )


def groups() -> dict[str, list[str]]:
    """Return the names of lists of tasks: both sides of ML45, with the goal shown and hidden."""
    train = [f"metaworld/{name}" for name in NAMES if name not in ML45_TEST]
    test = [f"metaworld/{name}" for name in ML45_TEST]
    shown = {"ml45-train": train, "ml45-test": test}
    hidden = {f"{group}-goal-hidden": [f"{task}-goal-hidden" for task in ids] for group, ids in shown.items()}
    goals = {
        name: [_hidden_id(goal, dense) for goal in range(len(REACH_GOALS))]
        for name, dense in (("hidden-goals", False), ("hidden-goals-dense", True))
    }
    return shown | hidden | goals
