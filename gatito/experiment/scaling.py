"""The ladder on one mixture at equal tokens: loss and score against tokens, a line for each size, and a power law
(Reed et al. 2022, figure 8)."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.data.tasks import registry
from gatito.errors import UserError
from gatito.eval.statistics import percentile_interval
from gatito.eval.wording import counted, with_interval
from gatito.experiment.estimates import Estimate, mean_of, mean_score
from gatito.experiment.lessons import Lessons, OnLessons
from gatito.experiment.measuring import trained
from gatito.experiment.plan import Measured, Part, Summary, Table
from gatito.recipes import load_recipe
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train.parameters import count_parameters

FITS = 20_000
"""Draws of the power law."""


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(Lessons):
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
        if len(self.sizes) < 2 or len({Path(size).stem for size in self.sizes}) < len(self.sizes):
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
class Scaling(OnLessons):
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
                name=f"{Path(size).stem}-{seed}",
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
        recipe = self.recipe(seed, recipe=size, train=looking)
        return trained(folder, recipe, self.store(out), [self.evaluation()], held_out=self.held_out(out))

    def summary(self, measured: Sequence[Measured]) -> Summary:
        """Losses and scores by size, and the power law."""
        by_size = {size: [m for m in measured if m.facts["size"] == size] for size in self.settings.sizes}
        rows, values = [], {}
        scores: dict[str, Estimate] = {}
        losses: dict[str, Estimate] = {}
        for size, own in by_size.items():
            scores[size] = mean_score([m.results() for m in own])
            losses[size] = mean_of([m.value("held_out_loss")["all"] for m in own])
            parameters = own[0].value("non_embedding")
            rows.append(
                [size, f"{parameters / 1e6:.2f} M", losses[size].words(3), scores[size].words(),
                 f"{own[0].values['positions'] / 1e6:.2f} M"]
            )  # fmt: skip
            values[size] = {
                "non_embedding": parameters,
                "held_out_loss": losses[size].to_json(),
                "score": scores[size].to_json(),
            }
        law = self._power_law(by_size)
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
        curves = {size: self._score_curve(measured, size) for size in self.settings.sizes}
        seen = [f"{x / 1e6:.2f} M" for x, _ in curves[first]]
        against_tokens = Table(
            title=f"mean score against positions seen, {self.settings.look_episodes} episodes a task",
            head=["size", *seen],
            rows=[[size, *(f"{e.mean:.2f}" for _, e in curve)] for size, curve in curves.items()],
        )
        fit = {"power": law.power, "low": low, "high": high}
        tables = [table, against_tokens]
        return Summary(tables=tables, findings=findings, values={"sizes": values, "power_law": fit})

    def _score_curve(self, measured: Sequence[Measured], size: str) -> list[tuple[float, Estimate]]:
        """Mean scores of a size over positions seen; their intervals know of training seeds alone."""
        own = [m for m in measured if m.facts["size"] == size]
        per_step = own[0].value("positions") / own[0].value("steps")
        steps = [step for step, _ in own[0].value("scores")]
        return [(step * per_step, mean_of([m.value("scores")[i][1] for m in own])) for i, step in enumerate(steps)]

    def _power_law(self, by_size: dict[str, list[Measured]]) -> "PowerLaw":
        x = [m.value("non_embedding") for own in by_size.values() for m in own]
        y = [m.value("held_out_loss")["all"] for own in by_size.values() for m in own]
        return PowerLaw.fit(np.log(x), np.log(y))

    def draw(self, measured: Sequence[Measured], summary: Summary, path: Path) -> None:
        """Training loss and score against tokens, and held-out loss and score against size."""
        from gatito.experiment.pictures import COLOURS, lines, panels, save

        figure, (left, scored, middle, right) = panels(4)
        for size, colour in zip(self.settings.sizes, itertools.cycle(COLOURS), strict=False):
            own = [m for m in measured if m.facts["size"] == size]
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
        lines(
            scored, {size: self._score_curve(measured, size) for size in self.settings.sizes}, xlabel="positions seen"
        )
        scored.set(title=f"mean score, {self.settings.look_episodes} episodes a task")
        scored.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.1f} M")
        points: dict[str, list[tuple[float, Estimate]]] = {"held-out loss": [], "score": []}
        for size in self.settings.sizes:
            own = [m for m in measured if m.facts["size"] == size]
            x = own[0].value("non_embedding")
            points["held-out loss"].append((x, mean_of([m.value("held_out_loss")["all"] for m in own])))
            points["score"].append((x, mean_score([m.results() for m in own])))
        lines(middle, {"held-out loss": points["held-out loss"]}, xscale="log", xlabel="non-embedding parameters N")
        law = self._power_law({s: [m for m in measured if m.facts["size"] == s] for s in self.settings.sizes})
        middle.plot(*law.line(), "--", color="#22242a", label=f"N^{law.power:.3f}, and its interval")
        middle.fill_between(*law.band(), color="#22242a", alpha=0.1, linewidth=0)
        middle.legend(fontsize=8)
        lines(right, {"mean score": points["score"]}, xscale="log", xlabel="non-embedding parameters N")
        for axes in (middle, right):
            sizes = [x for x, _ in points["score"]]
            axes.minorticks_off()
            axes.set_xticks(sizes, [f"{x / 1e6:.2g} M" for x in sizes])
        seeds = len(self.settings.seeds)
        save(
            figure,
            f"{self.question} {len(self.tasks)} tasks, {self.settings.steps} steps, {counted(seeds, 'seed')}",
            path,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PowerLaw:
    """loss = a x parameters^-b, by least squares of the logarithms."""

    x: NDArray[np.float64]
    """(n,) logarithms of the parameters of each run."""
    slopes: NDArray[np.float64]
    """(1 + FITS,): -b of the fit, then draws of what it may be, not a number where two points are all.

    Their percentiles are the t interval of least squares: of how seeds differ, and of how far points are off a line.
    """
    heights: NDArray[np.float64]
    """(1 + FITS,) of each at the mean of x."""

    @classmethod
    def fit(cls, x: NDArray[np.float64], y: NDArray[np.float64]) -> "PowerLaw":
        """Of runs with logarithms x (n,) of their parameters and y (n,) of their losses."""
        centred, freedom = x - x.mean(), len(x) - 2
        slope = float((y - y.mean()) @ centred / (centred @ centred))
        squares = float(np.sum((y - y.mean() - slope * centred) ** 2))
        rng = np.random.default_rng(0)
        spread = np.sqrt(squares / rng.chisquare(freedom, FITS)) if freedom > 0 else np.full(FITS, np.nan)
        slopes = slope + spread * rng.standard_normal(FITS) / np.sqrt(centred @ centred)
        heights = y.mean() + spread * rng.standard_normal(FITS) / np.sqrt(len(x))
        return cls(x=x, slopes=np.append(slope, slopes), heights=np.append(y.mean(), heights))

    @property
    def power(self) -> float:
        """-b."""
        return float(self.slopes[0])

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """95 %, where there is one."""
        low, high = percentile_interval(self.slopes[1:])
        return (None, None) if np.isnan(low) else (low, high)

    def line(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Parameters and losses of the fit."""
        at = np.linspace(self.x.min(), self.x.max(), 50)
        return np.exp(at), np.exp(self.heights[0] + self.slopes[0] * (at - self.x.mean()))

    def band(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Parameters, and the ends of the 95 % interval of the fit there."""
        at = np.linspace(self.x.min(), self.x.max(), 50)
        fits = self.heights[1:, None] + self.slopes[1:, None] * (at - self.x.mean())
        low, high = np.exp(np.percentile(fits, [2.5, 97.5], axis=0))
        return np.exp(at), low, high


def _monotone(what: str, means: Sequence[float], *, falling: bool) -> str:
    """Whether each size is better than the one before."""
    steps = np.diff(means)
    better = steps < 0 if falling else steps > 0
    return f"{what} is better with every size" if better.all() else f"{what} is not better with every size"


def _smooth(values: Sequence[float], width: int = 5) -> NDArray[np.float64]:
    """Running means of so many values, of fewer at the beginning."""
    sums = np.cumsum(np.asarray(values, np.float64))
    counts = np.minimum(np.arange(1, len(sums) + 1), width)
    before = np.concatenate([np.zeros(min(width, len(sums))), sums[:-width]])
    return (sums - before) / counts
