"""Baselines on the episodes of an evaluation: the verbs, what they write, and what is refused before it begins."""

import json
from pathlib import Path
from typing import Any

import pytest
from demonstrated import line_spec, random_demonstrations
from simulated import GRID, points
from toy import ToyEnv, layout_of

from gatito import cli
from gatito.baselines import command
from gatito.baselines import evaluate as evaluating
from gatito.baselines.cloning import clone
from gatito.baselines.config import CloneConfig
from gatito.baselines.evaluate import check_tasks, evaluate_baseline
from gatito.baselines.retrieval import Retrieval
from gatito.data.minari_episodes import open_minari
from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec
from gatito.errors import UserError
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import CheckedTask
from gatito.eval.journal import Journal
from gatito.eval.rollout import Acts, Job, rollouts
from gatito.eval.scores import Baseline
from gatito.eval.simulators import LocalSimulators
from gatito.tokenizers import TextTokenizer, Vocabulary

TASKS = "classic/cartpole,classic/mountain-car"
LINE = f"--demonstrations-from d --tasks {TASKS} --processes 0 --episodes 2"
QUICK = "--width 8 --layers 1 --batch 8 --steps 5"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations each of two tasks."""
    home = tmp_path_factory.mktemp("baselines")
    line = f"data collect --tasks {TASKS} --agents expert --episodes 3 --processes 1 --out {home / 'd'}"
    cli.run(line.split())
    return home


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def run(kind: str, line: str) -> dict[str, Any]:
    """Run `gatito baseline KIND ...` here and return its results.json."""
    cli.run(["baseline", kind, *line.split()])
    values: dict[str, Any] = json.loads((Path(line.split("--out ")[1].split()[0]) / "results.json").read_text())
    return values


def checked(spec: TaskSpec, vocabulary: Vocabulary, text: TextTokenizer) -> CheckedTask:
    env = spec.make()
    layout = layout_of(env, vocabulary, text)
    return CheckedTask(spec=spec, layout=layout, baseline=Baseline(random=0.0, expert=1.0), env=env)


def retrieving(task: CheckedTask) -> Retrieval:
    env = ToyEnv(task.env.observation_space, task.env.action_space)
    return Retrieval(random_demonstrations(env, task.layout))


def test_retrieving_writes_results_and_a_report_like_an_evaluation(inside: Path) -> None:
    values = run("retrieve", f"{LINE} --demonstrations 2 --out retrieved")
    assert sorted(path.name for path in (inside / "retrieved").iterdir()) == ["report.html", "results.json"]
    assert [(row["id"], row["episodes"]) for row in values["tasks"]] == [(task, 2) for task in TASKS.split(",")]
    assert [r["seed"] - EVALUATION_SEEDS for r in values["records"]] == [0, 1] * 2
    assert values["mean_score"] > 0.5
    assert values["settings"]["baseline"] == "retrieve"
    assert values["settings"]["data"]["classic/cartpole"]["episodes"] == 2
    shown = [open_minari(f"d/{task}/expert-v0").episode(i) for task in TASKS.split(",") for i in (0, 1)]
    counted = [values["settings"]["data"][task]["timesteps"] for task in TASKS.split(",")]
    assert sum(counted) == sum(map(len, shown))


@pytest.mark.slow
def test_results_name_the_baseline_and_the_hash_of_its_data(inside: Path) -> None:
    few, same, more = (
        run("retrieve", f"{LINE} --demonstrations {n} --out {out}")["checkpoint"]
        for n, out in ((1, "one"), (1, "again"), (3, "three"))
    )
    assert few == same != more
    kind, _, sha = few.partition("@")
    assert (kind, len(sha)) == ("retrieve", 16)


@pytest.mark.slow
def test_baselines_are_compared_with_each_other_by_seed(inside: Path) -> None:
    run("retrieve", f"{LINE} --out r")
    run("clone", f"{LINE} {QUICK} --out c")
    cli.run(["compare", "r", "c", "--out", "compared"])
    compared = json.loads((inside / "compared/compare.json").read_text())
    assert (compared["pairs"], compared["failed"]) == (4, 0)
    assert compared["settings"]["baseline"] == ["retrieve", "clone"]


def test_cloning_keeps_its_policies_and_says_how_they_were_trained(inside: Path) -> None:
    values = run("clone", f"{LINE} {QUICK} --seed 4 --out cloned")
    assert {k: v for k, v in values["settings"].items() if k.startswith("clone_")} == {
        "clone_width": 8, "clone_layers": 1, "clone_batch": 8, "clone_steps": 5, "clone_flops": None,
        "clone_lr": 1e-3, "clone_seed": 4, "clone_temperature": 0.0,
    }  # fmt: skip
    for task in TASKS.split(","):
        assert command.load_clone(inside / "cloned/policies" / task).steps == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retrieve", "clone"])
def test_a_baseline_that_was_killed_goes_on_and_comes_out_the_same(
    kind: str, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = f"{LINE} {QUICK if kind == 'clone' else ''}"
    whole = run(kind, f"{options} --out whole-{kind}")
    added: list[int] = []

    def dies_at_the_third(journal: Journal, records: Any) -> None:
        added.append(len(records))
        if len(added) == 3:
            raise KeyboardInterrupt
        add(journal, records)

    add = Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(kind, f"{options} --out parts-{kind}")
    with monkeypatch.context() as patch:
        patch.setattr(command, "clone", None)  # those that were trained are not trained again
        continued = run(kind, f"{options} --out parts-{kind}")
    assert continued["records"] == whole["records"]
    assert continued["checkpoint"] == whole["checkpoint"]


def test_policies_of_other_settings_are_not_taken_for_ones_own(inside: Path) -> None:
    run("clone", f"{LINE} {QUICK} --out stale")
    (inside / "stale" / "results.json").unlink()
    with pytest.raises(UserError, match="was cloned of other demonstrations or settings; choose another --out"):
        run("clone", f"{LINE} {QUICK} --seed 1 --out stale")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            f"{LINE} --demonstrations 4 --out bad",
            r"--demonstrations is 4, allowed 1 to 3: d has 3 of 'classic/cartpole'",
        ),
        (f"{LINE} --demonstrations 0 --out bad", "--demonstrations is 0, allowed 1 to 3"),
        (
            "--demonstrations-from d --tasks classic/acrobot --out bad",
            r"d has no demonstrations of 'classic/acrobot'",
        ),
        ("--demonstrations-from e --tasks classic/acrobot --out bad", "no Minari dataset at e"),
        (
            "--demonstrations-from d/classic/cartpole/expert-v0 --tasks classic/mountain-car --out bad",
            "holds demonstrations of 'classic/cartpole', expected those of 'classic/mountain-car'",
        ),
        ("--demonstrations-from d --tasks classic/cartpol --out bad", "did you mean 'classic/cartpole'"),
        (f"{LINE} --episodes 0 --out bad", "--episodes is 0, allowed 1 and more"),
        ("--tasks classic/cartpole --out bad", "missing: --demonstrations-from"),
        (f"{LINE} --prompt end --out bad", "unknown option '--prompt'"),
    ],
)
def test_what_cannot_be_played_is_refused_before_anything_is_written(line: str, reason: str, inside: Path) -> None:
    for kind in ("retrieve", "clone"):
        with pytest.raises(UserError, match=reason):
            run(kind, line)
    assert not (inside / "bad").exists()


def test_finished_results_are_not_overwritten(inside: Path) -> None:
    run("retrieve", f"{LINE} --out done")
    with pytest.raises(UserError, match=r"done/results.json exists; choose another --out or remove it"):
        run("retrieve", f"{LINE} --out done")


def test_demonstrations_of_other_spaces_than_the_task_are_refused(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TaskSpec(id="classic/cartpole", make=line_spec().make, expert=line_spec().expert)
    monkeypatch.setattr(evaluating, "get_task", lambda name: other)
    with pytest.raises(UserError, match=r"its layout .* is not .*, that of 'classic/cartpole'; demonstrations must"):
        run("retrieve", "--demonstrations-from d --tasks classic/cartpole --out spaces")


def test_a_task_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(UserError, match="'classic/cartpole' is listed twice; raise --episodes instead"):
        check_tasks(["classic/cartpole", "classic/cartpole"], "d", EvaluationConfig())


def test_settings_with_a_prompt_are_refused(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    with pytest.raises(UserError, match="--prompt end: a baseline acts by the present observation alone"):
        evaluate_baseline([checked(GRID, vocabulary, text)], retrieving, EvaluationConfig(prompt="end"))


def test_the_records_do_not_depend_on_the_number_of_sessions(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    tasks = [checked(spec, vocabulary, text) for spec in (points(), GRID)]
    alone, many = (evaluate_baseline(tasks, retrieving, EvaluationConfig(episodes=6, sessions=n)) for n in (1, 5))
    assert alone == many
    assert len({record.total_return for record in alone}) > 5


def test_a_simulator_that_fails_costs_its_own_episode_alone(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    sound, broken = (
        evaluate_baseline([checked(points(fault), vocabulary, text)], retrieving, EvaluationConfig(episodes=5))
        for fault in ("", "returns NaN")
    )
    assert [bool(record.failure) for record in broken] == [False, False, True, False, False]
    assert [b for b in broken if not b.failure] == [a for a in sound if a.seed != broken[2].seed]


@pytest.mark.slow
def test_two_processes_play_the_episodes_that_this_one_plays(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    tasks = [checked(spec, vocabulary, text) for spec in (points(), GRID)]

    def cloning(task: CheckedTask) -> Any:
        env = ToyEnv(task.env.observation_space, task.env.action_space)
        config = CloneConfig(width=8, batch=8, steps=5, temperature=1.0)
        return clone(random_demonstrations(env, task.layout), config)

    for make in (retrieving, cloning):
        here, there = (
            evaluate_baseline(tasks, make, EvaluationConfig(episodes=6, sessions=3, processes=n)) for n in (0, 2)
        )
        assert here == there


def test_whatever_acts_can_be_played(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    """The seam: five methods, of which a session's history is no part."""

    class Constant:
        num_sessions, num_clipped = 2, 0

        def __init__(self) -> None:
            self.waiting: set[int] = set()

        def reset(self, session: int, layout: Any, prompt: Any = None, seed: int = 0) -> None:
            pass

        def go_on(self, session: int, seed: int) -> None:
            pass

        def observe(self, session: int, observation: Any, where: str = "") -> None:
            self.waiting.add(session)

        def decide(self) -> dict[int, Any]:
            waiting, self.waiting = self.waiting, set()
            return dict.fromkeys(waiting, 2)

    task, actor = checked(points(), vocabulary, text), Constant()
    acts: Acts = actor
    seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + 3)
    jobs = [Job(spec=task.spec, layout=task.layout, part="none", prompt=lambda: None, seeds=(s,)) for s in seeds]
    records = [record for records in rollouts(acts, LocalSimulators(), jobs) for record in records]
    assert sorted(record.length for record in records) == sorted(4 + seed % 5 for seed in seeds)
