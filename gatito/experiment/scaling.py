"""The ladder on one mixture at equal tokens: loss and score against tokens, a line for each size, and a power law
(Reed et al. 2022, figure 8)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.data.tasks import registry
from gatito.errors import UserError
from gatito.eval.wording import counted, with_interval
from gatito.experiment.estimates import Estimate, mean_of, mean_score
from gatito.experiment.measuring import trained
from gatito.experiment.on_mixture import MixtureSettings, OnMixture
from gatito.experiment.plan import Measured, Part, Summary, Table, named
from gatito.experiment.power_law import PowerLaw
from gatito.recipes import load_recipe
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train.parameters import count_parameters


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(MixtureSettings):
    """Which sizes are trained, and on what."""

    sizes: list[str] = field(default_factory=lambda: ["ladder-0.3m", "ladder-1m", "ladder-3m"])
    """Recipes, from the smallest to the largest, of the same batch and context."""
    steps: int = 1500
    """Optimizer steps of a run, whatever minutes the recipe says."""
    looks: int = 4
    """Evaluations while training, evenly spaced, the last at the end."""
    look_episodes: int = 10
    """Episodes per task of each of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.looks < 1 or self.steps % self.looks:
            raise UserError(f"--looks is {self.looks}, allowed a divisor of --steps {self.steps}")
        if self.look_episodes < 1:
            raise UserError(f"--look-episodes is {self.look_episodes}, allowed 1 and more")
        if len(self.sizes) < 2 or len({_name(size) for size in self.sizes}) < len(self.sizes):
            raise UserError(f"--sizes is {self.sizes}, allowed two recipes of different names and more")
        rows = {(recipe.train.batch, recipe.train.context) for recipe in map(load_recipe, self.sizes)}
        if len(rows) > 1:
            raise UserError(f"--sizes: the recipes differ in batch and context {sorted(rows)}; tokens must be equal")


FULL: dict[str, Any] = {
    "sizes": ["ladder-0.3m", "ladder-1m", "ladder-3m", "ladder-10m"],
    "seeds": [0, 1, 2],
    "steps": 20_000,
}
"""What the full protocol changes."""


@dataclass(frozen=True)
class Scaling(OnMixture):
    """Larger models at equal tokens."""

    settings: ScalingSettings
    name = "scaling"
    question = "Do larger models learn more of the same tokens?"
    measures_loss = True

    def check(self) -> None:
        """Raise `UserError` also for sizes that do not grow, and for tasks that a run cannot play while it trains."""
        for task in self.tasks:
            if task not in registry():
                raise UserError(
                    f"{task!r} is no registered task: scaling plays while it trains, which those alone can; register "
                    "it as a task of gatito"
                )
        super().check()
        text = TextTokenizer.load()
        parameters = [
            count_parameters(recipe.model.build(Vocabulary(text_size=text.size), recipe.train.context, text.end))
            for recipe in map(load_recipe, self.settings.sizes)
        ]
        counts = [found.non_embedding for found in parameters]
        if any(second <= first for first, second in itertools.pairwise(counts)):
            raise UserError(f"--sizes {self.settings.sizes} have {counts} parameters; name the smallest first")

    def made_of(self) -> dict[str, Any]:
        """The recipes of the sizes."""
        return super().made_of() | {"recipes": {size: asdict(load_recipe(size)) for size in self.settings.sizes}}

    def parts(self, out: Path) -> list[Part]:
        """One for each size and seed."""
        return [
            Part(
                name=named(_name(size), seed),
                facts={"size": size, "seed": seed},
                measure=partial(self._measure, out, size, seed),
            )
            for size in self.settings.sizes
            for seed in self.settings.seeds
        ]

    def _measure(self, out: Path, size: str, seed: int, folder: Path) -> dict[str, Any]:
        looking = {
            "evaluate_every": self.settings.steps // self.settings.looks,
            "evaluate_episodes": self.settings.look_episodes,
        }
        recipe = self.budgeted(size, seed, train=looking)
        return trained(folder, recipe, self.store(out), [self.evaluation()], held_out=self.held_out(out))

    def summary(self, measured: Sequence[Measured]) -> Summary:
        """Losses and scores by size, and the power law."""
        by_size = {size: [m for m in measured if m.facts["size"] == size] for size in self.settings.sizes}
        scores = {size: mean_score([m.results() for m in own]) for size, own in by_size.items()}
        losses = {size: mean_of([m.value("held_out_loss")["all"] for m in own]) for size, own in by_size.items()}
        rows, values = [], {}
        for size, own in by_size.items():
            parameters = own[0].value("non_embedding")
            rows.append(
                [size, f"{parameters / 1e6:.2f} M", losses[size].words(3), scores[size].words(),
                 f"{own[0].value('positions') / 1e6:.2f} M"]
            )  # fmt: skip
            values[size] = {
                "non_embedding": parameters,
                "held_out_loss": losses[size].to_json(),
                "score": scores[size].to_json(),
            }
        runs = [m for own in by_size.values() for m in own]
        law = PowerLaw.fit(
            np.log([m.value("non_embedding") for m in runs]), np.log([m.value("held_out_loss")["all"] for m in runs])
        )
        low, high = law.interval
        first, last = self.settings.sizes[0], self.settings.sizes[-1]
        gain, less = scores[last].minus(scores[first]), losses[last].minus(losses[first])
        findings = [
            f"{last} against {first}, at equal tokens: held-out loss {less.words(3)}, score {gain.words()}",
            f"held-out loss ~ non-embedding parameters to the power {with_interval(law.power, low, high, '.3f')}",
            _monotone("held-out loss", [losses[size].mean for size in self.settings.sizes], falling=True),
            _monotone("score", [scores[size].mean for size in self.settings.sizes], falling=False),
        ]
        head = ["size", "parameters", "held-out loss", "mean score (95 %)", "positions seen"]
        table = Table(title=f"{self.settings.steps} steps each", head=head, rows=rows)
        curves = {size: _score_curve(own) for size, own in by_size.items()}
        seen = [f"{x / 1e6:.2f} M" for x, _ in curves[first]]
        against_tokens = Table(
            title=f"mean score against positions seen, {counted(self.settings.look_episodes, 'episode')} a task",
            head=["size", *seen],
            rows=[[size, *(f"{e.mean:.2f}" for _, e in curve)] for size, curve in curves.items()],
        )
        fit = {"power": law.power, "low": low, "high": high}
        tables = [table, against_tokens]
        draw = partial(self._draw, by_size, curves, losses, scores, law)
        return Summary(tables=tables, findings=findings, values={"sizes": values, "power_law": fit}, draw=draw)

    def _draw(
        self,
        by_size: Mapping[str, Sequence[Measured]],
        curves: Mapping[str, Sequence[tuple[float, Estimate]]],
        losses: Mapping[str, Estimate],
        scores: Mapping[str, Estimate],
        law: PowerLaw,
        path: Path,
    ) -> None:
        """Training loss and score against tokens, and held-out loss and score against size."""
        from gatito.experiment.pictures import COLOURS, INK, lines, panels, save

        figure, (left, scored, middle, right) = panels(4)
        for (size, own), colour in zip(by_size.items(), itertools.cycle(COLOURS), strict=False):
            per_step = own[0].value("positions") / own[0].value("steps")
            for m in own:
                curve = m.value("curve")
                xs = [line["step"] * per_step for line in curve]
                left.plot(xs, _smooth([line["loss"] for line in curve]), color=colour, linewidth=1, alpha=0.8)
            left.plot([], [], color=colour, label=size)
        left.set(
            xscale="log", yscale="log", xlabel="positions seen", title="training loss, nats a target, of each seed"
        )
        left.legend(fontsize=8)
        left.grid(alpha=0.25)
        lines(scored, curves, xlabel="positions seen")
        scored.set(title=f"mean score, {counted(self.settings.look_episodes, 'episode')} a task")
        scored.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.1f} M")
        parameters = [own[0].value("non_embedding") for own in by_size.values()]
        loss_of = list(zip(parameters, losses.values(), strict=True))
        lines(middle, {"held-out loss": loss_of}, xscale="log", xlabel="non-embedding parameters N")
        middle.plot(*law.line(), "--", color=INK, label=f"N^{law.power:.3f}")
        middle.fill_between(*law.band(), color=INK, alpha=0.1, linewidth=0)
        middle.legend(fontsize=8)
        score_of = list(zip(parameters, scores.values(), strict=True))
        lines(right, {"mean score": score_of}, xscale="log", xlabel="non-embedding parameters N")
        for axes in (middle, right):
            axes.minorticks_off()
            axes.set_xticks(parameters, [f"{x / 1e6:.2g} M" for x in parameters])
        tasks, seeds = counted(len(self.tasks), "task"), counted(len(self.settings.seeds), "seed")
        save(figure, f"{self.question} {tasks}, {self.settings.steps} steps, {seeds}", path)


def _name(size: str) -> str:
    """The name of a recipe, or of its file."""
    return Path(size).name.removesuffix(".yaml")


def _score_curve(own: Sequence[Measured]) -> list[tuple[float, Estimate]]:
    """Mean scores of a size over positions seen; their intervals know of training seeds alone."""
    per_step = own[0].value("positions") / own[0].value("steps")
    steps = [step for step, _ in own[0].value("scores")]
    return [(step * per_step, mean_of([m.value("scores")[i][1] for m in own])) for i, step in enumerate(steps)]


def _monotone(what: str, means: Sequence[float], *, falling: bool) -> str:
    """Whether each size is better than the one before."""
    steps = np.diff(means)
    better = steps < 0 if falling else steps > 0
    return f"on average, {what} is {'' if better.all() else 'not '}better with every size"


def _smooth(values: Sequence[float], width: int = 5) -> NDArray[np.float64]:
    """Running means of so many values, of fewer at the beginning."""
    sums = np.cumsum(np.asarray(values, np.float64))
    counts = np.minimum(np.arange(1, len(sums) + 1), width)
    before = np.concatenate([np.zeros(min(width, len(sums))), sums[:-width]])
    return (sums - before) / counts
