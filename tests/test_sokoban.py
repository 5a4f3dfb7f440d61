"""Sokoban: the rules, the levels, the planner against an exhaustive search, and the picture."""

import pickle
from functools import cache

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from minari.serialization import deserialize_space, serialize_space

from gatito.data.domains import sokoban
from gatito.data.domains.sokoban import TILES, Sokoban, draw, expert
from gatito.data.domains.sokoban_levels import Room, State, cells, generate, moved, plan
from gatito.data.recording import collect_episode
from gatito.data.tasks import EVALUATION_SEEDS, ExpertFailed, TaskSpec
from gatito.errors import UserError

UP, DOWN, LEFT, RIGHT = range(4)
SPECS = sokoban.tasks()
NAMES = [spec.id for spec in SPECS]


def level(*rows: str) -> tuple[Room, State]:
    """Read a square level: # wall, . target, $ box, * box on target, @ player, + player on target."""
    text = "".join(rows)
    bits = {kind: sum(1 << i for i, char in enumerate(text) if char in kind) for kind in ("#", ".*+", "$*", "@+")}
    room = Room(size=len(rows), floor=(1 << len(text)) - 1 & ~bits["#"], targets=bits[".*+"])
    return room, State(bits["$*"], bits["@+"])


def after(rows: tuple[str, ...], *actions: int) -> State:
    room, state = level(*rows)
    for action in actions:
        state = moved(room, state, action)
    return state


@cache
def plans(size: int, boxes: int, levels: int = 30) -> list[tuple[Room, State, dict[State, int]]]:
    """Some levels and their solutions."""
    env, found = Sokoban(size, boxes), []
    for seed in range(levels):
        env.reset(seed=EVALUATION_SEEDS + seed)
        found.append((env.room, env.state, plan(env.room, env.state)))
    return found


def pushes(room: Room, way: dict[State, int]) -> int:
    return sum(moved(room, state, action).boxes != state.boxes for state, action in way.items())


def fewest_pushes(room: Room, start: State) -> int:
    """Breadth-first search over single pushes on coordinates, which shares nothing with the planner."""

    def places(bits: int) -> frozenset[tuple[int, int]]:
        return frozenset(divmod(i, room.size) for i in range(room.size**2) if bits >> i & 1)

    floor, targets = places(room.floor), places(room.targets)
    steps = ((-1, 0), (1, 0), (0, -1), (0, 1))

    def region(boxes: frozenset[tuple[int, int]], player: tuple[int, int]) -> frozenset[tuple[int, int]]:
        seen, stack = {player}, [player]
        while stack:
            y, x = stack.pop()
            fresh = [(y + dy, x + dx) for dy, dx in steps if (y + dy, x + dx) in floor - boxes - seen]
            seen.update(fresh)
            stack.extend(fresh)
        return frozenset(seen)

    (player,) = places(start.player)
    boxes = places(start.boxes)
    layer, seen, depth = {(boxes, region(boxes, player))}, set(), 0
    while all(boxes != targets for boxes, _ in layer):
        seen |= layer
        following = set()
        for boxes, walkable in layer:
            for y, x in boxes:
                for dy, dx in steps:
                    to = (y + dy, x + dx)
                    if (y - dy, x - dx) in walkable and to in floor - boxes:
                        pushed = boxes - {(y, x)} | {to}
                        following.add((pushed, region(pushed, (y, x))))
        layer, depth = following - seen, depth + 1
    return depth


def test_a_step_into_a_box_pushes_it() -> None:
    rows = ("######", "#    #", "# @$ #", "#  . #", "#    #", "######")
    assert after(rows, RIGHT) == level("######", "#    #", "#  @$#", "#  . #", "#    #", "######")[1]
    assert after(rows, UP, RIGHT, DOWN) == level("######", "#    #", "#  @ #", "#  * #", "#    #", "######")[1]
    assert after(rows, LEFT, LEFT) == level("######", "#    #", "#@ $ #", "#  . #", "#    #", "######")[1]


def test_a_box_against_a_wall_or_a_second_box_stays_and_so_does_the_player() -> None:
    wall = ("######", "#   .#", "#  @$#", "#    #", "#    #", "######")
    assert after(wall, RIGHT) == level(*wall)[1]
    two = ("######", "#    #", "#@$$ #", "# .. #", "#    #", "######")
    assert after(two, RIGHT) == level(*two)[1]
    assert after(two, LEFT) == level(*two)[1]


def test_levels_depend_on_the_seed_alone() -> None:
    fresh, used = Sokoban(8, 2), Sokoban(8, 2)
    for seed in (3, 1, 2):
        used.reset(seed=seed)
        used.step(np.int64(UP))
    fresh.reset(seed=2)
    used.reset(seed=2)
    assert (fresh.room, fresh.state) == (used.room, used.state)
    assert len({(room, state) for room, state, _ in plans(8, 2)}) == 30
    used.reset()  # without a seed, the next level of the last seed
    assert (fresh.room, fresh.state) != (used.room, used.state)


@pytest.mark.parametrize(("size", "boxes"), [(6, 1), (8, 2), (10, 3), (10, 4)])
def test_a_level_has_walls_around_and_as_many_boxes_as_targets(size: int, boxes: int) -> None:
    for room, state, way in plans(size, boxes):
        edge = [i for i in range(size**2) if {0, size - 1} & set(divmod(i, size))]
        assert not any(room.floor >> i & 1 for i in edge)
        assert room.targets.bit_count() == state.boxes.bit_count() == boxes
        assert state.player.bit_count() == 1
        assert (room.targets | state.boxes | state.player) & ~room.floor == 0
        assert state.player & state.boxes == 0
        assert 2 * pushes(room, way) >= size * boxes


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_the_expert_solves_every_level_within_three_fifths_of_the_time_limit(spec: TaskSpec) -> None:
    env = spec.make()
    assert isinstance(env, Sokoban)
    for room, state, way in plans(env.size, env.boxes):
        assert len(way) <= env.max_timesteps * 3 // 5 == env.size * 12
        for expected, action in way.items():
            assert state == expected
            state = moved(room, state, action)
        assert state.boxes == room.targets
    for seed in range(3):
        rewards = collect_episode(spec, env, EVALUATION_SEEDS + seed).rewards
        assert rewards == [0.0] * (len(plans(env.size, env.boxes)[seed][2]) - 1) + [1.0]


@pytest.mark.parametrize(("size", "boxes", "levels"), [(6, 1, 30), (8, 2, 6), (7, 3, 1)])
def test_the_planner_needs_as_few_pushes_as_an_exhaustive_search(size: int, boxes: int, levels: int) -> None:
    for room, state, way in plans(size, boxes, levels):
        assert pushes(room, way) == fewest_pushes(room, state)


def test_a_box_on_its_target_is_pushed_away_to_let_another_pass() -> None:
    room, state = level("#######", "#     #", "#  $ ##", "#@ * .#", "#######", "#######", "#######")
    assert pushes(room, plan(room, state)) == fewest_pushes(room, state) == 3


def test_the_largest_levels_need_fifteen_pushes_and_more_on_average() -> None:
    assert np.mean([pushes(room, way) for room, _, way in plans(10, 3)]) >= 15
    assert np.mean([pushes(room, way) for room, _, way in plans(10, 4)]) >= 20


def test_a_size_that_holds_no_level_is_refused() -> None:
    with pytest.raises(UserError, match="no level of size 5 with 5 boxes; fewer boxes or a larger size"):
        generate(5, 5, 60, np.random.default_rng(0))


def test_the_picture_shows_each_cell_as_its_tile() -> None:
    room, state = level("######", "#@ $.#", "#  * #", "#    #", "#    #", "######")
    codes = {char: code for code, char in enumerate("# .$*@+")}
    for rows, shown in (
        (("######", "#@ $.#", "#  * #", "#    #", "#    #", "######"), state),
        (("######", "#  $+#", "#  * #", "#    #", "#    #", "######"), State(state.boxes, 1 << 10)),
    ):
        image = draw(room, shown)
        assert image.shape == (48, 48, 3)
        assert image.dtype == np.uint8
        for y, row in enumerate(rows):
            for x, char in enumerate(row):
                assert np.array_equal(image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8], TILES[codes[char]]), (y, x)


def test_the_seven_tiles_differ_from_each_other_in_an_eighth_of_their_pixels() -> None:
    assert TILES.shape == (7, 8, 8, 3)
    for i, j in zip(*np.triu_indices(7, 1), strict=True):
        assert np.any(TILES[i] != TILES[j], axis=-1).sum() >= 8, (i, j)


def test_an_observation_stays_as_it_was_and_a_frame_is_three_times_as_large() -> None:
    env = Sokoban(6, 1, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    before = observation.copy()
    env.step(expert(env)(observation))
    assert np.array_equal(observation, before)
    frame = env.render()
    assert frame is not None
    assert frame.shape == (144, 144, 3)
    assert np.array_equal(frame[1::3, 1::3], draw(env.room, env.state))
    assert Sokoban(6, 1).render() is None


def test_an_episode_that_is_not_solved_is_truncated_at_twenty_times_the_size() -> None:
    env = Sokoban(6, 1)
    env.reset(seed=0)
    env.room, env.state = level("######", "#   .#", "#@ $ #", "#    #", "#    #", "######")
    ends = [env.step(np.int64(LEFT))[1:4] for _ in range(120)]
    assert ends == [(0.0, False, False)] * 119 + [(0.0, False, True)]


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_the_expert_replans_after_an_executed_random_action(spec: TaskSpec) -> None:
    env, astray = spec.make(), 0
    assert isinstance(env, Sokoban)
    for seed in range(4):
        observation, _ = env.reset(seed=EVALUATION_SEEDS + seed)
        policy, way = spec.expert(env), plans(env.size, env.boxes)[seed][2]
        solved, rng = False, np.random.default_rng(seed)
        for timestep in range(env.max_timesteps):
            action = policy(observation)
            if timestep % 8 == 3:
                walks = [a for a in range(4) if moved(env.room, env.state, a).boxes == env.state.boxes]
                action = np.int64(rng.choice(walks))
            observation, _, solved, _, _ = env.step(action)
            astray += env.state not in way
            if solved:
                break
        assert solved
    assert astray > 0


def test_the_expert_says_that_a_level_made_unsolvable_has_no_solution() -> None:
    env = Sokoban(6, 1)
    observation, _ = env.reset(seed=0)
    policy = expert(env)
    env.room, env.state = level("######", "#  $ #", "#  @ #", "#.   #", "#    #", "######")  # along the wall for ever
    with pytest.raises(ExpertFailed, match="no sequence of pushes solves this position"):
        policy(observation)


def test_the_planner_gives_up_after_so_many_positions() -> None:
    room, state, _ = plans(10, 4)[0]
    with pytest.raises(ExpertFailed, match="no solution found in 5 expanded positions"):
        plan(room, state, max_nodes=5)


def test_the_same_seed_gives_the_same_episode_with_noise() -> None:
    spec = SPECS[1]
    a, b = (collect_episode(spec, spec.make(), 7, noise=0.1) for _ in range(2))
    assert a.rewards == b.rewards
    assert np.array_equal(np.asarray(a.actions), np.asarray(b.actions))
    assert np.array_equal(np.asarray(a.observations), np.asarray(b.observations))
    assert a.infos["exploratory"].any()


def test_the_random_policy_seldom_solves_a_level() -> None:
    spec = SPECS[1]
    returns = [sum(collect_episode(spec, spec.make(), seed, agent="random").rewards) for seed in range(20)]
    assert np.mean(returns) <= 0.1


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_a_task_pickles_and_its_spaces_are_serializable(spec: TaskSpec) -> None:
    env = pickle.loads(pickle.dumps(spec)).make(render_mode="rgb_array")
    for space in (env.observation_space, env.action_space):
        assert deserialize_space(serialize_space(space)) == space
    assert env.observation_space.shape == (8 * env.size, 8 * env.size, 3)
    assert spec.success
    assert spec.license == "Apache-2.0"


def test_gymnasium_finds_no_fault_with_the_environment() -> None:
    check_env(Sokoban(6, 1), skip_render_check=True)


def test_cells_come_in_reading_order() -> None:
    assert list(cells(0b1000101)) == [1, 4, 64]
