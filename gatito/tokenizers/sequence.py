"""The object that flows: one flat sequence of tokens with everything that belongs to each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gatito.tokenizers.vocabulary import NUM_LOCAL_POSITIONS, Vocabulary


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSequence:
    """N tokens of T timesteps, P of them image patches. The arrays are never written to."""

    ids: NDArray[np.int32]
    """(N,) token ids; the vocabulary's `patch` where an image patch stands."""
    loss_mask: NDArray[np.bool_]
    """(N,) whether the token is a target: actions, text outside observations with its end."""
    local_positions: NDArray[np.int32]
    """(N,) index inside the timestep's observation, or the shared action or text position."""
    patches: NDArray[np.uint8]
    """(P, 16, 16, 3) pixels of the patches, in the order in which they stand in `ids`."""
    patch_intervals: NDArray[np.uint8]
    """(P, 4) rows and columns that each patch covers, see `patch_intervals`."""
    timestep_starts: NDArray[np.int64]
    """(T + 1,) offset of each timestep's first token, and N."""

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"TokenSequence({len(self)} tokens, {self.num_timesteps} timesteps, {len(self.patches)} patches, "
            f"{int(self.loss_mask.sum())} targets)"
        )

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.timestep_starts) - 1

    def timesteps(self, first: int, last: int, patch_id: int) -> "TokenSequence":
        """Return timesteps [first, last); `patch_id` tells which tokens are patches."""
        a, b = int(self.timestep_starts[first]), int(self.timestep_starts[last])
        p = self._num_patches(0, a, patch_id)
        q = p + self._num_patches(a, b, patch_id)
        return TokenSequence(
            ids=self.ids[a:b],
            loss_mask=self.loss_mask[a:b],
            local_positions=self.local_positions[a:b],
            patches=self.patches[p:q],
            patch_intervals=self.patch_intervals[p:q],
            timestep_starts=self.timestep_starts[first : last + 1] - a,
        )

    def head(self, num_tokens: int, patch_id: int) -> "TokenSequence":
        """Return the first `num_tokens` tokens; the last timestep may be cut."""
        p = self._num_patches(0, num_tokens, patch_id)
        starts = self.timestep_starts[: np.searchsorted(self.timestep_starts, num_tokens)]
        return TokenSequence(
            ids=self.ids[:num_tokens],
            loss_mask=self.loss_mask[:num_tokens],
            local_positions=self.local_positions[:num_tokens],
            patches=self.patches[:p],
            patch_intervals=self.patch_intervals[:p],
            timestep_starts=np.append(starts, min(num_tokens, len(self))),
        )

    def _num_patches(self, a: int, b: int, patch_id: int) -> int:
        """How many of the tokens [a, b) are patches."""
        return int(np.count_nonzero(self.ids[a:b] == patch_id)) if len(self.patches) else 0


def concatenate(sequences: Sequence[TokenSequence]) -> TokenSequence:
    """Join sequences end to end, for example a prompt and a window; of one alone nothing is copied."""
    if len(sequences) == 1:
        return sequences[0]
    starts, offset = [np.zeros(1, np.int64)], 0
    for sequence in sequences:
        starts.append(sequence.timestep_starts[1:] + offset)
        offset += len(sequence)
    return TokenSequence(
        ids=np.concatenate([s.ids for s in sequences]),
        loss_mask=np.concatenate([s.loss_mask for s in sequences]),
        local_positions=np.concatenate([s.local_positions for s in sequences]),
        patches=_stacked([s.patches for s in sequences]),
        patch_intervals=_stacked([s.patch_intervals for s in sequences]),
        timestep_starts=np.concatenate(starts),
    )


def _stacked(arrays: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Arrays end to end; pixels are not copied where only one holds any."""
    filled = [array for array in arrays if len(array)]
    return filled[0] if len(filled) == 1 else np.concatenate(arrays)


def observations_predicted(sequence: TokenSequence, vocabulary: Vocabulary) -> TokenSequence:
    """The sequence with the values and texts of its observations as targets too; patches have no ids to predict."""
    observed = sequence.local_positions < NUM_LOCAL_POSITIONS
    mute = (sequence.ids == vocabulary.patch) | (sequence.ids == vocabulary.separator)
    return replace(sequence, loss_mask=sequence.loss_mask | (observed & ~mute))
