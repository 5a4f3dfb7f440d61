"""Histograms as inline SVG: of the values of a field, of returns, of lengths.

Widths are percentages and texts are not scaled, so that they fit a phone as well as a desk; colours are the page's.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gatito.data.survey import FieldSurvey
from gatito.pages import number, share
from gatito.tokenizers import Vocabulary
from gatito.tokenizers.codec import decode
from gatito.tokenizers.fields import Field
from gatito.tokenizers.scalars import from_bins

HEIGHT = 72
"""Pixels of the tallest bar."""
MAX_BARS = 64
"""Bars of one histogram; more bins are grouped."""
MIN_SLOTS = 7
"""Fewer bars leave the rest of the width empty: one value is a bar, not a block."""
NAMED_BARS = 12
"""Up to here every discrete value stands under its bar."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """Bars over an axis."""

    counts: NDArray[np.int64]
    """(N,) of each bar."""
    spans: Sequence[str]
    """What each bar is of, such as `0.5 to 0.75`."""
    ticks: Sequence[tuple[float, str]]
    """Bars, counted from 0, and what stands under them."""

    def svg(self, unit: str, label: str, marks: Sequence[float] = ()) -> str:
        """Draw it; `unit` is what is counted, `marks` are shares of the width where a line stands."""
        slots = max(MIN_SLOTS, len(self.counts))
        highest = max(1, int(self.counts.max(initial=0)))
        bars = "".join(_bar(i, n, highest, slots, f"{self.spans[i]}: {n:,} {unit}") for i, n in self._some())
        lines = "".join(f'<line class="mark" x1="{m:.2%}" x2="{m:.2%}" y1="14" y2="{HEIGHT + 16}"/>' for m in marks)
        names = "".join(_tick((i + 0.5) / slots, words, HEIGHT + 30) for i, words in self.ticks)
        top = f'<text x="0" y="11">{highest:,}</text><line x1="0" x2="100%" y1="15" y2="15"/>'
        base = f'<line class="base" x1="0" x2="100%" y1="{HEIGHT + 16}" y2="{HEIGHT + 16}"/>'
        drawn = f"{top}{bars}{base}{lines}{names}"
        return f'<svg class="histogram" height="{HEIGHT + 34}" role="img" aria-label="{escape(label)}">{drawn}</svg>'

    def _some(self) -> list[tuple[int, int]]:
        return [(i, int(n)) for i, n in enumerate(self.counts) if n]


def _bar(i: int, count: int, highest: int, slots: int, title: str) -> str:
    height = max(1.5, HEIGHT * count / highest)  # one among millions is seen, too
    x, width = 100 * (i + 0.04) / slots, 92 / slots
    return (
        f'<rect x="{x:.2f}%" y="{HEIGHT + 16 - height:.1f}" width="{width:.2f}%" height="{height:.1f}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _tick(at: float, words: str, y: int) -> str:
    anchor = "start" if at < 0.12 else "end" if at > 0.88 else "middle"
    x = 0.0 if at < 0.02 else 1.0 if at > 0.98 else at
    return f'<text x="{x:.2%}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def reference_axis(low: float, high: float, marks: Sequence[tuple[str, float]]) -> str:
    """The names of marks above a column of histograms, one below the other where they would overlap."""
    shares = [share(value, low, high) for _, value in marks]
    rows = [i if max(shares) - min(shares) < 0.5 else 0 for i in range(len(marks))]
    texts = "".join(
        _tick(at, f"{name} {number(value)}", 12 + 15 * row)
        for (name, value), at, row in zip(marks, shares, rows, strict=True)
    )
    return f'<svg height="{16 + 15 * max(rows)}" aria-hidden="true">{texts}</svg>'


def of_numbers(values: NDArray[np.float64], low: float, high: float, bars: int = 40) -> Histogram:
    """Numbers in equal bars between low and high."""
    counts, edges = np.histogram(values, bars, (low, high))
    spans = [f"{number(a)} to {number(b)}" for a, b in pairwise(edges)]
    ticks = [(at * bars - 0.5, number(low + at * (high - low))) for at in (0.0, 0.5, 1.0)]
    return Histogram(counts=counts, spans=spans, ticks=ticks)


def of_integers(values: NDArray[np.int64]) -> Histogram:
    """Whole numbers, in bars of equally many."""
    low, high = int(values.min()), int(values.max())
    size = -(-(high - low + 1) // MAX_BARS)
    counts = np.bincount((values - low) // size)
    firsts = list(range(low, high + 1, size))
    spans = [_span(first, min(high, first + size - 1)) for first in firsts]
    return Histogram(counts=counts, spans=spans, ticks=_ends([*map(str, firsts[:-1]), str(high)]))


def of_field(seen: FieldSurvey, vocabulary: Vocabulary) -> tuple[Histogram, str]:
    """The values of a continuous, discrete or image field, with what is to be known of their axis."""
    if seen.leaf.kind == "continuous":
        return _continuous(seen, vocabulary)
    if seen.leaf.kind == "image":
        histogram = _grouped(seen.counts, list(map(str, range(256))), whole=True)
        return dataclasses.replace(histogram, ticks=[(0, "0 dark"), (32, "128"), (63, "255 bright")]), ""
    start, differ = seen.leaf.start[0], len(set(seen.leaf.start)) > 1
    names = [str(i if differ else start + i) for i in range(len(seen.counts))]
    note = "each element counted from its own lowest value" if differ else ""
    return _grouped(seen.counts, names, whole=True), note


def _continuous(seen: FieldSurvey, vocabulary: Vocabulary) -> tuple[Histogram, str]:
    values, note = bin_values(seen.leaf, vocabulary)
    return _grouped(seen.counts, list(map(number, values)), whole=False), note


def bin_values(leaf: Field, vocabulary: Vocabulary) -> tuple[NDArray[np.float64], str]:
    """The centre of each bin in the environment's units where all elements share them, else in [-1, 1]."""
    bins = np.arange(vocabulary.num_bins)
    ranges = set(zip(leaf.low, leaf.high, leaf.mu_law, strict=True)) if leaf.scaled else set(leaf.mu_law)
    if len(ranges) > 1:
        return from_bins(bins, vocabulary.num_bins), "each element between its own bounds, -1 to 1"
    # One element stands for all. Observations are not scaled by their bounds, and decoded here without them, for
    # elements differ in theirs.
    low, high = (leaf.low[:1], leaf.high[:1]) if leaf.scaled else ((None,), (None,))
    dtype = "int64" if np.dtype(leaf.dtype).kind in "iu" else leaf.dtype
    one = dataclasses.replace(leaf, shape=(1,), low=low, high=high, mu_law=leaf.mu_law[:1], dtype=dtype)
    values = decode(one, bins[:, None] + vocabulary.continuous_start, vocabulary)
    return values.reshape(-1).astype(np.float64), "logarithmic axis (mu-law)" if leaf.mu_law[0] else ""


def _grouped(counts: NDArray[np.int64], names: Sequence[str], *, whole: bool) -> Histogram:
    """Bars of equally many bins, a power of two: of all, or of those between the first and the last that occurs."""
    first, last = (0, len(counts) - 1) if whole else _shown(counts)
    size = 1
    while last // size - first // size >= MAX_BARS:
        size *= 2
    start, stop = first // size, last // size + 1
    padded = np.pad(counts, (0, -len(counts) % size))
    spans = [_span(names[i * size], names[min(len(names), (i + 1) * size) - 1]) for i in range(start, stop)]
    within = [names[i * size] for i in range(start, stop - 1)] + [names[min(len(names), stop * size) - 1]]
    few = list(enumerate(within)) if whole and len(within) <= NAMED_BARS else _ends(within)
    return Histogram(counts=padded.reshape(-1, size).sum(1)[start:stop], spans=spans, ticks=few)


def _shown(counts: NDArray[np.int64]) -> tuple[int, int]:
    """The first and the last bin that occurs, with neighbours where that is nearly one place."""
    occurring = np.flatnonzero(counts)
    first, last = int(occurring[0]), int(occurring[-1])
    missing = max(0, MIN_SLOTS - (last - first + 1))
    first = max(0, min(first - missing // 2, len(counts) - MIN_SLOTS))
    return first, max(last, min(len(counts), first + MIN_SLOTS) - 1)


def _ends(names: Sequence[str]) -> list[tuple[float, str]]:
    """The first, the middle and the last of bars."""
    return [(i, names[i]) for i in sorted({0, len(names) // 2, len(names) - 1})]


def _span(first: object, last: object) -> str:
    return str(first) if first == last else f"{first} to {last}"
