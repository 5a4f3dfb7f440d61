"""Steps N sessions of any tasks as one batch, with a key-value cache.

The window of a session is its prompt, whole past timesteps and the present one. When it would exceed the context,
the oldest half of the timesteps leaves it and the rest is fed anew: evicting from the cache instead is exact for
one layer only, since deeper keys have already looked at what was evicted.
"""

from collections.abc import Mapping, Sequence
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
    layout: Layout
    """Of the task that is played."""
    prompt: TokenSequence | None = None
    timesteps: list[TokenSequence] = field(default_factory=list)
    pending: list[TokenSequence] = field(default_factory=list)
    """Tokens of the window that are not in the cache yet."""
    cached: int = 0
    """Positions of the window that are."""
    used: int = 0
    """Positions of the window with the present timestep and its action."""
    present: TokenSequence | None = None
    """The observation that waits for an action."""

    def window(self) -> list[TokenSequence]:
        """Prompt and timesteps, in order."""
        return [*([self.prompt] if self.prompt is not None else []), *self.timesteps]


class Actor:
    """N sessions, each of a task of its own."""

    def __init__(self, model: GatitoForCausalLM, num_sessions: int = 1, *, temperature: float = TEMPERATURE) -> None:
        """Actions are sampled at `temperature`, 0 takes the likeliest; of legal ids only."""
        if not temperature >= 0:
            raise UserError(f"temperature is {temperature}, allowed 0 (greedy) and more")
        self.model, self.temperature = model.eval(), temperature
        self.context, self.trunk = int(model.config.context), model.config.trunk
        parameter = next(model.parameters())
        self.device = parameter.device
        # A call may be padded to the widest of its rows, at most a whole window.
        self.cache = SessionCache(model.config, num_sessions, 2 * self.context, self.device, parameter.dtype)
        self.num_sessions = num_sessions
        self.sessions: dict[int, _Session] = {}
        """Those that were reset, by number."""
        self.num_clipped = 0
        """Observed values that the bins clipped, over all sessions."""

    def reset(self, session: int, layout: Layout, prompt: TokenSequence | None = None, seed: int = 0) -> None:
        """Begin an episode of the task of `layout`: empty the context but for a prompt of whole timesteps.

        Raises `UserError` where the prompt exceeds half the context.
        """
        if not 0 <= session < self.num_sessions:
            raise UserError(f"session {session}, allowed 0 to {self.num_sessions - 1}")
        self.trunk.check_action(layout.num_action_tokens, "this layout")
        used = 0 if prompt is None else self.trunk.length(prompt)
        if used > prompt_budget(self.context):
            raise UserError(f"a prompt of {used} positions, allowed {prompt_budget(self.context)}: half the context")
        pending = [] if prompt is None else [prompt]
        self.sessions[session] = _Session(
            rng=np.random.default_rng(seed), layout=layout, prompt=prompt, pending=pending, used=used
        )

    def go_on(self, session: int, seed: int) -> None:
        """Begin another episode of the same task within the same context."""
        self.sessions[session].rng = np.random.default_rng(seed)

    def observe(self, session: int, observation: Any, where: str = "observation") -> None:
        """Take in what a session sees next; `decide` acts on it.

        Raises `UserError`, and leaves the session as it was, for an observation that is not of the task's space or
        does not fit the context; `where` names it.
        """
        own = self.sessions[session]
        assert own.present is None, "a session observes once before it acts"
        tokens = own.layout.observation_tokens(observation, where)
        self._admit(own, tokens)
        own.present = tokens
        self.num_clipped += own.layout.num_clipped(own.layout.with_time_axis(observation))

    @torch.inference_mode()
    def decide(self) -> dict[int, Any]:
        """Act in every session that has observed: session to action."""
        active = [s for s in sorted(self.sessions) if self.sessions[s].present is not None]
        if not active:
            return {}
        state = self._feed(active)  # (R, D)
        chosen = self._decode(state, active) if self.model.model.action_decoder else self._predict(state, active)
        actions = {}
        for s, ids in chosen.items():
            own = self.sessions[s]
            assert own.present is not None
            own.timesteps.append(_timestep(own.present, own.layout.action_tokens(ids)))
            own.present = None
            actions[s] = own.layout.action_from_tokens(ids)
        return actions

    def act(self, observations: Mapping[int, Any]) -> dict[int, Any]:
        """Observe and act in the given sessions: session to observation, session to action."""
        for session, observation in observations.items():
            self.observe(session, observation, f"session {session}")
        return self.decide()

    def _predict(self, state: Tensor, active: Sequence[int]) -> dict[int, list[int]]:
        """Ids of actions whose tokens have positions in the trunk: each is fed before the next is chosen."""
        chosen: dict[int, list[int]] = {s: [] for s in active}
        rows = list(active)
        while True:
            for s, i in zip(rows, self._choose(state, rows, [len(chosen[s]) for s in rows]), strict=True):
                chosen[s].append(i)
                self.sessions[s].pending.append(self.sessions[s].layout.action_tokens([i]))
            rows = [s for s in rows if len(chosen[s]) < self.sessions[s].layout.num_action_tokens]
            if not rows:
                return chosen
            state = self._feed(rows)

    def _decode(self, state: Tensor, active: Sequence[int]) -> dict[int, list[int]]:
        """Ids of actions that a decoder predicts; the whole action waits for the next observation."""
        decoder = self.model.model.action_decoder
        assert decoder is not None
        lengths = [self.sessions[s].layout.num_action_tokens for s in active]
        cache, previous = DynamicCache(), None
        chosen: dict[int, list[int]] = {s: [] for s in active}
        for j in range(max(lengths)):
            predicting = decoder.step(state, previous, cache)
            going = [r for r, n in enumerate(lengths) if j < n]
            rows = [active[r] for r in going]
            ids = torch.zeros(len(active), dtype=torch.int64)  # those of finished actions are not looked at
            for r, i in zip(going, self._choose(predicting[going], rows, [j] * len(rows)), strict=True):
                chosen[active[r]].append(i)
                ids[r] = i
            previous = self.model.model.embedding.tokens(ids.to(self.device))
        for s, row in chosen.items():
            self.sessions[s].pending.append(self.sessions[s].layout.action_tokens(row))
        return chosen

    def _admit(self, session: _Session, observation: TokenSequence) -> None:
        """Put an observation into the window, making room for it and its action."""
        any_action = session.layout.action_tokens([start for start, _ in session.layout.legal_ids])
        needed = self.trunk.length(_timestep(observation, any_action))
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

    def _choose(self, state: Tensor, rows: Sequence[int], places: Sequence[int]) -> list[int]:
        """The id of each session's action token number `place`, given the states (R, D) that predict it."""
        spans = [self.sessions[s].layout.legal_ids[j] for s, j in zip(rows, places, strict=True)]
        ids = [0] * len(rows)
        for span in sorted(set(spans)):
            members = [r for r, own in enumerate(spans) if own == span]
            picked = self._pick(self.model.logits_over(state[members], *span), [rows[r] for r in members])
            for r, i in zip(members, picked.tolist(), strict=True):
                ids[r] = span[0] + i
        return ids

    def _pick(self, logits: Tensor, rows: Sequence[int]) -> np.ndarray:
        """Index (R,) into the legal ids, greedy or sampled with each session's own generator."""
        if self.temperature == 0.0:
            return logits.argmax(-1).cpu().numpy()
        cumulative = torch.softmax(logits.float().cpu().double() / self.temperature, -1).cumsum(-1).numpy()
        draws = np.array([self.sessions[s].rng.random() for s in rows])
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
