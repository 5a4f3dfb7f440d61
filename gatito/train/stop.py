"""SIGTERM, with which schedulers take a machine away: the run saves a checkpoint and ends with exit code 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(Exception):
    """The run was told to end, and saved a checkpoint; the command line exits with 143."""


class Stop:
    """Whether this process was told to end."""

    asked = False


@contextmanager
def noticing_sigterm() -> Iterator[Stop]:
    """Yield a `Stop` that SIGTERM sets, as often as it comes: launchers pass it on to processes that had it already.

    Only the main thread can receive signals.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def notice(*_: Any) -> None:
        stop.asked = True

    previous = signal.signal(signal.SIGTERM, notice)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
