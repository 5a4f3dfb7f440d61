"""`results.json`: written, read back the same, and refused in one sentence where it is of another form."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatito.errors import UserError
from gatito.eval.language_score import LanguageScore
from gatito.eval.results import Results, print_results, read_results, write_results
from gatito.eval.scores import Baseline, EpisodeRecord


def record(task: str, seed: int, total: float | None, **values: Any) -> EpisodeRecord:
    failure = "" if total is not None else "RuntimeError: the arm fell off"
    return EpisodeRecord(
        **{"task": task, "prompt": "none", "seed": seed, "total_return": total, "length": 7, "failure": failure}
        | values
    )


LANGUAGE = LanguageScore(
    source="captions:digits", documents=10, exact=0.5, ci_low=0.2, ci_high=0.8, commonest=0.1, bleu=30.0,
    bits_per_byte=1.5, unigram_bits_per_byte=2.5,
)  # fmt: skip


@pytest.fixture
def results() -> Results:
    """Two prompts, two orders, a failed episode, a task without a score."""
    records = [
        *(record("toy/good", i, 6.0 + i) for i in range(4)),
        *(record("toy/good", i, 8.0 + i, prompt="end", order=o) for i in range(2) for o in range(2)),
        *(record("toy/wins", i, float(i > 0), success=i > 0) for i in range(4)),
        record("toy/wins", 9, None),
        *(record("other/odd", i, -1.5) for i in range(3)),
    ]
    return Results(
        records=records,
        baselines={
            "toy/good": Baseline(random=0.0, expert=10.0),
            "toy/wins": Baseline(random=0.25, expert=1.0),
            "other/odd": Baseline(random=2.0, expert=float("nan")),
        },
        checkpoint="runs/a",
        settings={"episodes": 4, "memory": None},
        language=(LANGUAGE,),
        seconds={"evaluate": 2.5},
    )


def test_results_are_read_back_as_they_were_written(results: Results, tmp_path: Path) -> None:
    write_results(results, tmp_path / "results.json")
    for path in (tmp_path, tmp_path / "results.json", str(tmp_path)):
        found = read_results(path)
        assert found.records == results.records
        assert found.tasks == results.tasks
        assert found.overall == results.overall
        assert (found.settings, found.checkpoint, found.language) == (
            dict(results.settings),
            "runs/a",
            results.language,
        )
    assert found.baselines["other/odd"] == Baseline(random=2.0, expert=None)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    write_results(found, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "results.json").read_text()


def test_results_json_says_everything_that_follows_from_the_records(results: Results, tmp_path: Path) -> None:
    write_results(results, tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    values = json.loads(text)
    assert list(values) == [
        *("schema", "checkpoint", "settings", "mean_score", "overall", "domains", "orders", "above", "tasks"),
        *("language", "seconds", "baselines", "records"),
    ]
    assert values["schema"] == 3
    assert [(g["prompt"], g["tasks"], g["without_score"], g["failed"]) for g in values["overall"]] == [
        ("none", 2, 1, 1),
        ("end", 1, 0, 0),
    ]
    assert values["mean_score"] == values["overall"][0]["mean"] == pytest.approx((0.75 + 0.5 / 0.75) / 2)
    assert [(o["order"], o["mean"]) for o in values["orders"]] == [(0, pytest.approx(0.85)), (1, pytest.approx(0.85))]
    assert [(t["id"], t["prompt"], t["episodes"], t["failed"], t["score"]) for t in values["tasks"]] == [
        ("other/odd", "none", 3, 0, None),
        ("toy/good", "none", 4, 0, pytest.approx(0.75)),
        ("toy/good", "end", 4, 0, pytest.approx(0.85)),
        ("toy/wins", "none", 4, 1, pytest.approx(0.5 / 0.75)),
    ]
    assert values["above"][0]["counts"][75] == 1
    assert list(values["records"][0]) == [
        *("task", "prompt", "seed", "return", "length", "success", "order", "failure")
    ]
    assert sum(line.startswith('  {"task"') for line in text.splitlines()) == len(results.records)


def test_results_without_any_episode_are_written_and_read(tmp_path: Path) -> None:
    empty = Results(records=[], baselines={})
    write_results(empty, tmp_path / "results.json")
    assert read_results(tmp_path) == empty
    assert json.loads((tmp_path / "results.json").read_text())["mean_score"] is None


def test_a_number_that_is_none_is_written_as_null(results: Results, tmp_path: Path) -> None:
    broken = dataclasses.replace(results, records=[record("toy/good", 0, float("nan")), record("toy/good", 1, 2.0)])
    write_results(broken, tmp_path / "results.json")
    values = json.loads((tmp_path / "results.json").read_text())
    assert values["records"][0]["return"] is None
    assert (values["tasks"][0]["episodes"], values["tasks"][0]["failed"]) == (1, 1)


def test_an_episode_that_is_recorded_twice_is_refused(results: Results) -> None:
    """It would narrow intervals without any new episode."""
    twice = [*results.records, results.records[0]]
    with pytest.raises(UserError, match="task toy/good, prompt none: seed 0, order 0 is recorded 2 times"):
        dataclasses.replace(results, records=twice)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "schema is 1, expected 3; evaluate the checkpoint again"),
        ({"schema": "2"}, "schema is '2', expected a whole number"),
        ({"records": {}}, "records is {}, expected a list"),
        ({"records": [5]}, r"records\[0\]: is 5, expected an object"),
        ({"records": [{"task": 3}]}, r"records\[0\]: task is 3, expected a text"),
        ({"baselines": {"a": {"random": 1.0, "expert": "2"}}}, r"baselines\['a'\]: expert is '2', expected a finite"),
        ({"baselines": []}, r"baselines is \[\], expected an object"),
        ({"settings": 3}, "settings is 3, expected an object"),
        ({"checkpoint": None}, "checkpoint is null, expected a text"),
        ({"language": [{"source": "scenes:", "documents": "many"}]}, r"language\[0\]: documents is 'many', expected"),
        ({"seconds": {"evaluate": None}}, "seconds: evaluate is null, expected a finite number"),
    ],
)
def test_a_file_of_another_form_is_refused_by_its_field(
    results: Results, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results.to_json() | change))
    with pytest.raises(UserError, match=f"{file}: {message}"):
        read_results(tmp_path)


@pytest.mark.parametrize("missing", ["schema", "records", "baselines", "checkpoint", "settings", "seconds"])
def test_a_missing_field_is_named(results: Results, tmp_path: Path, missing: str) -> None:
    values = results.to_json()
    del values[missing]
    (tmp_path / "results.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"results.json: {missing} is missing, expected"):
        read_results(tmp_path)


def test_what_is_no_file_of_results_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no results at .*/results.json; gatito eval CHECKPOINT --out FOLDER writes them"
    ):
        read_results(tmp_path)
    file = tmp_path / "results.json"
    file.write_text('{"schema": 2,')
    with pytest.raises(UserError, match=r"results.json is no JSON: Expecting"):
        read_results(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"results.json is no JSON: .*codec can't decode"):
        read_results(file)
    file.write_text("[]")
    with pytest.raises(UserError, match=r"results.json: is \[\], expected an object"):
        read_results(file)


def test_the_table_names_bad_tasks_failures_and_what_has_no_score(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    print_results(results)
    lines = capsys.readouterr().out.splitlines()
    (wins,) = (line for line in lines if line.startswith("toy/wins"))
    assert "4 episodes, 1 failed, success 75%" in wins
    assert any(
        line.startswith("no score: other/odd, prompt none: return ") and line.endswith("of the expert); 3 episodes")
        for line in lines
    )
    assert "failed: toy/wins, prompt none, 1 episode, the first of seed 9: RuntimeError: the arm fell off" in lines
    assert "at or above of the expert, prompt none, of 2 tasks: 2 at 50 %, 1 at 75 %, 0 at 100 %" in lines
    overall = [line for line in lines if line.startswith("overall")]
    assert [line.split()[4] if "mean over" in line else line.split()[6] for line in overall] == [
        "none",
        "end",
        "end",
        "end",
    ]


def test_many_tasks_are_scored_in_seconds() -> None:
    """50 tasks of 50 episodes, 10 000 resamples; a loop over resamples would take minutes."""
    rng = np.random.default_rng(0)
    records = [record(f"toy/{t}", i, float(rng.normal(5, 2))) for t in range(50) for i in range(50)]
    results = Results(records=records, baselines={r.task: Baseline(random=0.0, expert=10.0) for r in records})
    began = time.process_time()
    assert len(results.tasks) == 50
    assert results.overall[0].mean_low is not None
    assert time.process_time() - began < 10
