"""What is checked of an episode before it is tokenized, and of a store before it trains."""

from dataclasses import dataclass

import numpy as np

from gatito.data.episode import Episode
from gatito.data.store import Store, TokenDataset
from gatito.data.tasks import EVALUATION_SEEDS
from gatito.errors import UserError
from gatito.tokenizers.codec import check_bounds, is_clipped
from gatito.tokenizers.fields import value_at
from gatito.tokenizers.layout import Layout
from gatito.tokenizers.sequence import TokenSequence


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """How many values lay outside their declared bounds."""

    observations: int = 0
    """Clipped by the bins."""
    actions: int = 0
    """Clipped to the bounds."""

    def __add__(self, other: "Clipped") -> "Clipped":
        return Clipped(observations=self.observations + other.observations, actions=self.actions + other.actions)


def checked_tokens(
    layout: Layout, episode: Episode, *, where: str, clip_actions: bool = False
) -> tuple[TokenSequence, Clipped]:
    """Tokens of an episode, with the number of values that had to be clipped.

    Raises `UserError` for NaN, a wrong shape or dtype, and for an action further than 1e-3 outside its bounds
    unless `clip_actions`.
    """
    sequence = layout.episode_tokens(episode.observations, episode.actions, targets=episode.targets, where=where)
    observations = layout.num_clipped(episode.observations)
    actions = 0
    for field in layout.actions:
        if field.kind != "continuous":
            continue
        values = np.asarray(value_at(episode.actions, field.path))
        actions += int(np.count_nonzero(is_clipped(field, values)))
        if not clip_actions:
            advice = "build with --clip-actions to clip it, or rescale the dataset"
            check_bounds(field, values, where, advice)
    return sequence, Clipped(observations=observations, actions=actions)


NUM_SPOTS = 64
"""Timesteps of a dataset whose tokens the fast check looks at."""


def check_store(store: Store) -> None:
    """The fast check before every training: offsets, seeds, targets, and the ids of some timesteps.

    Raises `UserError` naming the file and the place. The files themselves are compared with their hashes when the
    store is opened.
    """
    for dataset in (*store.datasets, *store.held_out):
        for name, end in (
            ("timestep_tokens", dataset.metadata["tokens"]),
            ("timestep_patches", dataset.metadata["patches"]),
            ("episode_timesteps", dataset.num_timesteps),
        ):
            _check_offsets(dataset, name, end, strictly=name != "timestep_patches")
        late = np.flatnonzero(dataset.episode_seeds >= EVALUATION_SEEDS)
        if len(late):
            raise UserError(
                f"{dataset.folder}: episode {late[0]} has seed {dataset.episode_seeds[late[0]]}, allowed below "
                f"{EVALUATION_SEEDS}; build it without this episode"
            )
        if dataset in store.datasets and dataset.metadata["targets"] < 1:
            raise UserError(f"{dataset.folder}: none of its tokens is a target; leave it out of the mixture")
        _check_spots(dataset)


def _check_offsets(dataset: TokenDataset, name: str, end: int, *, strictly: bool) -> None:
    offsets = getattr(dataset, name)
    steps = np.diff(offsets)
    bad = np.flatnonzero(steps < (1 if strictly else 0))
    if len(bad):
        raise UserError(
            f"{dataset.folder / name}.bin: entry {bad[0] + 1} is {offsets[bad[0] + 1]} after {offsets[bad[0]]}, and "
            "offsets must grow; build the store again"
        )
    if offsets[0] != 0 or offsets[-1] != end:
        raise UserError(
            f"{dataset.folder / name}.bin: from {offsets[0]} to {offsets[-1]}, expected 0 to {end}; build the store "
            "again"
        )


def _check_spots(dataset: TokenDataset) -> None:
    vocabulary = dataset.vocabulary
    for t in np.unique(np.linspace(0, dataset.num_timesteps - 1, NUM_SPOTS).astype(np.int64)):
        sequence = dataset.sequence(int(t), int(t) + 1)
        where = f"{dataset.folder}, timestep {t}"
        if sequence.ids.max() > vocabulary.patch:
            raise UserError(
                f"{where}: id {sequence.ids.max()}, allowed up to {vocabulary.patch}; build the store again"
            )
        patches = int(np.count_nonzero(sequence.ids == vocabulary.patch))
        if patches != len(sequence.patches):
            raise UserError(
                f"{where}: {patches} patch tokens and {len(sequence.patches)} patches; build the store again"
            )
