"""The expert filter: keep episodes near the best stretch of their dataset (Reed et al. 2022, appendix).

The paper keeps returns of at least 80 % of the expert return. Ours works on the normalised return, which is the
same where the random policy scores 0 and right where returns are negative.
"""

import numpy as np
from numpy.typing import NDArray

from gatito.data.tasks import Reference
from gatito.errors import UserError


def expert_return(returns: NDArray[np.floating]) -> float:
    """The largest mean return of W consecutive episodes, W = max(1, min(1000, 0.1 N)), in collection order."""
    W = max(1, min(1000, int(0.1 * len(returns))))
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(returns, np.float64))])
    return float(((sums[W:] - sums[:-W]) / W).max())


def is_expert(
    returns: NDArray[np.floating], agents: NDArray[np.str_], random_return: float, threshold: float
) -> NDArray[np.bool_]:
    """Which episodes to keep: (R - random) / (expert - random) >= threshold.

    `returns` and `agents` are (E,). The expert's return is that of the best source agent: where agents take turns,
    no stretch of the dataset is the expert's alone.

    Raises `UserError` where the best stretch of the dataset is no better than the random policy.
    """
    best = max(expert_return(returns[agents == agent]) for agent in np.unique(agents))
    if best <= random_return:
        raise UserError(
            f"its best stretch returns {best:.6g}, no more than the random policy's {random_return:.6g}; collect "
            "better episodes, or keep all of them with expert_filter: null"
        )
    return Reference(random=random_return, expert=best).score(np.asarray(returns, np.float64)) >= threshold
