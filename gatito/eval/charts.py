"""The charts of the report, as inline SVG: it takes its colours from the page, so that it is readable in the dark.

Widths are percentages and texts are not scaled, so that a chart fits a phone as well as a desk.
"""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from gatito.data.tasks import domain_of
from gatito.pages import legend, share

HEIGHT = 200
"""Pixels of a learning curve."""
Points = Sequence[tuple[float, float]]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Numbers of a file of JSON lines by step, the last where a run was resumed; what is not finite is left out."""
    rows: dict[float, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except json.JSONDecodeError:  # a run that was killed leaves half a line
            continue
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        rows[values["step"]] = {key: float(value) for key, value in numbers.items() if math.isfinite(value)}
    return [rows[step] for step in sorted(rows)]


def score_curves(rows: Sequence[Mapping[str, float]], domains: Sequence[str]) -> str:
    """Scores over training from rows of `evaluations.jsonl`: the mean over all tasks, and over those of each domain.

    Those of the report, `domains`, have its colours.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found: dict[str, list[float]] = {}
        for key, score in row.items():
            if key.startswith("score/"):
                found.setdefault(domain_of(key.removeprefix("score/")), []).append(score)
        for domain, scores in sorted(found.items()):
            series.setdefault(domain, []).append((row["step"], sum(scores) / len(scores)))
        if "score" in row:
            series.setdefault("", []).append((row["step"], row["score"]))
    if not series:
        return ""
    known = [*domains, *sorted(set(series) - {"", *domains})]
    kinds = {name: colour_of(name, known) if name else "all" for name in series}
    what = "Mean score of tasks while training"
    drawn = curve({kinds[name]: points for name, points in series.items()}, log=False, what=what)
    last = {kinds[name]: f"{name or 'all tasks'} {points[-1][1]:.2f}" for name, points in series.items()}
    return f'<div class="charts"><div><h3>{what}</h3>{drawn}{legend(last)}</div></div>'


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
    """Lines over steps; without `log` between 0 and 1, or what exceeds these."""
    values = [y for points in series.values() for _, y in points]
    low, high = min(0.0, *values), max(1.0, *values)
    if log:
        low, high = 0.9 * max(1e-6, min(values)), 1.1 * max(1e-6, *values)
    last = max(x for points in series.values() for x, _ in points) or 1.0

    def down(y: float) -> float:
        return math.log(high / max(y, 1e-6)) / math.log(high / low) if log else (high - y) / (high - low)

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


def percent(x: float, low: float, high: float) -> str:
    """Where x is between low and high, as SVG writes a length."""
    return f"{share(x, low, high):.2%}"


def colour_of(domain: str, domains: Sequence[str]) -> str:
    """The class of a domain's colour, one of `d0`, `d1` and so on; the first twelve differ."""
    return f"d{domains.index(domain)}"
