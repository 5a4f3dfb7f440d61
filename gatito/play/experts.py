"""An expert's episode, played in a process of its own: what it breaks, no page loses."""

from collections.abc import Callable

import numpy as np

from gatito.data.tasks import PROMPT_SEEDS, references
from gatito.errors import UserError
from gatito.eval.prompts import DEMONSTRATION_SCORE
from gatito.eval.simulator_pool import SimulatorPool
from gatito.eval.simulators import Demonstrate, Demonstrated, Failed, closing
from gatito.play.demonstrations import Demonstrations
from gatito.play.game import Stage

TRIES = 10
"""Episodes of an expert that are played until one scores well enough for a prompt."""


def demonstrate(stage: Stage, demonstrations: Demonstrations, limit_s: float, wanted: Callable[[], bool]) -> int:
    """Keep the next episode of a task's expert that is good enough, and return its number.

    Raises `UserError` where the task has no expert, it gives up `TRIES` times, or it is `wanted` no more.
    """
    spec = stage.spec
    if not spec.has_expert:
        raise UserError(f"{spec.id} has no scripted expert; take the controls, or give an episode")
    known, reason = references().get(spec.id), ""
    first = PROMPT_SEEDS + sum(d["task"] == spec.id for d in demonstrations.described())
    with closing(SimulatorPool(1, limit_s=limit_s)) as simulators:
        for seed in range(first, first + TRIES):
            if not wanted():
                raise UserError("the page is gone")
            answer = simulators.exchange({0: Demonstrate(spec=spec, seed=seed)})[0]
            if not isinstance(answer, Demonstrated):
                reason = answer.reason if isinstance(answer, Failed) else "its process has ended"
                continue
            total = float(np.sum(answer.buffer.rewards))
            if known is None or known.score(total) >= DEMONSTRATION_SCORE:
                by = f"the expert, seed {seed - PROMPT_SEEDS}"
                return demonstrations.add(spec, stage.env, stage.layout, by, answer.buffer, "expert")
            reason = f"its return is {total:.4g}"
    raise UserError(f"the expert of {spec.id} gave up {TRIES} times, last: {reason}")
