"""Sokoban seen as RGB images: our own environment, a new level from every seed, and A* as the expert."""

from functools import lru_cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gatito.data.domains.sokoban_levels import Room, State, cells, generate, moved, plan
from gatito.data.tasks import Policy, TaskSpec

TILE_SIZE = 8
"""Pixels per cell: a patch of 16 x 16 pixels shows 2 x 2 cells."""

TIMESTEPS_PER_SIZE = 20
"""Time limit over size: 120 timesteps at size 6, 200 at size 10."""

WALL, FLOOR, TARGET, BOX, BOX_ON_TARGET, PLAYER, PLAYER_ON_TARGET = range(7)
"""What a cell shows, and the index of its picture; what stands on a target is one more than on the floor."""

_COLOURS = {
    "#": (74, 78, 100),  # brick
    "=": (40, 42, 58),  # mortar
    "f": (214, 206, 190),  # floor
    "x": (214, 40, 60),  # target
    "e": (110, 62, 18),  # edges of a box
    "b": (206, 140, 60),
    "t": (20, 100, 48),  # edges of a box on a target
    "g": (88, 196, 96),
    "h": (30, 24, 24),  # hair and shoes
    "s": (244, 196, 160),  # skin
    "p": (36, 92, 220),  # shirt
}
_WALL = "###=#### ###=#### ###=#### ======== #######= #######= #######= ========"
_FLOOR = " ".join(["ffffffff"] * 8)
_TARGET = "xx....xx x......x ........ ...xx... ...xx... ........ x......x xx....xx"
_BOX = "eeeeeeee ebbbbbbe ebebbebe ebbeebbe ebbeebbe ebebbebe ebbbbbbe eeeeeeee"
_PLAYER = "..hhhh.. ..ssss.. ..ssss.. .pppppp. .spppps. ..pppp.. ..p..p.. ..h..h.."


def _tile(*sprites: str) -> NDArray[np.uint8]:
    """Paint sprites over one another; a dot lets through what is below."""
    tile = np.zeros((TILE_SIZE, TILE_SIZE, 3), np.uint8)
    for sprite in sprites:
        for y, row in enumerate(sprite.split()):
            for x, colour in enumerate(row):
                if colour != ".":
                    tile[y, x] = _COLOURS[colour]
    return tile


TILES = np.stack(
    [
        _tile(_WALL),
        _tile(_FLOOR),
        _tile(_FLOOR, _TARGET),
        _tile(_FLOOR, _BOX),
        _tile(_FLOOR, _BOX.replace("e", "t").replace("b", "g")),
        _tile(_FLOOR, _PLAYER),
        _tile(_FLOOR, _TARGET, _PLAYER),
    ]
)
"""The picture of each kind of cell, (7, 8, 8, 3)."""


def draw(room: Room, state: State) -> NDArray[np.uint8]:
    """Draw a position: RGB (8 * size, 8 * size, 3)."""
    codes = _still(room).copy()
    for box in cells(state.boxes):
        codes[box.bit_length() - 1] += BOX - FLOOR
    codes[state.player.bit_length() - 1] += PLAYER - FLOOR
    rows = TILES[codes].reshape(room.size, room.size, TILE_SIZE, TILE_SIZE, 3)
    return rows.swapaxes(1, 2).reshape(room.size * TILE_SIZE, room.size * TILE_SIZE, 3)


@lru_cache(maxsize=8)
def _still(room: Room) -> NDArray[np.uint8]:
    """What each cell shows with nothing on it, row by row."""
    codes = np.full(room.size**2, WALL, np.uint8)
    for kind, bits in ((FLOOR, room.floor), (TARGET, room.targets)):
        codes[[cell.bit_length() - 1 for cell in cells(bits)]] = kind
    return codes


class Sokoban(gym.Env[NDArray[np.uint8], np.int64]):
    """One level per episode, drawn from the seed of `reset`: push every box onto a target; boxes cannot be pulled.

    The observation is an RGB image (8 * size, 8 * size, 3) of the whole room. The actions are 0 up, 1 down,
    2 left and 3 right; a step into a box pushes it, and nothing moves where a wall or a second box is in the way.
    The reward is 1 when the last box comes onto a target, which ends the episode, and 0 before: the return is the
    success. After 20 * size timesteps the episode is truncated.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, size: int, boxes: int, render_mode: str | None = None) -> None:
        """Build the environment; `size` is in cells a side, outer walls included."""
        self.size, self.boxes, self.render_mode = size, boxes, render_mode
        self.max_timesteps = TIMESTEPS_PER_SIZE * size
        pixels = size * TILE_SIZE
        self.observation_space = gym.spaces.Box(0, 255, (pixels, pixels, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start the level of this seed; without one, the next level of the last seed.

        The expert solves it in three fifths of the time limit, which leaves some for mistakes.
        """
        super().reset(seed=seed)
        self.room, self.state = generate(self.size, self.boxes, self.max_timesteps * 3 // 5, self.np_random)
        self.timestep = 0
        return draw(self.room, self.state), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move the player one cell, or try to."""
        self.state = moved(self.room, self.state, int(action))
        self.timestep += 1
        solved = self.state.boxes == self.room.targets
        truncated = self.timestep >= self.max_timesteps and not solved
        return draw(self.room, self.state), float(solved), solved, truncated, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Return a frame of 24 pixels per cell, or None without a render mode."""
        return None if self.render_mode is None else draw(self.room, self.state).repeat(3, 0).repeat(3, 1)


def expert(env: gym.Env[Any, Any]) -> Policy:
    """A* over pushes, planned anew in every state that the last plan does not go through.

    The policy raises `ExpertFailed` where the level cannot be solved any more, or is too hard.
    """
    sokoban = env.unwrapped
    assert isinstance(sokoban, Sokoban)
    way: dict[State, int] = {}

    def act(observation: NDArray[np.uint8]) -> np.int64:
        nonlocal way
        if sokoban.state not in way:
            way = plan(sokoban.room, sokoban.state)
        return np.int64(way[sokoban.state])

    return act


def tasks() -> list[TaskSpec]:
    """Return the four tasks of this domain, named by size and number of boxes.

    Noise pushes a box to where it cannot come back in 4, 10, 13 and 12 % of the episodes, which are left out.
    """
    return [
        TaskSpec(
            id=f"sokoban/{size}x{size}-{boxes}",
            make=partial(Sokoban, size, boxes),
            expert=expert,
            noise=noise,
            success=True,
            license="Apache-2.0",
        )
        for size, boxes, noise in ((6, 1, 0.1), (8, 2, 0.1), (10, 3, 0.1), (10, 4, 0.05))
    ]
