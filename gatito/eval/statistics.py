"""Means and how sure we are of them: interquartile means, bootstrap intervals, Wilson intervals."""

import math

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
"""Of a bootstrap."""
CHUNK = 1_000_000
"""Values that are resampled at a time."""

Array = NDArray[np.float64]


def quartile_weights(count: int) -> Array:
    """Weights (N,) of sorted values in their interquartile mean: value i stands for [i / N, (i + 1) / N], and what of
    that lies between the quartiles counts.

    Three values weigh [1/6, 2/3, 1/6]; four [0, 1/2, 1/2, 0].
    """
    edges = np.clip(np.arange(count + 1) / count, 0.25, 0.75)
    return 2 * np.diff(edges)


def interquartile_mean(values: NDArray[np.floating]) -> float:
    """Mean of the middle half of the values (N,), N at least 1."""
    return float(np.sort(np.asarray(values, np.float64)) @ quartile_weights(len(values)))


def resampled_means(values: NDArray[np.floating], seed: int = 0) -> tuple[Array, Array]:
    """Mean and interquartile mean (RESAMPLES,) each of the values (N,) drawn N times with replacement.

    Not a number where there are fewer than two values: one value does not tell how far the next would be.
    """
    count = len(values)
    if count < 2:
        return np.full(RESAMPLES, np.nan), np.full(RESAMPLES, np.nan)
    rng, ordered, weights = np.random.default_rng(seed), np.sort(values), quartile_weights(count)
    means, interquartile = [], []
    rows, small = max(1, CHUNK // count), np.uint16 if count < 1 << 16 else np.int64
    for first in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, count, (min(rows, RESAMPLES - first), count), dtype=small)
        drawn.sort(axis=1)  # of sorted values the indices are sorted like the values, and faster
        sample = ordered[drawn]  # (rows, N)
        means.append(sample.mean(axis=1))
        interquartile.append(sample @ weights)
    return np.concatenate(means), np.concatenate(interquartile)


def percentile_interval(samples: Array) -> tuple[float, float]:
    """The 95 % interval of resampled values; not a number where any of them is not."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_interval(values: NDArray[np.floating], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    return percentile_interval(resampled_means(np.asarray(values, np.float64), seed)[0])


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson interval of a success rate; not empty even where all trials agree."""
    z = 1.959963984540054
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """95 % interval of the second success rate less the first over the same trials (Newcombe 1998b, method 10).

    Made of the two Wilson intervals and the correlation of the pairs; not empty even where all pairs agree.
    """
    trials = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    p, (low_p, high_p) = first / trials, wilson_interval(first, trials)
    q, (low_q, high_q) = second / trials, wilson_interval(second, trials)
    margins = math.sqrt(first * (trials - first) * second * (trials - second))
    together = float(both * neither - only_first * only_second)
    if together > 0:
        together = max(0.0, together - trials / 2)
    phi = together / margins if margins else 0.0
    below = math.sqrt((q - low_q) ** 2 - 2 * phi * (q - low_q) * (high_p - p) + (high_p - p) ** 2)
    above = math.sqrt((high_q - q) ** 2 - 2 * phi * (high_q - q) * (p - low_p) + (p - low_p) ** 2)
    return q - p - below, q - p + above
