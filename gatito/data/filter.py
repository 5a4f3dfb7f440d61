"""The expert filter: keep episodes near the best stretch of their dataset (Reed et al. 2022, appendix).

The paper keeps returns of at least 80 % of the expert return. Ours works on the normalised return, which is the
same where the random policy scores 0 and right where returns are negative.
"""

import numpy as np
from numpy.typing import NDArray


def expert_return(returns: NDArray[np.floating]) -> float:
    """The largest mean return of W consecutive episodes, W = max(1, min(1000, 0.1 N)), in collection order."""
    W = max(1, min(1000, int(0.1 * len(returns))))
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(returns, np.float64))])
    return float(((sums[W:] - sums[:-W]) / W).max())


def is_expert(returns: NDArray[np.floating], random_return: float, threshold: float) -> NDArray[np.bool_]:
    """Which episodes to keep: (R - random) / (expert - random) >= threshold; all, where the expert is no better
    than random."""
    span = expert_return(returns) - random_return
    if span <= 0:
        return np.ones(len(returns), np.bool_)
    return (np.asarray(returns) - random_return) / span >= threshold
