"""Observations as vectors, the same for retrieving and for cloning: what is measured of demonstrations says how.

continuous    standardised, each number over the demonstrations; one that never changes counts nothing
discrete      one-hot, each element: a column for each value that was demonstrated, and one for all others
image         cells of at most 16 x 16 to an image, the mean of their pixels, from 0 to 1
text          the set of its pieces
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.tokenizers import TextTokenizer
from gatito.tokenizers.fields import Field, value_at
from gatito.tokenizers.vocabulary import NUM_DISCRETE

FARTHEST = 10.0
"""Standard deviations from the mean that a number is clipped at."""
CONSTANT = 1e-6
"""Standard deviations below this, relative to the largest value, are rounding."""
CELLS = 16
"""Cells of an image along its longer side, at most."""
IMAGES_AT_A_TIME = 1024
Pieces = frozenset[tuple[int, int]]
"""Of all texts of an observation: number of the field, and id of the piece."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Numbers:
    """Continuous and discrete fields as vectors of D numbers."""

    fields: tuple[Field, ...]
    """Of the observation; images and texts are passed over."""
    mean: NDArray[np.float64]
    """(C,) of the continuous numbers."""
    scale: NDArray[np.float64]
    """(C,) one by the standard deviation, 0 of numbers that never change."""
    columns: NDArray[np.int64]
    """(E, NUM_DISCRETE) column of each value of each discrete element, counted from the first of them."""

    @property
    def size(self) -> int:
        """D."""
        return len(self.mean) + (int(self.columns.max()) + 1 if len(self.columns) else 0)

    @classmethod
    def measured(cls, fields: tuple[Field, ...], observations: Any) -> "Numbers":
        """Measure observations with a leading T axis."""
        x = flat(fields, observations, "continuous").astype(np.float64)  # (T, C)
        deviation = x.std(axis=0)
        varies = deviation > CONSTANT * np.abs(x).max(axis=0, initial=0.0)
        scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=varies)
        elements = elements_of(fields, observations)  # (T, E)
        columns = np.zeros((elements.shape[1], NUM_DISCRETE), np.int64)
        first = 0
        for j, shown in enumerate(np.unique(column) for column in elements.T):
            columns[j] = first + len(shown)
            columns[j, shown] = first + np.arange(len(shown))
            first += len(shown) + 1
        return cls(fields=fields, mean=x.mean(axis=0), scale=scale, columns=columns)

    def __call__(self, observations: Any) -> NDArray[np.float32]:
        """(T, D) of observations with a leading T axis."""
        x = flat(self.fields, observations, "continuous").astype(np.float64)
        standard = np.clip((x - self.mean) * self.scale, -FARTHEST, FARTHEST)  # (T, C)
        elements = elements_of(self.fields, observations)  # (T, E)
        found = np.zeros((len(elements), self.size), np.float32)
        found[:, : len(self.mean)] = standard
        of = self.columns[np.arange(elements.shape[1]), elements] + len(self.mean)  # (T, E)
        found[np.arange(len(elements))[:, None], of] = 1.0
        return found


def images_of(fields: Sequence[Field], observations: Any) -> list[NDArray[np.uint8]]:
    """The images (T, H, W, C) of each image field."""
    return [np.asarray(value_at(observations, f.path), np.uint8) for f in fields if f.kind == "image"]


def cells(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean pixels (T, h * w * C), from 0 to 1, of the square cells of images (T, H, W, C).

    56 x 56 pixels become 14 x 14 cells of 4 x 4; the last cells of a side may be smaller than the others.
    """
    T, H, W, C = images.shape
    side = -(-max(H, W) // CELLS)
    rows, columns = np.arange(0, H, side), np.arange(0, W, side)
    counts = np.outer(np.diff([*rows, H]), np.diff([*columns, W]))[..., None] * 255.0  # (h, w, 1)
    found = np.empty((T, len(rows) * len(columns) * C), np.float32)
    for t in range(0, T, IMAGES_AT_A_TIME):
        sums = np.add.reduceat(images[t : t + IMAGES_AT_A_TIME], rows, axis=1, dtype=np.float32)
        sums = np.add.reduceat(sums, columns, axis=2) / counts  # (t, h, w, C)
        found[t : t + IMAGES_AT_A_TIME] = sums.reshape(len(sums), -1)
    return found


def pieces_of(fields: Sequence[Field], observations: Any, text: TextTokenizer) -> list[Pieces]:
    """The pieces of the texts of each timestep."""
    texts = [value_at(observations, f.path) for f in fields if f.kind == "text"]
    T = num_timesteps(fields, observations)
    known = {said: frozenset(text.encode(said)) for said in {said for column in texts for said in column}}
    return [frozenset((i, piece) for i, column in enumerate(texts) for piece in known[column[t]]) for t in range(T)]


def num_timesteps(fields: Sequence[Field], values: Any) -> int:
    """T of nested values with a leading T axis."""
    return len(value_at(values, fields[0].path))


def flat(fields: Sequence[Field], values: Any, kind: str) -> NDArray[Any]:
    """The numbers (T, N) of all fields of a kind, of nested values with a leading T axis."""
    T = num_timesteps(fields, values)
    parts = [np.asarray(value_at(values, f.path)).reshape(T, f.size) for f in fields if f.kind == kind]
    return np.concatenate(parts, axis=1) if parts else np.zeros((T, 0))


def elements_of(fields: Sequence[Field], values: Any) -> NDArray[np.int64]:
    """The discrete elements (T, E) of nested values with a leading T axis, each counted from 0."""
    start = [s for f in fields if f.kind == "discrete" for s in f.start]
    return flat(fields, values, "discrete").astype(np.int64) - np.array(start, np.int64)
