"""One of N simulators may raise, die, hang or return what is no number: its episode has failed, the others go on."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from simulated import FAULTY, GRID, Grid, points

from gatito.data.alarm import OutOfTime, time_limit
from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec
from gatito.errors import UserError
from gatito.eval import simulator_pool as module
from gatito.eval.simulator_pool import SimulatorPool, simulators
from gatito.eval.simulators import Act, Begin, Failed, LocalSimulators, Lost, Moment, Simulators, closing
from gatito.eval.vector import VectorSimulators

SEEDS = [EVALUATION_SEEDS + i for i in range(4)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 1.0)


def begin_all(these: Simulators, spec: TaskSpec) -> dict[int, Any]:
    return these.exchange({slot: Begin(spec=spec, seed=seed) for slot, seed in enumerate(SEEDS)})


def steps(these: Simulators, count: int, slots: Mapping[int, int] | range = range(4)) -> Iterator[dict[int, Any]]:
    for _ in range(count):
        yield these.exchange({slot: Act(action=np.int64(1)) for slot in slots})


def of_two_kinds() -> list[Callable[[], Simulators]]:
    return [lambda: simulators(0, limit_s=5), lambda: simulators(2, limit_s=5)]


@pytest.mark.parametrize("make", of_two_kinds(), ids=["here", "in processes"])
def test_simulators_show_what_the_environments_show(make: Callable[[], Simulators]) -> None:
    env = points().make()
    seen = {slot: env.reset(seed=seed)[0] for slot, seed in enumerate(SEEDS)}
    with closing(make()) as these:
        shown = begin_all(these, points())
        for slot, moment in shown.items():
            np.testing.assert_array_equal(moment.observation, seen[slot])
            assert (moment.reward, moment.terminated, moment.truncated) == (0.0, False, False)
        env.reset(seed=SEEDS[1])
        for t in range(4 + SEEDS[1] % 5):
            observation, reward, terminated, _, _ = env.step(np.int64(1))
            moment = these.exchange({1: Act(action=np.int64(1))})[1]
            np.testing.assert_array_equal(moment.observation, observation)
            assert (moment.reward, moment.terminated) == (reward, terminated), t
        assert moment.terminated


@pytest.mark.parametrize("make", of_two_kinds(), ids=["here", "in processes"])
def test_a_slot_may_play_another_task_next(make: Callable[[], Simulators]) -> None:
    with closing(make()) as these:
        begin_all(these, points())
        shown = these.exchange({0: Begin(spec=GRID, seed=5), 1: Act(action=np.int64(0))})
        assert sorted(shown[0].observation) == ["at", "mission"]
        assert shown[1].observation.shape == (3,)


@pytest.mark.parametrize("make", of_two_kinds(), ids=["here", "in processes"])
def test_a_simulator_that_raises_costs_its_own_episode_alone(make: Callable[[], Simulators]) -> None:
    with closing(make()) as these:
        begin_all(these, points("raises"))
        *_, last = steps(these, 3)
        assert last[2] == Failed(reason="RuntimeError: the arm fell off")
        assert all(isinstance(last[slot], Moment) for slot in (0, 1, 3))
        again = these.exchange({2: Begin(spec=points("raises"), seed=SEEDS[0])})
        assert isinstance(again[2], Moment)


@pytest.mark.parametrize("processes", [0, 2])
def test_a_simulator_that_hangs_in_python_costs_its_own_episode_alone(processes: int) -> None:
    with closing(simulators(processes, limit_s=0.5 if processes == 0 else 1)) as these:
        begin_all(these, points("hangs"))
        *_, last = steps(these, 3)
        assert isinstance(last[2], Failed)
        assert "OutOfTime: no answer within" in last[2].reason
        assert all(isinstance(last[slot], Moment) for slot in (0, 1, 3))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("dies", "its process ended with exit code 11"), ("hangs where no alarm is heard", "its process was killed")],
)
def test_a_process_that_ends_is_replaced_and_what_it_held_may_begin_again(fault: str, reason: str) -> None:
    with closing(SimulatorPool(2, limit_s=1)) as these:
        begin_all(these, points(fault))
        *_, last = steps(these, 3)
        assert isinstance(last[2], Failed)
        assert reason in last[2].reason
        assert last[0] == Lost()  # in the same process
        assert isinstance(last[1], Moment)
        assert isinstance(last[3], Moment)
        again = these.exchange({0: Begin(spec=points(fault), seed=SEEDS[0]), 1: Act(action=np.int64(1))})
        assert all(isinstance(answer, Moment) for answer in again.values())


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("fault", ["dies", "raises"])
def test_simulators_that_fail_at_every_reset_never_end_the_evaluation(fault: str, processes: int) -> None:
    seeds = tuple(range(20))
    with closing(SimulatorPool(processes, limit_s=20)) as these:
        waiting, failed = list(seeds), 0
        asked: dict[int, Any] = {slot: Begin(spec=points(fault, 0, seeds), seed=waiting.pop()) for slot in range(3)}
        while asked:
            answers = these.exchange(asked)
            for slot, answer in answers.items():
                if isinstance(answer, Failed):
                    failed += 1
                    asked.pop(slot)
                    if waiting:
                        asked[slot] = Begin(spec=points(fault, 0, seeds), seed=waiting.pop())
                else:
                    assert answer == Lost()
    assert failed == len(seeds)


def test_processes_that_die_before_they_take_requests_blame_no_episode_and_end_the_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_serve", exit_at_once)
    with closing(SimulatorPool(1, limit_s=3)) as these:
        for _ in range(module.MAX_DEATHS):
            assert set(begin_all(these, points()).values()) == {Lost()}
        with pytest.raises(UserError, match=r"end though no simulator is at work .*exit code 3.* is there memory"):
            begin_all(these, points())


def exit_at_once(*_: Any) -> None:
    raise SystemExit(3)


def test_a_process_that_dies_between_two_requests_blames_no_episode() -> None:
    with closing(SimulatorPool(1, limit_s=20)) as these:
        begin_all(these, points())
        these._workers[0].process.kill()
        these._workers[0].process.join()
        assert set(next(iter(steps(these, 1))).values()) == {Lost()}
        assert all(isinstance(answer, Moment) for answer in begin_all(these, points()).values())


def test_tasks_of_one_name_play_their_own_environments_in_a_pool() -> None:
    with closing(SimulatorPool(1, limit_s=20)) as these:
        first, second = points(), dataclasses.replace(GRID, id="toy/points")
        shown = these.exchange({0: Begin(spec=first, seed=1), 1: Begin(spec=second, seed=1)})
        assert shown[0].observation.shape == (3,)  # type: ignore[union-attr]
        assert sorted(shown[1].observation) == ["at", "mission"]  # type: ignore[union-attr]


def test_a_task_that_cannot_be_sent_to_a_process_is_refused_with_what_helps() -> None:
    spec = dataclasses.replace(points(), make=lambda: None)
    with (
        closing(SimulatorPool(1, limit_s=20)) as these,
        pytest.raises(UserError, match=r"a task cannot be sent to other processes .*; use --processes 0"),
    ):
        begin_all(these, spec)


def test_the_processes_step_at_the_same_time() -> None:
    with closing(SimulatorPool(2, limit_s=20)) as these:
        spec = TaskSpec(id="toy/slow", make=Slow, expert=no_expert)
        these.exchange({slot: Begin(spec=spec, seed=0) for slot in range(2)})
        began = time.monotonic()
        these.exchange({slot: Act(action=0) for slot in range(2)})
        assert time.monotonic() - began < 1.9  # one second each


class Slow(gym.Env[Any, Any]):
    """Sleeps a second for each timestep."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return 0, {}

    def step(self, action: Any) -> Any:
        time.sleep(1.0)
        return 0, 0.0, False, False, {}


def no_expert(env: Any) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize(("processes", "limit_s"), [(-1, 1.0), (0, 0.0), (1, float("nan")), (0, float("inf"))])
def test_impossible_numbers_are_refused(processes: int, limit_s: float) -> None:
    with pytest.raises(UserError, match=r"--(processes|limit-s) is"):
        simulators(processes, limit_s=limit_s)


def vector(mode: AutoresetMode = AutoresetMode.DISABLED, num_envs: int = 3) -> gym.vector.VectorEnv[Any, Any, Any]:
    return gym.vector.SyncVectorEnv([points().make] * num_envs, autoreset_mode=mode)


def test_a_vector_environment_shows_what_its_environments_show_alone() -> None:
    alone, together, spec = LocalSimulators(), VectorSimulators(vector()), points()
    requests: dict[int, Any] = {slot: Begin(spec=spec, seed=SEEDS[slot]) for slot in range(3)}
    ended, rounds = 0, 0
    while requests:
        rounds += 1
        a, b = alone.exchange(requests), together.exchange(requests)
        assert a.keys() == b.keys()
        requests = {}
        for slot, one in a.items():
            other: Any = b[slot]
            assert isinstance(one, Moment)
            np.testing.assert_array_equal(one.observation, other.observation)
            assert (one.reward, one.terminated, one.truncated) == (other.reward, other.terminated, other.truncated)
            if not one.terminated:
                requests[slot] = Act(action=np.int64(rounds % 4))
            elif ended < 4:  # others begin while some are under way, and some rest at the end
                ended += 1
                requests[slot] = Begin(spec=spec, seed=SEEDS[0] + ended)
    assert ended == 4
    together.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_vector_environment_that_resets_by_itself_is_refused(mode: AutoresetMode) -> None:
    with pytest.raises(UserError, match=r"resets by itself .*AutoresetMode.DISABLED"):
        VectorSimulators(vector(mode))


def test_a_vector_environment_may_have_more_environments_than_episodes() -> None:
    shown = VectorSimulators(vector()).exchange({1: Begin(spec=points(), seed=SEEDS[1])})
    np.testing.assert_array_equal(shown[1].observation, points().make().reset(seed=SEEDS[1])[0])  # type: ignore[union-attr]


def test_a_vector_environment_refuses_more_sessions_and_other_tasks() -> None:
    with pytest.raises(UserError, match="sessions are more than the 3 environments"):
        VectorSimulators(vector()).exchange({3: Begin(spec=points(), seed=0)})
    these, spec = VectorSimulators(vector()), points()
    these.exchange({0: Begin(spec=spec, seed=0)})
    these.exchange({1: Begin(spec=spec, seed=0)})
    with pytest.raises(UserError, match="plays one task, here 'toy/points'; evaluate 'toy/grid' apart"):
        these.exchange({1: Begin(spec=GRID, seed=0)})


def test_the_faulty_seed_is_one_of_those_that_are_played() -> None:
    assert FAULTY in SEEDS


def test_a_limit_around_the_limit_of_a_timestep_goes_on_counting() -> None:
    """An evaluation while training has a limit of its own around those of its simulators."""
    spec = TaskSpec(id="toy/slow", make=Slow, expert=no_expert)
    with closing(LocalSimulators(limit_s=30.0)) as these:
        these.exchange({0: Begin(spec=spec, seed=0)})
        with pytest.raises(OutOfTime, match="all of it"):
            step_for_ever(these)


def step_for_ever(these: Simulators) -> None:
    with time_limit(1.5, "wall", OutOfTime("all of it")):
        while True:
            these.exchange({0: Act(action=0)})


@pytest.mark.parametrize("make", of_two_kinds(), ids=["here", "in processes"])
def test_a_text_that_is_not_of_its_space_fails_the_episode(make: Callable[[], Simulators]) -> None:
    with closing(make()) as these:
        answer = these.exchange({0: Begin(spec=dataclasses.replace(GRID, make=Shouting), seed=0)})[0]
    assert isinstance(answer, Failed)
    assert "the observation mission 'GO!' is not of Text(" in answer.reason


class Shouting(Grid):
    """Its mission is in letters that its space has not."""

    def draw(self) -> Any:
        return super().draw() | {"mission": "GO!"}


def test_what_cannot_be_sent_from_a_process_fails_its_own_episode() -> None:
    with closing(SimulatorPool(1, limit_s=20)) as these:
        shown = these.exchange({0: Begin(spec=points(), seed=0), 1: Begin(spec=SECRETIVE, seed=0)})
    assert isinstance(shown[0], Moment)
    assert isinstance(shown[1], Failed)
    assert "what it returned cannot be sent to another process" in shown[1].reason


class Secretive(Slow):
    """Observes a function."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (lambda: 0), {}


SECRETIVE = TaskSpec(id="toy/secretive", make=Secretive, expert=no_expert)
