"""From records of episodes to scores of tasks, domains and all: by hand, and by what the statistics promise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gatito.errors import UserError
from gatito.eval.groups import PERCENTAGES, domain_results, order_results, overall_results, tasks_above
from gatito.eval.scores import Baseline, EpisodeRecord, TaskResult, score_tasks, task_results
from gatito.eval.statistics import bootstrap_interval, wilson_interval

TEN = Baseline(random=0.0, expert=10.0)


def played(task: str, returns: Sequence[float | None], **values: Any) -> list[EpisodeRecord]:
    """One episode per return; those without one failed."""
    defaults: dict[str, Any] = {"prompt": "none", "length": 5}
    return [
        EpisodeRecord(task=task, seed=i, total_return=x, failure="" if x is not None else "fell", **defaults | values)
        for i, x in enumerate(returns)
    ]


def succeeded(task: str, outcomes: Sequence[bool]) -> list[EpisodeRecord]:
    return [
        EpisodeRecord(task=task, prompt="none", seed=i, total_return=float(x), length=5, success=x)
        for i, x in enumerate(outcomes)
    ]


def result_of(records: Sequence[EpisodeRecord], baseline: Baseline) -> TaskResult:
    (result,) = task_results(records, {records[0].task: baseline})
    return result


def test_scores_of_a_task_are_those_computed_by_hand() -> None:
    row = result_of(played("toy/a", [1.0, 2.0, 4.0, 9.0]), Baseline(random=-1.0, expert=9.0))
    assert (row.id, row.domain, row.prompt, row.episodes, row.failed) == ("toy/a", "toy", "none", 4, 0)
    assert row.mean_return == 4.0
    assert row.score == pytest.approx(0.5)
    assert row.iqm == pytest.approx(0.4)  # the middle two: 0.3 and 0.5
    assert (row.length, row.success) == (5.0, None)
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert 0.2 <= row.ci_low < 0.5 < row.ci_high <= 1.0


def test_the_interval_of_success_is_wilsons_between_random_and_expert() -> None:
    row = result_of(succeeded("toy/a", [True] * 9 + [False]), Baseline(random=0.1, expert=0.9))
    low, high = wilson_interval(9, 10)
    assert (row.success, row.success_low, row.success_high) == (0.9, low, high)
    assert (row.ci_low, row.ci_high) == pytest.approx(((low - 0.1) / 0.8, (high - 0.1) / 0.8))
    assert row.score == pytest.approx(1.0)


def test_returns_that_are_not_the_success_keep_the_bootstrap() -> None:
    records = [
        EpisodeRecord(task="toy/a", prompt="none", seed=i, total_return=10.0 + i, length=1, success=True)
        for i in range(10)
    ]
    row = result_of(records, TEN)
    assert (row.success, row.success_high) == (1.0, pytest.approx(1.0))
    assert row.ci_low is not None
    assert 1.0 < row.ci_low < 1.45


def test_failed_episodes_are_counted_and_in_no_mean() -> None:
    row = result_of(played("toy/a", [5.0, None, 7.0, float("nan")]), TEN)
    assert (row.episodes, row.failed, row.mean_return, row.score) == (2, 2, 6.0, pytest.approx(0.6))
    lost = result_of(played("toy/a", [None, None]), TEN)
    assert (lost.episodes, lost.failed, lost.mean_return, lost.score, lost.ci_low) == (0, 2, None, None, None)


@pytest.mark.parametrize(
    "baseline",
    [
        Baseline(random=1.0, expert=1.0),
        Baseline(random=2.0, expert=1.0),
        Baseline(random=None, expert=1.0),
        Baseline(random=0.0, expert=float("nan")),
    ],
)
def test_a_task_whose_expert_is_not_above_random_has_returns_and_no_score(baseline: Baseline) -> None:
    row = result_of(played("toy/a", [1.0, 3.0]), baseline)
    assert (row.mean_return, row.score, row.ci_low, row.iqm) == (2.0, None, None, None)
    assert not row.is_scored
    tasks = score_tasks(played("toy/a", [1.0]) + played("toy/b", [5.0, 5.0]), {"toy/a": baseline, "toy/b": TEN})
    (group,) = overall_results(tasks)
    assert (group.tasks, group.without_score, group.mean) == (1, 1, pytest.approx(0.5))
    (above,) = tasks_above(tasks)
    assert above.tasks == 1


def test_a_single_episode_has_a_score_and_no_interval() -> None:
    row = result_of(played("toy/a", [5.0]), TEN)
    assert (row.score, row.ci_low, row.ci_high, row.iqm, row.iqm_low) == (0.5, None, None, 0.5, None)
    # Nor has a mean that it is part of: it would look surer than it is.
    tasks = score_tasks(played("toy/a", [5.0]) + played("toy/b", [1.0, 3.0]), {"toy/a": TEN, "toy/b": TEN})
    (group,) = overall_results(tasks)
    assert (group.mean, group.mean_low, group.iqm_low) == (pytest.approx(0.35), None, None)


def test_the_interval_of_a_task_does_not_depend_on_which_others_there_are() -> None:
    mine, other = played("toy/a", [1.0, 2.0, 9.0]), played("toy/b", [3.0, 1.0])
    baselines = {"toy/a": TEN, "toy/b": TEN}
    assert task_results(mine, baselines)[0] == task_results(other + mine, baselines)[1]


def test_the_overall_mean_is_over_domains_of_means_over_tasks() -> None:
    tasks = score_tasks(
        played("a/x", [2.0, 2.0]) + played("a/y", [4.0, 4.0]) + played("b/z", [9.0, 9.0]),
        dict.fromkeys(("a/x", "a/y", "b/z"), TEN),
    )
    first, second = domain_results(tasks)
    assert (first.name, first.tasks, first.mean) == ("a", 2, pytest.approx(0.3))
    assert (second.name, second.tasks, second.mean) == ("b", 1, pytest.approx(0.9))
    (overall,) = overall_results(tasks)
    assert overall.mean == pytest.approx((0.3 + 0.9) / 2)
    assert overall.task_mean == pytest.approx((0.2 + 0.4 + 0.9) / 3)
    assert overall.iqm == pytest.approx(0.2 / 6 + 0.4 * 2 / 3 + 0.9 / 6)
    assert (overall.mean_low, overall.mean_high) == pytest.approx((0.6, 0.6))  # no episode differs within its task


def test_the_bootstrap_is_stratified_by_task() -> None:
    """Two tasks that are far apart: pooled episodes would say that the mean could be anywhere between them."""
    rng = np.random.default_rng(0)
    low, high = rng.normal(1.0, 0.5, 20), rng.normal(9.0, 0.5, 20)
    records = played("toy/a", list(low)) + played("toy/b", list(high))
    (group,) = overall_results(score_tasks(records, {"toy/a": TEN, "toy/b": TEN}))
    assert group.mean_low is not None
    assert group.mean_high is not None
    width = group.mean_high - group.mean_low
    expected = 2 * 1.96 * np.hypot(low.std(), high.std()) / np.sqrt(20) / 2 / 10
    assert width == pytest.approx(expected, rel=0.05)
    pooled = bootstrap_interval(np.concatenate([low, high]) / 10)
    assert pooled[1] - pooled[0] > 8 * width


def test_the_overall_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        returns = [rng.normal(5.0 + i, 2.0, 25) for i in range(4)]
        records = [r for i, x in enumerate(returns) for r in played(f"{'ab'[i // 2]}/{i}", list(x))]
        (group,) = overall_results(score_tasks(records, {r.task: TEN for r in records}))
        assert group.mean_low is not None
        assert group.mean_high is not None
        covered += group.mean_low <= 0.65 <= group.mean_high
    assert 51 <= covered <= 60


def test_tasks_are_counted_where_they_reach_a_percentage_of_the_expert() -> None:
    random, expert = 0.1, 0.7  # 50 % of which is no binary fraction
    baselines = {"a/half": Baseline(random=random, expert=expert), "a/full": TEN, "a/lost": TEN, "b/bad": TEN}
    records = (
        played("a/half", [(random + expert) / 2])
        + played("a/full", [12.0])
        + played("a/lost", [None])
        + played("b/bad", [-1.0])
    )
    a, b = tasks_above(score_tasks(records, baselines))
    assert (a.domain, a.tasks, b.domain, b.tasks) == ("a", 3, "b", 1)
    assert len(a.counts) == len(PERCENTAGES) == 101
    assert (a.counts[0], a.counts[50], a.counts[51], a.counts[100]) == (2, 2, 1, 1)
    assert set(b.counts) == {0}


def test_orders_are_scored_apart_for_prompts_with_several_episodes_in_a_context() -> None:
    records = (
        played("a/x", [1.0, 3.0], prompt="end")
        + played("a/x", [5.0, 7.0], prompt="end", order=1)
        + played("a/x", [9.0, 9.0])
    )
    rows = order_results(records, {"a/x": TEN})
    assert [(order, group.prompt, group.mean) for order, group in rows] == [
        (0, "end", pytest.approx(0.2)),
        (1, "end", pytest.approx(0.6)),
    ]
    assert rows[0][1].mean_low is not None
    whole = {row.prompt: row.score for row in task_results(records, {"a/x": TEN})}
    assert whole == {"end": pytest.approx(0.4), "none": pytest.approx(0.9)}
    assert order_results(played("a/x", [1.0]), {"a/x": TEN}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "7"}, "seed is '7', expected a whole number"),
        ({"seed": True}, "seed is True, expected a whole number"),
        ({"return": float("nan")}, "return is nan, expected a finite number or null"),
        ({"return": [1]}, r"return is \[1\], expected a finite number or null"),
        ({"prompt": "demo"}, "prompt is 'demo', expected one of none, beginning, end, uniform"),
        ({"length": -1}, "length is -1, expected 0 or more"),
        ({"success": 1}, "success is 1, expected true or false or null"),
        ({"failure": None}, "failure is null, expected a text"),
    ],
)
def test_a_record_of_another_form_is_refused_by_its_field(change: dict[str, Any], message: str) -> None:
    record = EpisodeRecord(task="toy/a", prompt="end", seed=3, total_return=1.5, length=4, success=True, order=2)
    assert EpisodeRecord.from_json(record.to_json()) == record
    with pytest.raises(UserError, match=message):
        EpisodeRecord.from_json(record.to_json() | change)
    with pytest.raises(UserError, match=r"is \[\], expected an object"):
        EpisodeRecord.from_json([])
