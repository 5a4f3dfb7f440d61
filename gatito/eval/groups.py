"""Scores of many tasks: by domain, overall, and how many tasks reach each percentage of the expert.

Intervals are of a stratified bootstrap: the episodes of each task are resampled among themselves, so the tasks stay
the same tasks (Agarwal et al. 2021, section 4).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gatito.eval.checked import finite
from gatito.eval.scores import PROMPTS, Baseline, EpisodeRecord, ScoredTask, score_tasks
from gatito.eval.statistics import Array, interquartile_mean, percentile_interval, quartile_weights

PERCENTAGES = range(0, 101)
"""Of the expert's score, at which tasks are counted."""
ROUNDING = 1e-9
"""A score that is less below a percentage has reached it."""


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """Scores of the tasks of one domain with one prompt, or of all; None where no task has a score."""

    name: str
    """The domain, or `overall`."""
    prompt: str
    """One of `PROMPTS`."""
    tasks: int
    """Tasks with a score; all that follows is of them."""
    without_score: int
    """Tasks without one: no baseline, an expert that is not above the random policy, or no finished episode."""
    failed: int
    """Episodes that the simulator did not finish, of tasks of both kinds."""
    mean: float | None
    """Of a domain the mean over its tasks; overall the mean over domains of these means (Reed et al. 2022)."""
    mean_low: float | None
    """Lower end of its 95 % interval."""
    mean_high: float | None
    """Upper end."""
    iqm: float | None
    """Interquartile mean over tasks."""
    iqm_low: float | None
    """Lower end of its 95 % interval."""
    iqm_high: float | None
    """Upper end."""
    task_mean: float | None
    """Mean over tasks, whatever their domain."""
    task_mean_low: float | None
    """Lower end of its 95 % interval."""
    task_mean_high: float | None
    """Upper end."""

    def to_json(self) -> dict[str, Any]:
        """The row as written to `results.json`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TasksAbove:
    """Reed et al. 2022, figure 5: how many tasks of a domain reach each percentage of the expert."""

    domain: str
    """The domain."""
    prompt: str
    """One of `PROMPTS`."""
    tasks: int
    """Tasks that have a baseline; one of which no episode was finished reaches nothing."""
    counts: Sequence[int]
    """Tasks whose mean score is at least 0 %, 1 %, ... 100 % of the expert's."""

    def to_json(self) -> dict[str, Any]:
        """The row as written to `results.json`."""
        return asdict(self)


def domain_results(tasks: Iterable[ScoredTask]) -> list[GroupResult]:
    """One row per prompt and domain, prompts as in `PROMPTS` and domains by name."""
    grouped: dict[tuple[str, str], list[ScoredTask]] = {}
    for task in tasks:
        grouped.setdefault((task.result.prompt, task.result.domain), []).append(task)
    return [_group(domain, grouped[prompt, domain]) for prompt, domain in sorted(grouped, key=_prompt_first)]


def overall_results(tasks: Iterable[ScoredTask]) -> list[GroupResult]:
    """One row per prompt, in the order of `PROMPTS`."""
    grouped: dict[str, list[ScoredTask]] = {}
    for task in tasks:
        grouped.setdefault(task.result.prompt, []).append(task)
    return [_group("overall", grouped[prompt]) for prompt in sorted(grouped, key=PROMPTS.index)]


def order_results(
    records: Sequence[EpisodeRecord], baselines: Mapping[str, Baseline]
) -> list[tuple[int, GroupResult]]:
    """Overall rows of the first episodes of contexts, of the second, and so on, of prompts that have several."""
    several = {record.prompt for record in records if record.order > 0}
    orders: dict[int, list[EpisodeRecord]] = {}
    for record in records:
        if record.prompt in several:
            orders.setdefault(record.order, []).append(record)
    scored = [(order, score_tasks(orders[order], baselines)) for order in sorted(orders)]
    return [(order, group) for order, tasks in scored for group in overall_results(tasks)]


def tasks_above(tasks: Iterable[ScoredTask]) -> list[TasksAbove]:
    """One row per prompt and domain that has a task with a baseline, in the order of `domain_results`."""
    grouped: dict[tuple[str, str], list[float]] = {}
    for result in (task.result for task in tasks if task.result.is_scored):
        reached = -np.inf if result.score is None else result.score
        grouped.setdefault((result.prompt, result.domain), []).append(reached)
    rows = []
    for prompt, domain in sorted(grouped, key=_prompt_first):
        scores = np.array(grouped[prompt, domain]) + ROUNDING
        counts = [int((scores >= p / 100).sum()) for p in PERCENTAGES]
        rows.append(TasksAbove(domain=domain, prompt=prompt, tasks=len(scores), counts=counts))
    return rows


def domain_weights(domains: Sequence[str]) -> Array:
    """Weights (T,) of tasks in the mean over domains of the means over their tasks.

    Of domains a, a, b: [1/4, 1/4, 1/2].
    """
    names = list(domains)
    return np.array([1 / (len(set(names)) * names.count(name)) for name in names])


def _prompt_first(key: tuple[str, str]) -> tuple[int, str]:
    return PROMPTS.index(key[0]), key[1]


def _group(name: str, tasks: Sequence[ScoredTask]) -> GroupResult:
    scored = [task for task in tasks if task.result.score is not None]
    values: dict[str, float | None] = dict.fromkeys(
        f"{statistic}{end}" for statistic in ("mean", "iqm", "task_mean") for end in ("", "_low", "_high")
    )
    if scored:
        scores = np.array([task.result.score for task in scored], np.float64)
        samples = np.stack([task.resampled for task in scored])  # (T, R)
        weights = domain_weights([task.result.domain for task in scored])
        found = {
            "mean": (float(weights @ scores), weights @ samples),
            "iqm": (interquartile_mean(scores), quartile_weights(len(scored)) @ np.sort(samples, axis=0)),
            "task_mean": (float(scores.mean()), samples.mean(axis=0)),
        }
        for statistic, (value, resampled) in found.items():
            low, high = percentile_interval(resampled)
            values |= {statistic: value, f"{statistic}_low": finite(low), f"{statistic}_high": finite(high)}
    return GroupResult(
        name=name,
        prompt=tasks[0].result.prompt,
        tasks=len(scored),
        without_score=len(tasks) - len(scored),
        failed=sum(task.result.failed for task in tasks),
        **values,
    )
