"""Tasks that differ in a goal or mission that is not observed: only a demonstration tells it. The test that prompts
work at all (Reed et al. 2022, section 2.4), and whether the agent finds out by itself over episodes of a context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gatito.data.tasks import groups
from gatito.errors import UserError
from gatito.eval.groups import order_results
from gatito.experiment.estimates import Estimate, mean_of, mean_score
from gatito.experiment.lessons import Lessons, OnLessons
from gatito.experiment.measuring import Evaluation, trained
from gatito.experiment.plan import Measured, Part, Summary, Table

RIGHT, WRONG, NONE, ADAPTING = "right prompt", "wrong prompt", "no prompt", "adapting"
PROMPT = "end"
"""Part of the demonstration that is shown: it has the goal."""


@dataclass(frozen=True, kw_only=True)
class HiddenGoalSettings(Lessons):
    """Families of tasks that differ in what is hidden, and how they are trained."""

    tasks: dict[str, int] = field(
        default_factory=lambda: {
            **dict.fromkeys(groups()["hidden-goals"], 60),
            **dict.fromkeys(groups()["hidden-missions"], 400),
        }
    )
    """Task ids, each with the number of its demonstrations; those of a family differ in what is hidden alone."""
    prompt_share: float = 0.8
    """Share of the training sequences that begin with a demonstration."""
    steps: int = 2000
    """Optimizer steps of a run."""
    episodes: int = 25
    """Seeded episodes per task of every evaluation."""
    episodes_in_context: int = 5
    """Episodes that are played one after the other in one context, to see whether it adapts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for family, tasks in families(self.tasks).items():
            if len(tasks) < 2:
                raise UserError(f"--tasks: of {family!r} there is only {tasks[0]}; a wrong prompt needs another one")
        if self.episodes_in_context < 2:
            raise UserError(f"--episodes-in-context is {self.episodes_in_context}, allowed 2 and more")


FULL: Mapping[str, Any] = {"seeds": [0, 1, 2, 3], "steps": 20_000, "episodes": 50}
"""What the full protocol changes."""


def families(tasks: Sequence[str] | Mapping[str, int]) -> dict[str, list[str]]:
    """Tasks by what they share: their id up to `hidden`."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        family, hidden, _ = task.partition("-hidden-")
        if not hidden:
            raise UserError(
                f"--tasks: {task!r} hides nothing; give tasks of the groups hidden-goals, hidden-missions"
            )
        found.setdefault(family, []).append(task)
    return found


@dataclass(frozen=True)
class HiddenGoal(OnLessons):
    """The right prompt against a wrong one and none."""

    settings: HiddenGoalSettings
    name = "hidden-goal"
    question = "Does a demonstration tell the agent what is hidden?"

    def parts(self, out: Path) -> list[Part]:
        """One for each seed."""
        return [
            Part(name=f"seed-{seed}", facts={"seed": seed}, measure=partial(self._measure, out, seed))
            for seed in self.settings.seeds
        ]

    def _measure(self, out: Path, seed: int, folder: Path) -> dict[str, Any]:
        recipe = self.recipe(seed, train={"prompt_share": self.settings.prompt_share})
        return trained(folder, recipe, self.store(out), self._evaluations(), held_out=self.held_out(out))

    def _evaluations(self) -> list[Evaluation]:
        """With the right prompt, with that of the next task of the family, without, and several episodes long."""
        wrong = {
            task: tasks[(i + 1) % len(tasks)]
            for tasks in families(self.settings.tasks).values()
            for i, task in enumerate(tasks)
        }
        several = self.settings.episodes_in_context
        return [
            self.evaluation(name=_file(RIGHT), prompt=PROMPT),
            self.evaluation(name=_file(WRONG), prompt=PROMPT, shown=wrong),
            self.evaluation(name=_file(NONE)),
            self.evaluation(name=_file(ADAPTING), episodes_in_context=several),
        ]

    def summary(self, measured: Sequence[Measured]) -> Summary:
        """Scores by family and prompt, and by the number of the episode in its context."""
        scores = self._scores(measured)
        rows, findings, values = [], [], {}
        for family in families(self.settings.tasks):
            own = {prompt: scores[family, prompt] for prompt in (RIGHT, WRONG, NONE)}
            rows.append([f"{family}-hidden", *(own[prompt].words() for prompt in (RIGHT, WRONG, NONE))])
            for prompt in (NONE, WRONG):
                gain = own[RIGHT].minus(own[prompt])
                findings.append(f"{family}: right prompt less {prompt}: {gain.words()}")
            values[family] = {prompt: estimate.to_json() for prompt, estimate in own.items()}
        orders = self._orders(measured)
        gain = orders[-1].minus(orders[0])
        findings.append(f"episode {len(orders)} of a context less the first, without a prompt: {gain.words()}")
        head = ["tasks", "right prompt", "wrong prompt", "no prompt"]
        adapting = Table(
            title="score by the episode of its context, without a prompt",
            head=[f"episode {i + 1}" for i in range(len(orders))],
            rows=[[estimate.words() for estimate in orders]],
        )
        tables = [Table(title=f"score after {self.settings.steps} steps", head=head, rows=rows), adapting]
        adapted = {"adapting": [estimate.to_json() for estimate in orders]}
        return Summary(tables=tables, findings=findings, values=values | adapted)

    def _scores(self, measured: Sequence[Measured]) -> dict[tuple[str, str], Estimate]:
        return {
            (family, prompt): mean_score(
                [m.results(_file(prompt)) for m in measured], tasks, "none" if prompt == NONE else PROMPT
            )
            for family, tasks in families(self.settings.tasks).items()
            for prompt in (RIGHT, WRONG, NONE)
        }

    def _orders(self, measured: Sequence[Measured]) -> list[Estimate]:
        """Mean scores by the number of the episode in its context."""
        by_seed = []
        for m in measured:
            results = m.results(_file(ADAPTING))
            groups = order_results(results.records, results.baselines)
            by_seed.append([group.mean for _, group in groups])
        return [mean_of(list(column)) for column in np.array(by_seed, np.float64).T]

    def draw(self, measured: Sequence[Measured], summary: Summary, path: Path) -> None:
        """A panel for each family, and one for adaptation."""
        from gatito.experiment.pictures import bars, lines, panels, save

        scores, names = self._scores(measured), list(families(self.settings.tasks))
        figure, axes = panels(len(names) + 1)
        for family, own in zip(names, axes, strict=False):
            bars(
                own, {p: scores[family, p] for p in (RIGHT, WRONG, NONE)}, xlabel="score", title=f"{family}-hidden-…"
            )
        points = [(float(i + 1), estimate) for i, estimate in enumerate(self._orders(measured))]
        lines(axes[-1], {"no prompt": points}, xlabel="episode of the context", ylabel="score", title="adaptation")
        save(figure, f"{self.question} {self.settings.steps} steps, {len(self.settings.seeds)} seeds", path)


def _file(prompt: str) -> str:
    return prompt.replace(" ", "-")
