"""Scoring a checkpoint: seeds, repeatability, what is written, and what is refused."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from toy import Line, ToyEnv, layout_of, tiny_model

from gatito.data.collection import CollectConfig
from gatito.data.recording import collect_episode
from gatito.data.tasks import EVALUATION_SEEDS, PROMPT_SEEDS, ExpertFailed, Reference, TaskSpec
from gatito.errors import UserError
from gatito.eval import rollout
from gatito.eval.actor import Actor
from gatito.eval.rollout import demonstrations, evaluate, evaluate_task, measure_references, play
from gatito.eval.scores import seed_of
from gatito.eval.statistics import bootstrap_interval, wilson_interval
from gatito.model import GatitoProcessor
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.tokenizers.trunk import Trunk

SEEDS: list[int] = []


class Recorded(ToyEnv):
    """Remembers with which seeds it was reset; the reward depends on the action."""

    def __init__(self) -> None:
        super().__init__(spaces.Box(-9.0, 9.0, (3,), np.float32), spaces.Discrete(4), length=6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        SEEDS.append(seed)
        self.length = 4 + seed % 5
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(action) + float(observation[0]) / 10, terminated, truncated, info


class Success(Recorded):
    """The return is 1 where the episode ends on the right with another action than three, else 0."""

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(terminated and observation[0] > 0 and action != 3), terminated, truncated, info


def always_three(env: Any) -> Any:
    return lambda observation: np.int64(3)


def always_two(env: Any) -> Any:
    return lambda observation: np.int64(2)


SPECS = {
    "toy/points": TaskSpec(id="toy/points", make=Recorded, expert=always_three),
    "toy/success": TaskSpec(id="toy/success", make=Success, expert=always_two, success=True),
}
KNOWN = {"toy/points": Reference(random=0.0, expert=20.0), "toy/success": Reference(random=0.25, expert=0.75)}


@pytest.fixture(autouse=True)
def toy_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEDS.clear()
    monkeypatch.setattr(rollout, "get_task", SPECS.__getitem__)
    monkeypatch.setattr(rollout, "reference", KNOWN.__getitem__)


@pytest.fixture
def processor(vocabulary: Vocabulary, text: TextTokenizer) -> GatitoProcessor:
    return GatitoProcessor(
        Trunk(vocabulary=vocabulary), text, {t: layout_of(s.make(), vocabulary, text) for t, s in SPECS.items()}
    )


@pytest.mark.parametrize("prompt", ["none", "beginning"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_evaluation_twice_gives_the_same_results(
    processor: GatitoProcessor, vocabulary: Vocabulary, prompt: Any, temperature: float
) -> None:
    model = tiny_model(vocabulary)
    first, second = (
        evaluate(model, processor, list(SPECS), episodes=7, prompt=prompt, temperature=temperature) for _ in range(2)
    )
    assert first == second
    other = evaluate(tiny_model(vocabulary, seed=1), processor, list(SPECS), episodes=7, prompt=prompt)
    assert [record.total_return for record in other] != [record.total_return for record in first]
    assert [record.seed for record in other] == 2 * [EVALUATION_SEEDS + i for i in range(7)]


def test_the_results_do_not_depend_on_the_number_of_sessions(
    processor: GatitoProcessor, vocabulary: Vocabulary
) -> None:
    model, spec = tiny_model(vocabulary), SPECS["toy/points"]
    layout = processor.layout("toy/points")
    seeds = [EVALUATION_SEEDS + i for i in range(9)]
    prompts = demonstrations(spec, layout, Trunk(vocabulary=layout.vocabulary), 64, 4)
    alone, few, many = (play(spec, Actor(model, layout, n), seeds, prompts) for n in (1, 4, 25))
    np.testing.assert_array_equal(alone, few)
    np.testing.assert_array_equal(alone, many)
    assert len(set(alone.tolist())) > 3


def test_evaluation_and_prompt_seeds_are_disjoint_from_training_seeds(
    processor: GatitoProcessor, vocabulary: Vocabulary
) -> None:
    evaluate_task(tiny_model(vocabulary), processor, "toy/points", episodes=30, prompt="beginning")
    prompts = {s for s in SEEDS if s >= PROMPT_SEEDS}
    played = {s for s in SEEDS if s < PROMPT_SEEDS}
    assert played == {EVALUATION_SEEDS + i for i in range(30)}
    assert prompts == {PROMPT_SEEDS + i for i in range(20)}
    # Collecting refuses to come near.
    CollectConfig(episodes=10, first_seed=EVALUATION_SEEDS - 10)
    with pytest.raises(UserError, match="are kept for evaluation"):
        CollectConfig(episodes=11, first_seed=EVALUATION_SEEDS - 10)


def test_demonstrations_pass_over_seeds_on_which_the_expert_fails(processor: GatitoProcessor) -> None:
    def moody(env: Any) -> Any:
        def act(observation: Any) -> np.int64:
            if SEEDS[-1] % 2:
                raise ExpertFailed("not today")
            return np.int64(3)

        return act

    spec = dataclasses.replace(SPECS["toy/points"], expert=moody)
    prompts = demonstrations(spec, processor.layout("toy/points"), processor.trunk, 64, 3)
    assert len(prompts) == 3
    assert [s - PROMPT_SEEDS for s in SEEDS] == [0, 1, 2, 3, 4]
    assert all(0 < len(p) <= 32 and len(p) % 5 == 0 for p in prompts)


def test_demonstrations_pass_over_seeds_on_which_the_expert_scores_low(processor: GatitoProcessor) -> None:
    spec, returns = SPECS["toy/success"], []
    prompts = demonstrations(spec, processor.layout("toy/success"), processor.trunk, 64, 3)
    env = spec.make()
    for seed in SEEDS.copy():
        episode = collect_episode(spec, env, seed)
        returns.append(sum(episode.rewards))
    assert len(prompts) == 3 == sum(returns)
    assert returns[-1] == 1
    assert 0 in returns


def test_a_prompt_that_does_not_fit_is_refused(processor: GatitoProcessor) -> None:
    with pytest.raises(
        UserError, match=r"0 of 1 demonstrations; .* of 10 not even the first timestep fits half the context of 8"
    ):
        demonstrations(SPECS["toy/points"], processor.layout("toy/points"), processor.trunk, 8, 1)


def test_a_reward_that_is_no_number_never_becomes_a_score(processor: GatitoProcessor, vocabulary: Vocabulary) -> None:
    class Broken(Recorded):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return observation, float("nan"), *rest

    spec = dataclasses.replace(SPECS["toy/points"], make=Broken)
    with pytest.raises(UserError, match=rf"task 'toy/points', seed {EVALUATION_SEEDS}: the reward is nan"):
        play(spec, Actor(tiny_model(vocabulary), processor.layout("toy/points"), 2), [EVALUATION_SEEDS] * 2)


def test_a_simulator_that_fails_while_acting_is_named_with_its_seed(
    processor: GatitoProcessor, vocabulary: Vocabulary
) -> None:
    class Broken(Recorded):
        def step(self, action: Any) -> Any:
            raise RuntimeError("the arm fell off")

    spec = dataclasses.replace(SPECS["toy/points"], make=Broken)
    with pytest.raises(UserError, match=r"'toy/points', seed 7: the environment .* RuntimeError: the arm fell off"):
        play(spec, Actor(tiny_model(vocabulary), processor.layout("toy/points")), [7])


def test_a_layout_that_differs_is_found_before_the_first_episode(
    processor: GatitoProcessor, vocabulary: Vocabulary
) -> None:
    processor.layouts["toy/success"] = layout_of(Line(), vocabulary, processor.text)
    with pytest.raises(UserError, match="the spaces have changed"):
        evaluate(tiny_model(vocabulary), processor, ["toy/points", "toy/success"], episodes=3)
    assert SEEDS == []


def test_scores_and_intervals_are_those_of_the_returns(processor: GatitoProcessor, vocabulary: Vocabulary) -> None:
    model = tiny_model(vocabulary)
    seeds = [EVALUATION_SEEDS + i for i in range(12)]
    for task, spec in SPECS.items():
        returns = play(spec, Actor(model, processor.layout(task), 12), seeds)
        result = evaluate_task(model, processor, task, episodes=12)
        known = KNOWN[task]
        assert (result.id, result.domain, result.prompt, result.episodes) == (task, "toy", "none", 12)
        assert result.mean_return == pytest.approx(returns.mean())
        assert result.score == pytest.approx((returns.mean() - known.random) / (known.expert - known.random))
        if spec.success:
            assert 0 < returns.sum() < 12
            low, high = wilson_interval(int(returns.sum()), 12)
            expected = ((low - 0.25) / 0.5, (high - 0.25) / 0.5)
        else:
            expected = bootstrap_interval(returns / known.expert, seed_of(task, "none"))
        assert (result.ci_low, result.ci_high) == pytest.approx(expected)
        assert result.ci_low < result.score < result.ci_high


def test_a_random_and_an_expert_reference_are_measured_on_the_evaluation_seeds() -> None:
    measured = dict(measure_references(["toy/success"], episodes=8))["toy/success"]
    assert measured["expert"] == 5 / 8  # episodes that end on the right
    assert 0.0 < measured["random"] < 1.0
    assert set(SEEDS) == {EVALUATION_SEEDS + i for i in range(8)}
    assert dict(measure_references(["toy/success"], episodes=8))["toy/success"] == measured


def test_changed_spaces_are_refused_with_both_layouts(processor: GatitoProcessor, vocabulary: Vocabulary) -> None:
    class Changed(Recorded):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Discrete(5)

    SPECS["toy/changed"] = dataclasses.replace(SPECS["toy/points"], id="toy/changed", make=Changed)
    KNOWN["toy/changed"] = KNOWN["toy/points"]
    processor.layouts["toy/changed"] = processor.layouts["toy/points"]
    try:
        with pytest.raises(UserError) as error:
            evaluate_task(tiny_model(vocabulary), processor, "toy/changed", episodes=1)
    finally:
        del SPECS["toy/changed"], KNOWN["toy/changed"]
    assert processor.layouts["toy/points"].sha256[:12] in str(error.value)
    assert "the spaces have changed since the data was built, train again" in str(error.value)


def test_a_task_that_the_checkpoint_does_not_know_is_refused_before_any_episode(
    processor: GatitoProcessor, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "get_task", lambda task: SPECS["toy/points"])
    with pytest.raises(UserError, match="not trained on task 'toy/point'; did you mean 'toy/points'"):
        evaluate(tiny_model(vocabulary), processor, ["toy/points", "toy/point"], episodes=1)
    assert SEEDS == []
    with pytest.raises(UserError, match="--episodes is 0, allowed 1 and more"):
        evaluate(tiny_model(vocabulary), processor, ["toy/points"], episodes=0)


def test_an_episode_that_ends_at_once_makes_room_for_the_next_seed(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    layout = layout_of(Line(), vocabulary, text)
    spec = TaskSpec(id="toy/line", make=Line, expert=always_three)
    done: list[int] = []
    returns = play(
        spec,
        Actor(tiny_model(vocabulary), layout, 3, temperature=0),
        list(range(10)),
        on_episode=lambda: done.append(1),
    )
    assert len(returns) == len(done) == 10
    assert len(set(returns.tolist())) == 1  # the line is the same for every seed
