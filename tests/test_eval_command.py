"""`gatito eval` from the outside: killed and continued, by several processes, on environments that are no tasks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from toy import tiny_recipe

from gatito import cli, eval_commands
from gatito.data.minari_episodes import open_minari
from gatito.errors import UserError
from gatito.eval import actor, film
from gatito.eval.results import read_results
from gatito.train.trainer import train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows Gymnasium's blackjack by its id, and cart-pole as a task; with their datasets and one more."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("eval")
    (home / "drivers.py").write_text("def north(env):\n    return lambda observation: 1\n")
    before = Path.cwd()
    os.chdir(home)
    try:
        for line in (
            "data collect --tasks classic/cartpole --agents expert --episodes 4 --processes 1 --out d",
            "data collect --env Blackjack-v1 --policy random --episodes 3 --processes 1 --out d",
        ):
            cli.run(line.split())
        sources = ("d/classic/cartpole/expert-v0", "d/Blackjack-v1/random-v0")
        entries = [f'{{source: "minari:{source}", expert_filter: null}}' for source in sources]
        (home / "mix.yaml").write_text("datasets: [" + ", ".join(entries) + "]\n")
        cli.run(["data", "build", "--config", "mix.yaml", "--out", "store"])
        train(tiny_recipe(steps=2), home / "store", home / "run")
    finally:
        os.chdir(before)
    return home


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def evaluate(line: str) -> dict[str, Any]:
    """Run `gatito eval run ...` here and return its results.json."""
    cli.run(["eval", "run", "--videos", "0", "--processes", "0", *line.split()])
    out = line.split("--out ")[1].split()[0]
    values: dict[str, Any] = json.loads((Path(out) / "results.json").read_text())
    return values


def test_an_environment_that_is_no_task_is_evaluated_by_its_id(inside: Path) -> None:
    values = evaluate("--env Blackjack-v1 --episodes 2 --out blackjack")
    (row,) = values["tasks"]
    assert (row["id"], row["episodes"], row["score"]) == ("Blackjack-v1", 2, None)
    assert row["return"] is not None
    assert row["random"] is None  # measured for nothing: there is no expert to place returns by
    assert "Tasks without a score" in (inside / "blackjack" / "report.html").read_text()


def test_the_expert_of_such_an_environment_may_be_said_or_shown(inside: Path) -> None:
    said = evaluate("--env Blackjack-v1 --episodes 2 --expert-return 0.9 --out said")
    assert said["tasks"][0]["expert"] == 0.9
    assert said["tasks"][0]["score"] is not None
    assert -1 < said["tasks"][0]["random"] < 0
    shown = evaluate(
        "--env Blackjack-v1 --episodes 1 --prompt end --demonstrations-from d/Blackjack-v1/random-v0 --out shown"
    )
    assert shown["tasks"][0]["expert"] == max(
        e.total_return for e in open_minari("d/Blackjack-v1/random-v0").episodes()
    )


def test_rollouts_are_recorded_and_prompt_the_next_evaluation(inside: Path) -> None:
    values = evaluate("--tasks classic/cartpole --episodes 3 --record rec --out recorded")
    source = open_minari(inside / "rec/classic/cartpole/rollouts-none-v0")
    returns = [record["return"] for record in values["records"]]
    assert [episode.total_return for episode in source.episodes()] == returns
    assert not list((inside / "recorded").glob(".recorded"))
    with pytest.raises(UserError, match="rollouts-none-v0 exists"):
        evaluate("--tasks classic/cartpole --episodes 3 --record rec --out again")
    prompted = evaluate("--tasks classic/cartpole --episodes 1 --prompt end --demonstrations-from rec --out prompted")
    assert "0 of 1 demonstrations in rec; 3 others score below 0.5" in prompted["records"][0]["failure"]


def test_what_was_evaluated_with_other_settings_is_not_continued(inside: Path) -> None:
    (inside / "other").mkdir()
    (inside / "other" / "evaluation.json").write_text('{"episodes": 3}')
    with pytest.raises(UserError, match=r"other settings \(.*episodes: 3 there, 2 here"):
        evaluate("--tasks classic/cartpole --episodes 2 --out other")


def test_the_folder_of_results_holds_nothing_but_them(inside: Path) -> None:
    evaluate("--tasks classic/cartpole --episodes 2 --prompt all --prompted-episodes 1 --out all")
    assert sorted(path.name for path in (inside / "all").iterdir()) == ["card.md", "report.html", "results.json"]
    results = read_results(inside / "all")
    assert [(row.prompt, row.episodes) for row in results.tasks] == [
        ("none", 2), ("beginning", 1), ("end", 1), ("uniform", 1)
    ]  # fmt: skip
    assert results.settings["weights"]


def test_scores_outlive_a_report_that_fails_and_the_same_command_goes_on(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "--tasks classic/cartpole --episodes 2 --record kept --out unlucky"

    def fail(*_: Any) -> None:
        raise RuntimeError("no ink")

    with monkeypatch.context() as patch:
        patch.setattr(eval_commands, "write_report", fail)
        with pytest.raises(RuntimeError, match="no ink"):
            evaluate(line)
    first = read_results(inside / "unlucky")
    assert open_minari(inside / "kept/classic/cartpole/rollouts-none-v0").dataset.total_episodes == 2
    monkeypatch.setattr(actor.Actor, "decide", fail)  # nothing is played again
    assert read_results(inside / "unlucky").records == first.records
    evaluate(line)
    assert (inside / "unlucky" / "report.html").is_file()
    with pytest.raises(UserError, match=r"results.json exists"):
        evaluate(line)


def test_an_episode_that_cannot_be_filmed_costs_its_video_alone(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no film")

    monkeypatch.setattr(film, "record_episode", fail)
    line = "eval run --tasks classic/cartpole --episodes 2 --videos 1 --processes 0 --out dark"
    cli.run(line.split())
    assert "not filmed: classic/cartpole, seed" in capsys.readouterr().out
    assert "<video" not in (inside / "dark" / "report.html").read_text()


def launch(inside: Path, line: str, processes: int = 1) -> subprocess.Popen[bytes]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [sys.executable, *(launcher if processes > 1 else []), "-m", "gatito", "eval", "run", *line.split()]
    return subprocess.Popen(words, cwd=inside, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)


@pytest.mark.slow
def test_an_evaluation_killed_and_continued_equals_an_uninterrupted_one(inside: Path) -> None:
    line = "--tasks classic/cartpole --episodes 60 --prompt none,beginning --temperature 0 --sessions 2"
    whole = evaluate(f"{line} --out whole")
    process = launch(inside, f"{line} --videos 0 --out killed")
    journal = inside / "killed" / "episodes-00000.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_text().count("\n") > 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (inside / "killed" / "results.json").exists()
    continued = evaluate(f"{line} --out killed")
    assert continued["records"] == whole["records"]
    assert continued["tasks"] == whole["tasks"]


@pytest.mark.slow
def test_two_processes_evaluate_and_record_what_one_does(inside: Path) -> None:
    line = "--tasks classic/cartpole --episodes 7 --prompt none,end --temperature 0"
    one = evaluate(f"{line} --out one --record of-one")
    assert launch(inside, f"{line} --videos 0 --out two --record of-two", processes=2).wait(240) == 0
    two = json.loads((inside / "two" / "results.json").read_text())
    assert two["records"] == one["records"]
    assert not list((inside / "two").glob("episodes-*"))
    for part in ("none", "end"):
        name = f"classic/cartpole/rollouts-{part}-v0"
        a, b = (list(open_minari(inside / root / name).episodes()) for root in ("of-one", "of-two"))
        assert [episode.total_return for episode in a] == [episode.total_return for episode in b]


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed(inside: Path) -> None:
    line = "--tasks classic/cartpole --episodes 40 --temperature 0 --sessions 1 --record kept-of-two"
    process = launch(inside, f"{line} --videos 0 --out both", processes=2)
    journals = [inside / "both" / f"episodes-0000{rank}.jsonl" for rank in range(2)]
    deadline = time.monotonic() + 120
    while not all(journal.is_file() and journal.read_text().count("\n") > 2 for journal in journals):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everyone:  # the launcher's processes are in sessions of their own
        one.kill()
    process.wait()
    psutil.wait_procs(everyone)
    continued = evaluate(f"{line} --out both")
    alone = evaluate(f"{line.replace('kept-of-two', 'kept-of-one')} --out alone")
    assert continued["records"] == alone["records"]
    source = open_minari(inside / "kept-of-two/classic/cartpole/rollouts-none-v0")
    assert [episode.total_return for episode in source.episodes()] == [r["return"] for r in alone["records"]]


@pytest.mark.slow
def test_simulating_processes_import_the_module_that_registers_the_environment(inside: Path) -> None:
    cli.run(
        [
            "eval",
            "run",
            "--env",
            "drivers:Blackjack-v1",
            "--episodes",
            "3",
            "--processes",
            "2",
            "--videos",
            "0",
            "--out",
            "module",
        ]
    )
    assert [record.failure for record in read_results(inside / "module").records] == ["", "", ""]
