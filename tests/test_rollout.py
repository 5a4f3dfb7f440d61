"""Playing episodes: of any tasks in one batch, of simulators that fail, in succession, and recorded."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from simulated import FAULTY, GRID, Grid, Points, points
from toy import Line, layout_of, tiny_model, toy_episode

from gatito.data.minari_episodes import open_minari
from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec
from gatito.errors import UserError
from gatito.eval import simulator_pool as pool
from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.eval.record import RolloutRecorder
from gatito.eval.results import Results
from gatito.eval.rollout import Job, rollouts
from gatito.eval.scores import EpisodeRecord
from gatito.eval.simulator_pool import SimulatorPool
from gatito.eval.simulators import LocalSimulators, Simulators, closing
from gatito.eval.vector import VectorSimulators
from gatito.model import GatitoForCausalLM
from gatito.tokenizers import TextTokenizer, TokenSequence, Vocabulary

GREEDY = Decoding(temperature=0.0)
SEEDS = [EVALUATION_SEEDS + i for i in range(8)]
FAULTS = ["raises", "dies", "hangs", "hangs where no alarm is heard", "returns NaN", "rewards NaN"]
FAULTS += ["returns another shape", "returns text"]


class Toy:
    """What jobs are made of."""

    def __init__(self, vocabulary: Vocabulary, text: TextTokenizer) -> None:
        self.layouts = {spec.id: layout_of(spec.make(), vocabulary, text) for spec in (points(), GRID)}

    def job(self, spec: TaskSpec, *seeds: int, prompt: TokenSequence | None = None) -> Job:
        part: Any = "none" if prompt is None else "beginning"
        return Job(spec=spec, layout=self.layouts[spec.id], part=part, prompt=lambda: prompt, seeds=seeds)

    def jobs(self, spec: TaskSpec, seeds: Sequence[int] = SEEDS) -> list[Job]:
        return [self.job(spec, seed) for seed in seeds]


@pytest.fixture
def toy(vocabulary: Vocabulary, text: TextTokenizer) -> Toy:
    return Toy(vocabulary, text)


@pytest.fixture
def model(vocabulary: Vocabulary) -> GatitoForCausalLM:
    return tiny_model(vocabulary, context=128)


def play(actor: Actor, jobs: Sequence[Job], these: Simulators | None = None, **options: Any) -> list[EpisodeRecord]:
    with closing(these or LocalSimulators()) as simulators:
        return [record for records in rollouts(actor, simulators, jobs, **options) for record in records]


def by_key(records: Sequence[EpisodeRecord]) -> dict[Any, Any]:
    found = {(r.task, r.prompt, r.seed): (r.total_return, r.length, r.order, r.failure) for r in records}
    assert len(found) == len(records)
    return found


def test_sessions_of_different_tasks_play_as_each_alone(toy: Toy, model: GatitoForCausalLM) -> None:
    """Row 12: other spaces, lengths, prompts and resets in one batch; greedy, as rounding may move a sampled bin."""
    layout, shown = toy.layouts[GRID.id], toy_episode(GRID.make(), 7)  # type: ignore[arg-type]
    prompt = layout.episode_tokens(shown.observations, shown.actions).timesteps(0, 3, layout.vocabulary.patch)
    jobs = [toy.job(spec, seed) for seed in SEEDS for spec in (points(), GRID)]
    jobs += [toy.job(GRID, seed, prompt=prompt) for seed in SEEDS[:3]]
    together = by_key(play(Actor(model, 6, decoding=GREEDY), jobs))
    alone = [by_key(play(Actor(model, 1, decoding=GREEDY), [job])) for job in jobs]
    assert together == {key: value for one in alone for key, value in one.items()}
    assert len({value[0] for value in together.values()}) > 5  # and they do differ


def test_the_same_rollouts_twice_give_the_same_records(toy: Toy, model: GatitoForCausalLM) -> None:
    """Row 19."""
    first, second = (play(Actor(model, 5), toy.jobs(points())) for _ in range(2))
    assert first == second
    other = play(Actor(tiny_model(toy.layouts[GRID.id].vocabulary, seed=1, context=128), 5), toy.jobs(points()))
    assert [r.total_return for r in other] != [r.total_return for r in first]


@pytest.mark.slow
def test_processes_play_the_same_episodes_as_this_one(toy: Toy, model: GatitoForCausalLM) -> None:
    jobs = [*toy.jobs(points()), *toy.jobs(GRID, SEEDS[:3])]
    here = play(Actor(model, 5), jobs)
    assert play(Actor(model, 5), jobs, SimulatorPool(2)) == here


def test_a_vector_environment_plays_the_same_episodes(toy: Toy, model: GatitoForCausalLM) -> None:
    envs = gym.vector.SyncVectorEnv([points().make] * 3, autoreset_mode=AutoresetMode.DISABLED)
    here = play(Actor(model, 3), toy.jobs(points()))
    assert play(Actor(model, 3), toy.jobs(points()), VectorSimulators(envs)) == here
    assert {r.length for r in here} == {4, 5, 6, 7, 8}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_of_many_simulators_that_fails_costs_its_own_episode_alone(
    fault: str, toy: Toy, model: GatitoForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 18. Greedy: what shares a batch is another, and a sampled bin may differ by rounding."""
    monkeypatch.setattr(pool, "GRACE_S", 1.0)
    sound = by_key(play(Actor(model, 4, decoding=GREEDY), toy.jobs(points())))
    found = by_key(play(Actor(model, 4, decoding=GREEDY), toy.jobs(points(fault)), SimulatorPool(2, limit_s=1.0)))
    key = ("toy/points", "none", FAULTY)
    total, length, _, failure = found.pop(key)
    assert (total, length) == (None, 3)
    assert failure
    assert sound.pop(key)[3] == ""
    assert found == sound  # the others finish, as they would have


def test_every_reason_says_what_the_simulator_did(toy: Toy, model: GatitoForCausalLM) -> None:
    reasons = {
        "raises": "RuntimeError: the arm fell off",
        "returns NaN": "NaN or Inf in",
        "rewards NaN": "the reward is nan",
        "returns another shape": r"shape \(2,\), expected \(3,\)",
        "returns text": "expected float32",
    }
    for fault, reason in reasons.items():
        (record,) = play(Actor(model), [toy.job(points(fault), FAULTY)])
        assert record.total_return is None
        assert re.search(reason, record.failure), record.failure


def test_an_observation_that_does_not_fit_the_context_fails_its_episode(toy: Toy, vocabulary: Vocabulary) -> None:
    small = tiny_model(vocabulary, context=8)
    records = play(Actor(small, 2), [toy.job(GRID, SEEDS[0]), toy.job(points(), SEEDS[0])])
    failures = {r.task: r.failure for r in records}
    assert "exceed the context of 8" in failures["toy/grid"]
    assert failures["toy/points"] == ""


def test_episodes_of_one_context_see_those_before(toy: Toy, model: GatitoForCausalLM) -> None:
    chained = play(Actor(model, 2, decoding=GREEDY), [toy.job(points(), *SEEDS[:3]), toy.job(GRID, *SEEDS[:2])])
    assert [(r.task, r.seed, r.order) for r in sorted(chained, key=lambda r: (r.task, r.order))] == [
        *(("toy/grid", seed, i) for i, seed in enumerate(SEEDS[:2])),
        *(("toy/points", seed, i) for i, seed in enumerate(SEEDS[:3])),
    ]
    jobs = [*toy.jobs(points(), SEEDS[:3]), *toy.jobs(GRID, SEEDS[:2])]
    alone = by_key(play(Actor(model, 2, decoding=GREEDY), jobs))
    for record in chained:
        same = alone["toy/points" if "points" in record.task else "toy/grid", "none", record.seed][:2]
        assert (record.order == 0) <= ((record.total_return, record.length) == same)
    later = [r.total_return != alone[r.task, "none", r.seed][0] for r in chained if r.order]
    assert any(later)


def test_the_context_of_successive_episodes_is_both_of_them(toy: Toy, model: GatitoForCausalLM) -> None:
    actor = Actor(model, 1, decoding=GREEDY)
    play(actor, [toy.job(points(), *SEEDS[:2])])
    lengths = [4 + seed % 5 for seed in SEEDS[:2]]
    assert len(actor.sessions[0].window.timesteps) == sum(lengths)


def test_the_last_observation_is_looked_at_too(toy: Toy, model: GatitoForCausalLM) -> None:
    last = 4 + FAULTY % 5
    for fault in ("returns NaN", "returns another shape"):
        (record,) = play(Actor(model), [toy.job(points(fault, at=last), FAULTY)])
        assert record.failure
        assert record.length == last


def test_what_follows_a_failed_episode_in_its_context_is_counted_as_failed(
    toy: Toy, model: GatitoForCausalLM
) -> None:
    records = play(Actor(model), [toy.job(points("raises"), FAULTY, FAULTY + 1)])
    assert [r.total_return for r in records] == [None, None]
    assert [r.seed for r in records] == [FAULTY, FAULTY + 1]
    assert "not played" in records[1].failure


def test_a_context_that_was_lost_begins_again_with_its_first_episode(toy: Toy, model: GatitoForCausalLM) -> None:
    """The process dies when one episode of the context is finished, of four timesteps, and the second has begun."""
    first = next(seed for seed in SEEDS if seed % 5 == 0)
    long = next(seed for seed in SEEDS if seed % 5 == 4)
    deadly = points("dies", at=6, seeds=(long,))
    chain = (first, first + 1)
    sound = by_key(play(Actor(model, 2, decoding=GREEDY), [toy.job(points(), *chain)]))
    found = by_key(
        play(Actor(model, 2, decoding=GREEDY), [toy.job(deadly, *chain), toy.job(deadly, long)], SimulatorPool(1))
    )
    assert found.pop(("toy/points", "none", long))[:2] == (None, 6)
    assert found == sound


def test_a_context_that_cannot_be_prompted_is_counted_as_failed(toy: Toy, model: GatitoForCausalLM) -> None:
    def refuse() -> None:
        raise UserError("no demonstrations")

    broken = dataclasses.replace(toy.job(points(), *SEEDS[:2]), prompt=refuse)
    records = play(Actor(model, 1), [broken, broken, toy.job(points(), SEEDS[0])])
    assert [record.failure.partition(":")[0] for record in records] == [
        "no demonstrations", "not played", "no demonstrations", "not played", ""
    ]  # fmt: skip


def test_an_episode_that_ends_at_once_makes_room_for_the_next_seed(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    layout = layout_of(Line(), vocabulary, text)
    spec = TaskSpec(id="toy/line", make=Line, expert=lambda env: lambda observation: 0)
    jobs = [Job(spec=spec, layout=layout, part="none", prompt=lambda: None, seeds=(s,)) for s in range(10)]
    records = play(Actor(tiny_model(vocabulary), 3, decoding=GREEDY), jobs)
    assert len(records) == 10
    assert len({r.total_return for r in records}) == 1  # the line is the same for every seed


def test_simulators_are_built_when_they_are_needed(toy: Toy, model: GatitoForCausalLM) -> None:
    built: list[int] = []

    class Counted(Points):
        def __init__(self) -> None:
            super().__init__()
            built.append(1)

    spec = dataclasses.replace(points(), make=Counted)
    play(Actor(model, 6), toy.jobs(spec, SEEDS[:2]))
    assert len(built) == 2  # not one for each session
    play(Actor(model, 2), toy.jobs(spec))
    assert len(built) == 4  # and kept for the next episodes


def recorder(tmp_path: Path) -> RolloutRecorder:
    envs: dict[str, gym.Env[Any, Any]] = {"toy/points": Points(), "toy/grid": GRID.make()}
    return RolloutRecorder(tmp_path / "work", tmp_path / "recorded", envs)


def test_recorded_rollouts_are_a_dataset_of_the_episodes_that_were_scored(
    toy: Toy, model: GatitoForCausalLM, tmp_path: Path
) -> None:
    keeps = recorder(tmp_path)
    jobs = [*toy.jobs(points("raises")), *toy.jobs(GRID, SEEDS[:2])]
    records = play(Actor(model, 4), jobs, recorder=keeps)
    assert [r.seed for r in records if r.failure] == [FAULTY], [r.failure for r in records]
    specs = [points(), GRID]
    written = keeps.publish(specs, ["none"], Results(records=records, baselines={}))
    assert written == [tmp_path / "recorded" / task / "rollouts-none-v0" for task in ("toy/points", "toy/grid")]
    assert not (tmp_path / "work").exists()
    by_seed = {(r.task, r.seed): r for r in records}
    for spec, folder in zip(specs, written, strict=True):
        source = open_minari(folder)
        assert source.task == spec.id
        episodes = list(source.episodes())
        played = [r for r in records if r.task == spec.id and not r.failure]
        assert sorted(e.seed for e in episodes if e.seed is not None) == sorted(r.seed for r in played)
        for episode in episodes:
            record = by_seed[spec.id, episode.seed or 0]
            assert (len(episode), episode.total_return) == (record.length, record.total_return)
    with pytest.raises(UserError, match=r"--record: .*rollouts-none-v0 exists"):
        keeps.check(specs, ["none"])


def test_recorded_actions_replay_to_the_recorded_observations(
    toy: Toy, model: GatitoForCausalLM, tmp_path: Path
) -> None:
    keeps = recorder(tmp_path)
    records = play(Actor(model, 2), toy.jobs(GRID, SEEDS[:2]), recorder=keeps)
    (folder,) = keeps.publish([GRID], ["none"], Results(records=records, baselines={}))
    env = GRID.make()
    for episode in open_minari(folder).episodes():
        observation = env.reset(seed=episode.seed)[0]
        for t in range(len(episode)):
            assert episode.observations["mission"][t] == observation["mission"]
            np.testing.assert_array_equal(episode.observations["at"][t], observation["at"])
            observation, reward, *_ = env.step(episode.actions[t])
            assert reward == episode.rewards[t]


def test_an_episode_whose_values_are_not_of_its_spaces_is_neither_scored_nor_recorded(
    toy: Toy, model: GatitoForCausalLM, tmp_path: Path
) -> None:
    spec = dataclasses.replace(GRID, make=Unsaid)
    keeps = recorder(tmp_path)
    (record,) = play(Actor(model), [toy.job(spec, SEEDS[0])], recorder=keeps)
    assert "the observation mission 'go!' is not of Text(" in record.failure
    assert keeps.publish([spec], ["none"], Results(records=[record], baselines={})) == []


class Unsaid(Grid):
    """Its mission has a sign that its space has not."""

    def draw(self) -> Any:
        return super().draw() | {"mission": "go!"}
