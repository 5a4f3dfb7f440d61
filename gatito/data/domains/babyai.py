"""BabyAI levels (Chevalier-Boisvert et al. 2019) with the bot of minigrid as expert."""

import contextlib
import io
import re
import string
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from gatito.data.tasks import ExpertFailed, Policy, TaskSpec

TILE_SIZE = 8
"""Pixels per grid cell: the view of 7 x 7 cells becomes 56 x 56 pixels."""

EPISODE_LIMIT_S = 4.0
"""CPU time for one episode with the bot. The longest take 0.3 s; on some seeds of GoToImpUnlock, SynthS5R2 and
UnlockToUnlock the bot loops for ever."""

LEVELS = """
    ActionObjDoor BlockedUnlockPickup BossLevel BossLevelNoUnlock FindObjS5 FindObjS6 FindObjS7 GoTo GoToDoor
    GoToImpUnlock GoToLocal GoToLocalS5N2 GoToLocalS6N2 GoToLocalS6N3 GoToLocalS6N4 GoToLocalS7N4 GoToLocalS7N5
    GoToLocalS8N2 GoToLocalS8N3 GoToLocalS8N4 GoToLocalS8N5 GoToLocalS8N6 GoToLocalS8N7 GoToObj GoToObjDoor
    GoToObjMaze GoToObjMazeOpen GoToObjMazeS4 GoToObjMazeS4R2 GoToObjMazeS5 GoToObjMazeS6 GoToObjMazeS7 GoToObjS4
    GoToObjS6 GoToOpen GoToRedBall GoToRedBallGrey GoToRedBallNoDists GoToRedBlueBall GoToSeq GoToSeqS5R2
    KeyCorridor KeyCorridorS3R1 KeyCorridorS3R2 KeyCorridorS3R3 KeyCorridorS4R3 KeyCorridorS5R3 KeyCorridorS6R3
    MiniBossLevel MoveTwoAcrossS5N2 MoveTwoAcrossS8N9 OneRoomS12 OneRoomS16 OneRoomS20 OneRoomS8 Open OpenDoor
    OpenDoorColor OpenDoorDebug OpenDoorLoc OpenDoorsOrderN2 OpenDoorsOrderN4 OpenRedBlueDoors
    OpenRedBlueDoorsDebug OpenRedDoor OpenTwoDoors Pickup PickupAbove PickupDist PickupDistDebug PickupLoc
    PutNextLocal PutNextLocalS5N3 PutNextLocalS6N4 PutNextS4N1 PutNextS5N1 PutNextS5N2 PutNextS6N3 PutNextS7N4
    Synth SynthLoc SynthS5R2 SynthSeq UnblockPickup Unlock UnlockLocal UnlockLocalDist UnlockPickup
    UnlockPickupDist UnlockToUnlock
""".split()  # noqa: SIM905
"""What stands between `BabyAI-` and `-v0` in the ids of minigrid 3.2, of all levels but the six on which its bot
fails: KeyInBox, PutNextS5N2Carrying, PutNextS6N3Carrying and PutNextS7N4Carrying (always),
OpenDoorsOrderN2Debug and OpenDoorsOrderN4Debug (2 of 3 episodes)."""

JAT_LEVELS = """
    ActionObjDoor BlockedUnlockPickup BossLevel BossLevelNoUnlock FindObjS5 GoTo GoToDoor GoToImpUnlock GoToLocal
    GoToObj GoToObjDoor GoToRedBall GoToRedBallGrey GoToRedBallNoDists GoToRedBlueBall GoToSeq KeyCorridor
    MiniBossLevel MoveTwoAcrossS8N9 OneRoomS8 Open OpenDoor OpenDoorsOrderN4 OpenRedDoor OpenTwoDoors Pickup
    PickupAbove PickupDist PickupLoc PutNextLocal PutNextS7N4 Synth SynthLoc SynthSeq UnblockPickup Unlock
    UnlockLocal UnlockPickup UnlockToUnlock
""".split()  # noqa: SIM905
"""The 39 levels of JAT (Gallouedec et al. 2024)."""

HIDDEN_LEVEL, HIDDEN = "GoToLocalS5N2", ("red ball", "green ball", "blue box", "purple box", "yellow key", "grey key")
"""A room with two objects, and what is to be picked up there, each a task whose mission is withheld: only a
demonstration tells it."""
WITHHELD = "find out"
"""In place of the mission."""

NUM_OBJECTS, NUM_COLOURS, NUM_STATES = 11, 6, 3
"""Values of the three channels of minigrid's symbolic view."""


class BabyAI(gym.Wrapper[dict[str, Any], np.int64, Any, Any], RecordConstructorArgs):
    """Shows the agent's view and the mission as text, and remembers the executed action."""

    def __init__(self, env: gym.Env[Any, Any], symbolic: bool = False) -> None:
        """Wrap a BabyAI environment; its observation becomes direction, image and mission.

        The image is (56, 56, 3) pixels, or symbolic: type, colour and state of the object in each of 7 x 7 cells.
        """
        RecordConstructorArgs.__init__(self, symbolic=symbolic)
        gym.Wrapper.__init__(self, env)
        self.symbolic = symbolic
        cells = env.unwrapped.agent_view_size  # type: ignore[attr-defined]
        pixels = gym.spaces.Box(0, 255, (cells * TILE_SIZE, cells * TILE_SIZE, 3), np.uint8)
        values = np.tile([NUM_OBJECTS, NUM_COLOURS, NUM_STATES], (cells, cells, 1))
        self.observation_space = gym.spaces.Dict(
            direction=gym.spaces.Discrete(4),
            image=gym.spaces.MultiDiscrete(values) if symbolic else pixels,
            mission=gym.spaces.Text(512, charset=string.ascii_lowercase + string.digits + " ,.-'"),
        )
        self.last_action: int | None = None
        """The action executed last in this episode, which the bot must be told."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode, without what the level prints while it searches a valid layout."""
        with contextlib.redirect_stdout(io.StringIO()):
            observation, info = self.env.reset(seed=seed, options=options)
        self.last_action = None
        return self.observe(observation), info

    def step(self, action: np.int64) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Execute the action and remember it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.last_action = int(action)
        return self.observe(observation), reward, terminated, truncated, info

    def observe(self, observation: dict[str, Any]) -> dict[str, Any]:
        """What is shown of an observation of minigrid's."""
        image: NDArray[Any] = observation["image"]
        if not self.symbolic:
            image = self.unwrapped.get_frame(tile_size=TILE_SIZE, agent_pov=True)  # type: ignore[attr-defined]
        return {"direction": np.int64(observation["direction"]), "image": image, "mission": observation["mission"]}


class HiddenMission(gym.Wrapper[dict[str, Any], np.int64, Any, Any], RecordConstructorArgs):
    """Picking up the same thing in every episode, which the agent is not told.

    Beside it lies another one of `HIDDEN`, so that what is seen does not tell; picking that one up ends the episode.
    """

    def __init__(self, env: BabyAI, target: str) -> None:
        """`target` is what is to be picked up, one of `HIDDEN`."""
        RecordConstructorArgs.__init__(self, target=target)
        gym.Wrapper.__init__(self, env)
        self.target = target

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the level's episode of this seed, its two objects exchanged for the target and another one."""
        _, info = self.env.reset(seed=seed, options=options)
        room: Any = self.unwrapped
        cells = [room.grid.get(x, y) for x in range(room.width) for y in range(room.height)]
        places = [cell.cur_pos for cell in cells if cell is not None and cell.can_pickup()]
        other = [name for name in HIDDEN if name != self.target][int(room.np_random.integers(len(HIDDEN) - 1))]
        first = int(room.np_random.integers(len(places)))
        for place, name in zip((places[first], places[1 - first]), (self.target, other), strict=True):
            _put(room, place, name)
        room.instrs = _picking_up(self.target)
        room.instrs.reset_verifier(room)
        room.mission = room.instrs.surface(room)
        return self._hidden(self.env.get_wrapper_attr("observe")(room.gen_obs())), info

    def step(self, action: np.int64) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Execute the action."""
        observation, *rest = self.env.step(action)
        return self._hidden(observation), *rest  # type: ignore[return-value]

    def _hidden(self, observation: dict[str, Any]) -> dict[str, Any]:
        return observation | {"mission": WITHHELD}


def _put(room: Any, place: tuple[int, int], name: str) -> None:
    """Put an object, such as `red ball`, where another one was."""
    from minigrid.core.world_object import Ball, Box, Key

    colour, kind = name.split()
    thing = {"ball": Ball, "box": Box, "key": Key}[kind](colour)
    thing.init_pos = thing.cur_pos = place
    room.grid.set(*place, thing)


def _picking_up(name: str) -> Any:
    """minigrid's mission to pick up an object, which fails with any other one."""
    from minigrid.envs.babyai.core.verifier import ObjDesc, PickupInstr

    colour, kind = name.split()
    return PickupInstr(ObjDesc(kind, colour), strict=True)


def make_hidden(level: str, target: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build a level with one mission, which is withheld."""
    return HiddenMission(make(level, render_mode=render_mode), target)


def make(level: str, symbolic: bool = False, render_mode: str | None = None) -> BabyAI:
    """Build a level, such as `GoToLocal`."""
    import minigrid  # noqa: F401  (registers the levels)

    version = 1 if level == "GoToObjS6" else 0
    with contextlib.redirect_stdout(io.StringIO()):
        env = gym.make(f"BabyAI-{level}-v{version}", render_mode=render_mode, disable_env_checker=True)
        return BabyAI(env, symbolic)


def expert(env: gym.Env[Any, Any]) -> Policy:
    """The bot, told the executed action, which under noise is not the one that it proposed.

    The policy raises `ExpertFailed` where the bot gives up.
    """
    from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

    bot = BabyAIBot(env.unwrapped)

    def act(observation: dict[str, Any]) -> np.int64:
        try:
            return np.int64(bot.replan(env.get_wrapper_attr("last_action")))
        except (AssertionError, DisappearedBoxError) as error:
            raise ExpertFailed(f"the bot gave up on {observation['mission']!r}: {error}") from error

    return act


def task_id(level: str) -> str:
    """`GoToLocalS5N2` is the task `babyai/go-to-local-s5n2`."""
    return "babyai/" + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", level).lower()


def tasks() -> list[TaskSpec]:
    """Return two tasks per level, from pixels and symbolic, and those that differ in a hidden mission alone."""
    plain = [_task(level, symbolic) for level in LEVELS for symbolic in (False, True)]
    return plain + [_with_hidden_mission(target) for target in HIDDEN]


def _with_hidden_mission(target: str) -> TaskSpec:
    return TaskSpec(
        id=hidden_id(target),
        make=partial(make_hidden, HIDDEN_LEVEL, target),
        expert=expert,
        noise=0.1,
        modules={"minigrid": "babyai"},
        cpu_limit_s=EPISODE_LIMIT_S,
        license="Apache-2.0",
    )


def hidden_id(target: str) -> str:
    """Task of a mission that is withheld."""
    return f"babyai/pickup-hidden-{target.replace(' ', '-')}"


def _task(level: str, symbolic: bool) -> TaskSpec:
    return TaskSpec(
        id=task_id(level) + ("-symbolic" if symbolic else ""),
        make=partial(make, level, symbolic),
        expert=expert,
        noise=0.1,
        modules={"minigrid": "babyai"},
        returns_of=None if symbolic else f"{task_id(level)}-symbolic",
        cpu_limit_s=EPISODE_LIMIT_S,
        license="Apache-2.0",
    )


def groups() -> dict[str, list[str]]:
    """Return the names of lists of tasks."""
    jat = [task_id(level) for level in JAT_LEVELS]
    return {"babyai-jat": jat, "hidden-missions": [hidden_id(target) for target in HIDDEN]}
