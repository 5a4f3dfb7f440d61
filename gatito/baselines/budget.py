"""What a run of gatito costs, so that a baseline may be given as much."""

import numpy as np

from gatito.data.store import Store
from gatito.model import GatitoConfig
from gatito.train.configs import TrainConfig
from gatito.train.flops import batch_flops
from gatito.train.stream import stream_of

MEASURED_STEPS = 16
"""First steps whose mean stands for that of all."""


def training_flops(store: Store, config: GatitoConfig, train: TrainConfig) -> float:
    """Floating-point operations, forward and backward, of all steps of a run on a store.

    Useful work alone, see `train.flops`, by the batches of the first steps. Of a run that `minutes` end before its
    steps, give the steps that it made.
    """
    sampler = stream_of(store, config.trunk, train)
    batches = (sampler.batch(step * train.batch, train.batch) for step in range(min(train.steps, MEASURED_STEPS)))
    return float(np.mean([batch_flops(config, batch) for batch in batches])) * train.steps
