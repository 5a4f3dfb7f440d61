"""Packed rows of sequences: what the model sees in training. Padding, segments and positions are said here.

segments   [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]     sequences of one row do not see each other
positions  [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]     counted anew in each; 0 stands for padding in `segments`

A row has the trunk's positions. Tokens that have none of their own (see `Trunk`) stand beside the rows in one flat
stream, observations of equal length next to each other, so that nothing is padded to the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatito.errors import UserError
from gatito.tokenizers import TokenSequence
from gatito.tokenizers.patches import PATCH, mean_positions, sample_positions
from gatito.tokenizers.trunk import Trunk

BESIDE_ROWS = ("patches", "patch_indices", "patch_positions", "observation_ids", "observation_sizes", "latent_slots")
"""Fields of a batch that images, and observations read into latents, bring along beside the rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B rows of L positions of the trunk."""

    input_ids: Tensor
    """(B, L) int64 token ids; the separator where latents stand."""
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
    """(P,) int64 row of `patches` for each patch token: those of the rows in row-major order, then the observed."""
    patch_positions: Tensor
    """(P, 2) int64 quantised row and column of each patch token."""
    observation_ids: Tensor | None = None
    """(N,) int64 ids of the observations that are read into latents, end to end."""
    observation_sizes: Tensor | None = None
    """(K, 2) int64: first all observations of the first length, and how many these are; then the next length."""
    latent_slots: Tensor | None = None
    """(G, m) int64 index into the B * L positions of each observation's latents."""
    action_ids: Tensor | None = None
    """(M,) int64 ids of the actions that a decoder predicts, end to end."""
    action_targets: Tensor | None = None
    """(M,) bool, True for targets."""
    action_sizes: Tensor | None = None
    """(K, 2) int64 like `observation_sizes`, of actions."""
    action_slots: Tensor | None = None
    """(A,) int64 position in the rows that predicts each action."""
    following_slots: Tensor | None = None
    """(A,) int64 position that holds the action once taken: the next observation's first; -1 where none follows."""

    def to(self, device: torch.device) -> "Batch":
        """Move all tensors but the sizes, which are read as numbers: from a GPU each reading would wait for it."""
        moved = {
            name: tensor if name in ("observation_sizes", "action_sizes") else tensor.to(device, non_blocking=True)
            for name, tensor in self.tensors().items()
        }
        return Batch(**moved)

    def pinned(self) -> "Batch":
        """The same in page-locked memory, from where it is copied to a GPU beside the computation."""
        return Batch(**{name: tensor.pin_memory() for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, as the model's `forward` takes them, without those that a flat trunk has not."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def num_timesteps(self, separator: int) -> int:
        """Timesteps that begin in the rows: each observation ends with the id `separator`."""
        ids = self.input_ids if self.observation_ids is None else self.observation_ids
        return int((ids == separator).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens in all, with or without a position of their own."""
        own = int((self.segments > 0).sum())
        if self.observation_ids is not None and self.latent_slots is not None:
            own += len(self.observation_ids) - self.latent_slots.numel()
        return own if self.action_ids is None else own + len(self.action_ids)


def pack(
    rows: Sequence[Sequence[TokenSequence]],
    trunk: Trunk,
    *,
    rngs: Sequence[np.random.Generator] | None = None,
    length: int | None = None,
) -> Batch:
    """Pack each row's sequences end to end; shorter rows are padded at the end up to `length` positions.

    With `rngs`, one per row, patch positions are sampled from their intervals (training); without, they are the
    rounded means (acting). Raises `UserError` for targets among tokens that are read into latents.
    """
    L = length or max(sum(trunk.length(s) for s in row) for row in rows)
    packed = _Rows(len(rows), L, trunk)
    for b, row in enumerate(rows):
        start = 0
        for number, sequence in enumerate(row, start=1):
            intervals = sequence.patch_intervals
            places = sample_positions(intervals, rngs[b]) if rngs else mean_positions(intervals)
            start = packed.add(sequence, places, b, start, number)
    return packed.batch()


class _Rows:
    """Rows of L positions, and what stands beside them."""

    def __init__(self, B: int, L: int, trunk: Trunk) -> None:
        self.trunk, self.L = trunk, L
        self.ids, self.local, self.segments, self.positions = (np.zeros((B, L), np.int64) for _ in range(4))
        self.loss_mask = np.zeros((B, L), np.bool_)
        self.patches, self.observations, self.actions = _Patches(), _Observations(trunk), _Actions()

    def add(self, sequence: TokenSequence, places: NDArray[np.int64], b: int, start: int, number: int) -> int:
        """Write a sequence into row `b` from position `start` on as segment `number`; returns where it ends."""
        stop, own, at = start + len(sequence), np.s_[:], np.s_[start : start + len(sequence)]
        if not self.trunk.is_flat:
            stop, own, at = self._set_aside(sequence, b, start)
            self.ids[b, start:stop] = self.trunk.vocabulary.separator
        self.ids[b, at] = sequence.ids[own]
        self.loss_mask[b, at] = sequence.loss_mask[own]
        self.local[b, at] = sequence.local_positions[own]
        self.segments[b, start:stop] = number
        self.positions[b, start:stop] = np.arange(stop - start)
        if len(places):
            in_row = np.zeros(len(sequence), np.bool_)
            in_row[own] = True
            self.patches.add(sequence.patches, places, in_row[sequence.ids == self.trunk.vocabulary.patch])
        return stop

    def _set_aside(self, sequence: TokenSequence, b: int, start: int) -> tuple[int, Any, Any]:
        """Put what has no position of its own beside the rows; returns where the sequence ends, which tokens (N,) are
        left, and where these stand."""
        trunk = self.trunk
        roles = trunk.roles(sequence.ids, sequence.local_positions)
        resampled, decoded = roles.resampled, roles.decoded
        if (sequence.loss_mask & resampled).any():
            raise UserError(
                f"row {b}: observation tokens are targets, but they are read into {trunk.latents} latents, which "
                "predict no observation; train it with --model.latents 0"
            )
        own = ~(resampled | decoded)
        slots = start + np.cumsum(roles.costs) - 1  # the last position up to each token
        stop = start + int(roles.costs.sum())
        if resampled.any():
            self.observations.add(sequence, resampled, b * self.L + slots)
        if decoded.any():
            self.actions.add(sequence, decoded, b * self.L + slots, b * self.L + stop)
        return stop, own, slots[own]

    def batch(self) -> Batch:
        rows: dict[str, NDArray[np.generic]] = {
            "input_ids": self.ids,
            "loss_mask": self.loss_mask,
            "local_positions": self.local,
            "segments": self.segments,
            "positions": self.positions,
        }
        observed = np.zeros(0, np.int64)
        if self.trunk.latents:
            beside, observed = self.observations.fields()
            rows |= beside
        if self.trunk.decoded_actions:
            rows |= self.actions.fields()
        rows |= self.patches.fields(observed)
        return Batch(**{name: torch.from_numpy(array) for name, array in rows.items()})


class _Patches:
    """Pixels and places of patch tokens, as they come."""

    def __init__(self) -> None:
        self.pixels: list[NDArray[np.uint8]] = [np.zeros((0, PATCH, PATCH, 3), np.uint8)]
        self.places: list[NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
        self.in_rows: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)]

    def add(self, pixels: NDArray[np.uint8], places: NDArray[np.int64], in_rows: NDArray[np.bool_]) -> None:
        """Take patches (P,); those not `in_rows` are read into latents."""
        self.pixels.append(pixels)
        self.places.append(places)
        self.in_rows.append(in_rows)

    def fields(self, observed: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """The batch's fields: the patches of the rows, then the `observed` (index among those that are)."""
        in_rows = np.concatenate(self.in_rows)
        order = np.append(np.flatnonzero(in_rows), np.flatnonzero(~in_rows)[observed])
        patches, indices = distinct_patches(np.concatenate(self.pixels), order)
        places = np.concatenate(self.places)[order]
        return {"patches": patches, "patch_indices": indices, "patch_positions": places}


class _Ragged:
    """Groups of unequal length, which end up sorted by it."""

    def __init__(self) -> None:
        self.ids: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
        self.lengths: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]

    def collect(self, sequence: TokenSequence, member: NDArray[np.bool_], firsts: NDArray[np.int64]) -> None:
        """Take the tokens (N,) that are `member`, in groups that begin at `firsts`."""
        self.ids.append(sequence.ids[member])
        self.lengths.append(np.add.reduceat(member, firsts, dtype=np.int64))

    def order(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The groups by length, the tokens in that order, and (length, count) of each length (K, 2)."""
        lengths = np.concatenate(self.lengths)
        groups = np.argsort(lengths, kind="stable")
        firsts = (np.cumsum(lengths) - lengths)[groups]
        ordered = lengths[groups]
        within = np.arange(ordered.sum()) - np.repeat(np.cumsum(ordered) - ordered, ordered)
        tokens = np.repeat(firsts, ordered) + within
        return groups, tokens, np.stack(np.unique(ordered, return_counts=True), axis=1).astype(np.int64)


class _Observations(_Ragged):
    """Observations that are read into latents."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.slots: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]

    def add(self, sequence: TokenSequence, resampled: NDArray[np.bool_], slots: NDArray[np.int64]) -> None:
        """`slots` is the last position up to each token."""
        firsts = np.flatnonzero((sequence.local_positions == 0) & resampled)
        self.collect(sequence, resampled, firsts)
        self.slots.append(slots[firsts] - self.trunk.latents + 1)

    def fields(self) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.int64]]:
        """The batch's fields, and their patches in that order, as indices (P,) into those that came."""
        groups, tokens, sizes = self.order()
        unordered, patch = np.concatenate(self.ids), self.trunk.vocabulary.patch
        patch_of = np.cumsum(unordered == patch) - 1
        ids = unordered[tokens].astype(np.int64)
        firsts = np.concatenate(self.slots)[groups]
        fields: dict[str, NDArray[np.generic]] = {
            "observation_ids": ids,
            "observation_sizes": sizes,
            "latent_slots": firsts[:, None] + np.arange(self.trunk.latents),
        }
        return fields, patch_of[tokens][ids == patch]


class _Actions(_Ragged):
    """Actions that a decoder predicts."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)]
        self.slots: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        self.following: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]

    def add(self, sequence: TokenSequence, decoded: NDArray[np.bool_], slots: NDArray[np.int64], stop: int) -> None:
        """`slots` is the last position up to each token, `stop` the first one after the sequence."""
        firsts = np.flatnonzero(decoded & ~np.append(False, decoded[:-1]))
        self.collect(sequence, decoded, firsts)
        self.targets.append(sequence.loss_mask[decoded])
        self.slots.append(slots[firsts])
        self.following.append(np.where(slots[firsts] + 1 < stop, slots[firsts] + 1, -1))

    def fields(self) -> dict[str, NDArray[np.generic]]:
        groups, tokens, sizes = self.order()
        return {
            "action_ids": np.concatenate(self.ids)[tokens].astype(np.int64),
            "action_targets": np.concatenate(self.targets)[tokens],
            "action_sizes": sizes,
            "action_slots": np.concatenate(self.slots)[groups],
            "following_slots": np.concatenate(self.following)[groups],
        }


def distinct_patches(
    patches: NDArray[np.uint8], order: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the distinct patches (U, 16, 16, 3) and, for each of the P given, which one it is.

    They are taken, and so numbered, in `order`, a permutation (P,); without, as they stand. Arrow raises an error for
    more than 2 GiB of distinct ones.
    """
    if not len(patches):
        return patches, np.zeros(0, np.int64)
    order = np.arange(len(patches)) if order is None else order
    flat = np.ascontiguousarray(patches).reshape(len(patches), -1)
    # Arrow numbers equal bytes by first appearance; it compares all of those whose hashes agree.
    rows = pa.FixedSizeBinaryArray.from_buffers(pa.binary(flat.shape[1]), len(flat), [None, pa.py_buffer(flat)])
    numbers = rows.dictionary_encode().indices.to_numpy()[order]
    # Number anew by `order`. Of places with the same number the last one written stays: backwards, the first.
    firsts = np.empty(int(numbers.max()) + 1, np.int64)
    firsts[numbers[::-1]] = np.arange(len(order))[::-1]
    kept = np.sort(firsts)
    renumbered = np.empty(len(firsts), np.int64)
    renumbered[numbers[kept]] = np.arange(len(kept))
    return patches[order[kept]], renumbered[numbers]
