"""The mixture sampler: row i of the stream is a pure function of (seed, i).

Context, prompts and rows are counted in positions of the trunk, see `Trunk`.

So the stream depends on no world size, worker count or interruption, and a prompt is drawn afresh each time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gatito.data.packing import Batch, pack
from gatito.data.shares import edges_of, whose_turn
from gatito.data.store import Store, TokenDataset
from gatito.errors import UserError
from gatito.tokenizers import TokenSequence
from gatito.tokenizers.sequence import concatenate, observations_predicted
from gatito.tokenizers.trunk import Trunk

CHUNK = 1 << 18
"""Tokens that are counted at a time."""
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
    first, starts = 0, dataset.timestep_tokens
    while first < dataset.num_timesteps:
        last = max(int(np.searchsorted(starts, starts[first] + CHUNK, side="right")) - 1, first + 1)
        yield first, last
        first = last


def timestep_lengths(dataset: TokenDataset, trunk: Trunk) -> tuple[int, int]:
    """Positions of the shortest and of the longest timestep."""
    ranges = []
    for run in timestep_chunks(dataset):
        lengths = np.diff(timestep_positions(dataset, trunk, *run))
        ranges.append((int(lengths.min()), int(lengths.max())))
    return min(shortest for shortest, _ in ranges), max(longest for _, longest in ranges)


def longest_timestep(dataset: TokenDataset, trunk: Trunk) -> int:
    """Positions of the longest timestep."""
    return timestep_lengths(dataset, trunk)[1]


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
    _even: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    """Positions of a timestep, of each dataset whose timesteps all have as many."""

    def __post_init__(self) -> None:
        for dataset in self.store:
            shortest, longest = timestep_lengths(dataset, self.trunk)
            if longest > self.context:
                raise UserError(
                    f"dataset {dataset.name!r} has a timestep of {longest} positions, the context is "
                    f"{self.context}; raise --train.context or resize its images"
                )
            if shortest == longest:
                self._even[dataset.name] = longest

    @cached_property
    def _edges(self) -> NDArray[np.float64]:
        return edges_of(np.array([dataset.weight for dataset in self.store]))

    @cached_property
    def _phase(self) -> float:
        return float(np.random.default_rng([self.seed, 0]).random())

    def dataset(self, index: int) -> TokenDataset:
        """The dataset of row `index`: by a golden-ratio sequence, so that every stretch has the weights."""
        return self.store.datasets[whose_turn(self._edges, index, self._phase)]

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
            sequence, length = self._sequence(dataset, room, rng)
            if not len(sequence):
                break
            segments.append(sequence)
            room -= length
        return segments, rng

    def _sequence(self, dataset: TokenDataset, room: int, rng: np.random.Generator) -> tuple[TokenSequence, int]:
        """A sequence that fits `room` positions, and how many of them it takes."""
        if dataset.kind == "pairs":
            picks = rng.integers(dataset.num_episodes, size=PAIRS_PER_SEQUENCE)
            pairs = self.trunk.head(concatenate([dataset.episode(int(pick)) for pick in picks]), room)
            return pairs, self.trunk.length(pairs)
        first = int(rng.integers(dataset.num_timesteps))
        episode = int(np.searchsorted(dataset.episode_timesteps, first, side="right")) - 1
        begin, end = (int(t) for t in dataset.episode_timesteps[episode : episode + 2])
        if dataset.kind == "documents" and self._fits(dataset, begin, end):
            first = begin
        parts: list[TokenSequence] = []
        taken = 0
        if dataset.kind == "control" and rng.random() < self.prompt_share:
            parts, taken = self._prompt(dataset, episode, prompt_budget(room), rng)
        window, length = self._window(dataset, first, end, room - taken)
        sequence = concatenate([*parts, window])
        if self.predict_observations:
            sequence = observations_predicted(sequence, dataset.vocabulary)
        return sequence, taken + length

    def _window(self, dataset: TokenDataset, first: int, stop: int, room: int) -> tuple[TokenSequence, int]:
        """As much of timesteps [first, stop) as fits `room` positions, and how many it takes."""
        stop = min(stop, first + room)  # a timestep takes at least one position
        starts = self._starts(dataset, first, stop)
        count = min(stop - first, int(np.searchsorted(starts, room)))
        window, length = dataset.sequence(first, first + count), int(starts[count])
        if length > room:
            window = self.trunk.head(window, room)
            length = self.trunk.length(window)
        return window, length

    def _fits(self, dataset: TokenDataset, first: int, last: int) -> bool:
        """Whether timesteps [first, last) fit the context."""
        within = last - first <= self.context  # a timestep takes at least one position
        return within and int(self._starts(dataset, first, last)[-1]) <= self.context

    def _prompt(
        self, dataset: TokenDataset, episode: int, budget: int, rng: np.random.Generator
    ) -> tuple[list[TokenSequence], int]:
        """Whole timesteps of another episode of the same source agent, half from its end, half uniform, and how many
        positions they take."""
        peers = dataset.episodes_by_agent[int(dataset.episode_agents[episode])]
        if len(peers) == 1:
            return [], 0
        pick = int(rng.integers(len(peers) - 1))
        other = int(peers[pick + int(peers[pick] >= episode)])  # itself is passed over
        begin, end = (int(t) for t in dataset.episode_timesteps[other : other + 2])
        starts = self._starts(dataset, begin, end)
        first = goal_timesteps(starts, budget) if rng.random() < 0.5 else int(rng.integers(end - begin))
        last = prompt_timesteps(starts, first, budget)
        if last <= first:
            return [], 0
        return [dataset.sequence(begin + first, begin + last)], int(starts[last] - starts[first])

    def _starts(self, dataset: TokenDataset, first: int, last: int) -> NDArray[np.int64]:
        """`timestep_positions`, for which no token is read where all timesteps have as many."""
        even = self._even.get(dataset.name)
        if even is None:
            return timestep_positions(dataset, self.trunk, first, last)
        return np.arange(0, (last - first + 1) * even, even)
