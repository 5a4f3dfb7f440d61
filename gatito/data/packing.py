"""Packed rows of sequences: what the model sees in training. Padding, segments and positions are said here.

segments   [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]     sequences of one row do not see each other
positions  [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]     counted anew in each; 0 stands for padding in `segments`
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from gatito.tokenizers import TokenSequence
from gatito.tokenizers.patches import PATCH, mean_positions, sample_positions


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B rows of L tokens."""

    input_ids: Tensor
    """(B, L) int64 token ids."""
    loss_mask: Tensor
    """(B, L) bool, True for targets."""
    local_positions: Tensor
    """(B, L) int64 index inside the timestep."""
    segments: Tensor
    """(B, L) int64, equal within a sequence, 0 for padding."""
    positions: Tensor
    """(B, L) int64 index inside the sequence."""
    patches: Tensor
    """(U, 16, 16, 3) uint8 distinct patches: grid worlds repeat theirs, so each is embedded once."""
    patch_indices: Tensor
    """(P,) int64 row of `patches` for each patch token, in row-major order."""
    patch_positions: Tensor
    """(P, 2) int64 quantised row and column of each patch token."""

    def to(self, device: torch.device) -> "Batch":
        """Move all tensors."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, as the model's `forward` takes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def pack(
    rows: Sequence[Sequence[TokenSequence]],
    *,
    rngs: Sequence[np.random.Generator] | None = None,
    length: int | None = None,
) -> Batch:
    """Pack each row's sequences end to end; shorter rows are padded at the end up to `length`.

    With `rngs`, one per row, patch positions are sampled from their intervals (training); without, they are the
    rounded means (acting).
    """
    B = len(rows)
    L = length or max(sum(len(s) for s in row) for row in rows)
    ids, local, segments, positions = (np.zeros((B, L), np.int64) for _ in range(4))
    loss_mask = np.zeros((B, L), np.bool_)
    pixels, places = [np.zeros((0, PATCH, PATCH, 3), np.uint8)], [np.zeros((0, 2), np.int64)]
    for b, row in enumerate(rows):
        start = 0
        for number, sequence in enumerate(row, start=1):
            stop = start + len(sequence)
            ids[b, start:stop] = sequence.ids
            loss_mask[b, start:stop] = sequence.loss_mask
            local[b, start:stop] = sequence.local_positions
            segments[b, start:stop] = number
            positions[b, start:stop] = np.arange(len(sequence))
            pixels.append(sequence.patches)
            intervals = sequence.patch_intervals
            places.append(sample_positions(intervals, rngs[b]) if rngs else mean_positions(intervals))
            start = stop
    patches, indices = distinct_patches(np.concatenate(pixels))
    return Batch(
        input_ids=torch.from_numpy(ids),
        loss_mask=torch.from_numpy(loss_mask),
        local_positions=torch.from_numpy(local),
        segments=torch.from_numpy(segments),
        positions=torch.from_numpy(positions),
        patches=torch.from_numpy(patches),
        patch_indices=torch.from_numpy(indices),
        patch_positions=torch.from_numpy(np.concatenate(places)),
    )


def distinct_patches(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct patches (U, 16, 16, 3) and, for each of the P given, which one it is."""
    if not len(patches):
        return patches, np.zeros(0, np.int64)
    flat = np.ascontiguousarray(patches).reshape(len(patches), -1)
    seen: dict[bytes, int] = {}
    indices = np.array([seen.setdefault(row.tobytes(), len(seen)) for row in flat], np.int64)
    firsts = np.unique(indices, return_index=True)[1]
    return np.ascontiguousarray(patches[firsts]), indices
