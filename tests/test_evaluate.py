"""Scoring a checkpoint: seeds, repeatability, what is continued after a kill, what is refused before it begins."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from simulated import GRID, Points, points
from toy import Line, layout_of, tiny_model

from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.tasks import EVALUATION_SEEDS, PROMPT_SEEDS, Reference, TaskSpec, no_expert
from gatito.errors import UserError
from gatito.eval import evaluate as module
from gatito.eval import references as referring
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import check_tasks, evaluate, evaluate_task
from gatito.eval.journal import Journal
from gatito.eval.references import baseline_of, measure_references
from gatito.eval.scores import EpisodeRecord
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.tokenizers.trunk import Trunk

KNOWN = {"toy/points": Reference(random=0.0, expert=20.0), "toy/success": Reference(random=0.25, expert=0.75)}


class Success(Points):
    """The return is 1 where the episode ends on the right with another action than three, else 0."""

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float(terminated and observation[0] > 0 and action != 3), terminated, truncated, info


def always_two(env: Any) -> Any:
    return lambda observation: np.int64(2)


def grid_expert(env: Any) -> Any:
    return lambda observation: np.array([2, 4])


SUCCESS = TaskSpec(id="toy/success", make=Success, expert=always_two, success=True)
SPECS = {"toy/points": points(), "toy/success": SUCCESS}


@pytest.fixture(autouse=True)
def toy_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    Points.SEEDS.clear()
    monkeypatch.setattr(module, "get_task", SPECS.__getitem__)
    monkeypatch.setattr(referring, "get_task", SPECS.__getitem__)
    monkeypatch.setattr(referring, "references", lambda: KNOWN)


@pytest.fixture
def processor(vocabulary: Vocabulary, text: TextTokenizer) -> GatitoProcessor:
    layouts = {spec.id: layout_of(spec.make(), vocabulary, text) for spec in (*SPECS.values(), GRID)}
    return GatitoProcessor(Trunk(vocabulary=vocabulary), text, layouts)


@pytest.fixture
def model(vocabulary: Vocabulary) -> GatitoForCausalLM:
    return tiny_model(vocabulary)


def how(**changes: Any) -> EvaluationConfig:
    return EvaluationConfig(**({"episodes": 7} | changes))


@pytest.mark.parametrize("prompt", ["none", "beginning", "end", "uniform"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_evaluation_twice_gives_the_same_records(
    processor: GatitoProcessor, model: GatitoForCausalLM, vocabulary: Vocabulary, prompt: str, temperature: float
) -> None:
    """Row 19."""
    config = how(prompt=prompt, temperature=temperature)
    first, second = (evaluate(model, processor, list(SPECS), config) for _ in range(2))
    assert first == second
    assert [(r.task, r.prompt) for r in first] == [("toy/points", prompt)] * 7 + [("toy/success", prompt)] * 7
    assert [r.seed for r in first[:7]] == [EVALUATION_SEEDS + i for i in range(7)]
    other = evaluate(tiny_model(vocabulary, seed=1), processor, list(SPECS), config)
    assert [r.total_return for r in other] != [r.total_return for r in first]


def test_the_records_do_not_depend_on_the_number_of_sessions(
    processor: GatitoProcessor, model: GatitoForCausalLM
) -> None:
    alone, few, many = (evaluate(model, processor, list(SPECS), how(sessions=n, temperature=0)) for n in (1, 4, 25))
    assert alone == few == many
    assert len({r.total_return for r in alone}) > 3


def test_evaluation_and_prompt_seeds_are_disjoint_from_training_seeds(
    processor: GatitoProcessor, model: GatitoForCausalLM
) -> None:
    evaluate(model, processor, ["toy/points"], how(episodes=30, prompt="beginning"))
    prompts = {s for s in Points.SEEDS if s >= PROMPT_SEEDS}
    assert {s for s in Points.SEEDS if s < PROMPT_SEEDS} == {EVALUATION_SEEDS + i for i in range(30)}
    assert len(prompts) == 20
    assert min(prompts) == PROMPT_SEEDS


def test_all_prompts_play_the_same_seeds_but_for_their_number(
    processor: GatitoProcessor, model: GatitoForCausalLM
) -> None:
    records = evaluate(model, processor, ["toy/points"], how(prompt="all", prompted_episodes=3))
    played = {p: [r.seed - EVALUATION_SEEDS for r in records if r.prompt == p] for p in how(prompt="all").prompts}
    assert played == {"none": list(range(7)), **{p: [0, 1, 2] for p in ("beginning", "end", "uniform")}}
    returns = {p: [r.total_return for r in records if r.prompt == p][:3] for p in played}
    assert len({tuple(values) for values in returns.values()}) == 4  # each prompt has its effect


def test_successive_episodes_have_their_order_in_the_context(
    processor: GatitoProcessor, model: GatitoForCausalLM
) -> None:
    records = evaluate(model, processor, ["toy/points"], how(episodes=7, episodes_in_context=3))
    assert [r.order for r in records] == [0, 1, 2, 0, 1, 2, 0]
    assert [r.seed - EVALUATION_SEEDS for r in records] == list(range(7))


def test_scores_are_those_of_the_returns(processor: GatitoProcessor, model: GatitoForCausalLM) -> None:
    for task, known in KNOWN.items():
        records = evaluate(model, processor, [task], how(episodes=12))
        result = evaluate_task(model, processor, task, how(episodes=12))
        mean = np.mean([r.total_return for r in records])
        assert (result.id, result.domain, result.prompt, result.episodes) == (task, "toy", "none", 12)
        assert result.score == pytest.approx((mean - known.random) / (known.expert - known.random))
        assert [r.success for r in records] == [
            bool(r.total_return) if task == "toy/success" else None for r in records
        ]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_share_the_episodes_play_those_of_one(
    world: int, processor: GatitoProcessor, model: GatitoForCausalLM, tmp_path: Path
) -> None:
    config = how(prompt="none,beginning", episodes_in_context=2, temperature=0)
    whole = evaluate(model, processor, list(SPECS), config)
    for rank in range(world):
        with Journal(tmp_path, {"a": 1}, rank) as journal:
            evaluate(model, processor, list(SPECS), config, journal=journal, share=(rank, world))
    with Journal(tmp_path, {"a": 1}) as journal:
        keys = [(record.task, record.prompt, record.seed) for record in whole]
        assert journal.all_records(keys) == whole
        with pytest.raises(
            UserError, match=r"lacks 1 of \d+ episodes, the first of toy/points, prompt end, seed 7; all"
        ):
            journal.all_records([*keys, ("toy/points", "end", 7)])
    sizes = [len(path.read_text().splitlines()) for path in sorted(tmp_path.glob("episodes-*.jsonl"))]
    assert len(sizes) == world
    assert max(sizes) - min(sizes) <= 1


class Killed(Exception):
    """In the middle of an evaluation."""


def test_a_continued_evaluation_equals_an_uninterrupted_one_and_plays_nothing_twice(
    processor: GatitoProcessor, model: GatitoForCausalLM, tmp_path: Path
) -> None:
    config, settings = how(sessions=3, temperature=0), {"weights": "x"}
    whole = evaluate(model, processor, list(SPECS), config)
    ticks = iter(range(9))

    def tick() -> None:
        if next(ticks, None) is None:
            raise Killed

    with Journal(tmp_path, settings) as journal, pytest.raises(Killed):
        evaluate(model, processor, list(SPECS), config, journal=journal, on_episode=tick)
    (path,) = tmp_path.glob("episodes-*.jsonl")
    path.write_text(path.read_text() + '[{"task": "toy/poi')  # what a kill in the middle of a line leaves
    Points.SEEDS.clear()
    with Journal(tmp_path, settings) as journal:
        finished = {(r.task, r.seed) for r in journal.records}
        assert 6 <= len(finished) <= 10
        assert evaluate(model, processor, list(SPECS), config, journal=journal) == whole
        assert len(Points.SEEDS) == 14 - len(finished)
    with Journal(tmp_path, settings) as journal:
        assert len(journal.records) == 14


def test_an_evaluation_with_other_settings_is_not_continued(tmp_path: Path) -> None:
    with Journal(tmp_path, {"episodes": 7, "weights": "abc"}):
        pass
    with pytest.raises(UserError, match=r"other settings \(weights: 'abc' there, 'abd' here\); choose another --out"):
        Journal(tmp_path, {"episodes": 7, "weights": "abd"})
    with Journal(tmp_path, {"episodes": 7, "weights": "abc"}) as journal:
        journal.remove()
    assert not list(tmp_path.iterdir())


def test_a_broken_journal_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"evaluation.json: not JSON .*; choose another --out"):
        Journal(tmp_path, {})


def test_a_journal_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, {}),
        Journal(tmp_path, {}, rank=1),
        pytest.raises(UserError, match="is being evaluated by another process; wait for it"),
    ):
        Journal(tmp_path, {})


def test_a_damaged_line_of_a_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "episodes-00000.jsonl").write_text('[{"task": 3}]\n')
    with pytest.raises(UserError, match=r"episodes-00000.jsonl, line 1: task is 3.*; remove the line"):
        Journal(tmp_path, {})


def test_a_task_whose_expert_gives_no_demonstrations_is_counted_as_failed_and_tried_once(
    processor: GatitoProcessor, model: GatitoForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = module.make_prompts

    def counted(model: Any, task: Any, config: Any) -> Any:
        made.append(task.spec.id)
        return original(model, task, config)

    monkeypatch.setattr(module, "make_prompts", counted)
    monkeypatch.setitem(KNOWN, "toy/points", Reference(random=0.0, expert=1000.0))
    records = evaluate(model, processor, list(SPECS), how(prompt="end"))
    assert made == list(SPECS)
    failures = {r.task: r.failure for r in records}
    assert "0 of 7 demonstrations; 70 others score below 0.5" in failures["toy/points"]
    assert failures["toy/success"] == ""


def test_only_as_many_sessions_are_held_as_there_are_contexts_to_play(
    processor: GatitoProcessor, model: GatitoForCausalLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes: list[int] = []
    original = module.make_actor

    def noted(model: Any, config: Any, num_sessions: int) -> Any:
        sizes.append(num_sessions)
        return original(model, config, num_sessions)

    monkeypatch.setattr(module, "make_actor", noted)
    for _ in range(2):
        with Journal(tmp_path, {}) as journal:
            evaluate(model, processor, ["toy/points"], how(), journal=journal)
    assert sizes == [7]  # and none where nothing is left


def test_demonstrations_of_one_task_at_a_time_are_in_memory(
    processor: GatitoProcessor, model: GatitoForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = module.make_prompts

    def counted(model: Any, task: Any, *rest: Any) -> Any:
        made.append(task.spec.id)
        return original(model, task, *rest)

    monkeypatch.setattr(module, "make_prompts", counted)
    evaluate(model, processor, list(SPECS), how(prompt="beginning,end"))
    assert made == ["toy/points", "toy/success"]  # made once, though two prompts ask for them


def test_changed_spaces_are_refused_with_both_layouts(processor: GatitoProcessor, model: GatitoForCausalLM) -> None:
    class Changed(Points):
        action_space = spaces.Discrete(5)

    spec = dataclasses.replace(points(), make=Changed)
    with pytest.raises(UserError, match="the spaces have changed since the data was built, train again") as error:
        evaluate_task(model, processor, spec, how())
    assert processor.layouts["toy/points"].sha256[:12] in str(error.value)


def test_what_cannot_be_evaluated_is_found_before_the_first_episode(
    processor: GatitoProcessor, model: GatitoForCausalLM, vocabulary: Vocabulary
) -> None:
    processor.layouts["toy/success"] = layout_of(Line(), vocabulary, processor.text)
    with pytest.raises(UserError, match="the spaces have changed"):
        check_tasks(processor, ["toy/points", "toy/success"], how())
    stranger = dataclasses.replace(points(), id="toy/point")
    with pytest.raises(UserError, match="not trained on task 'toy/point'; did you mean 'toy/points'"):
        check_tasks(processor, ["toy/points", stranger], how())
    with pytest.raises(UserError, match="task 'toy/points' is listed twice"):
        check_tasks(processor, ["toy/points", "toy/points"], how())
    assert Points.SEEDS == []


BAD = {
    "--episodes is 0, allowed 1 and more": {"episodes": 0},
    "--prompted-episodes is 0": {"prompted_episodes": 0},
    "--prompted-episodes is 20, but no episode is prompted; add --prompt beginning": {"prompted_episodes": 20},
    "--episodes-in-context is 0": {"episodes_in_context": 0},
    "--demonstrations is 0": {"demonstrations": 0},
    "--sessions is -1": {"sessions": -1},
    "--processes is -1, allowed 0 and more": {"processes": -1},
    "--limit-s is 0, allowed above 0": {"limit_s": 0},
    "--limit-s is inf": {"limit_s": float("inf")},
    "--expert-return is nan, expected a finite number": {"expert_return": float("nan")},
    "unknown prompt 'begining'; did you mean 'beginning'": {"prompt": "none,begining"},
    "unknown prompt ''": {"prompt": "none,"},
    "--prompt lists 'end' twice": {"prompt": "end,end"},
    "--temperature is -1": {"temperature": -1},
    "--top-p is 0": {"top_p": 0.0},
}


@pytest.mark.parametrize("message", BAD)
def test_impossible_settings_are_refused_in_the_words_of_the_command_line(message: str) -> None:
    with pytest.raises(UserError, match=message):
        how(**BAD[message])


def test_settings_that_change_no_episode_may_differ_in_a_continued_evaluation() -> None:
    fast = how(sessions=3, processes=2, limit_s=5.0, compile=True)
    assert fast.to_json() == how().to_json()
    for changes in ({"episodes": 8}, {"prompt": "all"}, {"memory": "xl"}, {"int8": True}, {"prompt_slides": True}):
        assert how(**changes).to_json() != how().to_json()


# What scores are measured between.


def test_a_random_and_an_expert_reference_are_measured_on_the_evaluation_seeds() -> None:
    measured = dict(measure_references(["toy/success"], episodes=8))["toy/success"]
    assert 0.0 < measured["expert"] < 1.0
    assert 0.0 < measured["random"] < 1.0
    assert set(Points.SEEDS) == {EVALUATION_SEEDS + i for i in range(8)}
    assert dict(measure_references(["toy/success"], episodes=8))["toy/success"] == measured


def test_a_task_without_references_is_measured_when_it_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    known = baseline_of(SPECS["toy/points"])
    assert (known.random, known.expert) == (0.0, 20.0)
    assert Points.SEEDS == []
    grid = dataclasses.replace(GRID, expert=grid_expert)
    measured = baseline_of(grid)
    assert measured.expert == 10 * (2 * 5 + 4)
    assert measured.random is not None
    assert 40 < measured.random < 100
    assert baseline_of(grid, expert=123.0).expert == 123.0
    with pytest.raises(UserError, match="--expert-return is for tasks whose expert was not measured; that of toy/p"):
        baseline_of(SPECS["toy/points"], expert=123.0)
    unknown = baseline_of(dataclasses.replace(GRID, expert=no_expert))
    assert (unknown.random, unknown.expert) == (None, None)  # measured for nothing otherwise


@pytest.mark.slow
def test_seeds_on_which_the_random_policy_crashes_hangs_or_breaks_off_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = dataclasses.replace(points("dies", at=2, seeds=(EVALUATION_SEEDS + 1, EVALUATION_SEEDS + 2)), id="toy/new")
    sound = dataclasses.replace(points(), id="toy/new")
    found, expected = baseline_of(spec, expert=20.0, processes=1), baseline_of(sound, expert=20.0)
    assert found.random is not None
    assert expected.random is not None
    assert found.random != expected.random
    assert abs(found.random - expected.random) < 2
    assert capsys.readouterr().out.count("left out: its process ended with exit code 11") == 2


def test_a_prompt_without_anybody_to_demonstrate_is_refused_at_once(processor: GatitoProcessor) -> None:
    with pytest.raises(UserError, match="toy/grid has no scripted expert to demonstrate; give --demonstrations-from"):
        check_tasks(processor, [dataclasses.replace(GRID, expert=no_expert)], how(prompt="none,end"))


def test_the_expert_of_a_foreign_environment_is_the_best_stretch_of_its_demonstrations(tmp_path: Path) -> None:
    grid = dataclasses.replace(GRID, expert=grid_expert)
    config = CollectConfig(episodes=30, agents={"expert": 1.0, "random": 4.0}, processes=1)
    (folder,) = collect([grid], tmp_path, config)
    baseline = baseline_of(dataclasses.replace(GRID, expert=never), str(folder))
    assert baseline.expert is not None
    assert 75 < baseline.expert <= 140  # the best three in a row


def never(env: Any) -> Any:
    raise AssertionError


def test_an_episode_that_failed_has_no_return_and_is_counted(
    processor: GatitoProcessor, model: GatitoForCausalLM
) -> None:
    result = evaluate_task(model, processor, points("raises"), how())
    assert (result.episodes, result.failed) == (6, 1)
    assert result.score is not None


def test_a_checkpoint_is_scored_on_an_environment_without_any_reference(
    processor: GatitoProcessor, model: GatitoForCausalLM
) -> None:
    result = evaluate_task(model, processor, dataclasses.replace(GRID, expert=no_expert), how())
    assert (result.score, result.random) == (None, None)
    assert result.mean_return is not None


def test_json_of_records_is_read_back(processor: GatitoProcessor, model: GatitoForCausalLM) -> None:
    records = evaluate(model, processor, [points("raises")], how())
    lines = json.loads(json.dumps([record.to_json() for record in records]))
    assert [EpisodeRecord.from_json(line) for line in lines] == records
