"""The mixture sampler: row i of the stream is a pure function of (seed, i).

Context, prompts and rows are counted in positions of the trunk, see `Trunk`.

So the stream depends on no world size, worker count or interruption, and a prompt is drawn afresh each time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gatito.data.packing import Batch, pack
from gatito.data.store import Store, TokenDataset
from gatito.errors import UserError
from gatito.tokenizers import TokenSequence
from gatito.tokenizers.sequence import concatenate, observations_predicted
from gatito.tokenizers.trunk import Trunk

GOLDEN_RATIO = 0.6180339887498949
CHUNK = 1 << 16
"""Timesteps that are counted at a time."""
PAIRS_PER_SEQUENCE = 5
"""Image and text pairs in a vision-language sequence (Reed et al. 2022, section 2.3)."""


def prompt_budget(context: int) -> int:
    """Positions that a prompt may take: half the context, in training and acting alike."""
    return context // 2


def prompt_timesteps(starts: NDArray[np.int64], first: int, budget: int) -> int:
    """Return the end of the longest run of whole timesteps from `first` that fits `budget` positions."""
    return int(np.searchsorted(starts, starts[first] + budget, side="right")) - 1


def goal_timesteps(starts: NDArray[np.int64], budget: int) -> int:
    """Return the first timestep of the longest run of whole timesteps at the end that fits `budget` positions."""
    return int(np.searchsorted(starts, starts[-1] - budget, side="left"))


def timestep_positions(dataset: TokenDataset, trunk: Trunk, first: int, last: int) -> NDArray[np.int64]:
    """Position (last - first + 1,) at which each of the timesteps [first, last) begins, from 0, and their end."""
    offsets = dataset.timestep_tokens[first : last + 1]
    tokens = slice(int(offsets[0]), int(offsets[-1]))
    return trunk.starts(dataset.ids[tokens], dataset.local_positions[tokens], offsets - offsets[0])


def timestep_chunks(dataset: TokenDataset) -> Iterator[tuple[int, int]]:
    """All timesteps of a dataset, as runs [first, last) that fit into memory."""
    for first in range(0, dataset.num_timesteps, CHUNK):
        yield first, min(first + CHUNK, dataset.num_timesteps)


def longest_timestep(dataset: TokenDataset, trunk: Trunk) -> int:
    """Positions of the longest timestep."""
    return max(int(np.diff(timestep_positions(dataset, trunk, *run)).max()) for run in timestep_chunks(dataset))


def smallest_observation(dataset: TokenDataset, trunk: Trunk) -> int | None:
    """Tokens of the smallest observation, or image, that is read into latents; None where none is."""
    sizes = []
    for first, last in timestep_chunks(dataset):
        tokens = slice(int(dataset.timestep_tokens[first]), int(dataset.timestep_tokens[last]))
        local = dataset.local_positions[tokens]
        resampled = trunk.roles(dataset.ids[tokens], local).resampled
        firsts = np.flatnonzero(resampled & (local == 0))
        if len(firsts):
            sizes.append(int(np.diff(np.append(0, np.cumsum(resampled))[np.append(firsts, len(local))]).min()))
    return min(sizes, default=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """Draws packed rows of `context` positions from a store."""

    store: Store
    """Datasets and weights."""
    context: int
    """L, positions in a row."""
    trunk: Trunk
    """Which tokens have positions."""
    seed: int
    """Of the stream."""
    prompt_share: float = 0.25
    """Share of the sequences that begin with a prompt (Reed et al. 2022, section 2.3)."""
    predict_observations: bool = False
    """Whether observation tokens are targets too, but for patches and separators."""

    def __post_init__(self) -> None:
        for dataset in self.store:
            longest = longest_timestep(dataset, self.trunk)
            if longest > self.context:
                raise UserError(
                    f"dataset {dataset.name!r} has a timestep of {longest} positions, the context is "
                    f"{self.context}; raise --train.context or resize its images"
                )

    @cached_property
    def _edges(self) -> NDArray[np.float64]:
        weights = np.array([dataset.weight for dataset in self.store])
        return np.cumsum(weights / weights.sum())

    @cached_property
    def _phase(self) -> float:
        return float(np.random.default_rng([self.seed, 0]).random())

    def dataset(self, index: int) -> TokenDataset:
        """The dataset of row `index`: by a golden-ratio sequence, so that every stretch has the weights."""
        u = (self._phase + index * GOLDEN_RATIO) % 1.0
        return self.store.datasets[min(int(np.searchsorted(self._edges, u, side="right")), len(self._edges) - 1)]

    def row(self, index: int) -> list[TokenSequence]:
        """Sequences of row `index`, which fill `context` positions; the last one is cut.

        Where observations are resampled a few positions may stay empty: too few for one with its action.
        """
        return self._row(index)[0]

    def batch(self, first: int, size: int) -> Batch:
        """Rows [first, first + size) as a batch."""
        rows = [self._row(index) for index in range(first, first + size)]
        return pack([row for row, _ in rows], self.trunk, rngs=[rng for _, rng in rows], length=self.context)

    def _row(self, index: int) -> tuple[list[TokenSequence], np.random.Generator]:
        rng = np.random.default_rng([self.seed, 1, index])
        dataset, segments, room = self.dataset(index), [], self.context
        while room > 0:
            sequence = self._sequence(dataset, room, rng)
            if not len(sequence):
                break
            segments.append(sequence)
            room -= self.trunk.length(sequence)
        return segments, rng

    def _sequence(self, dataset: TokenDataset, room: int, rng: np.random.Generator) -> TokenSequence:
        if dataset.kind == "pairs":
            picks = rng.integers(dataset.num_episodes, size=PAIRS_PER_SEQUENCE)
            return self.trunk.head(concatenate([dataset.episode(int(pick)) for pick in picks]), room)
        first = int(rng.integers(dataset.num_timesteps))
        episode = int(np.searchsorted(dataset.episode_timesteps, first, side="right")) - 1
        parts = []
        if dataset.kind == "control" and rng.random() < self.prompt_share:
            parts = self._prompt(dataset, episode, prompt_budget(room), rng)
            room -= sum(self.trunk.length(part) for part in parts)
        # A timestep takes at least one position.
        last = min(int(dataset.episode_timesteps[episode + 1]), first + room)
        starts = timestep_positions(dataset, self.trunk, first, last)
        last = min(last, first + int(np.searchsorted(starts, room)))
        window = concatenate([*parts, self.trunk.head(dataset.sequence(first, last), room)])
        return observations_predicted(window, dataset.vocabulary) if self.predict_observations else window

    def _prompt(
        self, dataset: TokenDataset, episode: int, budget: int, rng: np.random.Generator
    ) -> list[TokenSequence]:
        """Whole timesteps of another episode of the same source agent: half from its end, half uniform."""
        others = dataset.episodes_by_agent[int(dataset.episode_agents[episode])]
        others = others[others != episode]
        if not len(others):
            return []
        other = int(others[rng.integers(len(others))])
        begin, end = (int(t) for t in dataset.episode_timesteps[other : other + 2])
        starts = timestep_positions(dataset, self.trunk, begin, end)
        first = goal_timesteps(starts, budget) if rng.random() < 0.5 else int(rng.integers(end - begin))
        last = prompt_timesteps(starts, first, budget)
        return [dataset.sequence(begin + first, begin + last)] if last > first else []
