"""What a run of gatito costs, so that a baseline may be given as much."""

from gatito.data.store import Store
from gatito.model import GatitoConfig
from gatito.train.configs import TrainConfig
from gatito.train.info import cost_of, sampled_rows


def training_flops(store: Store, config: GatitoConfig, train: TrainConfig) -> float:
    """Floating-point operations, forward and backward, of all steps of a run on a store.

    Useful work alone, as `gatito info` counts it, by the first rows that the run sees; for a run that `minutes` end
    before its steps, replace them by those that it made.
    """
    cost = cost_of(sampled_rows(store, config, train), config)
    return cost.flops.training * train.batch * train.steps
