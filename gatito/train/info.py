"""What a recipe or a checkpoint is made of, and how far its context reaches."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gatito.data.packing import pack
from gatito.data.sampler import timestep_chunks, timestep_positions
from gatito.data.store import Store, TokenDataset
from gatito.errors import UserError
from gatito.model import GatitoConfig
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.patches import PATCH
from gatito.tokenizers.sequence import observations_predicted
from gatito.tokenizers.vocabulary import ACTION_POSITION
from gatito.train.configs import TrainConfig
from gatito.train.flops import Counts, Flops, batch_counts, forward_flops
from gatito.train.stream import stream_of

SAMPLED_ROWS = 64
"""Rows of the stream that costs are measured on."""
ASSUMED_VALUES, ASSUMED_ACTION = 39, 4
"""Numbers of an observation and of an action of Meta-World, assumed where there is no store."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How much of the context a timestep takes."""

    name: str
    """Task, or dataset of texts or pairs."""
    tokens: float
    """Tokens of a timestep, mean."""
    positions: float
    """Positions of a timestep in the trunk, mean."""
    context: int
    """Positions of a context."""
    unit: str
    """What is counted: timesteps, pairs, or tokens of texts."""

    @property
    def held(self) -> int:
        """How many of them a context holds; about, where their lengths differ."""
        return int(self.context / self.positions)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of training, or of what stands for it."""

    sequences: list[TokenSequence]
    """What it holds."""
    timesteps: float
    """Timesteps of control in it, the cut one in part; 0 of texts and pairs."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What rows of training cost; means per row."""

    tokens: float
    """Tokens, with or without a position of their own."""
    targets: float
    """Tokens that are predicted."""
    flops: Flops
    """Useful work of a forward pass."""
    dense: Counts
    """What is computed, masked or not."""
    timestep: Flops | None
    """Useful work of a forward pass by timestep of control; None where there is none."""


def reach_of_data(datasets: list[TokenDataset], config: GatitoConfig) -> list[Reach]:
    """One row per dataset, measured on all of its timesteps."""
    rows = []
    for dataset in datasets:
        runs = timestep_chunks(dataset)
        positions = sum(int(timestep_positions(dataset, config.trunk, *run)[-1]) for run in runs)
        rows.append(
            Reach(
                name=str(dataset.metadata["task"]),
                tokens=dataset.metadata["tokens"] / dataset.num_timesteps,
                positions=positions / dataset.num_timesteps,
                context=config.context,
                unit={"text": "tokens", "pairs": "pairs"}.get(dataset.kind, "timesteps"),
            )
        )
    return rows


def expected_epochs(store: Store, config: GatitoConfig, rows: int) -> dict[str, float]:
    """How often so many rows of a batch go over each dataset, by name, their prompts counted in."""
    reach = zip(store.datasets, reach_of_data(list(store), config), strict=True)
    return {d.name: rows * d.weight * config.context / (row.positions * d.num_timesteps) for d, row in reach}


def reach_of_layouts(layouts: Mapping[str, Layout], config: GatitoConfig) -> list[Reach]:
    """One row per task, from its spaces alone: the text inside an observation, of unknown length, is left out."""
    rows = []
    for task, layout in sorted(layouts.items()):
        ids, local = layout.empty_timestep()
        positions = float(config.trunk.costs(ids, local).sum())
        rows.append(Reach(name=task, tokens=len(ids), positions=positions, context=config.context, unit="timesteps"))
    return rows


def sampled_rows(store: Store, config: GatitoConfig, train: TrainConfig) -> list[Row]:
    """The first rows that training would see."""
    sampler = stream_of(store, config.trunk, train)
    rows = []
    for index in range(SAMPLED_ROWS):
        sequences, dataset = sampler.row(index), sampler.dataset(index)
        tokens = sum(len(sequence) for sequence in sequences)
        timesteps = tokens * dataset.num_timesteps / dataset.metadata["tokens"] if dataset.kind == "control" else 0.0
        rows.append(Row(sequences=sequences, timesteps=timesteps))
    return rows


def assumed_row(config: GatitoConfig, train: TrainConfig) -> Row:
    """A row of timesteps as Meta-World has them, without images and prompts; raises `UserError` where none fits."""
    vocabulary, length = config.vocabulary, ASSUMED_VALUES + 1 + ASSUMED_ACTION
    ids = np.full(length, vocabulary.continuous_start, np.int32)
    ids[ASSUMED_VALUES] = vocabulary.separator
    local = np.full(length, ACTION_POSITION, np.int32)
    local[: ASSUMED_VALUES + 1] = np.arange(ASSUMED_VALUES + 1)
    T = -(-config.context // int(config.trunk.costs(ids, local).sum()))
    timesteps = TokenSequence(
        ids=np.tile(ids, T),
        loss_mask=np.tile(local == ACTION_POSITION, T),
        local_positions=np.tile(local, T),
        patches=np.zeros((0, PATCH, PATCH, 3), np.uint8),
        patch_intervals=np.zeros((0, 4), np.uint8),
        timestep_starts=np.arange(T + 1) * length,
    )
    sequence = config.trunk.head(timesteps, config.context)
    if not len(sequence):
        raise UserError(
            f"--train.context is {config.context}, and an observation takes {config.latents} positions; raise it"
        )
    if train.predict_observations:
        sequence = observations_predicted(sequence, vocabulary)
    return Row(sequences=[sequence], timesteps=len(sequence) / length)


def cost_of(rows: list[Row], config: GatitoConfig) -> Cost:
    """What rows cost, packed to one batch; images that rows share are embedded once."""
    batch = pack([row.sequences for row in rows], config.trunk, length=config.context)
    useful = batch_counts(config, batch)
    control = [row for row in rows if row.timesteps]
    timestep = None
    if control:
        counts = batch_counts(config, pack([row.sequences for row in control], config.trunk, length=config.context))
        timestep = forward_flops(config, counts.scaled(1 / sum(row.timesteps for row in control)))
    return Cost(
        tokens=batch.num_tokens / len(rows),
        targets=sum(useful.targets.values()) / len(rows),
        flops=forward_flops(config, useful.scaled(1 / len(rows))),
        dense=batch_counts(config, batch, dense=True).scaled(1 / len(rows)),
        timestep=timestep,
    )
