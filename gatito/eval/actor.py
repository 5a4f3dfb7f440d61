"""Steps N sessions of any tasks as one batch, with a key-value cache.

When the window of a session is full, see `window`, the oldest half of its timesteps leaves it and the rest is fed
anew: evicting from the cache instead is exact for one layer only, since deeper keys have already looked at what was
evicted. Who wants that nevertheless asks for `memory="xl"`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gatito.data.packing import pack
from gatito.data.sampler import prompt_budget
from gatito.errors import UserError
from gatito.eval.decoding import Decoding
from gatito.eval.window import Memory, Window
from gatito.model import GatitoForCausalLM
from gatito.model.cache import SessionCache
from gatito.model.compiled import WIDEST, CompiledTrunk, padded_width
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.sequence import concatenate

SAMPLED = Decoding()


@dataclass(kw_only=True)
class Session:
    """One environment."""

    rng: np.random.Generator
    """Of the sampled actions."""
    layout: Layout
    """Of the task that is played."""
    window: Window
    """What the model sees."""
    action_length: int
    """Positions of an action."""
    present: TokenSequence | None = None
    """The observation that waits for an action."""


class Actor:
    """N sessions, each of a task of its own."""

    def __init__(
        self,
        model: GatitoForCausalLM,
        num_sessions: int = 1,
        *,
        decoding: Decoding = SAMPLED,
        memory: Memory = "refill",
        prompt_slides: bool = False,
        cache_dtype: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        """Actions are decoded from legal ids only. `memory` says what becomes of the keys and values in a window that
        was full, `prompt_slides` whether prompts leave it like other timesteps, as in the paper, instead of staying.

        Keys and values are kept in `cache_dtype`, by default as the model's: bfloat16 halves what each token reads of
        a long context, and rounds it to 8 bits. `compiled` is for GPUs: the trunk runs through torch's compiler,
        always for all sessions.
        """
        if memory not in get_args(Memory):
            raise UserError(f"--memory is {memory!r}, allowed {' or '.join(get_args(Memory))}")
        self.model, self.decoding = model.eval(), decoding
        self.memory, self.prompt_slides, self.num_sessions = memory, prompt_slides, num_sessions
        self.context, self.trunk = int(model.config.context), model.config.trunk
        parameter = next(model.parameters())
        self.device = parameter.device
        # A call may be padded to the widest of its rows, at most a whole window.
        capacity = self.context + max(self.context, WIDEST)
        self.cache = SessionCache(model.config, num_sessions, capacity, self.device, cache_dtype or parameter.dtype)
        self.compiled = CompiledTrunk(model.model, self.cache) if compiled else None
        self.sessions: dict[int, Session] = {}
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
        window = Window.of(prompt, self.trunk, self.context, self.prompt_slides)
        if window.used > prompt_budget(self.context):
            raise UserError(
                f"a prompt of {window.used} positions, allowed {prompt_budget(self.context)}: half the context"
            )
        self.sessions[session] = Session(
            rng=np.random.default_rng(seed),
            layout=layout,
            window=window,
            action_length=self.trunk.length(layout.action_tokens([start for start, _ in layout.legal_ids])),
        )

    def go_on(self, session: int, seed: int) -> None:
        """Begin another episode of the same task within the same context."""
        self._session(session).rng = np.random.default_rng(seed)

    def leave(self, session: int) -> None:
        """Forget a session: nothing of it is kept, and it plays no task until it is reset."""
        self.sessions.pop(session, None)

    def correct(self, session: int, action: Any) -> None:
        """Say that another action was executed than the one that was decided last; the context holds this one.

        Raises `UserError` where nothing has been decided, and for an action that is not of the task's space.
        """
        own = self.decided(session)
        tokens = own.layout.action_tokens(own.layout.ids_of_action(action, f"session {session}"))
        last = own.window.timesteps[-1]
        observed = last.head(len(last) - len(tokens), self.trunk.vocabulary.patch)
        own.window.act_instead(_timestep(observed, tokens), tokens)

    def decided(self, session: int) -> Session:
        """A session whose window ends with an action that it decided; raises `UserError` where it does not."""
        own = self._session(session)
        if own.present is not None or not own.window.timesteps:
            raise UserError(f"session {session} has decided nothing yet; let it act first")
        return own

    def observe(self, session: int, observation: Any, where: str = "observation") -> None:
        """Take in what a session sees next; `decide` acts on it.

        Raises `UserError`, and leaves the session as it was, for an observation that is not of the task's space or
        does not fit the context; `where` names it.
        """
        self._take_in(session, observation, self._tokens(session, observation, where))

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
            own.window.timesteps.append(_timestep(own.present, own.layout.action_tokens(ids)))
            own.present = None
            actions[s] = own.layout.action_from_tokens(ids)
        return actions

    def act(self, observations: Mapping[int, Any]) -> dict[int, Any]:
        """Observe and act in the given sessions: session to observation, session to action.

        Raises `UserError`, and leaves all sessions as they were, where one cannot take in its observation.
        """
        tokens = {s: self._tokens(s, observation, f"session {s}") for s, observation in observations.items()}
        for session, observation in observations.items():
            self._take_in(session, observation, tokens[session])
        return self.decide()

    def _session(self, session: int) -> Session:
        if session not in self.sessions:
            raise UserError(f"session {session} plays no task yet: reset it for one first")
        return self.sessions[session]

    def _tokens(self, session: int, observation: Any, where: str) -> TokenSequence:
        """The observation's tokens, checked to be what the session can take in."""
        own = self._session(session)
        if own.present is not None:
            raise UserError(f"{where}: session {session} has observed already; let it decide first")
        tokens = own.layout.observation_tokens(observation, where)
        own.window.num_leaving(self._needed(own, tokens))
        return tokens

    def _needed(self, session: Session, observation: TokenSequence) -> int:
        """Positions of a timestep."""
        return self.trunk.length(observation) + session.action_length

    def _take_in(self, session: int, observation: Any, tokens: TokenSequence) -> None:
        """Put an observation into the window, making room for it and its action."""
        own = self.sessions[session]
        window, needed = own.window, self._needed(own, tokens)
        leaving = window.num_leaving(needed)
        if leaving and self.memory == "xl":
            before = window.cached
            first, last = window.slide(leaving)
            self.cache.close_gap(session, first, last, before)
        else:
            window.forget(leaving)
        window.admit(tokens, needed)
        own.present = tokens
        self.num_clipped += own.layout.num_clipped(own.layout.with_time_axis(observation))

    def _predict(self, state: Tensor, active: Sequence[int]) -> dict[int, list[int]]:
        """Ids of actions whose tokens have positions in the trunk: each is fed before the next is chosen."""
        chosen: dict[int, list[int]] = {s: [] for s in active}
        rows = list(active)
        while True:
            for s, i in zip(rows, self._choose(state, rows, [len(chosen[s]) for s in rows]), strict=True):
                chosen[s].append(i)
                self.sessions[s].window.pending.append(self.sessions[s].layout.action_tokens([i]))
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
            self.sessions[s].window.pending.append(self.sessions[s].layout.action_tokens(row))
        return chosen

    def _feed(self, active: Sequence[int]) -> Tensor:
        """Feed what is pending and return the hidden state (R, D) of each session's last token."""
        hidden = torch.empty((len(active), self.model.config.hidden_size), device=self.device, dtype=self.model.dtype)
        refilled = [r for r, s in enumerate(active) if self.sessions[s].window.cached == 0]
        others = [r for r, s in enumerate(active) if self.sessions[s].window.cached > 0]
        for rows in (refilled, others):
            if rows:
                hidden[rows] = self._feed_rows([active[r] for r in rows]).to(hidden.dtype)
        return hidden

    def _feed_rows(self, active: list[int]) -> Tensor:
        """The same in one call, padded to the longest."""
        new = {s: concatenate(self.sessions[s].window.pending) for s in active}
        lengths = {s: self.trunk.length(sequence) for s, sequence in new.items()}
        width = max(lengths.values())
        static = self.compiled is not None and width <= WIDEST
        rows = list(range(self.num_sessions)) if static else active  # those that wait are padding
        length = padded_width(width) if static else width
        batch = pack([[new[s]] if s in new else [] for s in rows], self.trunk, length=length).to(self.device)
        cached = [self.sessions[s].window.cached if s in self.sessions else 0 for s in rows]
        offsets = torch.arange(length, device=self.device)
        positions = torch.tensor(cached, device=self.device)[:, None] + offsets  # (R, length)
        x = self.model.embed_batch(batch)  # (R, length, D)
        if static:
            assert self.compiled is not None
            hidden = self.compiled(x, positions)
        else:
            mask = self.cache.begin(rows, positions, max(cached) + length)
            hidden = self.model.model(x, positions, mask, self.cache)
        for s, count in lengths.items():
            self.sessions[s].window.fed(count)
        of = [rows.index(s) for s in active] if static else list(range(len(active)))
        return hidden[of, [lengths[s] - 1 for s in active]]

    def _choose(self, state: Tensor, rows: Sequence[int], places: Sequence[int]) -> list[int]:
        """The id of each session's action token number `place`, given the states (R, D) that predict it."""
        spans = [self.sessions[s].layout.legal_ids[j] for s, j in zip(rows, places, strict=True)]
        ids = [0] * len(rows)
        for span in sorted(set(spans)):
            members = [r for r, own in enumerate(spans) if own == span]
            logits = self.model.logits_over(state[members], *span)
            picked = self.decoding.pick(logits, [self.sessions[rows[r]].rng for r in members])
            for r, i in zip(members, picked.tolist(), strict=True):
                ids[r] = span[0] + i
        return ids


def _timestep(observation: TokenSequence, action: TokenSequence) -> TokenSequence:
    """Join an observation and its action into one whole timestep."""
    joined = concatenate([observation, action])
    return replace(joined, timestep_starts=np.array([0, len(joined)], np.int64))
