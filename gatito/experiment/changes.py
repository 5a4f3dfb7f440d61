"""A recipe against the same recipe with one thing changed: how choices and new ideas are measured."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gatito.eval.agent import load_checkpoint
from gatito.eval.wording import counted
from gatito.experiment.estimates import ONE_SEED, Estimate, mean_of, mean_score
from gatito.experiment.measuring import played, trained
from gatito.experiment.on_mixture import OnRecipe
from gatito.experiment.plan import Measured, Part, Summary, Table
from gatito.recipes import load_recipe
from gatito.train.configs import Recipe

DEFAULT = "default"
"""Name of the recipe as it is, which each change is compared with."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A recipe or data that differs in one thing."""

    choice: str
    """What is chosen."""
    words: str
    """How it differs from the default."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the recipe's model."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Changes of its training."""
    lr_times: float = 1.0
    """Times the learning rate of the recipe."""
    agent: str = "noisy"
    """Who demonstrates."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Changes of each dataset of the mixture."""
    acting: Mapping[str, Any] = field(default_factory=dict)
    """Changes of how it is evaluated; where nothing else is changed, the default's run acts otherwise."""

    @property
    def has_data_of_its_own(self) -> bool:
        """Whether it is trained on another store than the default."""
        return self.agent != "noisy" or bool(self.data)

    @property
    def is_of_acting_alone(self) -> bool:
        """Whether it needs no run of its own."""
        other = self.model or self.train or self.lr_times != 1 or self.has_data_of_its_own
        return bool(self.acting) and not other


class Changed(OnRecipe):
    """One change at a time."""

    all_changes: Mapping[str, Change]
    """By name of their parts; the first is `DEFAULT`."""
    prompts: Sequence[str]
    """Which parts of a demonstration the episodes begin with; the first decides."""
    measures_loss = True

    @property
    @abstractmethod
    def budget(self) -> str:
        """What each run has, in words."""

    @property
    def changes(self) -> Mapping[str, Change]:
        """Those that can be measured."""
        return {name: change for name, change in self.all_changes.items() if not self._why_left_out(change)}

    def _why_left_out(self, change: Change) -> str:
        """Why a change cannot be measured; empty where it can."""
        if change.agent != "noisy" and self.settings.demonstrations_from is not None:
            return "the demonstrations are yours"
        seed = self.settings.seeds[0]
        default = self.all_changes[DEFAULT]
        is_like_it = self.changed_recipe(change, seed) == self.changed_recipe(default, seed)
        if change is not default and is_like_it and not (change.has_data_of_its_own or change.acting):
            return "the recipe does so"
        return ""

    def changed_recipe(self, change: Change, seed: int) -> Recipe:
        """The recipe of a change and a training seed."""
        train = dict(change.train)
        if change.lr_times != 1:
            train["lr"] = change.lr_times * load_recipe(self.settings.recipe).train.lr
        return self.recipe(seed, model=change.model, train=train)

    def prepare(self, out: Path) -> None:
        """Collect and build what all share, and what a change has of its own."""
        super().prepare(out)
        for name, change in self.changes.items():
            if change.has_data_of_its_own:
                self.build(self.settings.tasks, self._store_of(name, out), agent=change.agent, **change.data)

    def _store_of(self, name: str, out: Path) -> Path:
        return out / "stores" / name if self.changes[name].has_data_of_its_own else self.store(out)

    def parts(self, out: Path) -> list[Part]:
        """One for each seed and change: all changes of a seed are measured close to each other in time."""
        return [
            Part(
                name=f"{name}-{seed}",
                facts={"change": name, "choice": change.choice, "words": change.words, "seed": seed},
                measure=partial(self._act if change.is_of_acting_alone else self._measure, out, name, seed),
                needs=(f"{DEFAULT}-{seed}",) if change.is_of_acting_alone else (),
            )
            for seed in self.settings.seeds
            for name, change in self.changes.items()
        ]

    def _measure(self, out: Path, name: str, seed: int, folder: Path) -> dict[str, Any]:
        change = self.changes[name]
        evaluation = self.evaluation(prompt=",".join(self.prompts), **change.acting)
        # The ids of other bins are other targets: their losses say nothing beside the default's.
        held_out = None if change.data else self.held_out(out)
        recipe = self.changed_recipe(change, seed)
        return trained(folder, recipe, self._store_of(name, out), [evaluation], held_out=held_out)

    def _act(self, out: Path, name: str, seed: int, folder: Path) -> dict[str, Any]:
        """Evaluate what the default's run has learned, acting otherwise."""
        default = Measured.of(f"{DEFAULT}-{seed}", out)
        model, processor = load_checkpoint(default.run)
        played(model, processor, self.evaluation(prompt=",".join(self.prompts), **self.changes[name].acting), folder)
        return {key: default.value(key) for key in ("steps", "held_out_loss")}

    def summary(self, measured: Sequence[Measured]) -> Summary:
        """Scores of each change, and how they differ from the default's."""
        scores = self._scores(measured)
        rows, findings, values = [], [], {}
        for name, change in self.changes.items():
            own = [m for m in measured if m.facts["change"] == name]
            differences = {p: scores[name, p].minus(scores[DEFAULT, p]) for p in self.prompts if name != DEFAULT}
            steps = float(np.mean([m.value("steps") for m in own]))
            loss = None if change.data else mean_of([m.value("held_out_loss")["all"] for m in own])
            rows.append(
                [
                    change.choice,
                    change.words,
                    *(scores[name, prompt].words() for prompt in self.prompts),
                    *(differences[p].words() if p in differences else "" for p in self.prompts),
                    loss.words(3) if loss else "",
                    f"{steps:.0f}",
                ]
            )
            values[name] = {prompt: scores[name, prompt].to_json() for prompt in self.prompts}
            values[name] |= {"loss": loss.to_json()} if loss else {}
            if differences:
                said = "; ".join(f"{_verdict(difference)}, prompt {p}" for p, difference in differences.items())
                findings.append(f"{change.choice}, {change.words}: {said}")
                values[name]["differences"] = {p: difference.to_json() for p, difference in differences.items()}
        for change in self.all_changes.values():
            if why := self._why_left_out(change):
                findings.append(f"{change.choice}, {change.words}: not measured, {why}")
        columns = [f"{what}, prompt {prompt}" for what in ("score", "difference") for prompt in self.prompts]
        head = ["choice", "instead", *columns, "held-out loss", "steps"]
        table = Table(title=f"{self.budget}, {counted(len(self.tasks), 'task')}", head=head, rows=rows)
        return Summary(tables=[table], findings=findings, values=values, draw=partial(self._draw, scores))

    def _scores(self, measured: Sequence[Measured]) -> dict[tuple[str, str], Estimate]:
        return {
            (name, prompt): mean_score([m.results() for m in measured if m.facts["change"] == name], prompt=prompt)
            for name in self.changes
            for prompt in self.prompts
        }

    def _draw(self, scores: Mapping[tuple[str, str], Estimate], path: Path) -> None:
        """Scores of each prompt, and how those of the first differ from the default's."""
        from gatito.experiment.pictures import INK, bars, panels, save

        figure, axes = panels(len(self.prompts) + 1)
        labels = {name: f"{change.choice}: {change.words}" for name, change in self.changes.items()}
        for prompt, own in zip(self.prompts, axes, strict=False):
            bars(own, {labels[n]: scores[n, prompt] for n in labels}, xlabel="mean score", title=f"prompt: {prompt}")
        first = self.prompts[0]
        differences = {labels[n]: scores[n, first].minus(scores[DEFAULT, first]) for n in labels if n != DEFAULT}
        bars(axes[-1], differences, first=1, xlabel=f"difference of the mean score, prompt: {first}")
        axes[-1].axvline(0.0, color=INK, linewidth=1)
        axes[-1].set_ylim(axes[0].get_ylim())
        for own in axes[1:]:
            own.set_yticklabels([])
        save(figure, f"{self.question} {self.budget}, {counted(len(self.settings.seeds), 'seed')}", path)


def _verdict(difference: Estimate) -> str:
    """How sure a difference from the default is."""
    low, high = difference.interval
    said = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return f"{ONE_SEED if difference.is_of_one_seed else said}, {difference.words()}"
