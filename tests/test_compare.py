"""Two evaluations compared: what is paired, what is decided, and what is refused."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatito.cli import run
from gatito.errors import UserError
from gatito.eval.compare import compare
from gatito.eval.results import Results, write_results
from gatito.eval.scores import Baseline, EpisodeRecord

TASKS = ("a/x", "a/y", "b/z")


def results_of(
    shift: Callable[[str, int], float] = lambda task, seed: 0.0, *, episodes: int = 20, **values: Any
) -> Results:
    """Noisy returns of three tasks, the same for the same seed but for the shift."""
    records = [
        EpisodeRecord(
            **{
                "task": task,
                "prompt": "none",
                "seed": seed,
                "total_return": float(np.random.default_rng([seed, i]).normal(5.0, 2.0)) + shift(task, seed),
                "length": 3,
            }
            | values
        )
        for i, task in enumerate(TASKS)
        for seed in range(episodes)
    ]
    return Results(records=records, baselines={task: Baseline(random=0.0, expert=10.0) for task in TASKS})


def succeeded(count: int, of: int) -> Results:
    records = [
        EpisodeRecord(task="a/x", prompt="none", seed=i, total_return=float(i < count), length=1, success=i < count)
        for i in range(of)
    ]
    return Results(records=records, baselines={"a/x": Baseline(random=0.0, expert=0.5)})


def changed(results: Results, change: Callable[[EpisodeRecord], EpisodeRecord | None]) -> Results:
    records = [record for record in map(change, results.records) if record is not None]
    return dataclasses.replace(results, records=records)


def test_an_evaluation_does_not_differ_from_itself() -> None:
    found = compare(results_of(), results_of())
    assert [(row.difference, row.low, row.high, row.verdict) for row in found.tasks] == [(0, 0, 0, "undecided")] * 3
    (overall,) = found.overall
    assert (overall.difference, overall.low, overall.high, overall.improvement) == (0, 0, 0, 0.5)
    assert (overall.better, overall.worse, overall.undecided) == (0, 0, 3)
    assert (found.pairs, found.failed, found.unpaired_a, found.unpaired_b) == (60, 0, 0, 0)


def test_a_shift_far_below_the_noise_between_seeds_is_seen_in_pairs() -> None:
    """0.3 where returns differ by 2 from seed to seed: the intervals of the two overlap."""

    def shift(task: str, seed: int) -> float:
        return {"a/x": 0.3, "a/y": -0.3, "b/z": 0.0}[task] + 0.2 * float(np.random.default_rng(seed).normal())

    a, b = results_of(), results_of(shift)
    found = compare(a, b)
    assert [row.verdict for row in found.tasks] == ["better", "worse", "undecided"]
    assert found.tasks[0].difference == pytest.approx(0.03, abs=0.01)
    first, second = a.tasks[0], b.tasks[0]
    assert first.ci_high is not None
    assert second.ci_low is not None
    assert second.ci_low < first.ci_high
    swapped = compare(b, a)
    assert [row.verdict for row in swapped.tasks] == ["worse", "better", "undecided"]
    assert swapped.overall[0].difference == pytest.approx(-found.overall[0].difference)


def test_means_are_over_domains_of_means_over_tasks() -> None:
    found = compare(results_of(), results_of(lambda task, seed: {"a/x": 1.0, "a/y": 2.0, "b/z": 9.0}[task]))
    assert [(group.name, group.difference) for group in (*found.domains, *found.overall)] == [
        ("a", pytest.approx(0.15)),
        ("b", pytest.approx(0.9)),
        ("overall", pytest.approx((0.15 + 0.9) / 2)),
    ]
    (overall,) = found.overall
    assert (overall.low, overall.high) == pytest.approx((0.525, 0.525))  # all pairs of a task differ by the same
    assert (overall.better, overall.improvement) == (3, 1.0)


def test_paired_intervals_cover_the_difference_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(50):
        noise = {(task, seed): float(rng.normal(0.5, 1.0)) for task in TASKS for seed in range(25)}
        found = compare(
            results_of(episodes=25), results_of(lambda task, seed, noise=noise: noise[task, seed], episodes=25)
        )
        (overall,) = found.overall
        assert overall.low is not None
        assert overall.high is not None
        covered += overall.low <= 0.05 <= overall.high
    assert 43 <= covered <= 50


def test_episodes_without_a_partner_are_counted_and_left_out() -> None:
    a = results_of(episodes=12)
    b = changed(results_of(lambda task, seed: 1.0, episodes=15), lambda r: r if r.task != "b/z" else None)
    found = compare(a, b)
    assert (found.pairs, found.unpaired_a, found.unpaired_b) == (24, 12, 6)
    assert {row.id: row.pairs for row in found.tasks} == {"a/x": 12, "a/y": 12}
    assert found.overall[0].difference == pytest.approx(0.1)


def test_pairs_with_a_failed_episode_are_counted_and_left_out() -> None:
    def fail(record: EpisodeRecord) -> EpisodeRecord:
        return dataclasses.replace(record, total_return=None, failure="fell") if record.seed < 3 else record

    found = compare(changed(results_of(), fail), results_of())
    assert (found.pairs, found.failed) == (51, 9)


def test_differing_baselines_are_refused_with_both_values() -> None:
    other = dataclasses.replace(results_of(), baselines={task: Baseline(random=0.0, expert=8.0) for task in TASKS})
    message = "task a/x: its baselines differ, random 0.0, expert 10.0 in A, random 0.0, expert 8.0 in B"
    with pytest.raises(UserError, match=message):
        compare(results_of(), other)
    with pytest.raises(UserError, match="random None, expert None in B"):
        compare(results_of(), dataclasses.replace(other, baselines={}))


def test_nothing_to_pair_is_refused_with_the_tasks_of_both() -> None:
    other = changed(results_of(), lambda r: dataclasses.replace(r, seed=r.seed + 1000))
    with pytest.raises(UserError, match=r"no episode of A and B .*: A holds a/x, a/y, b/z \(prompt none\), B a/x"):
        compare(results_of(), other)
    with pytest.raises(UserError, match=r"B holds none|, B none"):
        compare(results_of(), results_of(), prompts=("none", "end"))


def test_tasks_without_a_baseline_are_compared_by_returns_and_are_in_no_mean() -> None:
    none = {"a/y": Baseline(random=1.0, expert=1.0)}
    a, b = (
        dataclasses.replace(r, baselines=r.baselines | none) for r in (results_of(), results_of(lambda t, s: 2.0))
    )
    found = compare(a, b)
    assert [(row.id, row.unit, row.difference) for row in found.tasks] == [
        ("a/x", "score", pytest.approx(0.2)),
        ("a/y", "return", pytest.approx(2.0)),
        ("b/z", "score", pytest.approx(0.2)),
    ]
    assert found.overall[0].tasks == 2


def test_successes_have_newcombes_interval_in_units_of_the_score() -> None:
    found = compare(succeeded(36 + 2, 50), succeeded(36, 50))
    (row,) = found.tasks
    assert row.difference == pytest.approx(-0.04 * 2)
    assert row.low is not None
    assert row.high is not None
    assert row.low < -0.08 < row.high
    assert row.verdict == "undecided"  # a bootstrap of two differing pairs in fifty would nearly decide
    same = compare(succeeded(50, 50), succeeded(50, 50)).tasks[0]
    assert (same.difference, same.verdict) == (0.0, "undecided")
    assert same.high is not None
    assert same.high > 0.1
    assert compare(succeeded(10, 50), succeeded(40, 50)).tasks[0].verdict == "better"


def test_few_pairs_decide_nothing() -> None:
    better = [
        compare(results_of(episodes=n), results_of(lambda t, s: 1.0, episodes=n)).tasks[0].verdict for n in (1, 5, 6)
    ]
    assert better == ["undecided", "undecided", "better"]


def test_two_prompts_of_one_evaluation_are_paired_by_seed_and_order() -> None:
    prompted = results_of(lambda task, seed: 1.0, prompt="beginning")
    later = results_of(lambda task, seed: 9.0, prompt="beginning", order=1)
    both = dataclasses.replace(prompted, records=[*results_of().records, *prompted.records, *later.records])
    found = compare(both, both, prompts=("none", "beginning"))
    assert (found.pairs, found.unpaired_a, found.unpaired_b) == (60, 0, 60)
    assert found.overall[0].difference == pytest.approx(0.1)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, results in (("a", results_of()), ("b<i>", results_of(lambda task, seed: 1.0 - 2 * (task == "a/y")))):
        (tmp_path / name).mkdir()
        write_results(results, tmp_path / name / "results.json")
    return tmp_path


def test_the_command_prints_a_table_and_writes_a_page_that_needs_nothing_else(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["compare", "a", "b<i>/results.json", "--out", "c"])
    printed = capsys.readouterr().out
    assert re.search(r"a/x +none +0\.\d\d +0\.\d\d  \+0\.10 \(\+0\.10 to \+0\.10\), better, 20 pairs", printed)
    assert "2 better, 1 worse, 0 undecided" in printed
    assert printed.endswith("60 pairs of episodes.\nc/compare.html\nc/compare.json\n")
    page = (folders / "c" / "compare.html").read_text()
    assert "<i>" not in page.replace('<i class="swatch">', "")
    assert "b&lt;i&gt;" in page
    assert "http://" not in page
    assert "https://" not in page
    bars = re.findall(r'<rect class="(\w+)"', page)
    assert bars == ["worse", "better", "better"]  # the worst first
    values = json.loads((folders / "c" / "compare.json").read_text())
    assert (values["schema"], values["pairs"], values["overall"][0]["better"]) == (1, 60, 2)
    assert [row["verdict"] for row in values["tasks"]] == ["better", "worse", "better"]
    with pytest.raises(UserError, match=r"c/compare.html exists; choose another --out or remove it"):
        run(["compare", "a", "b<i>", "--out", "c"])
    run(["compare", "a", "a", "--out", "page.html"])
    assert (folders / "page.json").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("compare a", "a is compared with nothing; name another, or two prompts: --prompts none,beginning"),
        ("compare a b c", "3 results are named, expected one or two"),
        ("compare a nowhere", "no results at nowhere"),
        ("compare a --prompts none", "--prompts none names 1, expected two"),
        ("compare a --prompts none,demo", "'demo' is no prompt, allowed none, beginning, end, uniform"),
        ("compare a --prompts none,end", "no episode of a, prompt none and a, prompt end has the same task"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(folders: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        run(line.split())
