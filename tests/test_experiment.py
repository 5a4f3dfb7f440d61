"""Experiments: what their estimates are, how they are carried out, and what they refuse."""

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import tiny_recipe, write_task_store

from gatito import cli
from gatito.data.build import build
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.domains.babyai import HIDDEN
from gatito.data.mixture import DatasetConfig, HeldOutConfig, MixtureConfig
from gatito.data.sampler import Sampler
from gatito.data.store import open_store
from gatito.data.tasks import get_task
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint
from gatito.eval.results import Results, write_results
from gatito.eval.scores import Baseline, EpisodeRecord
from gatito.experiment.ablation import Ablation, AblationSettings
from gatito.experiment.baselines import Baselines, BaselinesSettings
from gatito.experiment.beyond import Beyond, BeyondSettings
from gatito.experiment.catalogue import EXPERIMENTS
from gatito.experiment.changes import _verdict
from gatito.experiment.command import run_named
from gatito.experiment.engine import measure_part, run_experiment
from gatito.experiment.estimates import mean_of, mean_over, mean_score, of_contexts
from gatito.experiment.few_shot import FewShot, FewShotSettings
from gatito.experiment.hidden_goal import HiddenGoalSettings, families, wrong_demonstrations
from gatito.experiment.measuring import HELD_OUT_ROWS, check_held_out, held_out_loss, tasks_trained_on
from gatito.experiment.on_mixture import MixtureSettings, OnMixture
from gatito.experiment.plan import Experiment, Measured, Part, Settings, Summary, Table, folder_of
from gatito.experiment.power_law import PowerLaw
from gatito.experiment.scaling import Scaling, ScalingSettings, _smooth
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train.checkpoint import list_checkpoints
from gatito.train.trainer import train

UNIT = {"a/b": Baseline(random=0.0, expert=1.0), "a/c": Baseline(random=0.0, expert=2.0)}


def results_of(returns: dict[str, list[float]], first_seed: int = 0) -> Results:
    records = [
        EpisodeRecord(task=task, prompt="none", seed=first_seed + i, total_return=total, length=1)
        for task, totals in returns.items()
        for i, total in enumerate(totals)
    ]
    return Results(records=records, baselines=UNIT, checkpoint=f"run-{first_seed}")


# --- estimates


def test_a_mean_score_is_over_tasks_and_seeds_alike() -> None:
    trained = [results_of({"a/b": [0.0, 1.0], "a/c": [2.0, 2.0]}), results_of({"a/b": [1.0, 1.0], "a/c": [0.0, 0.0]})]
    estimate = mean_score(trained)
    assert estimate.by_seed == [0.75, 0.5]
    assert estimate.mean == 0.625
    low, high = estimate.interval
    assert 0.5 <= low < 0.625 < high <= 1.0
    assert mean_score(trained, ["a/b"]).mean == 0.75


def test_an_interval_knows_of_episodes_and_of_seeds() -> None:
    rng = np.random.default_rng(0)
    wide = mean_score([results_of({"a/b": rng.random(50).tolist()})]).interval
    narrow = mean_score([results_of({"a/b": rng.random(500).tolist()})]).interval
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2
    assert mean_of([1.0, 1.0]).interval == (1.0, 1.0)
    assert mean_of([0.0, 2.0]).interval == (0.0, 2.0)


def test_a_difference_of_equals_is_undecided_and_one_of_others_is_not() -> None:
    rng = np.random.default_rng(1)
    first, second = (mean_score([results_of({"a/b": rng.random(200).tolist()})]) for _ in range(2))
    low, high = first.minus(second).interval
    assert low < 0 < high
    better = mean_score([results_of({"a/b": (1 + rng.random(200)).tolist()})])
    assert better.minus(first).interval[0] > 0.8


def test_runs_of_other_episodes_are_not_compared() -> None:
    with pytest.raises(UserError, match=r"not played on the same episodes \(2 of one alone\)"):
        mean_score([results_of({"a/b": [0.0, 1.0]}), results_of({"a/b": [0.0, 1.0]}, first_seed=1)])
    with pytest.raises(UserError, match="not played on the same episodes"):
        mean_score([results_of({"a/b": [0.0, 1.0]}), results_of({"a/b": [0.0]})])
    with pytest.raises(UserError, match=r"only \['a/b'\] were played"):
        mean_score([results_of({"a/b": [0.0, 1.0]})], ["a/b", "a/c"])
    two, three = (mean_score([results_of({"a/b": returns})]) for returns in ([0.0, 1.0], [0.0, 1.0, 1.0]))
    with pytest.raises(UserError, match=r"was not played on the same episodes of a/b \(1 of one alone\)"):
        two.minus(three)


def test_episodes_of_one_context_are_one_value_of_an_interval() -> None:
    """Contexts of three episodes with equal returns: as many values as contexts."""
    rng = np.random.default_rng(4)
    by_context = rng.random(20).tolist()
    results = results_of({"a/b": np.repeat(by_context, 3).tolist()})
    for i, record in enumerate(results.records):
        results.records[i] = dataclasses.replace(record, order=i % 3)
    joined, alone = mean_score([of_contexts(results)]), mean_score([results])
    np.testing.assert_allclose(joined.mean, np.mean(by_context))
    np.testing.assert_allclose(joined.samples.std() / alone.samples.std(), np.sqrt(3), rtol=0.1)
    second = of_contexts(results, 1)
    assert [record.seed for record in second.records] == [3 * i for i in range(20)]
    assert [record.total_return for record in second.records] == by_context


def test_what_was_resampled_alike_is_compared_as_independent() -> None:
    """Both are drawn with the seed of their task, and are independent all the same: squares of widths add up."""
    rng = np.random.default_rng(5)
    first, second = (mean_score([results_of({"a/b": np.sort(rng.random(50)).tolist()})]) for _ in range(2))
    apart = np.hypot(first.samples.std(), second.samples.std())
    np.testing.assert_allclose(first.minus(second).samples.std(), apart, rtol=0.1)
    np.testing.assert_allclose(mean_over([first, second]).samples.std(), apart / 2, rtol=0.1)


def test_a_power_law_is_found_again() -> None:
    x = np.log([1e5, 1e6, 1e7])
    law = PowerLaw.fit(x, np.log(3.0) - 0.076 * x)
    np.testing.assert_allclose([law.power, *law.interval], -0.076)
    np.testing.assert_allclose(law.line()[1][[0, -1]], 3.0 * np.exp(x[[0, -1]]) ** -0.076)
    np.testing.assert_allclose(_smooth([1.0, 2.0, 3.0, 4.0], width=2), [1.0, 1.5, 2.5, 3.5])


def test_the_interval_of_a_power_law_knows_how_far_the_points_are_from_it() -> None:
    x = np.log([1e5, 1e6, 1e7, 1e8])
    line = np.log(3.0) - 0.05 * x
    near, far = (PowerLaw.fit(x, line + size * np.array([1.0, -1.0, -1.0, 1.0])) for size in (0.001, 0.05))
    (low, high), (lower, higher) = near.interval, far.interval
    assert lower < low <= -0.05 <= high < higher
    assert PowerLaw.fit(x[:2], line[:2]).interval == (None, None)
    _, below, above = far.band()
    assert (below < above).all()


def test_one_seed_alone_has_no_interval() -> None:
    alone = mean_of([1.25])
    assert alone.words(3) == "1.250"
    assert alone.to_json() == {"mean": 1.25, "low": None, "high": None, "by_seed": [1.25]}
    assert mean_of([1.0, 2.0]).minus(alone).words() == "0.25"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.2, 0.3], "reached"),
        ([-0.2, -0.3], "not reached"),
        ([-0.1, 0.3], "reached on average, within the interval"),
        ([-0.3, 0.1], "not reached on average, within the interval"),
    ],
)
def test_the_interval_says_whether_a_figure_is_reached(values: list[float], said: str) -> None:
    assert mean_of(values).reaches(0.0) == said


# --- carrying out


@dataclass(frozen=True, kw_only=True)
class ToySettings(Settings):
    values: list[int] = field(default_factory=lambda: [1, 2, 3])


@dataclass(frozen=True)
class Toy(Experiment):
    settings: ToySettings
    broken: tuple[int, ...] = ()
    calls: list[int] = field(default_factory=list)
    name = "toy"
    question = "Do toys add up?"

    made: str = "wood"
    tasks: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        if -1 in self.settings.values:
            raise UserError("value -1 is no toy")

    def made_of(self) -> dict[str, Any]:
        return {"recipe": {"made": self.made}, "tasks": self.tasks}

    def prepare(self, out: Path) -> None:
        (out / "prepared").touch()

    def parts(self, out: Path) -> list[Part]:
        first = [Part(name="last", facts={"value": 0}, measure=self._sum, needs=("part-1", "part-2", "part-3"))]
        return first + [
            Part(name=f"part-{v}", facts={"value": v}, measure=partial(self._one, v)) for v in self.settings.values
        ]

    def _one(self, value: int, folder: Path) -> dict[str, Any]:
        if value in self.broken:
            raise UserError(f"value {value} is broken")
        self.calls.append(value)
        return {"measured": 10 * value}

    def _sum(self, folder: Path) -> dict[str, Any]:
        files = folder.parent.glob("part-*/result.json")
        return {"measured": sum(json.loads(file.read_text())["measured"] for file in files)}

    def summary(self, measured: Sequence[Measured]) -> Summary:
        total = measured[0].value("measured")
        table = Table(title="sums", head=["value", "measured"], rows=[["all", str(total)]])
        values = {"total": total}
        return Summary(tables=[table], findings=[f"together {total}"], values=values, draw=self._draw)

    def _draw(self, path: Path) -> None:
        path.write_bytes(b"picture")


class Timed(Toy):
    """A toy whose parts have minutes."""

    is_timed = True


def test_parts_are_measured_after_what_they_need_and_written_up(tmp_path: Path) -> None:
    out = tmp_path / "toy"
    target = run_experiment(Toy(ToySettings()), out, [], parallel=0)
    values = json.loads(target.read_text())
    assert values["summary"] == {"total": 60}
    assert values["findings"] == ["together 60"]
    assert [part["name"] for part in values["parts"]] == ["last", "part-1", "part-2", "part-3"]
    assert (out / "table.md").read_text().startswith("# Do toys add up?\n\n**sums**\n\n| value | measured |")
    assert (out / "toy.png").read_bytes() == b"picture"


def test_what_is_finished_is_not_measured_again(tmp_path: Path) -> None:
    out, broken = tmp_path / "toy", Toy(ToySettings(), broken=(3,))
    with pytest.raises(UserError, match="value 3 is broken"):
        run_experiment(broken, out, [], parallel=0)
    mended = Toy(ToySettings())
    run_experiment(mended, out, [], parallel=0)
    assert broken.calls == [1, 2]
    assert mended.calls == [3]


def test_an_experiment_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    run_experiment(Toy(ToySettings()), tmp_path / "toy", [], parallel=0)
    with pytest.raises(UserError, match=r"episodes was 50, now 10"):
        run_experiment(Toy(ToySettings(episodes=10)), tmp_path / "toy", [], parallel=0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    with pytest.raises(UserError, match="is not empty and holds no experiment"):
        run_experiment(Toy(ToySettings()), tmp_path / "other", [], parallel=0)


def test_an_experiment_whose_files_hold_something_else_now_is_not_continued(tmp_path: Path) -> None:
    run_experiment(Toy(ToySettings()), tmp_path, [], parallel=0)
    with pytest.raises(UserError, match=r"\(recipe.made was 'wood', now 'tin'\); choose another --out"):
        run_experiment(Toy(ToySettings(), made="tin"), tmp_path, [], parallel=0)


def test_what_decides_nothing_may_be_another_when_an_experiment_is_continued(tmp_path: Path) -> None:
    first, again = Toy(ToySettings(threads=1)), Toy(ToySettings(threads=2))
    run_experiment(first, tmp_path, [], parallel=0)
    run_experiment(again, tmp_path, [], parallel=0)
    assert again.calls == []


def test_what_cannot_be_carried_out_leaves_its_folder_free(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="value -1 is no toy"):
        run_experiment(Toy(ToySettings(values=[-1])), tmp_path / "toy", [], parallel=0)
    assert not (tmp_path / "toy").exists()
    run_experiment(Toy(ToySettings()), tmp_path / "toy", [], parallel=0)


def test_what_can_be_measured_is_measured_beside_what_fails(tmp_path: Path) -> None:
    broken = Toy(ToySettings(), broken=(1, 2))
    with pytest.raises(UserError, match="2 parts failed, first part-1: value 1 is broken; once that is mended"):
        run_experiment(broken, tmp_path, [], parallel=0)
    assert broken.calls == [3]


@dataclass(frozen=True)
class Chained(Toy):
    """A toy with a part that needs the last one."""

    def parts(self, out: Path) -> list[Part]:
        return [Part(name="after", facts={}, measure=self._sum, needs=("last",)), *super().parts(out)]


def test_what_needs_what_needs_what_failed_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 part failed, first part-1: value 1 is broken"):
        run_experiment(Chained(ToySettings(), broken=(1,)), tmp_path, [], parallel=0)


def test_tasks_in_another_order_and_other_company_of_timed_parts_are_another_experiment(tmp_path: Path) -> None:
    first, again = Toy(ToySettings(), tasks={"a": 1, "b": 2}), Toy(ToySettings(), tasks={"b": 2, "a": 1})
    run_experiment(first, tmp_path / "order", [], parallel=0)
    with pytest.raises(UserError, match="tasks were in the order a, b"):
        run_experiment(again, tmp_path / "order", [], parallel=0)
    measure_part(first, tmp_path / "order", "part-1", parallel=1)
    timed = Timed(ToySettings())
    run_experiment(timed, tmp_path / "timed", [], parallel=0)
    with pytest.raises(UserError, match="parallel was 0, now 1"):
        measure_part(timed, tmp_path / "timed", "part-1", parallel=1)


KILLED = """
import os, signal, subprocess, sys, time
from pathlib import Path
from gatito.experiment.engine import _start
out = Path(sys.argv[1])
code = "from gatito.experiment.engine import _end_with, PARENT; import os; _end_with(int(os.environ[PARENT]))"
process = _start("part", out, [sys.executable, "-c", code])
(out / "pid").write_text(str(process.pid))
time.sleep(60)
"""


def test_parts_end_with_an_experiment_that_is_killed(tmp_path: Path) -> None:
    experiment = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    wait_for(lambda: (tmp_path / "pid").is_file())
    part = int((tmp_path / "pid").read_text())
    os.kill(part, 0)  # it is there
    experiment.kill()
    experiment.wait()
    wait_for(lambda: not is_alive(part))


def wait_for(condition: Callable[[], bool], limit_s: float = 300.0) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for is over too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_a_part_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown part 'part-9'; did you mean"):
        measure_part(Toy(ToySettings()), tmp_path, "part-9")


def test_a_part_is_measured_only_in_the_folder_of_its_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no experiment yet; begin it without --part"):
        measure_part(Toy(ToySettings()), tmp_path, "part-1")
    run_experiment(Toy(ToySettings()), tmp_path, [], parallel=0)
    for other in (Toy(ToySettings(episodes=7)), Toy(ToySettings(), made="tin")):
        with pytest.raises(UserError, match="holds an experiment of other settings"):
            measure_part(other, tmp_path, "part-1")


def test_a_part_that_was_killed_is_told_so(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(UserError, match=r"first part-1: it was ended by signal 9 \(out of memory\?\); once"):
        run_experiment(Toy(ToySettings()), tmp_path, command, parallel=1)


def test_other_demonstrations_behind_the_same_name_make_another_experiment(tmp_path: Path) -> None:
    settings = MixtureSettings(tasks={"classic/cartpole": 3}, demonstrations_from=str(tmp_path))
    collect(["classic/cartpole"], tmp_path, CollectConfig(episodes=3, agents={"noisy": 1.0}, processes=1))
    before = Own(settings).made_of()
    assert Own(settings).made_of() == before
    shutil.rmtree(tmp_path / "classic")
    again = CollectConfig(episodes=3, agents={"noisy": 1.0}, processes=1, first_seed=50)
    collect(["classic/cartpole"], tmp_path, again)
    assert Own(settings).made_of() != before


def test_a_part_without_its_episodes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"or remove it and .*result.json, and it is played again"):
        Measured(folder=tmp_path, facts={}, values={}).results()


def test_adapters_are_no_wider_than_the_network() -> None:
    with pytest.raises(UserError, match="--lora-rank is 4000, allowed up to the width of the network 128"):
        FewShot(FewShotSettings(lora_rank=4000)).check()


def test_sizes_grow_and_are_played_while_they_train() -> None:
    with pytest.raises(UserError, match="name the smallest first"):
        Scaling(ScalingSettings(sizes=["ladder-1m", "ladder-0.3m"])).check()
    with pytest.raises(UserError, match="'CartPole-v1' is no registered task"):
        Scaling(ScalingSettings(tasks={"CartPole-v1": 3}, demonstrations_from="mine")).check()


@pytest.mark.parametrize("text", ["model: {wdith: 64}\ntrain: {}\n", "train: {}\n", "model: 3\ntrain: {lr: abc}\n"])
def test_a_file_that_is_no_recipe_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=r"own.yaml: no recipe \(.*\); it needs `model` and `train`"):
        Ablation(AblationSettings(recipe=str(tmp_path / "own.yaml"))).made_of()


def test_failed_episodes_are_not_left_out_of_a_mean() -> None:
    trained = results_of({"a/b": [1.0, 1.0]})
    trained.records[1] = dataclasses.replace(trained.records[1], total_return=None, failure="it hung")
    with pytest.raises(UserError, match="1 of 2 episodes failed, first a/b, seed 1: it hung; remove the part"):
        mean_score([trained])


def test_the_full_protocol_is_asked_for_on_the_command_line_alone(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("full: true\n")
    with pytest.raises(UserError, match="full is for the command line alone"):
        cli.run(["experiment", "beyond", "--config", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "x")])
    with pytest.raises(UserError, match="full"):
        cli.run(["experiment", "beyond", "--full=false", "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_a_part_that_another_process_measures_is_left_to_it(tmp_path: Path) -> None:
    run_experiment(Toy(ToySettings()), tmp_path, [], parallel=0)
    folder = tmp_path / "parts/part-1"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="part-1 is being measured by another process; wait for it, or end it"):
            measure_part(Toy(ToySettings()), tmp_path, "part-1")
    measure_part(Toy(ToySettings()), tmp_path, "part-1")


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    out = tmp_path / "toy"
    run_experiment(Toy(ToySettings()), out, [], parallel=0)
    (out / "parts/last/result.json").write_text('{"seconds": 1.0}')
    with pytest.raises(
        UserError, match=r"last/result.json lacks 'measured'; remove it, and the part is measured again"
    ):
        run_experiment(Toy(ToySettings()), out, [], parallel=0)
    for damaged in ("{", "{}", "[]"):
        (out / "parts/part-1/result.json").write_text(damaged)
        with pytest.raises(UserError, match=r"part-1/result.json: .* the part is measured again"):
            run_experiment(Toy(ToySettings()), out, [], parallel=0)
    for damaged in ("{", "{}", "[]"):
        (out / "experiment.json").write_text(damaged)
        with pytest.raises(UserError, match=r"experiment.json is damaged .*; choose another --out"):
            run_experiment(Toy(ToySettings()), out, [], parallel=0)
    (out / "experiment.json").write_text('{"experiment": "other"}')
    with pytest.raises(UserError, match=r"holds the experiment 'other'; choose another --out"):
        run_experiment(Toy(ToySettings()), out, [], parallel=0)


def test_a_finished_experiment_prepares_nothing_anew(tmp_path: Path) -> None:
    run_experiment(Toy(ToySettings()), tmp_path / "toy", [], parallel=0)
    (tmp_path / "toy/prepared").unlink()
    run_experiment(Toy(ToySettings()), tmp_path / "toy", [], parallel=0)
    assert not (tmp_path / "toy/prepared").exists()


def test_ways_of_acting_need_the_whole_result_of_the_default(tmp_path: Path) -> None:
    beyond = Beyond(BeyondSettings())
    folder = tmp_path / "parts/default-0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"default-0/result.json: .* the part is measured again"):
        beyond._act(tmp_path, "cool", 0, tmp_path / "parts/cool-0")


def few_shot_summary(
    folder: Path, unseen: float, scratch: float, tuned: float, demonstrations: Sequence[int] = (1, 4)
) -> Summary:
    """Of one task in which so many of ten episodes succeed."""
    settings = FewShotSettings(
        held_out=["a/b"],
        tasks={"a/c": 1},
        demonstrations=list(demonstrations),
        lora_rank=0,
        seeds=[0, 1],
        episodes=10,
    )
    few_shot, measured = FewShot(settings), []
    for part in few_shot.parts(folder)[1:]:
        share = {"as pretrained": unseen, "from scratch": scratch, "fine-tuned": tuned}[part.facts["way"]]
        own = folder_of(part.name, folder)
        own.mkdir(parents=True)
        write_results(results_of({"a/b": [float(i < 10 * share) for i in range(10)]}), own / "eval.json")
        measured.append(Measured(folder=own, facts=part.facts, values={}))
    return few_shot.summary(measured)


@pytest.mark.parametrize(
    ("unseen", "scratch", "tuned", "said"),
    [
        (0.0, 0.0, 0.9, ["from scratch nothing is learned", "training from scratch: 0.90", ", reached"]),
        (
            1.0,
            0.5,
            0.7,
            ["with no demonstration against from scratch with 4: 0.50", ", reached", "training from scratch: 0.20"],
        ),
        (0.1, 0.6, 0.1, ["with no demonstration against from scratch with 4: -0.50", ", not reached"]),
    ],
)
def test_few_demonstrations_are_compared_with_none_with_equal_ones_and_with_four_times_as_many(
    unseen: float, scratch: float, tuned: float, said: list[str], tmp_path: Path
) -> None:
    summary = few_shot_summary(tmp_path, unseen, scratch, tuned)
    for words in said:
        assert any(words in finding for finding in summary.findings), summary.findings
    assert summary.values["a/b, fine-tuned, a quarter"]["mean"] == pytest.approx(tuned - scratch)
    assert ("nothing is learned" in " ".join(summary.findings)) == (scratch == 0)


@pytest.mark.parametrize(
    ("demonstrations", "said"),
    [([1, 10, 100], "(0.20 with 1 against 10, 0.20 with 10 against 100), reached"), ([1, 2], "no two of [1, 2]")],
)
def test_less_than_a_quarter_of_the_demonstrations_is_a_quarter_or_less(
    demonstrations: list[int], said: str, tmp_path: Path
) -> None:
    found = few_shot_summary(tmp_path, 0.1, 0.5, 0.7, demonstrations).findings
    assert any(said in finding for finding in found), found


def test_one_seed_decides_no_choice_and_reaches_no_figure() -> None:
    better = mean_score([results_of({"a/b": [1.0, 1.0, 1.0]})]).minus(
        mean_score([results_of({"a/b": [0.0, 0.0, 0.0]})])
    )
    assert _verdict(better).startswith("one seed decides nothing, 1.00")
    assert better.reaches(0.0) == "one seed decides nothing"


@pytest.mark.parametrize("loss_over", ["group", "full"])
def test_a_held_out_loss_is_a_mean_over_targets_whatever_was_trained_on(
    loss_over: str, tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    tasks = ["classic/cartpole", "classic/mountain-car-continuous"]
    folder = write_task_store(tmp_path / "store", tasks, vocabulary, text)
    model, _ = load_checkpoint(train(tiny_recipe(steps=1), folder, tmp_path / "run"))
    store, config = open_store(folder), model.config
    sampler = Sampler(store=store, context=int(config.context), trunk=config.trunk, seed=10**6)
    with torch.inference_mode():
        losses = model(**sampler.batch(0, HELD_OUT_ROWS).tensors()).targets
    totals = {group: (float(losses.loss_sum[group]), float(losses.num_targets[group])) for group in losses.loss_sum}
    expected = {group: total / count for group, (total, count) in totals.items() if count}
    expected["all"] = sum(total for total, _ in totals.values()) / sum(count for _, count in totals.values())
    config.loss_over = loss_over
    assert held_out_loss(model, store) == pytest.approx(expected, rel=1e-4)
    assert set(expected) == {"continuous", "discrete", "all"}
    assert config.loss_over == loss_over


# --- what is refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Settings(seeds=[]), "--seeds is"),
        (lambda: Settings(seeds=[1, 1]), "--seeds is"),
        (lambda: Settings(episodes=0), "--episodes is 0"),
        (lambda: ScalingSettings(sizes=["ladder-1m"]), "two recipes of different names"),
        (lambda: ScalingSettings(sizes=["ladder-1m", "79m"]), "tokens must be equal"),
        (lambda: ScalingSettings(tasks={}), "--tasks names none"),
        (lambda: ScalingSettings(looks=0), "--looks is 0, allowed a divisor of --steps 1500"),
        (lambda: ScalingSettings(looks=7), "--looks is 7, allowed a divisor of --steps 1500"),
        (lambda: FewShotSettings(tuning_lr=-1.0), "--tuning-lr is -1.0, allowed above 0"),
        (lambda: FewShotSettings(lora_lr=float("nan")), "--lora-lr is nan, allowed above 0"),
        (lambda: FewShotSettings(held_out=["a/b", "a/b"]), "allowed different tasks"),
        (lambda: HiddenGoalSettings(prompt_share=7.0), "--prompt-share is 7.0, allowed above 0 to 1"),
        (lambda: HiddenGoalSettings(held_out=2 * ["metaworld/reach-hidden-5"]), "lists .* twice"),
        (lambda: BeyondSettings(minutes=0.0), "--minutes is 0.0, allowed above 0"),
        (lambda: BeyondSettings(minutes=float("inf")), "--minutes is inf, allowed above 0"),
        (lambda: ScalingSettings(tasks={"classic/cartpole": 0}), "0 demonstrations of classic/cartpole"),
        (lambda: FewShotSettings(demonstrations=[10, 1]), "the smallest first"),
        (lambda: FewShotSettings(lora_rank=0, lora_lr=0.1), "--lora-lr 0.1 without adapters"),
        (lambda: FewShotSettings(held_out=[]), "--held-out is \\[\\], allowed different tasks"),
        (lambda: FewShotSettings(init="run", steps=7), "--init run has behind it"),
        (lambda: FewShotSettings(lora_rank=-1), "--lora-rank is -1"),
        (lambda: FewShotSettings(tuning_steps=0), "--tuning-steps is 0"),
        (lambda: HiddenGoalSettings(tasks={"classic/cartpole": 3}), "hides nothing"),
        (lambda: HiddenGoalSettings(tasks={"metaworld/reach-hidden-0": 3}, held_out=[]), "needs two and more"),
        (lambda: HiddenGoalSettings(held_out=["classic/cartpole"]), "'classic/cartpole' is neither in --tasks"),
    ],
)
def test_settings_that_make_no_experiment_are_refused(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_a_held_out_task_that_was_pretrained_on_is_refused(
    tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    store = write_task_store(tmp_path / "store", ["classic/cartpole"], vocabulary, text)
    train(tiny_recipe(steps=1), store, tmp_path / "run")
    with pytest.raises(UserError, match="held-out task 'classic/cartpole' is in the mixture"):
        check_held_out(["classic/acrobot", "classic/cartpole"], tasks_trained_on(tmp_path / "run"), "run")
    with pytest.raises(UserError, match="pretrain without it"):
        FewShot(FewShotSettings(held_out=["classic/cartpole"], init=str(tmp_path / "run"))).check()
    named = r"'CartPole-v1' is in the mixture that --tasks is pretrained on as 'classic/cartpole'"
    with pytest.raises(UserError, match=named):
        FewShot(FewShotSettings(held_out=["Acrobot-v1", "CartPole-v1"], tasks={"classic/cartpole": 3})).check()


def test_a_task_that_the_mixture_held_out_can_be_learned_from_few_demonstrations(
    tmp_path: Path,
) -> None:
    collect(["classic/cartpole", "classic/acrobot"], tmp_path / "data", CollectConfig(episodes=2, processes=1))
    datasets = [DatasetConfig(source=f"minari:{path}") for path in sorted((tmp_path / "data").glob("*/*/*"))]
    build(MixtureConfig(datasets=datasets, held_out=HeldOutConfig(tasks=["classic/acrobot"])), tmp_path / "store")
    train(tiny_recipe(steps=1), tmp_path / "store", tmp_path / "run")
    check_held_out(["classic/acrobot"], tasks_trained_on(tmp_path / "run"), "run")
    build(MixtureConfig(datasets=datasets), tmp_path / "more")
    train(tiny_recipe(steps=1), tmp_path / "more", tmp_path / "tuned", init=tmp_path / "run")
    with pytest.raises(UserError, match="held-out task 'classic/acrobot' is in the mixture"):
        check_held_out(["classic/acrobot"], tasks_trained_on(tmp_path / "tuned"), "tuned")


def test_the_command_line_knows_the_experiments(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scaling"):
        cli.run(["experiment", "scalign", "--out", str(tmp_path / "x")])
    with pytest.raises(UserError, match="--episodes is 0"):
        cli.run(["experiment", "scaling", "--episodes", "0", "--out", str(tmp_path / "x")])
    with pytest.raises(UserError, match="did you mean"):  # its sizes are recipes
        cli.run(["experiment", "scaling", "--recipe", "tiny", "--out", str(tmp_path / "x")])
    with pytest.raises(UserError, match=r"no file nowhere\.yaml"):
        cli.run(["experiment", "few-shot", "--config", "nowhere.yaml", "--out", str(tmp_path / "x")])
    with pytest.raises(UserError, match="0 demonstrations of classic/mountain-car,"):
        cli.run(["experiment", "beyond", "--tasks.classic/mountain-car", "0", "--out", str(tmp_path / "x")])
    for entry in EXPERIMENTS.values():
        assert entry.experiment(entry.settings(**entry.full)).question.endswith("?")


def test_an_experiment_asks_for_what_draws_it_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=r"pip install 'gatito\[experiment\]'"):
        run_named("scaling", {}, [])


# --- tasks that hide something


@pytest.mark.parametrize("task", ["babyai/pickup-hidden-red-ball", "metaworld/reach-hidden-3"])
def test_tasks_of_a_family_observe_alike_and_follow_from_their_seed(task: str) -> None:
    env = get_task(task).make()
    first, again, other = (env.reset(seed=seed)[0] for seed in (5, 5, 6))
    same = [np.array_equal(first, x) if isinstance(x, np.ndarray) else str(first) == str(x) for x in (again, other)]
    assert same[0]
    if isinstance(first, dict):
        assert first["mission"] == "find out"
        assert env.unwrapped.mission.endswith("red ball")
    else:
        assert not same[1]
        np.testing.assert_array_equal(first[36:39], 0.0)
        np.testing.assert_array_equal(env.unwrapped.state[36:39], [0.09, 0.89, 0.28])
    env.close()


def test_what_is_seen_does_not_tell_what_is_to_be_picked_up_and_the_other_thing_ends_the_episode() -> None:
    first, second = (get_task(f"babyai/pickup-hidden-{name}") for name in ("red-ball", "grey-key"))
    kinds = set()
    env = first.make()
    for seed in range(40):
        env.reset(seed=seed)
        room = env.unwrapped
        things = [thing for thing in room.grid.grid if thing is not None and thing.can_pickup()]
        names = {f"{thing.color} {thing.type}" for thing in things}
        assert len(things) == len(names) == 2
        assert "red ball" in names
        kinds |= names
    assert kinds == set(HIDDEN)
    other = next(thing for thing in things if thing.type != "ball" or thing.color != "red")
    room.agent_pos, room.agent_dir = np.add(other.cur_pos, (-1, 0)), 0  # in front of it
    _, reward, terminated, _, _ = env.step(np.int64(3))  # pick up
    assert (reward, terminated) == (0, True)
    env.close()
    assert get_task(second.id).make().reset(seed=5)[0]["mission"] == "find out"


def test_a_wrong_demonstration_is_of_another_task_that_is_trained_on() -> None:
    assert wrong_demonstrations(["a", "b", "c", "d"], {"a", "b", "d"}) == {"a": "b", "b": "d", "c": "d", "d": "a"}


def test_families_are_told_apart_by_what_they_share() -> None:
    own = families(["babyai/pickup-hidden-red-ball", "metaworld/reach-hidden-0", "metaworld/reach-hidden-1"])
    assert own["metaworld/reach"] == ["metaworld/reach-hidden-0", "metaworld/reach-hidden-1"]
    assert list(own) == ["babyai/pickup", "metaworld/reach"]


class Own(OnMixture):
    """An experiment as far as its data go."""

    measures_loss = True

    def __init__(self, settings: MixtureSettings) -> None:
        self.settings = settings

    def parts(self, out: Path) -> list[Part]:
        raise NotImplementedError

    def summary(self, measured: Sequence[Measured]) -> Summary:
        raise NotImplementedError


@pytest.fixture(scope="module")
def own_datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 demonstrations of a user's own."""
    folder = tmp_path_factory.mktemp("own")
    collect(["classic/cartpole"], folder, CollectConfig(episodes=33, agents={"noisy": 1.0}, processes=1))
    return folder


def test_an_experiment_learns_from_datasets_of_the_user_and_collects_nothing(
    tmp_path: Path, own_datasets: Path
) -> None:
    settings = MixtureSettings(
        tasks={"classic/cartpole": 3}, demonstrations_from=str(own_datasets), datasets=str(tmp_path / "none")
    )
    Own(settings).prepare(tmp_path / "out")
    (trained_on,) = open_store(tmp_path / "out/store").datasets
    (held_out,) = open_store(tmp_path / "out/held-out").datasets
    assert trained_on.episode_seeds.tolist() == [0, 1, 2]
    assert held_out.episode_seeds.tolist() == list(range(3, 33))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({"classic/cartpole": 34}, r"noisy-v0: 33 demonstrations of 'classic/cartpole', asked for 34"),
        ({"classic/cartpole": 4}, r"33 demonstrations of 'classic/cartpole', asked for 30, after the 4 that are"),
        ({"classic/acrobot": 1}, "no demonstrations of 'classic/acrobot'"),
    ],
)
def test_more_demonstrations_than_the_user_has_are_refused(
    tasks: dict[str, int], said: str, tmp_path: Path, own_datasets: Path
) -> None:
    with pytest.raises(UserError, match=said):
        Own(MixtureSettings(tasks=tasks, demonstrations_from=str(own_datasets))).check()


def test_an_environment_that_nobody_demonstrates_is_refused() -> None:
    with pytest.raises(UserError, match=r"'FrozenLake-v1' has no scripted expert .* --demonstrations-from"):
        Own(MixtureSettings(tasks={"FrozenLake-v1": 1})).check()
    with pytest.raises(UserError, match="CartPole-v1"):
        Own(MixtureSettings(tasks={"CartPool-v1": 1})).check()


def test_demonstrations_that_are_nowhere_are_asked_for_as_a_folder_of_tasks() -> None:
    with pytest.raises(UserError, match=r"--demonstrations-from nowhere is no folder; .* FOLDER/TASK/NAME"):
        Own(MixtureSettings(demonstrations_from="nowhere")).check()


def test_an_ablation_of_who_demonstrates_needs_demonstrations_of_the_experts() -> None:
    assert "clean" in Ablation(AblationSettings()).changes
    assert "clean" not in Ablation(AblationSettings(demonstrations_from="mine")).changes


def test_what_a_recipe_does_already_is_no_change_of_it(tmp_path: Path) -> None:
    recipe = tmp_path / "local.yaml"
    recipe.write_text("model: {rotary: false}\ntrain: {lr: 0.002}\n")
    assert "no-rotary" in Ablation(AblationSettings()).changes
    assert "no-rotary" not in Ablation(AblationSettings(recipe=str(recipe))).changes
    beyond = Beyond(BeyondSettings(recipe=str(recipe)))
    assert [beyond.changed_recipe(beyond.changes[name], 0).train.lr for name in ("muon", "muon-fast")] == [
        0.002,
        0.004,
    ]


def test_the_only_task_of_a_domain_has_one_specialist_for_both(tmp_path: Path) -> None:
    tasks = {"classic/cartpole": 1, "classic/acrobot": 1, "box2d/lunar-lander": 1}
    parts = Baselines(BaselinesSettings(tasks=tasks, seeds=[0])).parts(tmp_path)
    of_domains = {part.name: part.facts["tasks"] for part in parts if "domain specialists" in part.facts["methods"]}
    assert of_domains == {
        "domain-specialists-classic-0": ["classic/cartpole", "classic/acrobot"],
        "task-specialists-box2d--lunar-lander-0": ["box2d/lunar-lander"],
    }


def test_the_last_of_a_family_is_held_out_where_nothing_else_is_said() -> None:
    assert HiddenGoalSettings().held_out_tasks == [
        "metaworld/reach-hidden-5", "babyai/pickup-hidden-grey-key", "metaworld/reach-dense-hidden-5",
    ]  # fmt: skip
    two = {"metaworld/reach-hidden-0": 3, "metaworld/reach-hidden-1": 3}
    assert HiddenGoalSettings(tasks=two, adapting={}).held_out_tasks == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        (
            "scaling",
            "sizes: [ladder-0.3m, ladder-1m]\nsteps: 4\nlooks: 2\nlook_episodes: 2",
            "ladder-1m against ladder-0.3m, at equal tokens",
        ),
        ("beyond", "minutes: 0.02", "AdamW, Muon for the matrices"),
    ],
)
def test_other_small_experiments_write_what_they_found(name: str, settings: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(
        f"{settings}\ntasks: {{classic/cartpole: 4}}\nepisodes: 2\nseeds: [0, 1]\ndatasets: {tmp_path / 'datasets'}\n"
    )
    cli.run(["experiment", name, "--config", str(config), "--out", str(tmp_path / "out"), "--parallel", "0"])
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert any(said in finding for finding in values["findings"])
    assert (tmp_path / "out" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_an_experiment_that_was_killed_finds_what_an_uninterrupted_one_finds(tmp_path: Path) -> None:
    config = tmp_path / "few.yaml"
    config.write_text(
        "tasks: {classic/cartpole: 6}\nheld_out: [classic/mountain-car-continuous]\ndemonstrations: [1]\nseeds: [0]\n"
        "steps: 6\ntuning_steps: 3\nscratch_steps: 300\nlora_rank: 0\nepisodes: 2\n"
        f"datasets: {tmp_path / 'datasets'}\n"
    )
    command = ["experiment", "few-shot", "--config", str(config)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    cli.run([*command, "--out", str(whole), "--parallel", "0"])
    begun = subprocess.Popen([sys.executable, "-m", "gatito", *command, "--out", str(killed), "--parallel", "1"])
    name = "classic--mountain-car-continuous-1-from-scratch-0"
    wait_for(lambda: (killed / "parts" / name / "run/metrics.jsonl").is_file())
    begun.kill()
    begun.wait()
    wait_for(lambda: is_free(killed / "parts" / name / ".lock"))
    assert list_checkpoints(killed / "parts" / name / "run"), "what is continued would begin anew"
    assert (killed / "parts/pretraining/result.json").is_file()
    assert not (killed / "parts" / name / "result.json").exists()
    cli.run([*command, "--out", str(killed), "--parallel", "0"])
    found = [json.loads((out / "results.json").read_text()) for out in (whole, killed)]
    assert found[0]["summary"] == found[1]["summary"]
    for part, again in zip(found[0]["parts"], found[1]["parts"], strict=True):
        curve, resumed = part.pop("curve", [0]), again.pop("curve", [0])
        assert curve[-1] == resumed[-1]  # the line after the interruption is of fewer steps
        assert {**part, "seconds": 0} == {**again, "seconds": 0}


def is_free(lock: Path) -> bool:
    """Whether nobody measures a part."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


@pytest.mark.slow
def test_hidden_goals_are_prompted_rightly_wrongly_and_not_and_adapted_to(tmp_path: Path) -> None:
    goals, dense = (
        ", ".join(f"metaworld/{family}-hidden-{i}: 2" for i in range(3)) for family in ("reach", "reach-dense")
    )
    config = tmp_path / "hidden.yaml"
    config.write_text(
        f"tasks: {{{goals}}}\nadapting: {{{dense}}}\nsteps: 4\nadapting_steps: 4\nepisodes: 4\nseeds: [0]\n"
        f"episodes_in_context: 2\ndatasets: {tmp_path / 'datasets'}\n"
    )
    cli.run(["experiment", "hidden-goal", "--config", str(config), "--out", str(tmp_path / "out"), "--parallel", "0"])
    summary = json.loads((tmp_path / "out/results.json").read_text())["summary"]
    for kind in ("trained on", "held out"):
        assert list(summary[f"metaworld/reach, {kind}"]) == ["right prompt", "wrong prompt", "no prompt"]
        for way in ("rewards unseen", "rewards seen"):
            assert len(summary[f"{way}, {kind}"]["by_order"]) == 2
    assert (tmp_path / "out/hidden-goal.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_an_experiment_on_an_environment_and_demonstrations_of_the_user(tmp_path: Path) -> None:
    own = ["--env", "CartPole-v1", "--policy", "random", "--episodes", "40", "--out", str(tmp_path / "mine")]
    cli.run(["data", "collect", *own])
    config = tmp_path / "own.yaml"
    config.write_text(
        f"tasks: {{CartPole-v1: 5}}\ndemonstrations_from: {tmp_path / 'mine'}\nsteps: 6\nepisodes: 2\nseeds: [0]\n"
    )
    for name, said in (("ablation", "the demonstrations are yours"), ("baselines", "within 0.1 of its specialists")):
        out = tmp_path / name
        cli.run(["experiment", name, "--config", str(config), "--out", str(out), "--parallel", "0"])
        assert any(said in finding for finding in json.loads((out / "results.json").read_text())["findings"])


@pytest.mark.slow
def test_a_small_experiment_from_the_command_line_to_its_picture(tmp_path: Path) -> None:
    config = tmp_path / "few.yaml"
    config.write_text(
        "tasks: {classic/cartpole: 6}\nheld_out: [classic/mountain-car-continuous]\ndemonstrations: [1, 4]\n"
        "steps: 6\ntuning_steps: 3\nscratch_steps: 3\nlora_rank: 2\nepisodes: 2\nseeds: [0]\n"
        f"datasets: {tmp_path / 'datasets'}\n"
    )
    command = ["experiment", "few-shot", "--config", str(config), "--out", str(tmp_path / "out"), "--parallel", "2"]
    cli.run(command)
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(values["parts"]) == 8
    assert {"classic/mountain-car-continuous, as pretrained", "pretraining"} <= values["summary"].keys()
    assert any("adapters against fine-tuned" in finding for finding in values["findings"])
    assert (tmp_path / "out" / "few-shot.png").read_bytes()[:4] == b"\x89PNG"
    times = {path: path.stat().st_mtime for path in (tmp_path / "out" / "parts").rglob("result.json")}
    cli.run(command)
    assert times == {path: path.stat().st_mtime for path in (tmp_path / "out" / "parts").rglob("result.json")}
