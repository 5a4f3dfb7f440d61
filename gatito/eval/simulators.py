"""N simulators of any tasks, in this process or in a pool of others; one that fails costs its own episode alone.

Gymnasium's vector environments hold one pair of spaces, step all together, and end with the first of them that fails.
Here each slot holds the environment of whatever episode is played in it, built when it is first needed and kept for
the next episode of the same task. Nothing resets by itself: an episode begins where `Begin` says so.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from gatito.data.alarm import OutOfTime, time_limit
from gatito.data.episode import copied
from gatito.data.recording import collect_episode
from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.eval.replay import make_rendering, render_frame
from gatito.tokenizers.fields import Path, value_at

LIMIT_S = 60.0
"""Seconds that a simulator may take to begin an episode, or for one timestep."""
MAX_LIMIT_S = 1e6
"""Largest limit, eleven days: a timer takes no infinity."""


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Asks for the first observation of an episode."""

    spec: TaskSpec
    """Its task."""
    seed: int
    """Given to `reset`."""
    renders: bool = False
    """Whether its moments have frames."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """Asks for the next timestep."""

    action: Any
    """Of the task's action space."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a simulator shows."""

    observation: Any
    """Of the task's observation space."""
    reward: float = 0.0
    """Of the action before; 0 at the beginning."""
    terminated: bool = False
    """Whether the episode has come to an end of its own."""
    truncated: bool = False
    """Whether it was cut."""
    frame: NDArray[np.uint8] | None = None
    """(H, W, 3), see `render_frame`; None where none was asked for, or the simulator cannot render here."""


@dataclass(frozen=True, kw_only=True)
class Demonstrate:
    """Asks for a whole episode of the task's expert."""

    spec: TaskSpec
    """Its task."""
    seed: int
    """Given to `reset`."""


@dataclass(frozen=True, kw_only=True)
class Demonstrated:
    """What the expert has done."""

    buffer: EpisodeBuffer
    """T timesteps, T + 1 observations."""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The episode cannot go on."""

    reason: str
    """What the simulator did."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """The process that held the episode has ended for the sake of another; it may begin again."""


Request = Begin | Act | Demonstrate
Answer = Moment | Demonstrated | Failed | Lost


class Simulators(Protocol):
    """What `rollouts` plays in."""

    def exchange(self, requests: Mapping[int, Request]) -> dict[int, Answer]:
        """Do what is asked of each slot, and return what each of them shows."""
        ...

    def close(self) -> None:
        """Close all environments."""
        ...


class LocalSimulators:
    """Simulators in this process: what crashes here ends it, and only hangs in Python are interrupted, of these only
    those in its main thread."""

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        """A simulator may take `limit_s` seconds to answer."""
        if not 0 < limit_s <= MAX_LIMIT_S:
            raise UserError(f"--limit-s is {limit_s}, allowed above 0 to {MAX_LIMIT_S:g}")
        self.limit_s = limit_s
        self._envs: dict[int, _Kept] = {}

    def exchange(self, requests: Mapping[int, Request]) -> dict[int, Answer]:
        """Do what is asked of each slot in turn."""
        return {slot: self.answer(slot, request) for slot, request in sorted(requests.items())}

    def answer(self, slot: int, request: Request) -> Answer:
        """Do what is asked of one slot."""
        slow = OutOfTime(f"no answer within {self.limit_s:g} s")
        try:
            with time_limit(self.limit_s, "wall", slow):
                if isinstance(request, Demonstrate):
                    env = self._keep(slot, request.spec, renders=False).env
                    return Demonstrated(buffer=collect_episode(request.spec, env, request.seed))
                if isinstance(request, Begin):
                    kept = self._keep(slot, request.spec, renders=request.renders)
                    observation = _checked(kept.env, kept.env.reset(seed=request.seed)[0])
                    return Moment(observation=observation, frame=kept.frame())
                kept = self._envs[slot]
                observation, reward, terminated, truncated, _ = kept.env.step(request.action)
                return Moment(
                    observation=_checked(kept.env, observation),
                    reward=float(reward),
                    terminated=bool(terminated),
                    truncated=bool(truncated),
                    frame=kept.frame(),
                )
        except Exception as error:  # whatever another package's simulator raises
            if isinstance(error, OutOfTime) and error is not slow:  # the time of all that this is part of
                raise
            self._drop(slot)
            return Failed(reason=_words(error))

    def close(self) -> None:
        """Close all environments."""
        for slot in list(self._envs):
            self._drop(slot)

    def _keep(self, slot: int, spec: TaskSpec, *, renders: bool) -> "_Kept":
        kept = self._envs.get(slot)
        if kept is not None and (kept.spec is not spec or kept.renders != renders):
            self._drop(slot)
        if slot not in self._envs:
            env = make_rendering(spec) if renders else spec.make()
            self._envs[slot] = _Kept(spec=spec, env=env, renders=renders)
        return self._envs[slot]

    def _drop(self, slot: int) -> None:
        if slot in self._envs:
            with contextlib.suppress(Exception):  # what has failed may fail to close as well
                self._envs.pop(slot).env.close()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    """The environment of a slot."""

    spec: TaskSpec
    env: gym.Env[Any, Any]
    renders: bool

    def frame(self) -> NDArray[np.uint8] | None:
        """What its camera sees, where there is one."""
        if not self.renders:
            return None
        try:
            return render_frame(self.env)
        except Exception:  # whatever a broken driver raises: a picture must not cost the episode
            return None


def _words(error: Exception) -> str:
    """What an exception says, be it one that cannot be printed."""
    try:
        said = str(error)
    except Exception:
        said = "which cannot be printed"
    return (f"{type(error).__name__}: {said}".splitlines() or [""])[0]


def _checked(env: gym.Env[Any, Any], observation: Any) -> Any:
    """A copy of an observation: some environments write the next one into the same array.

    Raises `UserError` for a text that is not of its space; what else it must be, the layout checks.
    """
    for path, space in _texts(env.observation_space):
        text = value_at(observation, path)
        if not space.contains(text):
            raise UserError(f"the observation {'.'.join(map(str, path))} {str(text)[:80]!r} is not of {space}")
    return copied(observation)


def _texts(space: spaces.Space[Any], path: Path = ()) -> Iterator[tuple[Path, spaces.Text]]:
    """The texts of an observation space, and where they are."""
    if isinstance(space, spaces.Text):
        yield path, space
    elif isinstance(space, spaces.Dict):
        for name, inner in space.spaces.items():
            yield from _texts(inner, (*path, name))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _texts(inner, (*path, index))


@contextlib.contextmanager
def closing(these: Simulators) -> Iterator[Simulators]:
    """Close them at the end."""
    try:
        yield these
    finally:
        these.close()
