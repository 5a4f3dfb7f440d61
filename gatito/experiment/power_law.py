"""A power law through the losses of runs of several sizes, and how sure it is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gatito.eval.statistics import percentile_interval

FITS = 20_000
"""Draws of what the power law may be."""


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
