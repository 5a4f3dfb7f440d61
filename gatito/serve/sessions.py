"""Sessions over one actor, decided together: whatever has come while a step was computed is the next step.

A session that is slow to ask delays nobody, and one that asks is in the very next step. What acts is a thread of its
own, so that callers, of an event loop or not, never wait for the model to be free.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.trunk import Trunk


@dataclass(frozen=True, kw_only=True)
class Begin:
    """An episode."""

    layout: Layout
    """Of its task."""
    prompt: TokenSequence | None = None
    """What the context begins with."""
    seed: int = 0
    """Of the sampled actions."""


@dataclass(kw_only=True, eq=False)
class Turn:
    """What is asked of a session: first an episode begins, then it acts on an observation, where there are these."""

    begin: Begin | None = None
    observation: Any = None
    """None asks for no action."""
    executed: Any = None
    """The last action, where another one than was decided has been executed."""
    look: Callable[[Actor], Any] | None = None
    """Asks for what it returns, and nothing else, between two steps."""
    future: Future[Any] = field(default_factory=Future)
    """Becomes the action, or what was looked for."""


class Sessions:
    """As many as the actor has."""

    def __init__(self, actor: Actor, on_step: Callable[[int, float], None] = lambda count, seconds: None) -> None:
        """Start the thread; it calls `on_step` with how many sessions were decided, and how long it took."""
        self._actor, self._on_step = actor, on_step
        self._changed = threading.Condition()
        self._free = list(range(actor.num_sessions))[::-1]
        self._turns: dict[int, Turn] = {}
        self._leaving: list[int] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gatito-sessions", daemon=True)
        self._thread.start()

    @property
    def window(self) -> tuple[Trunk, int]:
        """What prompts have to fit: the trunk, and the positions of the context."""
        return self._actor.trunk, self._actor.context

    @property
    def num_free(self) -> int:
        """Sessions that may be opened."""
        return len(self._free)

    def open(self) -> int:
        """Take a session; raises `UserError` where all are taken."""
        return self.open_all(1)[0]

    def open_all(self, count: int) -> list[int]:
        """Take so many sessions or none; raises `UserError` where there are not so many."""
        with self._changed:
            if len(self._free) < count or self._stopping:
                raise UserError(f"all {self._actor.num_sessions} sessions are taken; try again later")
            return [self._free.pop() for _ in range(count)]

    def close(self, session: int) -> None:
        """Give a session back; what it waits for is dropped."""
        with self._changed:
            turn = self._turns.pop(session, None)
            if turn is not None:
                turn.future.cancel()
            self._leaving.append(session)
            self._changed.notify()

    def submit(self, session: int, turn: Turn) -> Future[Any]:
        """Ask something of a session, which has been answered what was asked before; returns `turn.future`.

        It raises `UserError` for what the session cannot take in, and then the session is as it was; where the model
        itself fails, it is to begin anew.
        """
        self.submit_all({session: turn})
        return turn.future

    def submit_all(self, turns: Mapping[int, Turn]) -> None:
        """Ask several sessions at once: they are decided in the same step."""
        with self._changed:
            for session in turns:
                if session in self._turns:
                    raise UserError(f"session {session} is still asked something; wait for its answer")
            self._turns |= turns
            self._changed.notify()

    def shutdown(self) -> None:
        """Answer what has been asked, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._turns or self._leaving or self._stopping):
                    self._changed.wait()
                turns, self._turns = self._turns, {}
                leaving, self._leaving = self._leaving, []
                if not turns and not leaving:
                    return
            for session in leaving:
                self._actor.leave(session)
            with self._changed:
                self._free += leaving
            self._step({s: turn for s, turn in turns.items() if turn.future.set_running_or_notify_cancel()})

    def _step(self, turns: dict[int, Turn]) -> None:
        """Take in what was asked, decide in all sessions that observed, and answer."""
        deciding: dict[int, Turn] = {}
        began = perf_counter()
        for session, turn in turns.items():
            try:
                if turn.look is not None:
                    turn.future.set_result(turn.look(self._actor))
                elif self._take_in(session, turn):
                    deciding[session] = turn
                else:
                    turn.future.set_result(None)
            except Exception as error:  # of this session alone
                turn.future.set_exception(error)
        if not deciding:
            return
        try:
            actions = self._actor.decide()
        except Exception as error:  # of all that were decided
            for session, turn in deciding.items():
                self._actor.leave(session)
                turn.future.set_exception(error)
            return
        self._on_step(len(deciding), perf_counter() - began)
        for session, turn in deciding.items():
            turn.future.set_result(actions[session])

    def _take_in(self, session: int, turn: Turn) -> bool:
        """Returns whether the session is to act."""
        if turn.begin is not None:
            self._actor.reset(session, turn.begin.layout, turn.begin.prompt, turn.begin.seed)
        elif turn.executed is not None:
            self._actor.correct(session, turn.executed)
        if turn.observation is None:
            return False
        self._actor.observe(session, turn.observation)
        return True
