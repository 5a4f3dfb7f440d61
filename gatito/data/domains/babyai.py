"""BabyAI levels (Chevalier-Boisvert et al. 2019) seen as RGB images, with the bot of minigrid as expert."""

import contextlib
import io
import signal
import string
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from gatito.data.tasks import ExpertFailed, Policy, TaskSpec

TILE_SIZE = 8
"""Pixels per grid cell: the view of 7 x 7 cells becomes 56 x 56 pixels."""

REPLAN_LIMIT_S = 10.0
"""CPU time for one action of the bot; it needs milliseconds, or on some levels loops for ever."""

LEVELS = {
    "go-to-obj-s4": "GoToObjS4",
    "go-to-obj": "GoToObj",
    "go-to-red-ball-no-dists": "GoToRedBallNoDists",
    "go-to-red-ball-grey": "GoToRedBallGrey",
    "go-to-red-ball": "GoToRedBall",
    "go-to-local-s5n2": "GoToLocalS5N2",
    "go-to-local": "GoToLocal",
    "go-to-door": "GoToDoor",
    "go-to-obj-maze-s4": "GoToObjMazeS4",
    "open-door": "OpenDoor",
    "open-red-door": "OpenRedDoor",
    "pickup-loc": "PickupLoc",
    "pickup-dist": "PickupDist",
    "put-next-local-s5n3": "PutNextLocalS5N3",
    "unlock-local": "UnlockLocal",
}
"""Our name of each level, and its name between `BabyAI-` and `-v0`."""


class BabyAI(gym.Wrapper[dict[str, Any], np.int64, Any, Any], RecordConstructorArgs):
    """Shows the agent's view as pixels and the mission as text, and remembers the executed action."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap a BabyAI environment; its observation becomes direction, image (56, 56, 3) and mission."""
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        pixels = env.unwrapped.agent_view_size * TILE_SIZE  # type: ignore[attr-defined]
        self.observation_space = gym.spaces.Dict(
            direction=gym.spaces.Discrete(4),
            image=gym.spaces.Box(0, 255, (pixels, pixels, 3), np.uint8),
            mission=gym.spaces.Text(512, charset=string.ascii_lowercase + string.digits + " ,.-'"),
        )
        self.last_action: int | None = None
        """The action executed last in this episode, which the bot must be told."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode, without what the level prints while it searches a valid layout."""
        with contextlib.redirect_stdout(io.StringIO()):
            observation, info = self.env.reset(seed=seed, options=options)
        self.last_action = None
        return self._observation(observation), info

    def step(self, action: np.int64) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Execute the action and remember it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.last_action = int(action)
        return self._observation(observation), reward, terminated, truncated, info

    def _observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        image: NDArray[np.uint8] = self.unwrapped.get_frame(  # type: ignore[attr-defined]
            tile_size=TILE_SIZE, agent_pov=True
        )
        direction = np.int64(observation["direction"])
        return {"direction": direction, "image": image, "mission": observation["mission"]}


def make(level: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build a level, such as `GoToLocal`."""
    import minigrid  # noqa: F401  (registers the levels)

    with contextlib.redirect_stdout(io.StringIO()):
        return BabyAI(gym.make(f"BabyAI-{level}-v0", render_mode=render_mode, disable_env_checker=True))


def expert(env: gym.Env[Any, Any]) -> Policy:
    """The bot, told the executed action, which under noise is not the one that it proposed.

    The policy raises `ExpertFailed` where the bot gives up, or thinks longer than `REPLAN_LIMIT_S`.
    """
    from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

    bot = BabyAIBot(env.unwrapped)

    def act(observation: dict[str, Any]) -> np.int64:
        try:
            with _cpu_limit(REPLAN_LIMIT_S):
                return np.int64(bot.replan(env.get_wrapper_attr("last_action")))
        except (AssertionError, DisappearedBoxError) as error:
            raise ExpertFailed(f"the bot gave up on {observation['mission']!r}: {error}") from error

    return act


def tasks() -> list[TaskSpec]:
    """Return one task per level."""
    return [
        TaskSpec(
            id=f"babyai/{name}",
            make=partial(make, level),
            expert=expert,
            noise=0.1,
            modules={"minigrid": "babyai"},
        )
        for name, level in LEVELS.items()
    ]


@contextlib.contextmanager
def _cpu_limit(limit_s: float) -> Iterator[None]:
    """Raise `ExpertFailed` inside the block after so much CPU time; only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def fail(*_: Any) -> None:
        raise ExpertFailed(f"the bot looped for {limit_s} s of CPU time")

    previous = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, previous)
