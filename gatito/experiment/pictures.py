"""What the pictures of experiments share."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from gatito.eval.wording import decimals
from gatito.experiment.estimates import Estimate

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#2f6fb3", "#d9822b", "#2c8a57", "#b5475a", "#7d5bb8", "#8a6a4a", "#d06fa8", "#6f7680")
INK = "#22242a"
WIDTH, HEIGHT = 5.2, 3.6
"""Inches of a panel."""
CELL = 0.45
"""Inches of a number in a panel of numbers."""
MOST_BESIDE = 3
"""Panels in a row."""
LETTERS_AN_INCH = 12
"""Of a title."""


def panels(count: int, numbers: int = 0) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, up to three beside each other, of which the last column is wide enough for a row of
    so many numbers."""
    rows = -(-count // MOST_BESIDE)
    columns = -(-count // rows)
    widths = [WIDTH] * (columns - 1) + [max(WIDTH, CELL * numbers)]
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(sum(widths), HEIGHT * rows), layout="constrained", squeeze=False, width_ratios=widths
    )
    for unused in axes.flat[count:]:
        unused.remove()
    return figure, list(axes.flat[:count])


def save(figure: Figure, title: str, path: Path) -> None:
    """Write the figure under its title."""
    figure.suptitle(textwrap.fill(title, int(figure.get_figwidth() * LETTERS_AN_INCH)), fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def lines(axes: Axes, series: Mapping[str, Sequence[tuple[float, Estimate]]], **labels: Any) -> None:
    """A line for each name over (x, estimate), with intervals as bands and a point for each training seed."""
    for (name, points), colour in zip(series.items(), itertools.cycle(COLOURS), strict=False):
        xs = [x for x, _ in points]
        lows, highs = zip(*(estimate.interval for _, estimate in points), strict=True)
        axes.plot(xs, [estimate.mean for _, estimate in points], "-", color=colour, label=name)
        if len(xs) > 1:
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)
        else:
            axes.plot([*xs, *xs], [*lows, *highs], "-_", color=colour, markersize=8)
        for x, estimate in points:
            axes.plot([x] * len(estimate.by_seed), estimate.by_seed, "o", color=colour, markersize=3)
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def level(axes: Axes, estimate: Estimate, name: str) -> None:
    """A dashed line from side to side, with its interval as a band."""
    axes.axhspan(*estimate.interval, color=INK, alpha=0.08, linewidth=0)
    axes.axhline(estimate.mean, color=INK, linestyle="--", linewidth=1, label=name)


def bars(axes: Axes, values: Mapping[str, Estimate], *, first: int = 0, **labels: Any) -> None:
    """A horizontal bar for each name with its interval, and a point for each training seed.

    `first` rows above are left empty.
    """
    colours = np.resize(COLOURS, first + len(values))[first:]
    for y, (estimate, colour) in enumerate(zip(values.values(), colours, strict=True), start=first):
        low, high = estimate.interval
        error = [[max(0.0, estimate.mean - low)], [max(0.0, high - estimate.mean)]]
        axes.barh(y, estimate.mean, xerr=error, color=colour, alpha=0.55, ecolor="#333333", capsize=3, height=0.6)
        axes.plot(estimate.by_seed, [y] * len(estimate.by_seed), "o", color=INK, markersize=3)
    axes.set(yticks=range(first, first + len(values)), yticklabels=list(values), **labels)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x", alpha=0.25)


def heat(axes: Axes, grid: Sequence[Sequence[float]], columns: Sequence[str]) -> None:
    """Scores by row and column, as shades with their numbers; rows are those of the panel beside it."""
    axes.imshow(np.clip(grid, 0, 1), cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for y, row in enumerate(grid):
        for x, score in enumerate(row):
            axes.text(x, y, decimals(score), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    axes.set_yticks([])
