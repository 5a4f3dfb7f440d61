"""An alarm round what may take for ever: an expert that thinks, a simulator that hangs."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

REPEAT_S = 10.0
"""Seconds after which the alarm comes again, should a simulator have swallowed it."""
TIMERS = {
    "cpu": (getattr(signal, "ITIMER_VIRTUAL", None), getattr(signal, "SIGVTALRM", None)),
    "wall": (getattr(signal, "ITIMER_REAL", None), getattr(signal, "SIGALRM", None)),
}
"""Timers and their signals by what they count; there are none on Windows."""
TIMES = {"cpu": time.process_time, "wall": time.monotonic}
"""What the timers count."""


class OutOfTime(TimeoutError):
    """What to give `time_limit` where other errors inside the block are survived, and this one is not."""


@contextmanager
def time_limit(limit_s: float | None, counting: Literal["cpu", "wall"], error: Exception) -> Iterator[None]:
    """Raise `error` inside the block after so many seconds; only the main thread gets signals, others no limit.

    What runs in compiled code is interrupted when it comes back to Python. A limit around this one goes on counting.
    """
    timer, number = TIMERS[counting]
    in_main_thread = threading.current_thread() is threading.main_thread()
    if limit_s is None or not in_main_thread or timer is None or number is None:
        yield
        return

    inside = True

    def fail(*_: Any) -> None:
        if inside:
            raise error

    began = TIMES[counting]()
    around_s, repeat_s = signal.setitimer(timer, 0.0)
    previous = signal.signal(number, fail)
    try:
        signal.setitimer(timer, min(limit_s, around_s or limit_s), REPEAT_S)
        yield
    finally:
        inside = False
        signal.setitimer(timer, 0.0)
        signal.signal(number, previous)
        if around_s:  # at once, where it was to ring in the meantime
            signal.setitimer(timer, max(1e-6, around_s - (TIMES[counting]() - began)), repeat_s)
