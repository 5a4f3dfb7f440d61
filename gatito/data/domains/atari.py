"""Atari 2600 games (ALE, Bellemare et al. 2013) seen as RGB frames, with experts that are rules over the RAM.

ale-py is GPL-2.0-only and therefore an extra that is not installed by default: `pip install 'gatito[atari]'`.

As in Machado et al. 2018 (`ALE/*-v5`), an action lasts 4 frames, each of which repeats the previous action instead
with probability 0.25. Unlike there, the action set is the minimal one, an episode starts with 1, 3, ... or 29 no-op
frames and is truncated after five minutes. Each expert's mean raw score is above the random 99th percentile.

RAM addresses are those of AtariARI (Anand et al. 2019) and OCAtari (Delfosse et al. 2024) where a rule does not
say "observed": those, and all numbers in pixels and frames, were found by watching the RAM while playing.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from PIL import Image

from gatito.data.tasks import Policy, TaskSpec

FRAMES = 4
"""Frames per step, at 60 frames a second."""

MAX_FRAMES = 18_000
"""Frames per episode, 4 500 steps: five minutes, as for the humans of Mnih et al. 2015."""

HEIGHT, WIDTH = 96, 80
"""Pixels of the observation: 30 patches of 16 x 16."""

Rule = Callable[[Iterator[list[int]]], Iterator[str]]
"""Maps the 128 bytes of RAM at each step to the name of an action."""


class Atari(gym.Wrapper[NDArray[np.uint8], np.int64, Any, Any], RecordConstructorArgs):
    """Shows every fourth frame, shrunk, after a random number of no-op frames."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap an environment of ale-py with one frame per step; the observation becomes (96, 80, 3)."""
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.observation_space = gym.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        self.ale = env.unwrapped.ale  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode; its no-op frames and repeated actions follow from the seed."""
        self.env.reset(seed=seed, options=options)
        for _ in range(1 + 2 * int(self.unwrapped.np_random.integers(15))):
            _, _, _, _, info = self.env.step(np.int64(0))
        return shrink(self.ale.getScreenRGB()), info

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], Any, bool, bool, dict[str, Any]]:
        """Hold the action for four frames and show the brighter of the last two, for sprites that flicker."""
        total, screens = 0.0, []
        for _ in range(FRAMES):
            _, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            screens.append(self.ale.getScreenRGB())
            if terminated or truncated:
                break
        return shrink(np.max(screens[-2:], axis=0)), total, terminated, truncated, info


def shrink(screen: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average (210, 160, 3) to (96, 80, 3), which keeps thin things visible."""
    return np.array(Image.fromarray(screen).resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def make(game: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build a game, such as `Breakout`."""
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # otherwise prints a banner
    gym.register_envs(ale_py)
    frames = {"frameskip": 1, "max_num_frames_per_episode": MAX_FRAMES}
    name = f"ALE/{game}-v5"
    return Atari(gym.make(name, disable_env_checker=True, obs_type="ram", render_mode=render_mode, **frames))


def expert(rule: Rule, env: gym.Env[Any, Any]) -> Policy:
    """Play by the rule; the policy looks at the RAM and not at the observation."""
    ale = env.unwrapped.ale  # type: ignore[attr-defined]
    actions = {action.name: np.int64(i) for i, action in enumerate(ale.getMinimalActionSet())}
    names = rule(ale.getRAM().tolist() for _ in cycle([None]))
    return lambda _: actions[next(names)]


def steer(way_x: int, way_y: int, fire: bool = False) -> str:
    """Name the action that moves right and down (each -1, 0 or 1) and may fire."""
    return ("UP", "", "DOWN")[way_y + 1] + ("LEFT", "", "RIGHT")[way_x + 1] + "FIRE" * fire or "NOOP"


def towards(wanted: float, there: float, slack: float) -> int:
    """Return the way (-1, 0 or 1) that leads there, or 0 within the slack."""
    return int(wanted > there + slack) - int(wanted < there - slack)


def folded(place: float, low: float, high: float) -> float:
    """Return where a ball is that would be at `place`, had it not bounced between two walls."""
    place = (place - low) % (2 * (high - low))
    return low + min(place, 2 * (high - low) - place)


def signed(byte: int) -> int:
    """Read a byte as two's complement."""
    return (byte + 128) % 256 - 128


def turn(paddle: float, knob: float, wanted: float, frames: float, *, lag: int, slack: float) -> int:
    """Which way (-1, 0 or 1) to turn the knob in this step, to have the paddle where it is wanted in time.

    A turn moves the knob about 23 pixels, more than a paddle is long, and the paddle halves its distance to it
    every `lag` frames: the moment matters. A turn must gain more pixels than the slack. Observed.
    """

    def miss(way: int) -> float:
        place, at = paddle, knob
        for frame in range(0, int(min(frames, 16)), lag):
            at = min(max(at + way * lag * 5.7 * (frame < FRAMES), 40), 200)
            place = (place + at) / 2
        return abs(place - wanted) + slack * abs(way)

    return min((0, 1, -1), key=miss)


def breakout(rams: Iterator[list[int]]) -> Iterator[str]:
    """Be where the ball comes down; RAM 70, the knob, is observed."""
    x = y = 0
    for ram in rams:
        (was_x, was_y), (x, y) = (x, y), (ram[99], ram[101])
        wanted, frames = float(ram[72] if y >= was_y else (x + 110) / 2), 16.0
        if 0 < was_y < y <= 181:
            frames = max(FRAMES * (177 - y) / (y - was_y), 0)
            wanted = folded(x + (x - was_x) / FRAMES * frames, 57, 199) - 9
        way = turn(ram[72], 234 - ram[70], wanted, frames, lag=1, slack=2.0)
        yield "FIRE" if y == 0 else steer(way, 0)


def pong(rams: Iterator[list[int]]) -> Iterator[str]:
    """Hit the ball with an end of the paddle: the opponent misses steep ones. RAM 4 (odd frames), 56-60: observed."""
    for ram in rams:
        speed_x, speed_y, wanted, frames = -signed(ram[58]), signed(ram[56]), 125.0, 16.0
        if ram[54] and speed_x > 0:
            frames = max(189 - ram[49], 0) / speed_x
            y = folded(ram[54] + speed_y * frames, 44, 206)
            wanted = y - (11 if speed_x == 1 else 3 if y > 110 else 9)  # the paddle is 16 long
        way = turn(ram[60], ram[4], wanted, frames, lag=2, slack=1.0)
        yield steer(-way, 0, True)  # left is down; with the button held the ball flies faster


CAR_SPEEDS = np.array([1 / 5, 1 / 4, 1 / 3, 1 / 2, 1, -1, -1 / 2, -1 / 3, -1 / 4, -1 / 5])
"""Pixels per frame on each of Freeway's lanes, from below. Observed."""


def freeway(rams: Iterator[list[int]], horizon: int = 24) -> Iterator[str]:
    """Plan the walk of the next 24 steps among cars whose ways are known (value iteration over height and time)."""
    frames = np.arange(0, FRAMES * horizon, 2)
    for ram in rams:
        heights = ram[14] + FRAMES * np.arange(-1, horizon + 1)
        lanes = np.abs(heights[:, None] - (20 + 16 * np.arange(10))) <= 8  # (height, lane)
        cars = (np.array(ram[108:118]) + CAR_SPEEDS * frames[:, None]) % 160  # (frame, lane)
        hit = ((np.abs(cars - 47) <= 8) @ lanes.T).reshape(horizon, 2, -1).any(1)  # (step, height)
        value = np.minimum(heights, 174).astype(float)
        for step in range(horizon - 1, -1, -1):
            up, down = np.append(value[1:], value[-1]), np.append(value[:1], value[:-1])
            if step == 0:
                yield ("UP", "NOOP", "DOWN")[int(np.argmax([up[1], value[1], down[1]]))]
            value = np.max([value, up, down], axis=0) - 20.0 * hit[step] - 0.01


def boxing(rams: Iterator[list[int]]) -> Iterator[str]:
    """Stay above the opponent, an arm's length away, and punch with every other step."""
    for step, ram in enumerate(rams):
        x, y, enemy_x, enemy_y = (ram[i] for i in (32, 34, 33, 35))
        punch = step % 2 == 1 and abs(enemy_x - x) < 22 and abs(abs(enemy_y - y) - 9) < 5
        yield steer(towards(enemy_x - (16 if enemy_x > x else -16), x, 3), towards(enemy_y - 9, y, 2), punch)


def tennis(rams: Iterator[list[int]]) -> Iterator[str]:
    """Run along the baseline and stand so that the ball goes to the far corner."""
    for ram in rams:
        below, ball = min(ram[80], 1), ram[16]
        yield steer(towards(ball + (1 if ball > 78 else -6), ram[26 + below], 1), 2 * below - 1, True)


def skiing(rams: Iterator[list[int]]) -> Iterator[str]:
    """Head for the middle of the next gate; RAM 15, the heading from 0 (left) to 15, is observed."""
    for ram in rams:
        gates = [(ram[86 + i], ram[62 + i] + 16) for i in range(8) if ram[70 + i] == 2]
        gate = max((gate for gate in gates if gate[0] < 118), default=(0, ram[25]))[1]
        yield steer(towards(8 + min(max(0.1 * (gate - ram[25]), -2), 2), ram[15], 0.5), 0)


def column(byte: int) -> int:
    """Decode a horizontal place: the low four bits count 15 pixels, the high ones a signed rest to the left."""
    return 15 * (byte & 15) - signed(byte & 240) // 16


GAMES: dict[str, tuple[Rule, float]] = {
    "breakout": (breakout, 0.05),
    "freeway": (freeway, 0.1),
    "pong": (pong, 0.03),
    "boxing": (boxing, 0.1),
    "tennis": (tennis, 0.05),
    "skiing": (skiing, 0.1),
}


def tasks() -> list[TaskSpec]:
    """Return one task per game, with the noise that leaves more than 70 % of the expert's return above random."""
    return [
        TaskSpec(
            id=f"atari/{name}",
            make=partial(make, name.title().replace("-", "")),
            expert=partial(expert, rule),
            noise=noise,
            modules={"ale_py": "atari"},
            license="GPL-2.0-only",
        )
        for name, (rule, noise) in GAMES.items()
    ]
