"""Taking turns by shares: any stretch of turns has nearly the shares of the whole."""

import numpy as np
from numpy.typing import NDArray

GOLDEN_RATIO = 0.6180339887498949


def edges_of(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper ends (n,) of n intervals that cut [0, 1) in proportion to the shares."""
    return np.cumsum(shares / shares.sum())


def whose_turn(edges: NDArray[np.float64], turn: int, phase: float = 0.0) -> int:
    """Index of the interval into which turn number `turn` of the golden-ratio sequence falls."""
    u = (phase + turn * GOLDEN_RATIO) % 1.0
    return min(int(np.searchsorted(edges, u, side="right")), len(edges) - 1)
