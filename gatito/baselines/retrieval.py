"""Retrieve-and-play (Sridhar et al. 2025): the action of the nearest observation that was demonstrated.

The texts decide first: only timesteps are compared whose texts have the fewest pieces that one has and the other has
not; none, where a demonstration has the same mission. Among these the squared distance decides, a sum over the
numbers of `vectors`: a standardised number counts (x - y)^2, a discrete value that differs 2, a cell of an image
that turns from black to white 1 for each channel. Then the earliest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.baselines.demonstrations import MAX_BYTES, Demonstrations
from gatito.baselines.vectors import Numbers, Pieces, cells, images_of, pieces_of
from gatito.data.episode import rows
from gatito.errors import UserError

ROUNDING = 1e-4
"""Distances by a matrix product in 32 bits may be wrong by so much of the squared lengths of the vectors; what is
that close to the least is measured again."""


class Retrieval:
    """Acts by the demonstrations of one task; holds T x D numbers of 4 bytes."""

    def __init__(self, demonstrations: Demonstrations) -> None:
        """Measure the observations and turn them into vectors; raises `UserError` where these exceed `MAX_BYTES`."""
        self.demonstrations, self.layout = demonstrations, demonstrations.layout
        self.numbers = Numbers.measured(self.layout.observations, demonstrations.observations)
        size_bytes = self._vectors(rows(demonstrations.observations, 1)).nbytes * len(demonstrations)
        if size_bytes > MAX_BYTES:
            raise UserError(
                f"task {demonstrations.task!r}: {len(demonstrations)} timesteps are vectors of "
                f"{size_bytes / 1e9:.2f} GB, allowed {MAX_BYTES / 1e9:.2f} GB; ask for fewer with --demonstrations"
            )
        self.vectors = self._vectors(demonstrations.observations)
        self.lengths = np.einsum("td,td->t", self.vectors, self.vectors)
        self.texts: dict[Pieces, int] = {}
        """Texts that were demonstrated, each with its number."""
        said = pieces_of(self.layout.observations, demonstrations.observations, self.layout.text)
        self.text_of = np.array([self.texts.setdefault(pieces, len(self.texts)) for pieces in said])  # (T,)

    def act(self, observations: Sequence[Any], rngs: Sequence[np.random.Generator]) -> list[Any]:
        """The action for each observation, which has a time axis of one; nothing is drawn."""
        return [self.demonstrations.action(t) for t in self.nearest(observations)]

    def nearest(self, observations: Sequence[Any]) -> NDArray[np.int64]:
        """The timestep (R,) that each of R observations is nearest to."""
        queries = np.concatenate([self._vectors(observation) for observation in observations])  # (R, D)
        distances = self.lengths - 2 * queries @ self.vectors.T  # (R, T), less the squared length of the query
        return np.array(
            [
                self._nearest(query, row, self._of_nearest_text(observation))
                for query, row, observation in zip(queries, distances, observations, strict=True)
            ]
        )

    def _vectors(self, observations: Any) -> NDArray[np.float32]:
        """Vectors (T, D) of observations with a leading T axis."""
        images = images_of(self.layout.observations, observations)
        return np.concatenate([self.numbers(observations), *map(cells, images)], axis=1)

    def _of_nearest_text(self, observation: Any) -> NDArray[np.bool_]:
        """Which timesteps (T,) have the texts that are nearest to those of an observation."""
        (pieces,) = pieces_of(self.layout.observations, observation, self.layout.text)
        apart = np.array([len(pieces ^ other) for other in self.texts])
        return (apart == apart.min())[self.text_of]

    def _nearest(self, query: NDArray[np.float32], distances: NDArray[np.float32], allowed: NDArray[np.bool_]) -> int:
        """The earliest of the nearest timesteps that are allowed (T,), by `distances` (T,) from the query (D,)."""
        distances = np.where(allowed, distances, np.inf)
        doubt = ROUNDING * (float(query @ query) + float(self.lengths.max()))
        close = np.flatnonzero(distances <= distances.min() + doubt)
        exact = np.square(self.vectors[close].astype(np.float64) - query).sum(axis=1)
        return int(close[exact.argmin()])
