"""What a session sees, within the model's context: its prompt, whole past timesteps and the present one.

When the window is full (p is a timestep of the prompt, digits are timesteps of the episode)

    p p p | 1 2 3 4 5 6 7 8         the oldest half leaves, but not the prompt, which is pinned
    p p p | 5 6 7 8 9

    p p p 1 2 3 4 5 6 7 8           or with it, where the prompt slides: the paper's behaviour
    4 5 6 7 8 9

and what stays is either fed anew, or keeps the keys and values that it has: see `Memory`.
"""

from dataclasses import dataclass, field
from typing import Literal

from gatito.errors import UserError
from gatito.tokenizers import TokenSequence
from gatito.tokenizers.trunk import Trunk

Memory = Literal["refill", "xl"]
"""What becomes of the timesteps that stay when others leave a full window.

`refill`  their keys and values are computed anew: the model sees its window and nothing else, as in training.
`xl`      they keep those they have, which above the first layer were computed from what has left by now, so that
          each layer reaches one more window back, as in Transformer-XL (Dai et al. 2019). Cheaper: nothing is fed
          twice. But it is not what the model was trained on, and not equal to the model without a cache. (Where
          actions are decoded, the oldest observation's position also keeps the action before it.)
"""


@dataclass(kw_only=True)
class Window:
    """The context of one session."""

    trunk: Trunk
    """Which tokens have positions."""
    context: int
    """Positions of the model's window."""
    pinned: TokenSequence | None = None
    """The prompt, where it stays as long as the session."""
    timesteps: list[TokenSequence] = field(default_factory=list)
    """Whole timesteps, those of a sliding prompt first."""
    pending: list[TokenSequence] = field(default_factory=list)
    """Tokens that are not in the cache yet."""
    cached: int = 0
    """Positions that are."""
    used: int = 0
    """Positions in all, with the present timestep and its action."""

    @classmethod
    def of(cls, prompt: TokenSequence | None, trunk: Trunk, context: int, slides: bool) -> "Window":
        """A window of a prompt of whole timesteps, or of nothing."""
        window = cls(trunk=trunk, context=context)
        if prompt is None:
            return window
        if slides:
            patch = trunk.vocabulary.patch
            window.timesteps = [prompt.timesteps(t, t + 1, patch) for t in range(prompt.num_timesteps)]
        else:
            window.pinned = prompt
        window._begin_anew()
        return window

    def sequences(self) -> list[TokenSequence]:
        """The pinned prompt and the timesteps, in order."""
        return [*self._prompt(), *self.timesteps]

    def num_leaving(self, needed: int) -> int:
        """How many timesteps leave to make room for `needed` positions: the older half, halved again until it fits.

        Raises `UserError` where it never does.
        """
        kept, used = len(self.timesteps), self.used
        while kept and used + needed > self.context:
            kept //= 2
            used = self._length(self._prompt()) + self._length(self.timesteps[len(self.timesteps) - kept :])
        if used + needed > self.context:
            raise UserError(
                f"one timestep of {needed} positions and a prompt of {used} exceed the context of {self.context}; "
                "shorten the observation's text or use a checkpoint with a longer context"
            )
        return len(self.timesteps) - kept

    def forget(self, count: int) -> None:
        """Let the oldest timesteps leave; what stays is fed anew."""
        if count:
            del self.timesteps[:count]
            self._begin_anew()

    def slide(self, count: int) -> tuple[int, int]:
        """Let the oldest timesteps leave; what stays keeps its keys and values.

        Returns where in the cache they stood, for it to close the gap: [first, last) positions.
        """
        if not self.cached:
            self.forget(count)
            return 0, 0
        first, gone = self._length(self._prompt()), self._length(self.timesteps[:count])
        del self.timesteps[:count]
        self.used -= gone
        if not self.timesteps:  # the last action, which was still to be fed, has left too
            self.cached, self.pending = first, []
            return first, first
        self.cached -= gone
        return first, first + gone

    def admit(self, observation: TokenSequence, needed: int) -> None:
        """Take in an observation that needs so many positions with its action."""
        self.used += needed
        self.pending.append(observation)

    def fed(self, count: int) -> None:
        """What was pending is in the cache now, at `count` positions."""
        self.cached += count
        self.pending = []

    def act_instead(self, timestep: TokenSequence, action: TokenSequence) -> None:
        """The last timestep ends with another action of the same length: what was fed of the other is fed anew."""
        self.timesteps[-1] = timestep
        self.cached -= self.trunk.length(action) - self._length(self.pending)
        self.pending = [action]

    def _begin_anew(self) -> None:
        self.pending, self.cached = self.sequences(), 0
        self.used = self._length(self.pending)

    def _prompt(self) -> list[TokenSequence]:
        return [] if self.pinned is None else [self.pinned]

    def _length(self, sequences: list[TokenSequence]) -> int:
        return sum(map(self.trunk.length, sequences))
