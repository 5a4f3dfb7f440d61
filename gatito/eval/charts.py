"""The charts of the report, as inline SVG: it takes its colours from the page, so that it is readable in the dark.

Widths are percentages and texts are not scaled, so that a chart fits a phone as well as a desk.
"""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from gatito.eval.rollout import TaskResult
from gatito.pages import legend, share

HEIGHT = 200
"""Pixels of a learning curve."""
Points = Sequence[tuple[float, float]]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of `metrics.jsonl` by step, the last where a run was resumed; values that are not finite are left out."""
    rows: dict[float, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # a run that was killed leaves half a line
            continue
        rows[values["step"]] = {key: float(value) for key, value in values.items() if math.isfinite(value)}
    return [rows[step] for step in sorted(rows)]


def score_axis(low: float, high: float) -> str:
    """The scale above score bars: where random and expert are."""
    texts = "".join(
        f'<text x="{_percent(x, low, high)}" y="14" text-anchor="{anchor}">{words}</text>'
        for x, words, anchor in ((0.0, "0 random", "start" if low > -0.3 else "middle"), (1.0, "1 expert", "end"))
    )
    return f'<svg height="18" aria-hidden="true">{texts}</svg>'


def score_bars(rows: Sequence[TaskResult], low: float, high: float) -> str:
    """One bar per row of the same task, with its interval; what exceeds [low, high] is cut."""
    parts = [
        f'<line x1="{_percent(x, low, high)}" x2="{_percent(x, low, high)}" y1="-4" y2="100%"/>' for x in (0.0, 1.0)
    ]
    words = []
    for i, row in enumerate(rows):
        left, right = sorted((0.0, min(high, max(low, row.score))))
        y = 2 + 13 * i
        start, width = _percent(left, low, high), f"{max(0.4, 100 * (right - left) / (high - low)):.2f}%"
        parts.append(f'<rect class="{escape(row.prompt)}" x="{start}" y="{y}" width="{width}" height="11" rx="2"/>')
        whisker = f'x1="{_percent(row.ci_low, low, high)}" x2="{_percent(row.ci_high, low, high)}"'
        parts.append(f'<line class="whisker" {whisker} y1="{y + 5.5}" y2="{y + 5.5}"/>')
        words.append(f"prompt {row.prompt}: {row.score:.2f}, {row.ci_low:.2f} to {row.ci_high:.2f}")
    label = escape(f"{rows[0].id}, {'; '.join(words)}")
    return f'<svg height="{13 * len(rows) + 2}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def learning_curves(rows: Sequence[Mapping[str, float]]) -> str:
    """Loss and accuracy of every group of ids, from rows of `metrics.jsonl`."""
    charts = []
    for key, what in (("loss", "Loss in nats per target, logarithmic"), ("accuracy", "Accuracy per target")):
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            for name in (name for name in row if name.startswith(f"{key}/")):
                series.setdefault(name.partition("/")[2], []).append((row["step"], row[name]))
        if series:
            last = {name: f"{name} {points[-1][1]:.3f}" for name, points in series.items()}
            drawn = curve(series, log=key == "loss", what=what)
            charts.append(f"<div><h3>{what}</h3>{drawn}{legend(last)}</div>")
    return f'<div class="charts">{"".join(charts)}</div>'


def curve(series: Mapping[str, Points], *, log: bool, what: str) -> str:
    """Lines over steps; without `log` the values are shares, drawn between 0 and 1."""
    values = [max(y, 1e-6) for points in series.values() for _, y in points]
    low, high = (0.9 * min(values), 1.1 * max(values)) if log else (0.0, 1.0)
    last = max(x for points in series.values() for x, _ in points)

    def down(y: float) -> float:
        y = max(y, 1e-6) if log else y
        return math.log(high / y) / math.log(high / low) if log else 1.0 - y

    lines = "".join(
        f'<polyline class="{escape(name)}" points="'
        f'{" ".join(f"{x / last:.4f},{down(y):.4f}" for x, y in [points[0], *points])}"/>'
        for name, points in series.items()
    )
    ticks = _log_ticks(low, high) if log else [0.0, 0.25, 0.5, 0.75, 1.0]
    rules = "".join(
        f'<line x1="0" x2="100%" y1="{HEIGHT * down(y):.1f}" y2="{HEIGHT * down(y):.1f}"/>'
        f'<text x="0" y="{HEIGHT * down(y) - 3:.1f}">{y:g}</text>'
        for y in ticks
    )
    steps = "".join(
        f'<text x="{share:.0%}" y="{HEIGHT + 16}" text-anchor="{anchor}">{share * last:.0f}{unit}</text>'
        for share, anchor, unit in ((0.0, "start", ""), (0.5, "middle", ""), (1.0, "end", " steps"))
    )
    plot = f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" height="{HEIGHT}" width="100%">{lines}</svg>'
    return f'<svg height="{HEIGHT + 22}" role="img" aria-label="{escape(what)}">{rules}{steps}{plot}</svg>'


def stacked_bar(values: Sequence[float]) -> str:
    """Shares of a whole, in the colours s0 to s5."""
    parts, start = [], 0.0
    for i, value in enumerate(values):
        width = 100 * value / sum(values)
        parts.append(f'<rect class="s{i % 6}" x="{start:.2f}%" y="0" width="{width:.2f}%" height="22"/>')
        start += width
    return f'<svg height="22" aria-hidden="true">{"".join(parts)}</svg>'


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in the range, with their double and fivefold where that leaves it readable."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    multiples = (1, 2, 5) if len(decades) <= 3 else (1,)
    return [m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high]


def _percent(x: float, low: float, high: float) -> str:
    return f"{share(x, low, high):.2%}"
