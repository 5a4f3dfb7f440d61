"""Which positions the trunk sees, said here and nowhere else: sampler, packing and acting all ask `Trunk`.

The paper's trunk has a position for every token. What is never predicted need not have one:

    tokens           o o o o o | a a      o o o | a a      t t t
    flat             0 1 2 3 4 5 6 7      8 ...
    latents=2        0 1         2 3      4 5     6 7      8 9 10       an observation is read into two latents
    ... and decoded  0 1                  2 3              4 5 6        its actions by a decoder of their own

It follows from the local positions, which tell an observation's tokens (0, 1, 2, ... anew in every timestep) from
actions and text. The loss mask alone could not tell: an exploratory action is no target, but it was taken.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.errors import UserError
from gatito.tokenizers.sequence import TokenSequence
from gatito.tokenizers.vocabulary import ACTION_POSITION, NUM_LOCAL_POSITIONS, Vocabulary

MAX_LATENTS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Roles:
    """What becomes of each of N tokens."""

    costs: NDArray[np.int64]
    """(N,) positions that it adds; the latents of an observation count at its first token."""
    resampled: NDArray[np.bool_]
    """(N,) whether it is read into latents."""
    decoded: NDArray[np.bool_]
    """(N,) whether it is an action's that a decoder predicts."""


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """How observations and actions meet the trunk."""

    vocabulary: Vocabulary
    """Id ranges."""
    latents: int = 0
    """Positions of an observation, whatever it consists of; 0 gives each of its tokens one, as in the paper."""
    resample_images: bool = False
    """Whether images outside of timesteps (of captions) are read into latents too; else each patch has a position."""
    decoded_actions: bool = False
    """Whether actions take no position: a decoder predicts them, and the next observation's position holds them."""

    def __post_init__(self) -> None:
        if not 0 <= self.latents <= MAX_LATENTS:
            raise UserError(f"latents is {self.latents}, allowed 0 (each token has a position) to {MAX_LATENTS}")
        if self.resample_images and not self.latents:
            raise UserError("resample_images needs latents of at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return the fields but the vocabulary as JSON values."""
        names = ("latents", "resample_images", "decoded_actions")
        return {name: getattr(self, name) for name in names}

    @property
    def is_flat(self) -> bool:
        """Whether every token has a position."""
        return not self.latents and not self.decoded_actions

    def check_action(self, num_tokens: int, what: str) -> None:
        """Raise `UserError` where the decoder has no places for all tokens of an action."""
        if self.decoded_actions and num_tokens > NUM_LOCAL_POSITIONS:
            raise UserError(
                f"{what}: an action of {num_tokens} tokens, the action decoder allows {NUM_LOCAL_POSITIONS}; train "
                "with --model.action_layers 0"
            )

    def roles(self, ids: NDArray[np.integer], local_positions: NDArray[np.integer]) -> Roles:
        """What becomes of each of N tokens."""
        local = np.asarray(local_positions)
        resampled = self._resampled(np.asarray(ids), local) if self.latents else np.zeros(len(ids), np.bool_)
        decoded = (local == ACTION_POSITION) & self.decoded_actions
        costs = (~(resampled | decoded)).astype(np.int64)
        costs[resampled & (local == 0)] = self.latents
        return Roles(costs=costs, resampled=resampled, decoded=decoded)

    def _resampled(self, ids: NDArray[np.integer], local: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Tokens (N,) of observations, and of images where asked for."""
        observed = local < NUM_LOCAL_POSITIONS
        # An observation ends with the separator, an image with a patch.
        num_images = np.count_nonzero(local == 0) - np.count_nonzero(ids == self.vocabulary.separator)
        if self.resample_images or not num_images:
            return observed
        firsts = np.flatnonzero(local == 0)
        lasts = np.flatnonzero(observed & ~np.append(observed[1:] & (local[1:] > 0), False))
        images = ids[lasts] != self.vocabulary.separator
        for first, last in zip(firsts[images], lasts[images], strict=True):
            observed[first : last + 1] = False
        return observed

    def costs(self, ids: NDArray[np.integer], local_positions: NDArray[np.integer]) -> NDArray[np.int64]:
        """Positions (N,) that each token adds."""
        return self.roles(ids, local_positions).costs

    def length(self, sequence: TokenSequence) -> int:
        """Positions of a sequence."""
        return len(sequence) if self.is_flat else int(self.costs(sequence.ids, sequence.local_positions).sum())

    def starts(
        self, ids: NDArray[np.integer], local_positions: NDArray[np.integer], offsets: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Positions (T + 1,) at which tokens begin that stand at `offsets` (T + 1,), the last of them the end."""
        if self.is_flat:
            return offsets
        starts: NDArray[np.int64] = np.append(0, np.cumsum(self.costs(ids, local_positions)))[offsets]
        return starts

    def timestep_starts(self, sequence: TokenSequence) -> NDArray[np.int64]:
        """Position (T + 1,) at which each timestep begins, and the length."""
        return self.starts(sequence.ids, sequence.local_positions, sequence.timestep_starts)

    def head(self, sequence: TokenSequence, room: int) -> TokenSequence:
        """As many leading tokens as fit `room` positions; an observation that is resampled is never cut."""
        if self.is_flat:
            count = min(room, len(sequence))
        else:
            roles = self.roles(sequence.ids, sequence.local_positions)
            count = int(np.searchsorted(np.cumsum(roles.costs), room, side="right"))
            if 0 < count < len(sequence) and roles.resampled[count - 1]:
                # Its action does not fit: nothing would be predicted from it.
                count = int(np.flatnonzero(sequence.local_positions[:count] == 0)[-1])
        return sequence if count == len(sequence) else sequence.head(count, self.vocabulary.patch)
