"""Continuous values to bins and back (Reed et al. 2022, section 2.1).

`to_bins` and `from_bins` undo each other to half a bin, `mu_law` and `mu_law_inverse` exactly. What is
companded is decided by the space (`fields.py`), never by a value, so that it can be undone.
"""

import numpy as np
from numpy.typing import NDArray

MU, M = 100.0, 256.0
NUM_BINS = 1024
_SCALE = np.log(M * MU + 1.0)


def mu_law(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Compand: F(x) = sgn(x) log(|x| mu + 1) / log(M mu + 1); |x| <= M maps into [-1, 1]."""
    x = np.asarray(values, dtype=np.float64)
    return np.sign(x) * np.log1p(np.abs(x) * MU) / _SCALE


def mu_law_inverse(companded: NDArray[np.floating]) -> NDArray[np.float64]:
    """Undo `mu_law`."""
    y = np.asarray(companded, dtype=np.float64)
    return np.sign(y) * np.expm1(np.abs(y) * _SCALE) / MU


def to_bins(values: NDArray[np.floating], num_bins: int = NUM_BINS) -> NDArray[np.int64]:
    """Return the bin in [0, num_bins) of each value; [-1, 1] is cut evenly, what lies outside is clipped.

    The value 1.0 falls in the last bin: one bin further is the next modality's first id. `num_bins` is even.
    """
    half = num_bins // 2  # added after the floor: before it, one ulp under an edge would be rounded up to the edge
    bins = np.floor(np.clip(np.asarray(values, dtype=np.float64), -1.0, 1.0) * half).astype(np.int64) + half
    return np.minimum(bins, num_bins - 1)


def from_bins(bins: NDArray[np.integer], num_bins: int = NUM_BINS) -> NDArray[np.float64]:
    """Return the centre of each bin, in [-1, 1]."""
    return (np.asarray(bins, dtype=np.float64) + 0.5) * (2.0 / num_bins) - 1.0
