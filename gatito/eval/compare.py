"""Two evaluations of the same seeded episodes: paired differences of scores, B less A.

results A, results B -> pairs of episodes -> differences per task -> domains and overall
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from gatito.data.tasks import domain_of
from gatito.errors import UserError
from gatito.eval.checked import finite
from gatito.eval.groups import domain_weights
from gatito.eval.results import Results
from gatito.eval.scores import PROMPTS, Baseline, EpisodeRecord, seed_of
from gatito.eval.statistics import Array, paired_interval, percentile_interval, resampled_means

ENOUGH_PAIRS = 6
"""Pairs from which on a task can be decided: five that all point one way have p = 0.06 in a sign test."""

Verdict = Literal["better", "worse", "undecided"]
Pair = tuple[EpisodeRecord, EpisodeRecord]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """B compared with A over pairs of finished episodes."""

    prompt: str
    """Of the episodes of A, and of B where no other is compared."""
    a: float
    """Mean of A."""
    b: float
    """Mean of B."""
    difference: float
    """b - a."""
    low: float | None
    """Lower end of its 95 % interval."""
    high: float | None
    """Upper end."""
    improvement: float
    """Probability of improvement (Agarwal et al. 2021): the share of pairs in which B is better, where equal ones
    count half; of several tasks the mean of theirs."""


@dataclass(frozen=True, kw_only=True)
class TaskComparison(Difference):
    """Paired episodes of one task; the interval is Newcombe's for pairs of successes, else bootstrap over pairs."""

    id: str
    """Task id."""
    domain: str
    """Part of the id before the slash."""
    pairs: int
    """Pairs of finished episodes."""
    unit: Literal["score", "return"]
    """What is compared: returns where the task has no baseline, and then in no mean."""

    @property
    def verdict(self) -> Verdict:
        """What the interval says of B, of enough pairs."""
        if self.pairs < ENOUGH_PAIRS or self.low is None or self.high is None:
            return "undecided"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "undecided"

    def to_json(self) -> dict[str, Any]:
        """The row as written to `compare.json`."""
        return asdict(self) | {"verdict": self.verdict}


@dataclass(frozen=True, kw_only=True)
class GroupComparison(Difference):
    """Scores of the tasks of one domain, or of all: means over the domains of the means over their tasks; the
    interval is bootstrap, the pairs of each task resampled among themselves."""

    name: str
    """The domain, or `overall`."""
    tasks: int
    """Tasks with scores that have pairs."""
    better: int
    """Tasks whose interval is above 0."""
    worse: int
    """Tasks whose interval is below 0."""
    undecided: int
    """All other tasks."""
    improvement_low: float | None
    """Lower end of the 95 % interval of `improvement`."""
    improvement_high: float | None
    """Upper end."""

    def to_json(self) -> dict[str, Any]:
        """The row as written to `compare.json`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """B compared with A."""

    a: str
    """What A is called."""
    b: str
    """What B is called."""
    settings: Mapping[str, tuple[Any, Any]]
    """Settings of the evaluations that differ, with both values."""
    tasks: Sequence[TaskComparison]
    """One row per task and prompt, by domain and task."""
    domains: Sequence[GroupComparison]
    """One row per prompt and domain."""
    overall: Sequence[GroupComparison]
    """One row per prompt."""
    pairs: int
    """Pairs of finished episodes."""
    failed: int
    """Pairs of which one or both were not finished."""
    unpaired_a: int
    """Episodes of A without the same task, prompt, seed and order in B."""
    unpaired_b: int
    """Episodes of B without them in A."""

    def to_json(self) -> dict[str, Any]:
        """The contents of `compare.json`."""
        rows = {name: [row.to_json() for row in getattr(self, name)] for name in ("overall", "domains", "tasks")}
        counts = {name: getattr(self, name) for name in ("pairs", "failed", "unpaired_a", "unpaired_b")}
        differing = {name: list(values) for name, values in self.settings.items()}
        return {"schema": 1, "a": self.a, "b": self.b, "settings": differing, **counts, **rows}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    row: TaskComparison
    differences: Array  # (R,) resampled
    improvements: Array  # (R,) resampled


def compare(
    a: Results, b: Results, *, prompts: tuple[str, str] | None = None, names: tuple[str, str] = ("A", "B")
) -> Comparison:
    """Compare B with A on the episodes of the same task, prompt, seed and order.

    With `prompts`, those of A with the first prompt are paired with those of B with the second; A and B may then be
    the same. Raises `UserError` where baselines differ or nothing can be paired.
    """
    first, second = _by_key(a, prompts and prompts[0]), _by_key(b, prompts and prompts[1])
    shared = [key for key in first if key in second]
    if not shared:
        raise UserError(
            f"no episode of {names[0]} and {names[1]} has the same task, prompt, seed and order: {names[0]} holds "
            f"{_held(first.values())}, {names[1]} {_held(second.values())}"
        )
    grouped: dict[tuple[str, str], list[Pair]] = {}
    for key in shared:
        grouped.setdefault((first[key].task, first[key].prompt), []).append((first[key], second[key]))
    for task in dict.fromkeys(task for task, _ in grouped):
        _check_baselines(task, a, b, names)
    finished = {
        key: [pair for pair in pairs if pair[0].is_finished and pair[1].is_finished] for key, pairs in grouped.items()
    }
    order = sorted(finished, key=lambda key: (domain_of(key[0]), key[0], PROMPTS.index(key[1])))
    unknown = Baseline(random=None, expert=None)
    rows = [_compare_task(finished[key], a.baselines.get(key[0], unknown)) for key in order if finished[key]]
    scored = [row for row in rows if row.row.unit == "score"]
    pairs = sum(map(len, finished.values()))
    tasks = [row.row for row in rows]
    domains, overall = _groups(scored, lambda row: row.domain), _groups(scored, lambda row: "overall")
    if prompts is not None:  # as the differences are: of B less A
        label = f"{prompts[1]} - {prompts[0]}"
        tasks = [replace(row, prompt=label) for row in tasks]
        domains, overall = ([replace(row, prompt=label) for row in part] for part in (domains, overall))
    return Comparison(
        a=names[0],
        b=names[1],
        settings=_differing(a.settings, b.settings),
        tasks=tasks,
        domains=domains,
        overall=overall,
        pairs=pairs,
        failed=len(shared) - pairs,
        unpaired_a=len(first) - len(shared),
        unpaired_b=len(second) - len(shared),
    )


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


def prompts_of(listed: str) -> tuple[str, str]:
    """The two prompts of `--prompts A,B`; raises `UserError`."""
    names = [name.strip() for name in listed.split(",")]
    for name in names:
        if name not in PROMPTS:
            raise UserError(f"--prompts {listed}: {name!r} is no prompt, allowed {', '.join(PROMPTS)}")
    if len(names) != 2:
        raise UserError(f"--prompts {listed} names {len(names)}, expected two such as none,beginning")
    return names[0], names[1]


def _by_key(results: Results, prompt: str | None) -> dict[tuple[Any, ...], EpisodeRecord]:
    """Records by what pairs them: with a prompt given those of it, and the prompt is left out."""
    if prompt is None:
        return {record.key: record for record in results.records}
    return {(r.task, r.seed, r.order): r for r in results.records if r.prompt == prompt}


def _held(records: Iterable[EpisodeRecord]) -> str:
    found = list(records)
    tasks, prompts = sorted({r.task for r in found}), sorted({r.prompt for r in found}, key=PROMPTS.index)
    listed = ", ".join(tasks[:5]) + (", ..." if len(tasks) > 5 else "")
    return f"{listed} (prompt {', '.join(prompts)})" if found else "none"


def _check_baselines(task: str, a: Results, b: Results, names: tuple[str, str]) -> None:
    first, second = a.baselines.get(task), b.baselines.get(task)
    values = [(x.random, x.expert) if x else (None, None) for x in (first, second)]
    if not all(x == y or (x and y and math.isclose(x, y, rel_tol=1e-9)) for x, y in zip(*values, strict=True)):
        said = [f"random {random}, expert {expert} in {n}" for (random, expert), n in zip(values, names, strict=True)]
        raise UserError(f"task {task}: its baselines differ, {said[0]}, {said[1]}; evaluate both with the same ones")


def _compare_task(pairs: Sequence[Pair], baseline: Baseline) -> _Compared:
    first = pairs[0][0]
    returns = np.array([[record.total_return for record in pair] for pair in pairs], np.float64)  # (N, 2)
    values = baseline.score(returns) if baseline.is_scored else returns
    differences = values[:, 1] - values[:, 0]
    wins = (1 + np.sign(differences)) / 2
    seed = seed_of(first.task, first.prompt)
    resampled, improvements = resampled_means(differences, seed)[0], resampled_means(wins, seed)[0]
    low, high = percentile_interval(resampled)
    if all(record.success is not None and record.success == record.total_return for pair in pairs for record in pair):
        per_success = baseline.score(1.0) - baseline.score(0.0) if baseline.is_scored else 1.0
        low, high = (end * per_success for end in _success_interval(returns))
    row = TaskComparison(
        id=first.task,
        domain=domain_of(first.task),
        prompt=first.prompt,
        pairs=len(pairs),
        unit="score" if baseline.is_scored else "return",
        a=float(values[:, 0].mean()),
        b=float(values[:, 1].mean()),
        difference=float(differences.mean()),
        low=finite(low),
        high=finite(high),
        improvement=float(wins.mean()),
    )
    return _Compared(row=row, differences=resampled, improvements=improvements)


def _success_interval(successes: Array) -> tuple[float, float]:
    """Of success (N, 2) of A and B."""
    counts = [
        int(((successes[:, 0] == a) & (successes[:, 1] == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))
    ]
    return paired_interval(*counts)


def _groups(compared: Sequence[_Compared], name: Callable[[TaskComparison], str]) -> list[GroupComparison]:
    grouped: dict[tuple[int, str], list[_Compared]] = {}
    for task in compared:
        grouped.setdefault((PROMPTS.index(task.row.prompt), name(task.row)), []).append(task)
    return [_group(key[1], grouped[key]) for key in sorted(grouped)]


def _group(name: str, tasks: Sequence[_Compared]) -> GroupComparison:
    rows = [task.row for task in tasks]
    weights = domain_weights([row.domain for row in rows])
    a, b = (float(weights @ [getattr(row, key) for row in rows]) for key in ("a", "b"))
    low, high = percentile_interval(weights @ np.stack([task.differences for task in tasks]))
    # Over tasks, as it is defined there, whatever their domain.
    improved_low, improved_high = percentile_interval(np.mean([task.improvements for task in tasks], axis=0))
    verdicts = [row.verdict for row in rows]
    return GroupComparison(
        name=name,
        prompt=rows[0].prompt,
        tasks=len(rows),
        better=verdicts.count("better"),
        worse=verdicts.count("worse"),
        undecided=verdicts.count("undecided"),
        a=a,
        b=b,
        difference=b - a,
        low=finite(low),
        high=finite(high),
        improvement=float(np.mean([row.improvement for row in rows])),
        improvement_low=finite(improved_low),
        improvement_high=finite(improved_high),
    )
