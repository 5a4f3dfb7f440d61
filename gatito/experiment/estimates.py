"""Mean scores over training seeds and tasks, and how sure we are of them.

The interval is of a bootstrap in two levels: training seeds are drawn with replacement, and of each the episodes of
every task among themselves. With two seeds it knows little of how seeds differ; the points of a picture show them.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.errors import UserError
from gatito.eval.results import Results
from gatito.eval.scores import EpisodeRecord, score_tasks, seed_of
from gatito.eval.statistics import RESAMPLES, percentile_interval
from gatito.eval.wording import with_interval

ONE_SEED = "one seed decides nothing"


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    """Over seeds and tasks."""
    by_seed: Sequence[float]
    """Means over tasks, one for each training seed."""
    samples: NDArray[np.float64]
    """(RESAMPLES,) of the bootstrap."""
    episodes: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Seeds of the episodes of each task, where it is of episodes."""

    @property
    def interval(self) -> tuple[float, float]:
        """95 %; not a number where one value is all there is."""
        return percentile_interval(self.samples)

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference of two that were trained apart.

        Raises `UserError` where they were not played on the same episodes.
        """
        for task in self.episodes.keys() & other.episodes.keys():
            if alone := self.episodes[task] ^ other.episodes[task]:
                raise UserError(
                    f"what is compared was not played on the same episodes of {task} ({len(alone)} of one alone); "
                    "remove the parts with other seeds or numbers of episodes, and they are measured again"
                )
        return Estimate(
            mean=self.mean - other.mean,
            by_seed=[a - b for a, b in zip(self.by_seed, other.by_seed, strict=False)],
            # Both were resampled in the same order: together they would seem to go up and down as one.
            samples=self.samples - _shuffled(other.samples, "difference"),
            episodes={**other.episodes, **self.episodes},
        )

    def reaches(self, floor: float) -> str:
        """Whether it is at least so much, in words: the interval decides, not the mean, and no seed alone."""
        low, high = self.interval
        if self.is_of_one_seed:
            return ONE_SEED
        if low >= floor:
            return "reached"
        if high < floor:
            return "not reached"
        return f"{'reached' if self.mean >= floor else 'not reached'} on average, within the interval"

    @property
    def is_of_one_seed(self) -> bool:
        """Whether nothing is known of how training seeds differ."""
        return len(self.by_seed) < 2

    def words(self, digits: int = 2) -> str:
        """As tables have it."""
        low, high = self._told
        return with_interval(self.mean, low, high, f".{digits}f")

    def to_json(self) -> dict[str, Any]:
        """The numbers of it."""
        low, high = self._told
        return {"mean": self.mean, "low": low, "high": high, "by_seed": list(self.by_seed)}

    @property
    def _told(self) -> tuple[float, float] | tuple[None, None]:
        """The interval, where there is one."""
        return (None, None) if np.isnan(self.interval).any() else self.interval


def mean_score(trained: Sequence[Results], tasks: Iterable[str] | None = None, prompt: str = "none") -> Estimate:
    """The mean score of several training seeds over tasks, by default over all that were played, each task alike.

    Raises `UserError` where the seeds were not evaluated on the same episodes, and for a task without a score.
    """
    wanted = None if tasks is None else set(tasks)
    check_same_episodes(trained)
    means, samples = [], []
    for number, results in enumerate(trained):
        records = [r for r in results.records if r.prompt == prompt and (wanted is None or r.task in wanted)]
        rows = score_tasks(records, results.baselines)
        failed = [record for record in records if not record.is_finished]
        if failed:
            first = failed[0]
            raise UserError(
                f"{results.checkpoint}: {len(failed)} of {len(records)} episodes failed, first {first.task}, seed "
                f"{first.seed}: {first.failure or 'no finite return'}; remove the part, and it is measured again"
            )
        for row in rows:
            if row.result.score is None:
                raise UserError(f"{results.checkpoint}: {row.result.id} has no score: no episode was finished")
        if not rows or (wanted is not None and len(rows) < len(wanted)):
            played = sorted({row.result.id for row in rows})
            raise UserError(f"{results.checkpoint}: of {sorted(wanted or [])} only {played} were played")
        means.append(float(np.mean([row.result.score for row in rows])))
        # Each row's resamples are in an order of its own: what is drawn of one says nothing of another.
        shuffled = [_shuffled(row.resampled, f"{row.result.id} {number}") for row in rows]
        samples.append(np.mean(shuffled, axis=0))
    return dataclasses.replace(_over_seeds(means, np.array(samples)), episodes=_episodes(trained[0], wanted, prompt))


def _episodes(results: Results, wanted: Collection[str] | None, prompt: str) -> dict[str, frozenset[int]]:
    """Seeds by task."""
    found: dict[str, set[int]] = {}
    for record in results.records:
        if record.prompt == prompt and (wanted is None or record.task in wanted):
            found.setdefault(record.task, set()).add(record.seed)
    return {task: frozenset(seeds) for task, seeds in found.items()}


def of_contexts(results: Results, order: int | None = None) -> Results:
    """One record for each context, with the mean return of its episodes, or with that of one `order` alone.

    Episodes of one context share what is in it: they are resampled together. The seed is the context's first.
    """
    contexts: dict[tuple[str, str, int], list[EpisodeRecord]] = {}
    for record in results.records:
        if order is None or record.order == order:
            contexts.setdefault((record.task, record.prompt, record.seed - record.order), []).append(record)
    return dataclasses.replace(results, records=[_joined(seed, own) for (_, _, seed), own in contexts.items()])


def _joined(seed: int, context: Sequence[EpisodeRecord]) -> EpisodeRecord:
    """The episodes of a context as one; as one that failed where one of them did."""
    returns = [record.total_return for record in context if record.total_return is not None]
    return dataclasses.replace(
        context[0],
        seed=seed,
        order=0,
        total_return=float(np.mean(returns)) if len(returns) == len(context) else None,
        length=sum(record.length for record in context),
        success=None,
        failure=next((record.failure for record in context if record.failure), ""),
    )


def check_same_episodes(compared: Sequence[Results]) -> None:
    """Raise `UserError` where results are of different tasks, seeds or numbers of episodes."""
    first = None
    for results in compared:
        own = {(r.task, r.prompt, r.seed, r.order) for r in results.records}
        if first is None:
            first = (results.checkpoint, own)
        elif own != first[1]:
            count = len(own ^ first[1])
            raise UserError(
                f"{first[0]} and {results.checkpoint} were not played on the same episodes ({count} of one alone); "
                "compare runs of the same seeds and numbers of episodes"
            )


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of one number for each training seed, such as a loss; one seed alone has no interval."""
    array = np.asarray(values if len(values) > 1 else [np.nan], np.float64)
    return _over_seeds(list(values), np.repeat(array[:, None], RESAMPLES, axis=1))


def mean_over(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates that are independent of each other, such as those of several tasks."""
    seeds = min(len(estimate.by_seed) for estimate in estimates)
    return Estimate(
        mean=sum(e.mean for e in estimates) / len(estimates),
        by_seed=[sum(e.by_seed[i] for e in estimates) / len(estimates) for i in range(seeds)],
        samples=np.mean([_shuffled(e.samples, str(i)) for i, e in enumerate(estimates)], axis=0),
    )


def _over_seeds(means: Sequence[float], samples: NDArray[np.float64]) -> Estimate:
    """Means and samples (seeds, RESAMPLES), with the seeds drawn with replacement."""
    seeds = len(means)
    drawn = np.random.default_rng(seeds).integers(0, seeds, (seeds, RESAMPLES))
    chosen = np.take_along_axis(samples, drawn, axis=0)
    return Estimate(mean=float(np.mean(means)), by_seed=list(means), samples=chosen.mean(axis=0))


def _shuffled(samples: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    return np.random.default_rng(seed_of(name)).permutation(samples)
