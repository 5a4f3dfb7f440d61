"""Tasks that differ in a goal or mission that is not observed. Does a demonstration tell it (Reed et al. 2022,
section 2.4): the test that prompts work at all. And does the agent find out by itself, over episodes of one context,
where it observes its rewards (in-context reinforcement learning)?"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gatito.data.tasks import groups
from gatito.errors import UserError
from gatito.eval.wording import counted
from gatito.experiment.estimates import Estimate, mean_score, of_contexts
from gatito.experiment.measuring import Evaluation, trained
from gatito.experiment.on_mixture import OnRecipe, RecipeSettings
from gatito.experiment.plan import Measured, Part, Summary, Table, named

RIGHT, WRONG, NONE = "right prompt", "wrong prompt", "no prompt"
PROMPTED, BLIND, REWARDED = "prompted", "rewards unseen", "rewards seen"
ADAPTING = "adapting"
TRAINED, HELD_OUT = "trained on", "held out"
PROMPT = "end"
"""Part of the demonstration that is shown: it has the goal."""


@dataclass(frozen=True, kw_only=True)
class HiddenGoalSettings(RecipeSettings):
    """Families of tasks that differ in what is hidden, and how they are trained."""

    tasks: dict[str, int] = field(
        default_factory=lambda: {
            **dict.fromkeys(groups()["hidden-goals"], 60),
            **dict.fromkeys(groups()["hidden-missions"], 2000),
        }
    )
    """Task ids, each with the number of its demonstrations; those of a family differ in what is hidden alone."""
    adapting: dict[str, int] = field(default_factory=lambda: dict.fromkeys(groups()["hidden-goals-dense"], 60))
    """Tasks, of the same kind, on which it is measured whether the agent finds out by itself; none leaves it out."""
    held_out: list[str] | None = None
    """Tasks of both that are not trained on; by default the last of every family that has three and more."""
    prompt_share: float = 0.8
    """Share of the training sequences that begin with a demonstration; runs that are to adapt have the recipe's."""
    steps: int = 2500
    """Optimizer steps of a run with prompts; each family has its own."""
    adapting_steps: int = 1200
    """Optimizer steps of a run that is to adapt."""
    adapting_context: int = 256
    """Positions of its rows, in place of the recipe's, as many in a batch: several episodes have to fit."""
    episodes: int = 25
    """Seeded episodes per task of every evaluation."""
    episodes_in_context: int = 3
    """Episodes that are played one after the other in one context, to see whether it adapts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tasks in (("tasks", self.tasks), ("adapting", self.adapting)):
            for family, own in families(tasks, name).items():
                left = [task for task in own if task not in self.held_out_tasks]
                if len(left) < 2:
                    raise UserError(
                        f"--{name}: of {family!r} only {left} are trained on; what is hidden needs two and more"
                    )
        for task in self.held_out_tasks:
            if task not in {**self.tasks, **self.adapting}:
                raise UserError(f"--held-out: {task!r} is neither in --tasks nor in --adapting")
            if self.held_out_tasks.count(task) > 1:
                raise UserError(f"--held-out lists {task!r} twice")
        if not 0 < self.prompt_share <= 1:
            raise UserError(f"--prompt-share is {self.prompt_share}, allowed above 0 to 1")
        for task, count in self.adapting.items():
            if count < 1:
                raise UserError(f"--adapting: {count} demonstrations of {task}, allowed 1 and more")
        if self.episodes < 2 * self.episodes_in_context:
            raise UserError(
                f"--episodes is {self.episodes}, allowed {2 * self.episodes_in_context} and more: two for each of "
                f"--episodes-in-context {self.episodes_in_context}"
            )
        if self.episodes_in_context < 2:
            raise UserError(f"--episodes-in-context is {self.episodes_in_context}, allowed 2 and more")
        for name in ("adapting_steps", "adapting_context"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}, allowed 1 and more")

    @property
    def held_out_tasks(self) -> list[str]:
        """Tasks that are not trained on."""
        if self.held_out is not None:
            return self.held_out
        found = [*families(self.tasks).values(), *families(self.adapting, "adapting").values()]
        return list(dict.fromkeys(tasks[-1] for tasks in found if len(tasks) > 2))


FULL: Mapping[str, Any] = {"seeds": [0, 1, 2, 3], "steps": 20_000, "adapting_steps": 10_000, "episodes": 50}
"""What the full protocol changes."""


def families(tasks: Sequence[str] | Mapping[str, int], option: str = "tasks") -> dict[str, list[str]]:
    """Tasks by what they share: their id up to `hidden`; raises `UserError` for one without."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        family, hidden, _ = task.partition("-hidden-")
        if not hidden:
            raise UserError(
                f"--{option}: {task!r} hides nothing; give tasks of the groups hidden-goals, hidden-missions or "
                "hidden-goals-dense"
            )
        found.setdefault(family, []).append(task)
    return found


def wrong_demonstrations(family: Sequence[str], trained_on: Collection[str]) -> dict[str, str]:
    """Of each task of a family the next one in it that is trained on, so that its demonstration is understood."""
    wrong = {}
    for i, task in enumerate(family):
        following = [*family[i + 1 :], *family[:i]]
        wrong[task] = next(other for other in following if other in trained_on)
    return wrong


@dataclass(frozen=True)
class HiddenGoal(OnRecipe):
    """The right prompt against a wrong one and none; rewards seen against unseen."""

    settings: HiddenGoalSettings
    name = "hidden-goal"
    question = "Does a demonstration, or a reward, tell the agent what is hidden?"

    def demonstrated_tasks(self) -> dict[str, int]:
        """What is prompted, and what adapts."""
        tasks, adapting = self.settings.tasks, self.settings.adapting
        return {task: max(tasks.get(task, 0), adapting.get(task, 0)) for task in {**tasks, **adapting}}

    def prepare(self, out: Path) -> None:
        """Collect and build: what is prompted, and what adapts with its rewards unseen and seen."""
        held_out = self.settings.held_out_tasks
        for family, tasks in families(self.settings.tasks).items():
            own = {task: self.settings.tasks[task] for task in tasks}
            self.build(own, self._store_of(family, out), held_out=held_out)
        for way in self._ways:
            rewarded = way == REWARDED
            self.build(self.settings.adapting, self._store_of(way, out), held_out=held_out, previous_reward=rewarded)

    @property
    def _ways(self) -> tuple[str, ...]:
        return (BLIND, REWARDED) if self.settings.adapting else ()

    def _store_of(self, way: str, out: Path) -> Path:
        return out / "stores" / named(way)

    def parts(self, out: Path) -> list[Part]:
        """For each seed a run with prompts for each family, and two that are to adapt."""
        parts = []
        for seed in self.settings.seeds:
            for family in families(self.settings.tasks):
                measure = partial(self._prompted, self._store_of(family, out), family, seed)
                facts = {"way": PROMPTED, "family": family, "seed": seed}
                parts.append(Part(name=named(family, seed), facts=facts, measure=measure))
            for way in self._ways:
                adapting = partial(self._adapting, self._store_of(way, out), seed)
                parts.append(Part(name=named(way, seed), facts={"way": way, "seed": seed}, measure=adapting))
        return parts

    def _prompted(self, store: Path, family: str, seed: int, folder: Path) -> dict[str, Any]:
        recipe = self.recipe(seed, train={"prompt_share": self.settings.prompt_share})
        return trained(folder, recipe, store, self._evaluations(families(self.settings.tasks)[family]))

    def _evaluations(self, tasks: Sequence[str]) -> list[Evaluation]:
        """With the right prompt, with a wrong one, and without."""
        wrong = wrong_demonstrations(tasks, self._kinds(tasks)[TRAINED])
        return [
            self.evaluation(tasks, name=named(RIGHT), prompt=PROMPT),
            self.evaluation(tasks, name=named(WRONG), prompt=PROMPT, shown=wrong),
            self.evaluation(tasks, name=named(NONE)),
        ]

    def _adapting(self, store: Path, seed: int, folder: Path) -> dict[str, Any]:
        """Several episodes in one context, which nothing else precedes."""
        plain = self.recipe(seed).train
        context = self.settings.adapting_context
        rows = {"context": context, "batch": max(1, plain.batch * plain.context // context)}
        recipe = self.recipe(seed, self.settings.adapting_steps, train=rows)
        several = {"episodes_in_context": self.settings.episodes_in_context}
        episodes = self.settings.episodes - self.settings.episodes % self.settings.episodes_in_context
        played = self.evaluation(self.settings.adapting, name=ADAPTING, **several)
        how = dataclasses.replace(played.how, episodes=episodes)
        return trained(folder, recipe, store, [dataclasses.replace(played, how=how)])

    def summary(self, measured: Sequence[Measured]) -> Summary:
        """Scores by family and prompt, and by the number of the episode in its context; trained on and held out."""
        scores, orders = self._scores(measured), self._orders(measured)
        rows, findings = [], []
        values: dict[str, Any] = {}
        for (family, kind), own in scores.items():
            rows.append([f"{family}-hidden", kind, *(own[prompt].words() for prompt in (RIGHT, WRONG, NONE))])
            gains = [f"{own[RIGHT].minus(own[prompt]).words()} over {prompt}" for prompt in (NONE, WRONG)]
            wrong = own[WRONG].minus(own[NONE]).words()
            findings.append(
                f"{family}, {kind}: the right prompt brings {', '.join(gains)}; a wrong one {wrong} over {NONE}"
            )
            values[f"{family}, {kind}"] = {prompt: estimate.to_json() for prompt, estimate in own.items()}
        adapting = []
        for (way, kind), row in orders.items():
            adapting.append([way, kind, *(estimate.words() for estimate in row)])
            gain = row[-1].minus(row[0])
            findings.append(f"{way}, {kind}: episode {len(row)} of a context against the first: {gain.words()}")
            values[f"{way}, {kind}"] = {"by_order": [estimate.to_json() for estimate in row]}
        for kind, tasks in self._kinds(list(self.settings.adapting)).items():
            seen, unseen = (
                mean_score([of_contexts(m.results(ADAPTING)) for m in measured if m.facts["way"] == way], tasks)
                for way in (REWARDED, BLIND)
            )
            gain = seen.minus(unseen)
            findings.append(f"{REWARDED} against {BLIND}, {kind}, over all episodes of a context: {gain.words()}")
        several = range(self.settings.episodes_in_context)
        steps = self.settings.adapting_steps
        title = f"score after {self.settings.steps} steps on each family"
        tables = [Table(title=title, head=["tasks", "", RIGHT, WRONG, NONE], rows=rows)]
        if adapting:
            title = f"score by the episode of its context, without a prompt, after {steps} steps"
            head = ["", "tasks", *(f"episode {i + 1}" for i in several)]
            tables.append(Table(title=title, head=head, rows=adapting))
        draw = partial(self._draw, scores, orders)
        return Summary(tables=tables, findings=findings, values=values, draw=draw)

    def _kinds(self, tasks: Sequence[str]) -> dict[str, list[str]]:
        """Those that are trained on, and those that are not."""
        kinds = {
            TRAINED: [task for task in tasks if task not in self.settings.held_out_tasks],
            HELD_OUT: [task for task in tasks if task in self.settings.held_out_tasks],
        }
        return {kind: own for kind, own in kinds.items() if own}

    def _scores(self, measured: Sequence[Measured]) -> dict[tuple[str, str], dict[str, Estimate]]:
        """By family, kind of task and prompt."""
        return {
            (family, kind): {
                prompt: mean_score(
                    [m.results(named(prompt)) for m in measured if m.facts.get("family") == family],
                    own,
                    "none" if prompt == NONE else PROMPT,
                )
                for prompt in (RIGHT, WRONG, NONE)
            }
            for family, tasks in families(self.settings.tasks).items()
            for kind, own in self._kinds(tasks).items()
        }

    def _orders(self, measured: Sequence[Measured]) -> dict[tuple[str, str], list[Estimate]]:
        """By way and kind of task, the score of each episode of a context."""
        found = {}
        for way in self._ways:
            results = [m.results(ADAPTING) for m in measured if m.facts["way"] == way]
            for kind, tasks in self._kinds(list(self.settings.adapting)).items():
                found[way, kind] = [
                    mean_score([of_contexts(r, order) for r in results], tasks)
                    for order in range(self.settings.episodes_in_context)
                ]
        return found

    def _draw(
        self,
        scores: Mapping[tuple[str, str], Mapping[str, Estimate]],
        orders: Mapping[tuple[str, str], Sequence[Estimate]],
        path: Path,
    ) -> None:
        """A panel for each family, and one for adaptation."""
        from gatito.experiment.pictures import bars, lines, panels, save

        names = list(families(self.settings.tasks))
        figure, axes = panels(len(names) + bool(orders))
        for family, own in zip(names, axes, strict=False):
            bars_of = {
                f"{prompt}, {kind}": estimate
                for (name, kind), prompts in scores.items()
                if name == family
                for prompt, estimate in prompts.items()
            }
            bars(own, bars_of, xlabel="score", title=f"{family}-hidden-…")
        if orders:
            series = {
                f"{way}, {kind}": [(float(i + 1), estimate) for i, estimate in enumerate(row)]
                for (way, kind), row in orders.items()
            }
            lines(axes[-1], series, xlabel="episode of the context", ylabel="score", title="no prompt")
            axes[-1].set_xticks(range(1, self.settings.episodes_in_context + 1))
        save(
            figure, f"{self.question} {self.settings.steps} steps, {counted(len(self.settings.seeds), 'seed')}", path
        )
