"""The generalist against specialists of one task and of one domain from the same recipe, against a plain network
cloned from the same demonstrations, and against retrieve-and-play: the honest floors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gatito.baselines.acting import Memoryless
from gatito.baselines.budget import training_flops
from gatito.baselines.cloning import clone
from gatito.baselines.config import CloneConfig
from gatito.baselines.demonstrations import Demonstrations, load_demonstrations
from gatito.baselines.evaluate import check_tasks, evaluate_baseline
from gatito.baselines.retrieval import Retrieval
from gatito.data.store import open_store
from gatito.data.tasks import domain_of
from gatito.eval.evaluate import baselines_of
from gatito.eval.results import Results, write_results
from gatito.eval.wording import counted
from gatito.experiment.estimates import Estimate, mean_score
from gatito.experiment.measuring import find_task, trained
from gatito.experiment.on_mixture import OnRecipe, RecipeSettings
from gatito.experiment.plan import Measured, Part, Summary, Table, named

GENERALIST, DOMAIN, SPECIALIST = "generalist", "domain specialists", "task specialists"
CLONED, RETRIEVED = "cloned network", "retrieve-and-play"
METHODS = (GENERALIST, DOMAIN, SPECIALIST, CLONED, RETRIEVED)
WITHIN = 0.1
"""Of the expert's score, within which the generalist is to be of its specialists."""


@dataclass(frozen=True, kw_only=True)
class BaselinesSettings(RecipeSettings):
    """What all methods learn from; every task costs each of them as many training rows."""

    tasks: dict[str, int] = field(
        default_factory=lambda: {
            "classic/cartpole": 60,
            "classic/acrobot": 150,
            "box2d/lunar-lander": 200,
            "metaworld/door-unlock": 150,
            "metaworld/plate-slide": 150,
            "babyai/go-to-obj": 1500,
        }
    )
    """Task ids, each with the number of its demonstrations; all are trained on alike."""
    steps: int = 1800
    """Optimizer steps of the generalist; a specialist has its share of them."""


FULL: Mapping[str, Any] = {"seeds": [0, 1, 2, 3], "steps": 20_000}
"""What the full protocol changes."""


@dataclass(frozen=True)
class Baselines(OnRecipe):
    """One network for all against one for each."""

    settings: BaselinesSettings
    name = "baselines"
    question = "Is one network for all as good as one for each, and than simpler methods?"

    def prepare(self, out: Path) -> None:
        """Collect and build the mixture, and a store of each domain and task."""
        super().prepare(out)
        for _, name, tasks in self._specialists():
            self.build({task: self.settings.tasks[task] for task in tasks}, self._store_of(name, out))

    def _domains(self) -> dict[str, list[str]]:
        """Tasks by domain."""
        found: dict[str, list[str]] = {}
        for task in self.tasks:
            found.setdefault(domain_of(task), []).append(task)
        return found

    def _specialists(self) -> list[tuple[list[str], str, list[str]]]:
        """Methods, name and tasks of each; the only task of a domain has one for both."""
        domains = self._domains()
        several = [([DOMAIN], domain, tasks) for domain, tasks in domains.items() if len(tasks) > 1]
        alone = {task for tasks in domains.values() if len(tasks) == 1 for task in tasks}
        return several + [([SPECIALIST, *([DOMAIN] if task in alone else [])], task, [task]) for task in self.tasks]

    def _store_of(self, name: str, out: Path) -> Path:
        return out / "stores" / named(name)

    def parts(self, out: Path) -> list[Part]:
        """A run for all, for each domain and for each task; then what is no transformer."""
        parts = []
        for seed in self.settings.seeds:
            for methods, name, tasks in [([GENERALIST], "all", self.tasks), *self._specialists()]:
                measure = partial(self._train, out, name, tasks, seed)
                parts.append(self._part(methods, name, tasks, seed, measure))
            for task in self.tasks:
                parts.append(self._part([CLONED], task, [task], seed, partial(self._clone, out, task, seed)))
        for task in self.tasks:  # it draws nothing
            parts.append(self._part([RETRIEVED], task, [task], 0, partial(self._retrieve, out, task)))
        return parts

    def _part(
        self,
        methods: Sequence[str],
        name: str,
        tasks: Sequence[str],
        seed: int,
        measure: Callable[[Path], dict[str, Any]],
    ) -> Part:
        facts = {"methods": methods, "tasks": list(tasks), "seed": seed}
        return Part(name=named(methods[0], name, seed), facts=facts, measure=measure)

    def _share(self, tasks: Sequence[str]) -> int:
        """Optimizer steps that so many tasks cost the generalist."""
        return max(1, self.settings.steps * len(tasks) // len(self.tasks))

    def _train(self, out: Path, name: str, tasks: Sequence[str], seed: int, folder: Path) -> dict[str, Any]:
        store = self.store(out) if name == "all" else self._store_of(name, out)
        return trained(folder, self.recipe(seed, self._share(tasks)), store, [self.evaluation(tasks)])

    def _clone(self, out: Path, task: str, seed: int, folder: Path) -> dict[str, Any]:
        """A plain network with the compute of the task's specialist, or, of the smallest, a step."""
        store, recipe = open_store(self._store_of(task, out)), self.recipe(seed, self._share([task]))
        shape = recipe.model.build(store.vocabulary, recipe.train.context, store.text.end)
        budget = CloneConfig(flops=training_flops(store, shape, recipe.train), seed=seed)
        self._play(out, task, lambda shown: clone(shown, budget), folder)
        return {"flops": budget.flops}

    def _retrieve(self, out: Path, task: str, folder: Path) -> dict[str, Any]:
        self._play(out, task, Retrieval, folder)
        return {}

    def _play(self, out: Path, task: str, make: Callable[[Demonstrations], Memoryless], folder: Path) -> None:
        """Make a policy of the demonstrations of a task and play its episodes."""
        how = self.evaluation([task]).how
        ((dataset, _),) = self.demonstrations({task: self.settings.tasks[task]}).values()
        (checked,) = check_tasks([find_task(task)], str(dataset), how)
        shown = load_demonstrations(checked.spec, checked.layout, str(dataset), self.settings.tasks[task])
        results = Results(
            records=evaluate_baseline([checked], lambda _: make(shown), how),
            baselines=baselines_of([checked]),
            checkpoint=str(folder),
            settings=how.to_json(),
        )
        write_results(results, folder / "eval.json")

    def _scores(self, measured: Sequence[Measured]) -> dict[tuple[str, str], Estimate]:
        """By method and task."""
        return {
            (method, task): mean_score(
                [m.results() for m in measured if method in m.facts["methods"] and task in m.facts["tasks"]],
                [task],
            )
            for method in METHODS
            for task in self.tasks
        }

    def _means(self, measured: Sequence[Measured]) -> dict[str, Estimate]:
        """By method over all tasks; what was trained with one seed is drawn together."""
        means = {}
        for method in METHODS:
            by_seed: dict[int, list[Results]] = {}
            for m in measured:
                if method in m.facts["methods"]:
                    by_seed.setdefault(m.facts["seed"], []).append(m.results())
            joined = [
                Results(
                    records=[record for results in own for record in results.records],
                    baselines={task: known for results in own for task, known in results.baselines.items()},
                    checkpoint=f"{method}, seed {seed}",
                )
                for seed, own in by_seed.items()
            ]
            means[method] = mean_score(joined, self.tasks)
        return means

    def summary(self, measured: Sequence[Measured]) -> Summary:
        """Scores by task and method, and what the generalist loses or gains."""
        scores = self._scores(measured)
        rows = [[task, *(scores[method, task].words() for method in METHODS)] for task in self.tasks]
        means = self._means(measured)
        rows.append(["mean", *(means[method].words() for method in METHODS)])
        findings = []
        for method in METHODS[1:]:
            difference = means[GENERALIST].minus(means[method])
            findings.append(
                f"{GENERALIST} against {method}, mean over {counted(len(self.tasks), 'task')}: {difference.words()}"
            )
        reached = means[GENERALIST].minus(means[SPECIALIST]).reaches(-WITHIN)
        findings.append(f"within {WITHIN:g} of its specialists at equal compute per task: {reached}")
        title = f"score; {self.settings.steps} steps for all tasks together, {self._share(self.tasks[:1])} for each"
        values = {
            method: {task: scores[method, task].to_json() for task in self.tasks} | {"mean": means[method].to_json()}
            for method in METHODS
        }
        table = Table(title=title, head=["task", *METHODS], rows=rows)
        return Summary(tables=[table], findings=findings, values=values, draw=partial(self._draw, scores, means))

    def _draw(self, scores: Mapping[tuple[str, str], Estimate], means: Mapping[str, Estimate], path: Path) -> None:
        """Means over tasks, and every task."""
        from gatito.experiment.pictures import bars, heat, panels, save

        figure, (left, right) = panels(2, len(self.tasks))
        bars(left, means, xlabel="mean score")
        grid = [[scores[method, task].mean for task in self.tasks] for method in METHODS]
        heat(right, grid, [task.split("/")[-1] for task in self.tasks])
        save(figure, f"{self.question} {counted(len(self.settings.seeds), 'seed')}", path)
