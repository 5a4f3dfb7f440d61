"""A session's control rate: what is answered where the model is late, and what the context then holds.

An answer is late where it is not there 1 / hz after the message that asks for it had come. It is counted, another
action is answered at once, and when the model has decided, its action is replaced in the context by the one that was
answered: the context holds what the robot did. The first action of an episode is waited for, late or not, since there
is none to answer instead.
"""

import asyncio
import time
from typing import Any

import numpy as np

from gatito.serve.config import ServeConfig
from gatito.serve.messages import LATE, MISSED
from gatito.tokenizers import Layout
from gatito.tokenizers.fields import build_tree, value_at


class Deadlines:
    """Of one session."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._late: asyncio.Future[Any] | None = None
        self._last: Any = None
        self.executed: Any = None
        """What was answered instead of the last action that was decided; None where that was answered."""
        self._missed = 0

    async def settle(self) -> None:
        """Wait for what was decided too late; raises what it raised."""
        if self._late is not None:
            late, self._late = self._late, None
            await late

    def begin(self) -> None:
        """An episode begins."""
        self._last, self.executed, self._missed = None, None, 0

    async def decided(
        self, future: asyncio.Future[Any], layout: Layout, deadline: float | None
    ) -> tuple[Any, dict[str, Any]]:
        """The action that is answered, and what is said beside it.

        `deadline` is a time of `time.monotonic`, None where there is none. Raises what the decision raises.
        """
        self.executed = None
        if deadline is None:
            return await future, {}
        await asyncio.wait({future}, timeout=None if self._last is None else max(0.0, deadline - time.monotonic()))
        is_late = time.monotonic() > deadline
        self._missed += is_late
        if future.done():
            self._last = future.result()
        else:
            self._late = future
            self._last = self.executed = self._instead(layout)
        return self._last, {LATE: is_late, MISSED: self._missed}

    def _instead(self, layout: Layout) -> Any:
        return self._last if self._config.late == "repeat" else still(layout, self._last)


def still(layout: Layout, last: Any) -> Any:
    """What holds still: continuous values 0 or the bound nearest to it, discrete ones as in the last action."""
    leaves = {}
    for f in layout.actions:
        value = value_at(last, f.path)
        if f.kind == "continuous":
            value = np.clip(np.zeros(f.size), *f.bounds).reshape(f.shape).astype(f.dtype)
        leaves[f.path] = value
    return build_tree(leaves)
