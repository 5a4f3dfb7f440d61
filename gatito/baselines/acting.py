"""Sessions of a policy that acts by what it sees at present, for `rollouts`."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gatito.errors import UserError
from gatito.tokenizers import Layout, TokenSequence


class Memoryless(Protocol):
    """Acts by the present observation alone, on one task."""

    @property
    def layout(self) -> Layout:
        """Of the task."""
        ...

    def act(self, observations: Sequence[Any], rngs: Sequence[np.random.Generator]) -> list[Any]:
        """The action for each observation, which has a time axis of one; what is drawn, by its generator."""
        ...


class MemorylessActor:
    """N sessions of one policy."""

    num_clipped = 0
    """Observations are taken as they are: none of their values is clipped to its bounds."""

    def __init__(self, policy: Memoryless, num_sessions: int) -> None:
        self.policy, self.num_sessions = policy, num_sessions
        self._rngs: dict[int, np.random.Generator] = {}
        self._present: dict[int, Any] = {}
        """Observations that wait for an action, by session."""

    def reset(self, session: int, layout: Layout, prompt: TokenSequence | None = None, seed: int = 0) -> None:
        """Begin an episode; raises `UserError` for a prompt, which would be ignored, and for another layout."""
        if prompt is not None:
            raise UserError("a baseline acts by the present observation alone; evaluate it with --prompt none")
        if layout.sha256 != self.policy.layout.sha256:
            raise UserError(
                f"layout {layout.sha256[:12]} is not {self.policy.layout.sha256[:12]} of the demonstrations; play "
                "the task that was demonstrated"
            )
        self._rngs[session] = np.random.default_rng(seed)
        self._present.pop(session, None)

    def go_on(self, session: int, seed: int) -> None:
        """Begin another episode: nothing was kept of the one before."""
        self._rngs[session] = np.random.default_rng(seed)

    def observe(self, session: int, observation: Any, where: str = "observation") -> None:
        """Take in what a session sees; raises `UserError` for values that are not of the task's space."""
        self.policy.layout.observation_tokens(observation, where)  # raises
        self._present[session] = self.policy.layout.with_time_axis(observation, where)

    def decide(self) -> dict[int, Any]:
        """Act in every session that has observed: session to action."""
        sessions = sorted(self._present)
        if not sessions:
            return {}
        actions = self.policy.act([self._present[s] for s in sessions], [self._rngs[s] for s in sessions])
        self._present.clear()
        return dict(zip(sessions, actions, strict=True))
