"""How a checkpoint is evaluated: what `gatito eval` takes beside the checkpoint and its tasks."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from gatito.data.tasks import EVALUATION_SEEDS
from gatito.errors import UserError, nearest
from gatito.eval import TEMPERATURE
from gatito.eval.decoding import Decoding
from gatito.eval.scores import PROMPTS, Prompt
from gatito.eval.simulators import MAX_LIMIT_S

NUM_DEMONSTRATIONS = 20
"""Demonstrations that the prompts of a task are taken from, where a prompt does not need more."""
WITHOUT_EFFECT = ("sessions", "processes", "limit_s", "compile")
"""Settings that decide how fast episodes are played, not which and how."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a checkpoint is evaluated."""

    episodes: int = 50
    """Seeded episodes per task and prompt."""
    prompt: str = "none"
    """What contexts begin with, separated by commas: `none`, a demonstration's `beginning`, its `end`, a `uniform`
    stretch of it, or `all` of these; each is evaluated on the same seeds."""
    prompted_episodes: int | None = None
    """Episodes with a prompt, where there are to be others than without."""
    demonstrations: int = 1
    """Demonstrations in a prompt, which share half the context."""
    demonstrations_from: str | None = None
    """Minari dataset, or folder of datasets by task, of the demonstrations; by default the expert demonstrates."""
    episodes_in_context: int = 1
    """Episodes that are played one after the other in one context."""
    expert_return: float | None = None
    """Of the expert, for environments whose expert was not measured."""
    temperature: float = TEMPERATURE
    """Of the sampled actions; 0 takes the likeliest."""
    top_p: float = 1.0
    """Actions are sampled of the likeliest ids that make up this probability."""
    memory: Literal["refill", "xl"] = "refill"
    """What happens where a context is full: `refill` computes what stays anew, `xl` keeps it as it was computed."""
    prompt_slides: bool = False
    """Let the prompt leave a full context, as the paper does, instead of keeping it."""
    int8: bool = False
    """Compute the linear layers in int8 and keep keys and values in bfloat16 (on a CPU)."""
    compile: bool = False
    """Compile the model's step; on a GPU as CUDA graphs."""
    sessions: int = 25
    """Episodes played as one batch."""
    processes: int = 0
    """Processes that simulate; 0 simulates in this one, which a simulator that crashes would end (the command line
    takes 2)."""
    limit_s: float = 60.0
    """Seconds that a simulator may take for one timestep, after which its episode is counted as failed."""

    def __post_init__(self) -> None:
        for name in ("episodes", "prompted_episodes", "demonstrations", "episodes_in_context", "sessions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}, allowed 1 and more")
        if self.processes < 0:
            raise UserError(f"--processes is {self.processes}, allowed 0 and more")
        if not 0 < self.limit_s <= MAX_LIMIT_S:
            raise UserError(f"--limit-s is {self.limit_s}, allowed above 0 to {MAX_LIMIT_S:g}")
        if self.expert_return is not None and not math.isfinite(self.expert_return):
            raise UserError(f"--expert-return is {self.expert_return}, expected a finite number")
        for prompt in self.prompts:
            if prompt not in PROMPTS:
                raise UserError(nearest(prompt, [*PROMPTS, "all"], "prompt"))
            if self.prompts.count(prompt) > 1:
                raise UserError(f"--prompt lists {prompt!r} twice; raise --episodes instead")
        if self.prompted_episodes is not None and set(self.prompts) == {"none"}:
            raise UserError(
                f"--prompted-episodes is {self.prompted_episodes}, but no episode is prompted; add --prompt beginning"
            )
        Decoding(temperature=self.temperature, top_p=self.top_p)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts by name."""
        named = PROMPTS if self.prompt == "all" else tuple(name.strip() for name in self.prompt.split(","))
        return cast(tuple[Prompt, ...], named)

    @property
    def decoding(self) -> Decoding:
        """How actions are chosen."""
        return Decoding(temperature=self.temperature, top_p=self.top_p)

    def count(self, prompt: Prompt) -> int:
        """Episodes per task with a prompt."""
        return self.episodes if prompt == "none" else self.prompted_episodes or self.episodes

    @property
    def num_demonstrations(self) -> int:
        """Demonstrations that the prompts of a task are taken from."""
        prompted = [self.count(prompt) for prompt in self.prompts if prompt != "none"]
        return max(self.demonstrations, min(NUM_DEMONSTRATIONS, self.demonstrations * max(prompted, default=1)))

    def contexts(self, prompt: Prompt) -> list[tuple[int, ...]]:
        """The seeds of each context."""
        seeds = range(EVALUATION_SEEDS, EVALUATION_SEEDS + self.count(prompt))
        return [
            tuple(seeds[i : i + self.episodes_in_context]) for i in range(0, len(seeds), self.episodes_in_context)
        ]

    def to_json(self) -> dict[str, Any]:
        """What decides which episodes are played and what they come out as."""
        return {key: value for key, value in asdict(self).items() if key not in WITHOUT_EFFECT}
