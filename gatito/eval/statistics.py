"""Intervals: how sure are we of a mean over seeded episodes."""

import math

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


def bootstrap_interval(values: NDArray[np.floating], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean."""
    rng = np.random.default_rng(seed)
    samples = rng.choice(np.asarray(values, np.float64), size=(RESAMPLES, len(values)))
    low, high = np.percentile(samples.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson interval of a success rate; not empty even where all trials agree."""
    z = 1.959963984540054
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
