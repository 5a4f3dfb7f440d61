"""Simulators in processes of their own, which may die.

A slot belongs to one process, which is asked for all of its slots at once. A process that dies, or hangs in compiled
code where no alarm reaches it, is replaced. The episode it was at has failed; the others that it held are `Lost`:
played again from their seeds they come out as they would have.
"""

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

from gatito.data.collect import end_with_parent
from gatito.data.tasks import TaskSpec, get_task, registry
from gatito.errors import UserError
from gatito.eval.simulators import (
    LIMIT_S,
    Act,
    Answer,
    Begin,
    Demonstrate,
    Failed,
    LocalSimulators,
    Lost,
    Request,
    Simulators,
)

STARTUP_S = 300.0
"""Seconds that a process may take until it takes requests."""
GRACE_S = 5.0
"""Seconds more until the process of a simulator that does not answer is killed: first its own alarm rings."""
MAX_DEATHS = 3
"""Processes in a row that may die before they take requests, and in all between two requests: no episode's doing."""
SAFE_PATH = "PYTHONSAFEPATH"
"""Environment variable: whether Python leaves the working directory out of where it looks."""
STARTING, IDLE = -2.0, -1.0
"""What a process is at, where it is at no slot."""


@dataclass(kw_only=True)
class _Worker:
    """One process of the pool."""

    process: BaseProcess
    connection: Connection
    at: Any
    """Shared with it, two numbers: the slot that it is at, or `STARTING` or `IDLE`, and since when (monotonic s)."""
    held: set[int]
    """Slots with an episode in it."""
    asked: float | None = None
    """When it was asked for the answers that it owes (monotonic s)."""

    def left_s(self, limit_s: float) -> float:
        """Seconds until it must be done with what it is at."""
        since = max(self.at[1], self.asked or 0.0)
        allowed = STARTUP_S if self.at[0] == STARTING else limit_s + GRACE_S
        return allowed - (time.monotonic() - since)


class SimulatorPool:
    """Simulators in processes of their own, which step at the same time and may die."""

    def __init__(self, processes: int, *, limit_s: float = LIMIT_S) -> None:
        """Start the processes; each is done with a slot within `limit_s` seconds or is replaced."""
        if processes < 1:
            raise UserError(f"--processes is {processes}, allowed 1 and more, 0 to simulate in this process")
        LocalSimulators(limit_s=limit_s)  # refuses what is no limit
        self.limit_s, self._unready, self._between = limit_s, 0, 0
        self._specs: list[TaskSpec] = []
        self._context = _context()
        self._workers = [self._start() for _ in range(processes)]

    def exchange(self, requests: Mapping[int, Request]) -> dict[int, Answer]:
        """Do what is asked of each slot, the processes at the same time.

        Raises `UserError` where processes keep dying for no episode's sake, and for a task that cannot be sent.
        """
        answers: dict[int, Answer] = {}
        N = len(self._workers)
        for number in range(N):
            if own := {slot: request for slot, request in sorted(requests.items()) if slot % N == number}:
                self._ask(number, own, answers)
        while busy := {w.connection: i for i, w in enumerate(self._workers) if w.asked is not None}:
            timeout = max(0.0, min(self._workers[i].left_s(self.limit_s) for i in busy.values()))
            ready = wait(list(busy), timeout)
            for connection, number in busy.items():
                if connection in ready:
                    self._receive(number, answers)
                elif self._workers[number].left_s(self.limit_s) <= 0:
                    self._replace(number, f"no answer within {self.limit_s:g} s, its process was killed", answers)
        return answers

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            self._end(worker)
        self._workers = []

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        at = self._context.RawArray("d", [STARTING, time.monotonic()])
        process = self._context.Process(target=_serve, args=(theirs, at, self.limit_s), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process=process, connection=ours, at=at, held=set())

    def _ask(self, number: int, requests: Mapping[int, Request], answers: dict[int, Answer]) -> None:
        """Send a process what is asked of its slots."""
        worker = self._workers[number]
        worker.held.update(requests)
        if not worker.process.is_alive():  # it died after its last answer, or before its first
            self._replace(number, self._death(worker), answers)
            return
        worker.asked = time.monotonic()
        try:
            worker.connection.send({slot: self._sendable(request) for slot, request in requests.items()})
        except OSError:
            self._replace(number, self._death(worker), answers)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(f"a task cannot be sent to other processes ({error}); use --processes 0") from None

    def _sendable(self, request: Request) -> Any:
        """A task of the registry travels as its id: what builds it need not be sendable.

        Others travel each time, with a number, so that a process knows them again.
        """
        if isinstance(request, Act):
            return request
        spec = request.spec
        values = {f.name: getattr(request, f.name) for f in fields(request) if f.name != "spec"}
        if registry().get(spec.id) is spec:
            return (type(request), spec.id, values)
        if not any(known is spec for known in self._specs):
            self._specs.append(spec)
        number = next(i for i, known in enumerate(self._specs) if known is spec)
        return (type(request), (number, spec), values)

    def _receive(self, number: int, answers: dict[int, Answer]) -> None:
        """Take the answers of a process."""
        worker = self._workers[number]
        try:
            answers.update(worker.connection.recv())
        except (EOFError, OSError):
            self._replace(number, self._death(worker), answers)
            return
        worker.asked = None
        self._unready = 0

    def _replace(self, number: int, reason: str, answers: dict[int, Answer]) -> None:
        """Put a new process in the place of one that is dead or hangs: the slot it was at has failed."""
        worker = self._workers[number]
        self._end(worker)
        at = worker.at[0]
        answers.update(dict.fromkeys(worker.held, Lost()))
        if at not in (STARTING, IDLE):
            answers[int(at)] = Failed(reason=reason)
        else:
            self._unready += at == STARTING
            self._between += at == IDLE
            if max(self._unready, self._between) > MAX_DEATHS:
                raise UserError(
                    f"processes of simulators end though no simulator is at work ({reason}); is there memory for "
                    "them? --processes 0 simulates in this one"
                )
        self._workers[number] = self._start()

    @staticmethod
    def _death(worker: _Worker) -> str:
        worker.process.join(GRACE_S)
        return f"its process ended with exit code {worker.process.exitcode}"

    @staticmethod
    def _end(worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def _context() -> ForkServerContext:
    """Processes are forked from one that has imported this, and in which nothing has run: new ones are there at once.

    That one is not to find a folder of this name in the working directory first: Python looks there for what is
    imported ahead of time, wherever this package was imported from.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        forkserver.ensure_running()
    finally:
        del os.environ[SAFE_PATH]
        if before is not None:
            os.environ[SAFE_PATH] = before
    return context


def simulators(processes: int, *, limit_s: float = LIMIT_S) -> Simulators:
    """Simulators in so many processes, 0 for this one."""
    return LocalSimulators(limit_s=limit_s) if processes == 0 else SimulatorPool(processes, limit_s=limit_s)


def _serve(connection: Connection, at: Any, limit_s: float) -> None:
    """Answer what comes, one slot after the other; `at` says which."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that asked ends this one
    here = LocalSimulators(limit_s=limit_s)
    sent: dict[int, TaskSpec] = {}
    at[:] = [IDLE, time.monotonic()]
    while True:
        try:
            requests: dict[int, Any] = connection.recv()
        except EOFError:
            return
        answers: dict[int, Answer] = {}
        for slot, request in requests.items():
            at[1] = time.monotonic()  # first: it must not look late
            at[0] = slot
            answers[slot] = here.answer(slot, _received(request, sent))
        at[:] = [IDLE, time.monotonic()]
        try:
            connection.send(answers)
        except (pickle.PicklingError, AttributeError, TypeError):
            connection.send({slot: _sent(answer) for slot, answer in answers.items()})


def _sent(answer: Answer) -> Answer:
    """An answer, or that it cannot be sent."""
    try:
        pickle.dumps(answer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return Failed(reason=f"what it returned cannot be sent to another process ({error})")
    return answer


def _received(request: Any, sent: dict[int, TaskSpec]) -> Request:
    """What `_sendable` has made of a request."""
    if not isinstance(request, tuple):
        return request
    kind, task, values = request
    spec = get_task(task) if isinstance(task, str) else sent.setdefault(*task)  # environments are kept for the first
    asked: Begin | Demonstrate = kind(spec=spec, **values)
    return asked
