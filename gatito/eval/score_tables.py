"""Tables of the report: what went wrong, all tasks, tasks without a score."""

from gatito.eval.results import Results
from gatito.eval.wording import counted, decimals, interval, why_unscored, with_interval
from gatito.pages import section, shortened, table

NUM_WORST = 10
"""Tasks with the lowest scores that lead the report."""
NUM_FAILURES = 50
"""Kinds of failures that are listed; all are in results.json."""


def what_went_wrong(results: Results) -> str:
    """Episodes that were not finished, and the tasks with the lowest scores."""
    failures = results.failures
    worst = sorted((row for row in results.tasks if row.score is not None), key=lambda row: row.score or 0.0)
    parts = []
    if failures:
        rows = [
            (
                group[0].task,
                group[0].prompt,
                str(len(group)),
                ", ".join(str(record.seed) for record in group[:3]) + (", ..." if len(group) > 3 else ""),
                shortened(group[0].failure),
            )
            for group in failures[:NUM_FAILURES]
        ]
        parts.append("<h3>Episodes that were not finished</h3>")
        words = ("seeds", "what happened")
        parts.append(table(("task", "prompt", "episodes", *words), rows, "Failed episodes", words))
        if len(failures) > NUM_FAILURES:
            parts.append(f"<p>{len(failures) - NUM_FAILURES} more kinds of failures are in results.json.</p>")
    if worst := [row for row in worst if row.score is not None and row.score < 1]:
        rows = [
            (row.id, row.prompt, decimals(row.score), interval(row.ci_low, row.ci_high), decimals(row.success, ".0%"))
            for row in worst[:NUM_WORST]
        ]
        parts.append("<h3>Lowest scores</h3>")
        parts.append(table(("task", "prompt", "score", "95 % interval", "success"), rows, "Lowest scores"))
    total = sum(map(len, failures))
    lead = (
        f"{counted(total, 'episode')} of {len(results.records)} failed. They have no return and are "
        "in no mean: where they would have been bad ones, scores are too high."
        if total
        else f"None of {counted(len(results.records), 'episode')} failed."
    )
    return section("What went wrong", lead, "\n".join(parts)) if results.records else ""


def all_tasks(results: Results) -> str:
    """One line per task and prompt that has a score."""
    rows = [
        (
            row.id,
            row.prompt,
            decimals(row.mean_return),
            decimals(row.random),
            decimals(row.expert),
            decimals(row.score),
            interval(row.ci_low, row.ci_high),
            with_interval(row.iqm, row.iqm_low, row.iqm_high),
            with_interval(row.success, row.success_low, row.success_high, ".0%"),
            decimals(row.length, ".0f"),
            str(row.episodes),
            str(row.failed),
        )
        for row in results.tasks
        if row.score is not None
    ]
    names = (
        "task,prompt,return,random,expert,score,95 % interval,interquartile mean,success,timesteps,episodes,failed"
    )
    lead = "The good and the bad. Every episode with its seed is in results.json."
    return section("All tasks", lead, table(names.split(","), rows, "All tasks")) if rows else ""


def without_score(results: Results) -> str:
    """Tasks that are in no mean, with the reason."""
    rows = [
        (
            row.id,
            row.prompt,
            decimals(row.mean_return),
            decimals(row.success, ".0%"),
            str(row.episodes),
            str(row.failed),
            why_unscored(row),
        )
        for row in results.tasks
        if row.score is None
    ]
    names = ("task", "prompt", "return", "success", "episodes", "failed", "why")
    lead = "These are in no mean and in no chart."
    body = table(names, rows, "Tasks without a score", ("why",))
    return section("Tasks without a score", lead, body) if rows else ""
