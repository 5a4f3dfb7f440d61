"""`results.json`, and the same as a table: the records of episodes, and all that follows from them."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from gatito.errors import UserError
from gatito.eval.checked import checked, finite
from gatito.eval.groups import GroupResult, TasksAbove, domain_results, order_results, overall_results, tasks_above
from gatito.eval.language_score import LanguageScore, language_words
from gatito.eval.scores import PROMPTS, Baseline, EpisodeRecord, ScoredTask, TaskResult, score_tasks
from gatito.eval.wording import counted, decimals, why_unscored, with_interval

K = TypeVar("K")
T = TypeVar("T")
SCHEMA = 3
FILE = "results.json"
PRINTED_PERCENTAGES = (50, 75, 100)
"""Of the expert, at which the table counts tasks."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was measured of one checkpoint; raises `UserError` for an episode that is recorded twice."""

    records: Sequence[EpisodeRecord]
    """Every episode, failed ones too."""
    baselines: Mapping[str, Baseline]
    """Task id to the returns that scores are measured between."""
    checkpoint: str = ""
    """As it was named."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it was evaluated: episodes, temperature and the like."""
    language: Sequence[LanguageScore] = ()
    """Captions, answers and texts, a score for each source."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage."""

    def __post_init__(self) -> None:
        for (task, prompt, seed, order), times in Counter(record.key for record in self.records).most_common(1):
            if times == 1:
                break
            raise UserError(f"task {task}, prompt {prompt}: seed {seed}, order {order} is recorded {times} times")

    @cached_property
    def _scored(self) -> list[ScoredTask]:
        rows = score_tasks(self.records, self.baselines)
        return sorted(rows, key=lambda row: (row.result.domain, row.result.id, PROMPTS.index(row.result.prompt)))

    @cached_property
    def tasks(self) -> list[TaskResult]:
        """One row per task and prompt, by domain and task."""
        return [scored.result for scored in self._scored]

    @cached_property
    def domains(self) -> list[GroupResult]:
        """One row per prompt and domain."""
        return domain_results(self._scored)

    @cached_property
    def overall(self) -> list[GroupResult]:
        """One row per prompt."""
        return overall_results(self._scored)

    @cached_property
    def orders(self) -> list[tuple[int, GroupResult]]:
        """Overall rows by the number of the episode in its context; empty where each context has one."""
        return order_results(self.records, self.baselines)

    @cached_property
    def above(self) -> list[TasksAbove]:
        """Tasks that reach each percentage of the expert, by prompt and domain."""
        return tasks_above(self._scored)

    @property
    def prompts(self) -> list[str]:
        """The prompts that were played."""
        return [group.prompt for group in self.overall]

    @property
    def failures(self) -> list[list[EpisodeRecord]]:
        """Episodes without a return, those of one task and prompt that failed in the same words together."""
        grouped: dict[tuple[str, str, str], list[EpisodeRecord]] = {}
        for record in self.records:
            if not record.is_finished:
                grouped.setdefault((record.task, record.prompt, record.failure), []).append(record)
        return sorted(grouped.values(), key=len, reverse=True)

    def to_json(self) -> dict[str, Any]:
        """The contents of `results.json`; `mean_score` is the overall mean of the first of the prompts."""
        return {
            "schema": SCHEMA,
            "checkpoint": self.checkpoint,
            "settings": dict(self.settings),
            "mean_score": self.overall[0].mean if self.overall else None,
            "overall": [group.to_json() for group in self.overall],
            "domains": [group.to_json() for group in self.domains],
            "orders": [{"order": order} | group.to_json() for order, group in self.orders],
            "above": [row.to_json() for row in self.above],
            "tasks": [row.to_json() for row in self.tasks],
            "language": [score.to_json() for score in self.language],
            "seconds": {name: finite(seconds) for name, seconds in self.seconds.items()},
            "baselines": {task: baseline.to_json() for task, baseline in self.baselines.items()},
            "records": [record.to_json() for record in self.records],
        }


def write_results(results: Results, path: Path) -> None:
    """Write `results.json`, whole or not at all; a line per record."""
    values = results.to_json()
    lines = ",\n".join(f"  {json.dumps(record, allow_nan=False)}" for record in values.pop("records"))
    head = json.dumps(values, indent=1, allow_nan=False).removesuffix("\n}")
    temporary = path.with_suffix(".partial")
    temporary.write_text(f'{head},\n "records": [\n{lines}\n ]\n}}\n')
    temporary.rename(path)


def read_results(path: str | Path) -> Results:
    """Read `results.json`, or that of a folder. What follows from the records is computed anew.

    Raises `UserError` that names the file and the field.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no results at {file}; gatito eval CHECKPOINT --out FOLDER writes them") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file} is no JSON: {error}") from None
    try:
        return _from_json(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _from_json(values: Any) -> Results:
    schema = checked(values, "schema", "a whole number")
    if schema != SCHEMA:
        raise UserError(f"schema is {schema}, expected {SCHEMA}; evaluate the checkpoint again")
    records = enumerate(checked(values, "records", "a list"))
    baselines = checked(values, "baselines", "an object").items()
    language = enumerate(checked(values, "language", "a list"))
    return Results(
        records=list(_each("records", records, EpisodeRecord.from_json).values()),
        baselines=_each("baselines", baselines, Baseline.from_json),
        checkpoint=checked(values, "checkpoint", "a text"),
        settings=checked(values, "settings", "an object"),
        language=tuple(_each("language", language, LanguageScore.from_json).values()),
        seconds=_numbers(values, "seconds"),
    )


def _each(name: str, entries: Iterable[tuple[K, Any]], read: Callable[[Any], T]) -> dict[K, T]:
    """Entries of a list or object, read; raises `UserError` that names the one that cannot be."""
    found: dict[K, T] = {}
    for key, entry in entries:
        try:
            found[key] = read(entry)
        except UserError as error:
            raise UserError(f"{name}[{key!r}]: {error}") from None
    return found


def _numbers(values: Any, key: str) -> dict[str, Any]:
    found = checked(values, key, "an object")
    for name in found:
        try:
            checked(found, name, "a finite number")
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
    return found


def print_results(results: Results) -> None:
    """Print the table: tasks, domains, overall by prompt and order, what has no score, and what failed."""
    scored = [row for row in results.tasks if row.score is not None]
    if scored:
        print(f"\n{'task':36} {'prompt':9} {'return':>9} {'random':>9} {'expert':>9}  score (95 % interval)")
    for row in scored:
        score = with_interval(row.score, row.ci_low, row.ci_high)
        print(
            f"{row.id:36} {row.prompt:9} {decimals(row.mean_return):>9} {decimals(row.random):>9} "
            f"{decimals(row.expert):>9}  {score}, {_episodes(row)}"
        )
    for row in (row for row in results.tasks if row.score is None):
        returned = "" if row.mean_return is None else f"return {decimals(row.mean_return)}; "
        print(f"no score: {row.id}, prompt {row.prompt}: {returned}{why_unscored(row)}; {_episodes(row)}")
    print()
    for group in results.domains:
        print(f"{group.name:36} {group.prompt:9} {_group(group)}")
    for group in results.overall:
        print(f"{'overall, mean over domains':36} {group.prompt:9} {_group(group)}")
    for order, group in results.orders:
        print(f"{f'overall, episode {order + 1} of its context':36} {group.prompt:9} {_group(group)}")
    for prompt in results.prompts:
        rows = [row for row in results.above if row.prompt == prompt]
        counts = ", ".join(f"{sum(row.counts[p] for row in rows)} at {p} %" for p in PRINTED_PERCENTAGES)
        print(f"at or above of the expert, prompt {prompt}, of {sum(row.tasks for row in rows)} tasks: {counts}")
    for failed in results.failures:
        first = failed[0]
        where = (
            f"{first.task}, prompt {first.prompt}, {counted(len(failed), 'episode')}, the first of seed {first.seed}"
        )
        print(f"failed: {where}: {first.failure}")
    for found in results.language:
        print(f"{found.source}, {counted(found.documents, 'document')}: {language_words(found)}")


def _episodes(row: TaskResult) -> str:
    rate = "" if row.success is None else f", success {row.success:.0%}"
    failed = f", {row.failed} failed" if row.failed else ""
    return f"{counted(row.episodes, 'episode')}{failed}{rate}"


def _group(group: GroupResult) -> str:
    mean = with_interval(group.mean, group.mean_low, group.mean_high)
    middle = with_interval(group.iqm, group.iqm_low, group.iqm_high)
    return f"mean {mean}, interquartile mean {middle}, {counted(group.tasks, 'task')}"
