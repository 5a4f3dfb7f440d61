"""Images to 16x16 patches with their place in the image (Reed et al. 2022, section 2.1 and appendix)."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

PATCH = 16
"""Pixels along a side of a patch."""
NUM_PATCH_POSITIONS = 128
"""Steps into which an image side is quantised."""


def grid(height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of patches of an image; sides are padded up to multiples of 16."""
    return -(-height // PATCH), -(-width // PATCH)


def to_patches(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut images (T, H, W, C) into patches (T, P, 16, 16, 3) in raster order.

    Sides are padded with zeros, at the bottom and the right. One channel is repeated three times; of four,
    alpha is applied over black.
    """
    T, H, W, C = images.shape
    if C == 1:
        images = np.repeat(images, 3, axis=-1)
    elif C == 4:
        alpha = images[..., 3:].astype(np.uint16)
        images = ((images[..., :3] * alpha + 127) // 255).astype(np.uint8)
    rows, columns = grid(H, W)
    if (rows * PATCH, columns * PATCH) != (H, W):
        padded = np.zeros((T, rows * PATCH, columns * PATCH, 3), np.uint8)
        padded[:, :H, :W] = images
        images = padded
    cut = images.reshape(T, rows, PATCH, columns, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(T, rows * columns, PATCH, PATCH, 3)


def from_patches(patches: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Undo `to_patches` for images of `shape` with one or three channels: (T, P, 16, 16, 3) -> (T, H, W, C)."""
    H, W, C = shape
    rows, columns = grid(H, W)
    images = patches.reshape(-1, rows, columns, PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return images.reshape(-1, rows * PATCH, columns * PATCH, 3)[:, :H, :W, :C]


@cache
def patch_intervals(height: int, width: int) -> NDArray[np.uint8]:
    """Return (P, 4): first and past-the-last quantised row, then column, that each patch covers; read-only."""
    rows, columns = grid(height, width)
    r, c = np.divmod(np.arange(rows * columns), columns)
    intervals = np.concatenate([_intervals(rows)[r], _intervals(columns)[c]], axis=1)
    intervals.flags.writeable = False
    return intervals


def _intervals(num: int) -> NDArray[np.uint8]:
    """Cut [0, 128) into `num` intervals (num, 2); none is empty, even where there are more than 128."""
    edges = np.round(np.arange(num + 1) / num * NUM_PATCH_POSITIONS).astype(np.int64)
    first = np.minimum(edges[:-1], NUM_PATCH_POSITIONS - 1)
    return np.stack([first, np.maximum(edges[1:], first + 1)], axis=1).astype(np.uint8)


def mean_positions(intervals: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return (P, 2): the rounded mean row and column of each interval, used when acting."""
    edges = intervals.astype(np.int64)
    return np.stack([(edges[:, 0] + edges[:, 1] - 1) // 2, (edges[:, 2] + edges[:, 3] - 1) // 2], axis=1)


def sample_positions(intervals: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return (P, 2): a uniform row and column out of each interval, used in training."""
    edges = intervals.astype(np.int64)
    low, high = edges[:, 0::2], edges[:, 1::2]
    return low + np.floor(rng.random(low.shape) * (high - low)).astype(np.int64)
