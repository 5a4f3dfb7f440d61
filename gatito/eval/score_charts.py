"""Charts of scores, as inline SVG: bars with intervals, and the tasks above each percentage of the expert."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from gatito.eval.charts import colour_of, percent
from gatito.eval.groups import PERCENTAGES, TasksAbove

ABOVE_HEIGHT = 220
"""Pixels of the chart of tasks above percentages."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar with its interval."""

    kind: str
    """Its colour: a class of the page."""
    words: str
    """What it is of."""
    value: float
    """Where it ends."""
    low: float | None
    """Lower end of its interval, where it has one."""
    high: float | None
    """Upper end."""


def score_axis(low: float, high: float, marks: Mapping[float, str]) -> str:
    """The scale above bars: value to word, which stand apart in the order of their values."""
    texts = "".join(
        f'<text x="{percent(x, low, high)}" y="14" text-anchor="{_anchor(x, low, high)}">{escape(word)}</text>'
        for x, word in marks.items()
    )
    return f'<svg height="18" aria-hidden="true">{texts}</svg>'


def score_bars(name: str, bars: Sequence[Bar], low: float, high: float, marks: Sequence[float] = (0.0, 1.0)) -> str:
    """Bars from 0, one below the other, with rules at the marks; what exceeds [low, high] is cut."""
    parts = [
        f'<line x1="{percent(x, low, high)}" x2="{percent(x, low, high)}" y1="-4" y2="100%"/>'
        for x in marks
        if low <= x <= high
    ]
    words = []
    for i, bar in enumerate(bars):
        left, right = sorted((0.0, min(high, max(low, bar.value))))
        y = 2 + 13 * i
        start, width = percent(left, low, high), f"{max(0.4, 100 * (right - left) / (high - low)):.2f}%"
        parts.append(f'<rect class="{escape(bar.kind)}" x="{start}" y="{y}" width="{width}" height="11" rx="2"/>')
        word = f"{bar.words}: {bar.value:.2f}"
        if bar.low is not None and bar.high is not None:
            whisker = f'x1="{percent(bar.low, low, high)}" x2="{percent(bar.high, low, high)}"'
            parts.append(f'<line class="whisker" {whisker} y1="{y + 5.5}" y2="{y + 5.5}"/>')
            word += f", {bar.low:.2f} to {bar.high:.2f}"
        words.append(word)
    label = escape(f"{name}, {'; '.join(words)}")
    return f'<svg height="{13 * len(bars) + 2}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def bar_row(
    name: str,
    bars: Sequence[Bar],
    low: float,
    high: float,
    *,
    marks: Sequence[float] = (0.0, 1.0),
    whole: bool = False,
) -> str:
    """Bars between their name and their values; that of a `whole` stands out among its parts."""
    values = "".join(f"<span>{bar.value:.2f}</span>" for bar in bars)
    label = f'<span class="name">{escape(name)}</span>'
    drawn = score_bars(name, bars, low, high, marks)
    return f'<div class="bar{" whole" * whole}">{label}{drawn}<span class="values">{values}</span></div>'


def axis_row(low: float, high: float, marks: Mapping[float, str]) -> str:
    """The scale above the rows of bars."""
    return f'<div class="bar axis"><span class="name"></span>{score_axis(low, high, marks)}</div>'


def above_chart(rows: Sequence[TasksAbove], domains: Sequence[str], top: int, what: str) -> str:
    """Tasks at or above each percentage of the expert, the domains stacked; `top` is the count at the upper edge."""
    below = [0] * len(PERCENTAGES)
    areas = []
    for row in rows:
        above = [a + b for a, b in zip(below, row.counts, strict=True)]
        outline = [*_steps(above), *reversed(_steps(below))]
        points = " ".join(f"{x:g},{1 - y / top:.4f}" for x, y in outline)
        areas.append(f'<polygon class="{colour_of(row.domain, domains)}" points="{points}"/>')
        below = above
    rules = "".join(
        f'<line x1="0" x2="100%" y1="{ABOVE_HEIGHT * (1 - y / top):.1f}" y2="{ABOVE_HEIGHT * (1 - y / top):.1f}"/>'
        f'<text x="100%" y="{ABOVE_HEIGHT * (1 - y / top) - 3:.1f}" text-anchor="end">{y}</text>'
        for y in _count_ticks(top)[1:]
    )
    ticks = "".join(
        f'<text x="{p}%" y="{ABOVE_HEIGHT + 16}" text-anchor="{anchor}">{p} %</text>'
        for p, anchor in ((0, "start"), (25, "middle"), (50, "middle"), (75, "middle"), (100, "end"))
    )
    size = f'viewBox="0 0 1 1" preserveAspectRatio="none" height="{ABOVE_HEIGHT}" width="100%"'
    plot = f"<svg {size}>{''.join(areas)}</svg>"
    return f'<svg height="{ABOVE_HEIGHT + 22}" role="img" aria-label="{escape(what)}">{plot}{rules}{ticks}</svg>'


def _steps(counts: Sequence[int]) -> list[tuple[float, int]]:
    """Corners of the steps, x from 0 to 1: all that reaches p % has reached what lies just before."""
    last = len(counts) - 1
    corners = [(0.0, counts[0])]
    for p in range(1, last + 1):
        if counts[p] != counts[p - 1]:
            corners += [((p - 1) / last, counts[p - 1]), ((p - 1) / last, counts[p])]
    return [*corners, (1.0, counts[last])]


def _count_ticks(top: int) -> list[int]:
    """Up to five whole numbers from 0 to `top`."""
    step = next(s for s in (m * 10**e for e in range(9) for m in (1, 2, 5)) if top / s <= 5)
    return list(range(0, top + 1, step))


def _anchor(x: float, low: float, high: float) -> str:
    at = (x - low) / (high - low)
    return "start" if at < 0.12 else "end" if at > 0.88 else "middle"
