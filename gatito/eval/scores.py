"""From episodes to scores: 0 is the random policy, 1 the expert (Reed et al. 2022, section 4).

records of episodes -> `score_tasks` -> one `TaskResult` per task and prompt -> `groups`: domains and overall
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from gatito.data.tasks import domain_of
from gatito.errors import UserError
from gatito.eval.checked import checked, finite
from gatito.eval.statistics import Array, interquartile_mean, percentile_interval, resampled_means, wilson_interval

Prompt = Literal["none", "beginning", "end", "uniform"]
"""The paper acts with the beginning of a demonstration; it trains with ends, which show the goal, and with drawn
stretches (Reed et al. 2022, sections 2.3 and 2.4)."""
PROMPTS: tuple[Prompt, ...] = get_args(Prompt)
"""What a context begins with: nothing, or a demonstration's beginning, end, or stretch from a drawn timestep."""

Returns = TypeVar("Returns", float, NDArray[np.float64])
"""One return, or an array of them."""


@dataclass(frozen=True, kw_only=True)
class EpisodeRecord:
    """One episode that was played."""

    task: str
    """Task id."""
    prompt: str
    """One of `PROMPTS`."""
    seed: int
    """Of the environment's reset."""
    total_return: float | None
    """Sum of rewards; None where the episode failed."""
    length: int
    """Timesteps played."""
    success: bool | None = None
    """Of success tasks."""
    order: int = 0
    """Number of the episode in its context, 0 the first."""
    failure: str = ""
    """What the simulator did, where the episode could not be finished."""

    @property
    def is_finished(self) -> bool:
        """Whether the episode has a return."""
        return self.total_return is not None and math.isfinite(self.total_return)

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What no two records share."""
        return self.task, self.prompt, self.seed, self.order

    def to_json(self) -> dict[str, Any]:
        """The record as written to `results.json`; inverse of `from_json`."""
        return {
            "task": self.task,
            "prompt": self.prompt,
            "seed": self.seed,
            "return": finite(self.total_return),
            "length": self.length,
            "success": self.success,
            "order": self.order,
            "failure": self.failure,
        }

    @classmethod
    def from_json(cls, values: Any) -> "EpisodeRecord":
        """The record as read; raises `UserError` that names the field for what `to_json` would not write."""
        record = cls(
            task=checked(values, "task", "a text"),
            prompt=checked(values, "prompt", "a text"),
            seed=checked(values, "seed", "a whole number"),
            total_return=checked(values, "return", "a finite number", optional=True),
            length=checked(values, "length", "a whole number"),
            success=checked(values, "success", "true or false", optional=True),
            order=checked(values, "order", "a whole number"),
            failure=checked(values, "failure", "a text"),
        )
        if record.prompt not in PROMPTS:
            raise UserError(f"prompt is {record.prompt!r}, expected one of {', '.join(PROMPTS)}")
        for name in ("length", "order"):
            if getattr(record, name) < 0:
                raise UserError(f"{name} is {getattr(record, name)}, expected 0 or more")
        return record


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Mean returns that scores of a task are measured between; None where it was not measured."""

    random: float | None
    """Of the random policy."""
    expert: float | None
    """Of the expert."""

    @property
    def is_scored(self) -> bool:
        """Whether a score means something: both are known and the expert is above the random policy."""
        random, expert = finite(self.random), finite(self.expert)
        return random is not None and expert is not None and expert > random

    def score(self, returns: Returns) -> Returns:
        """(return - random) / (expert - random), of a task that is scored."""
        assert self.is_scored
        assert self.random is not None
        assert self.expert is not None
        return (returns - self.random) / (self.expert - self.random)

    def to_json(self) -> dict[str, float | None]:
        """The baseline as written to `results.json`."""
        return {"random": finite(self.random), "expert": finite(self.expert)}

    @classmethod
    def from_json(cls, values: Any) -> "Baseline":
        """The baseline as read; raises `UserError` that names the field."""
        random, expert = (checked(values, k, "a finite number", optional=True) for k in ("random", "expert"))
        return cls(random=random, expert=expert)


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Scores of one task with one prompt over the episodes of all orders, a row of `results.json`.

    What could not be measured is None: scores where the baseline is none, intervals of a single episode.
    """

    id: str
    """Task id."""
    domain: str
    """Part of the id before the slash."""
    prompt: str
    """One of `PROMPTS`."""
    episodes: int
    """Finished episodes; all that follows is of them."""
    failed: int
    """Episodes that the simulator did not finish."""
    mean_return: float | None
    """Mean return."""
    score: float | None
    """Mean score."""
    ci_low: float | None
    """Lower end of its 95 % interval: Wilson where returns are successes, else bootstrap over episodes."""
    ci_high: float | None
    """Upper end."""
    iqm: float | None
    """Interquartile mean of the scores."""
    iqm_low: float | None
    """Lower end of its 95 % bootstrap interval."""
    iqm_high: float | None
    """Upper end."""
    success: float | None
    """Success rate, of success tasks."""
    success_low: float | None
    """Lower end of its 95 % Wilson interval."""
    success_high: float | None
    """Upper end."""
    length: float | None
    """Mean timesteps."""
    random: float | None
    """Mean return of the random policy."""
    expert: float | None
    """Mean return of the expert."""

    @property
    def is_scored(self) -> bool:
        """Whether the task has a baseline to be scored by; it has no score where no episode was finished."""
        return Baseline(random=self.random, expert=self.expert).is_scored

    def to_json(self) -> dict[str, Any]:
        """The row as written to `results.json`."""
        return {("return" if key == "mean_return" else key): value for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredTask:
    """A row, and what its episodes might have given instead."""

    result: TaskResult
    """The row."""
    resampled: Array
    """Mean scores (RESAMPLES,) of the bootstrap; NaN without a score and for a single episode."""


def succeeded(total_return: float) -> bool:
    """Whether a return is a success, of tasks whose return is one: 0 or 1."""
    return total_return >= 1.0


def task_results(records: Iterable[EpisodeRecord], baselines: Mapping[str, Baseline]) -> list[TaskResult]:
    """One row per task and prompt, in the order of their first records."""
    return [scored.result for scored in score_tasks(records, baselines)]


def score_tasks(records: Iterable[EpisodeRecord], baselines: Mapping[str, Baseline]) -> list[ScoredTask]:
    """The rows with the resamples that the intervals of domains are made of.

    The bootstrap of a task depends on its own episodes alone, not on which other tasks there are.
    """
    grouped: dict[tuple[str, str], list[EpisodeRecord]] = {}
    for record in records:
        grouped.setdefault((record.task, record.prompt), []).append(record)
    unknown = Baseline(random=None, expert=None)
    return [_score_task(episodes, baselines.get(task, unknown)) for (task, _), episodes in grouped.items()]


def _score_task(records: Sequence[EpisodeRecord], baseline: Baseline) -> ScoredTask:
    first, finished = records[0], [record for record in records if record.is_finished]
    returns = np.array([record.total_return for record in finished], np.float64)
    successes = [record.success for record in finished if record.success is not None]
    rate: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
    if finished and len(successes) == len(finished):
        rate = (sum(successes) / len(successes), *wilson_interval(sum(successes), len(successes)))
    scores = baseline.score(returns) if baseline.is_scored else np.empty(0)
    means, interquartile = resampled_means(scores, seed_of(first.task, first.prompt))
    low, high = percentile_interval(means)
    if len(scores) and rate[0] is not None and np.array_equal(returns, successes):
        low, high = baseline.score(rate[1]), baseline.score(rate[2])
    iqm_low, iqm_high = percentile_interval(interquartile)
    result = TaskResult(
        id=first.task,
        domain=domain_of(first.task),
        prompt=first.prompt,
        episodes=len(finished),
        failed=len(records) - len(finished),
        mean_return=float(returns.mean()) if finished else None,
        score=float(scores.mean()) if len(scores) else None,
        ci_low=finite(low),
        ci_high=finite(high),
        iqm=interquartile_mean(scores) if len(scores) else None,
        iqm_low=finite(iqm_low),
        iqm_high=finite(iqm_high),
        success=rate[0],
        success_low=rate[1],
        success_high=rate[2],
        length=float(np.mean([record.length for record in finished])) if finished else None,
        random=finite(baseline.random),
        expert=finite(baseline.expert),
    )
    return ScoredTask(result=result, resampled=means)


def seed_of(*names: str) -> int:
    """The seed of a bootstrap: the same for the same names on every machine."""
    return zlib.crc32("\n".join(names).encode())
