"""Steps N sessions of one task as one batch, with a key-value cache.

The window of a session is its prompt, whole past timesteps and the present one. When it would exceed the context,
the oldest half of the timesteps leaves it and the rest is fed anew: evicting from the cache instead is exact for
one layer only, since deeper keys have already looked at what was evicted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gatito.data.packing import pack
from gatito.data.sampler import prompt_budget
from gatito.errors import UserError
from gatito.eval import TEMPERATURE
from gatito.model import GatitoForCausalLM
from gatito.model.cache import SessionCache
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.sequence import concatenate


@dataclass(kw_only=True)
class _Session:
    """One environment's context."""

    rng: np.random.Generator
    prompt: TokenSequence | None = None
    timesteps: list[TokenSequence] = field(default_factory=list)
    pending: list[TokenSequence] = field(default_factory=list)
    """Tokens of the window that are not in the cache yet."""
    cached: int = 0
    """Positions of the window that are."""
    used: int = 0
    """Positions of the window with the present timestep and its action."""

    def window(self) -> list[TokenSequence]:
        """Prompt and timesteps, in order."""
        return [*([self.prompt] if self.prompt is not None else []), *self.timesteps]


class Actor:
    """N sessions of one task."""

    def __init__(
        self, model: GatitoForCausalLM, layout: Layout, num_sessions: int = 1, *, temperature: float = TEMPERATURE
    ) -> None:
        """Actions are sampled at `temperature`, 0 takes the likeliest; of legal ids only."""
        if not temperature >= 0:
            raise UserError(f"temperature is {temperature}, allowed 0 (greedy) and more")
        self.model, self.layout, self.temperature = model.eval(), layout, temperature
        self.context, self.trunk = int(model.config.context), model.config.trunk
        parameter = next(model.parameters())
        self.device = parameter.device
        # A call may be padded to the widest of its rows, at most a whole window.
        self.cache = SessionCache(model.config, num_sessions, 2 * self.context, self.device, parameter.dtype)
        self.sessions = [_Session(rng=np.random.default_rng(s)) for s in range(num_sessions)]
        self.trunk.check_action(layout.num_action_tokens, "this layout")
        self._any_action = layout.action_tokens([start for start, _ in layout.legal_ids])
        self.num_clipped = 0
        """Observed values that the bins clipped, over all sessions."""

    def reset(self, session: int, prompt: TokenSequence | None = None, seed: int = 0) -> None:
        """Begin an episode: empty the session's context but for a prompt of whole timesteps.

        Raises `UserError` where the prompt exceeds half the context.
        """
        used = 0 if prompt is None else self.trunk.length(prompt)
        if used > prompt_budget(self.context):
            raise UserError(f"a prompt of {used} positions, allowed {prompt_budget(self.context)}: half the context")
        pending = [] if prompt is None else [prompt]
        self.sessions[session] = _Session(rng=np.random.default_rng(seed), prompt=prompt, pending=pending, used=used)

    @torch.inference_mode()
    def act(
        self, observations: Mapping[int, Any], where: Callable[[int], str] = "session {}".format
    ) -> dict[int, Any]:
        """Observe and act in the given sessions: session to observation, session to action.

        `where` names a session in the `UserError` for an observation that is not of the task's space.
        """
        active = sorted(observations)
        seen = {s: self.layout.observation_tokens(observations[s], where(s)) for s in active}
        for s in active:
            self.num_clipped += self.layout.num_clipped(self.layout.with_time_axis(observations[s]))
            self._admit(self.sessions[s], seen[s])
        state = self._feed(active)  # (R, D)
        rows = self._decode(state, active) if self.model.model.action_decoder else self._predict(state, active)
        for s, ids in zip(active, rows, strict=True):
            self.sessions[s].timesteps.append(_timestep(seen[s], self.layout.action_tokens(ids)))
        return {s: self.layout.action_from_tokens(ids) for s, ids in zip(active, rows, strict=True)}

    def _predict(self, state: Tensor, active: Sequence[int]) -> np.ndarray:
        """Ids (R, A) of actions whose tokens have positions in the trunk: each is fed before the next is chosen."""
        chosen: list[np.ndarray] = []
        for j, (start, stop) in enumerate(self.layout.legal_ids):
            ids = self._choose(self.model.logits_over(state, start, stop), active) + start
            chosen.append(ids)
            for s, i in zip(active, ids, strict=True):
                self.sessions[s].pending.append(self.layout.action_tokens([int(i)]))
            if j + 1 < len(self.layout.legal_ids):
                state = self._feed(active)
        return np.stack(chosen, axis=1)

    def _decode(self, state: Tensor, active: Sequence[int]) -> np.ndarray:
        """Ids (R, A) of actions that a decoder predicts; the whole action waits for the next observation."""
        decoder = self.model.model.action_decoder
        assert decoder is not None
        cache, previous, chosen = DynamicCache(), None, []
        for start, stop in self.layout.legal_ids:
            predicting = decoder.step(state, previous, cache)
            ids = self._choose(self.model.logits_over(predicting, start, stop), active) + start
            chosen.append(ids)
            previous = self.model.model.embedding.tokens(torch.from_numpy(ids).to(self.device))
        rows = np.stack(chosen, axis=1)
        for s, ids in zip(active, rows, strict=True):
            self.sessions[s].pending.append(self.layout.action_tokens(ids))
        return rows

    def _admit(self, session: _Session, observation: TokenSequence) -> None:
        """Put an observation into the window, making room for it and its action."""
        needed = self.trunk.length(_timestep(observation, self._any_action))
        kept, used = session.timesteps, session.used
        prompt = 0 if session.prompt is None else self.trunk.length(session.prompt)
        while kept and used + needed > self.context:
            kept = kept[len(kept) - len(kept) // 2 :]
            used = prompt + sum(map(self.trunk.length, kept))
        if used + needed > self.context:
            raise UserError(
                f"one timestep of {needed} positions and a prompt of {prompt} exceed the context of {self.context}; "
                "shorten the observation's text or use a checkpoint with a longer context"
            )
        if len(kept) < len(session.timesteps):
            session.timesteps, session.cached = list(kept), 0
            session.pending = session.window()
        session.used = used + needed
        session.pending.append(observation)

    def _feed(self, active: Sequence[int]) -> Tensor:
        """Feed what is pending and return the hidden state (R, D) of each session's last token."""
        hidden = torch.empty((len(active), self.model.config.hidden_size), device=self.device, dtype=self.model.dtype)
        refilled = [r for r, s in enumerate(active) if self.sessions[s].cached == 0]
        others = [r for r, s in enumerate(active) if self.sessions[s].cached > 0]
        for rows in (refilled, others):
            if rows:
                hidden[rows] = self._feed_rows([active[r] for r in rows]).to(hidden.dtype)
        return hidden

    def _feed_rows(self, active: Sequence[int]) -> Tensor:
        sessions = [self.sessions[s] for s in active]
        new = [concatenate(session.pending) for session in sessions]
        batch = pack([[sequence] for sequence in new], self.trunk).to(self.device)
        lengths = (batch.segments > 0).sum(-1)
        cached = torch.tensor([session.cached for session in sessions], device=self.device)
        positions = cached[:, None] + torch.arange(batch.input_ids.shape[1], device=self.device)
        hidden = self.model.step(batch, positions, torch.tensor(active, device=self.device), self.cache)
        for session, length in zip(sessions, lengths.tolist(), strict=True):
            session.cached += length
            session.pending = []
        return hidden[torch.arange(len(active), device=self.device), lengths - 1]

    def _choose(self, logits: Tensor, active: Sequence[int]) -> np.ndarray:
        """Index (R,) into the legal ids, greedy or sampled with each session's own generator."""
        if self.temperature == 0.0:
            return logits.argmax(-1).cpu().numpy()
        cumulative = torch.softmax(logits.float().cpu().double() / self.temperature, -1).cumsum(-1).numpy()
        draws = np.array([self.sessions[s].rng.random() for s in active])
        return np.minimum((cumulative < draws[:, None]).sum(-1), logits.shape[-1] - 1)


def _timestep(observation: TokenSequence, action: TokenSequence) -> TokenSequence:
    """Join an observation and its action into one whole timestep."""
    joined = concatenate([observation, action])
    return TokenSequence(
        ids=joined.ids,
        loss_mask=joined.loss_mask,
        local_positions=joined.local_positions,
        patches=joined.patches,
        patch_intervals=joined.patch_intervals,
        timestep_starts=np.array([0, len(joined)], np.int64),
    )
