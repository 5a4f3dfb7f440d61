"""What `gatito compare` prints and writes: a table, a page, and the same as JSON."""

import json
from pathlib import Path

from gatito.errors import UserError
from gatito.eval.compare import ENOUGH_PAIRS, Comparison, GroupComparison, TaskComparison
from gatito.eval.score_charts import Bar, axis_row, bar_row
from gatito.eval.wording import counted, decimals, with_interval
from gatito.pages import facts_list, legend, section, table, write_page

VERDICTS = {"better": "B is better", "worse": "B is worse", "undecided": "undecided"}
"""Colours of the bars."""


def print_comparison(found: Comparison) -> None:
    """Print tasks, domains, overall, and what could not be paired."""
    print(f"A = {found.a}\nB = {found.b}\n")
    for name, (first, second) in found.settings.items():
        print(f"they differ in {name}: {first!r} of A, {second!r} of B")
    print(f"{'':36} {'prompt':16} {'A':>9} {'B':>9}  B - A (95 % interval)")
    for row in found.tasks:
        said = f"{row.verdict}, {counted(row.pairs, 'pair')}{', of returns' if row.unit == 'return' else ''}"
        print(f"{row.id:36} {row.prompt:16} {row.a:9.2f} {row.b:9.2f}  {_difference(row)}, {said}")
    print()
    for group in (*found.domains, *found.overall):
        print(
            f"{group.name:36} {group.prompt:16} {group.a:9.2f} {group.b:9.2f}  {_difference(group)}, {_tally(group)}"
        )
    for group in found.overall:
        print(f"probability that B improves on A, prompt {group.prompt}: {_improvement(group)}")
    print(_pairing(found))


def check_comparison(out: Path) -> tuple[Path, Path]:
    """The page and the JSON file of `--out`, a file or a folder; raises `UserError` where one of them exists."""
    page = out if out.suffix == ".html" else out / "compare.html"
    paths = page, page.with_suffix(".json")
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists; choose another --out or remove it")
    return paths


def write_comparison(found: Comparison, page: Path) -> None:
    """Write the page, and beside it the same as JSON."""
    page.parent.mkdir(parents=True, exist_ok=True)
    temporary = page.with_suffix(".partial")
    temporary.write_text(json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    temporary.rename(page.with_suffix(".json"))
    sections = [_at_a_glance(found), _bars(found), _groups(found), _tasks(found)]
    write_page(page, "gatito.eval", title=f"{found.b} compared with {found.a}", sections=sections)


def _at_a_glance(found: Comparison) -> str:
    cards = [
        f"<div><b>{decimals(group.difference, '+.3f')}</b>mean score of B less that of A, prompt {group.prompt}, "
        f"95 % interval {decimals(group.low, '+.3f')} to {decimals(group.high, '+.3f')}; probability of improvement "
        f"{_improvement(group)}</div>"
        f"<div><b>{group.better} / {group.worse} / {group.undecided}</b>tasks better, worse and undecided, "
        f"prompt {group.prompt}</div>"
        for group in found.overall
    ]
    facts = facts_list({"A": found.a, "B": found.b})
    lead = (
        "Each pair is one episode of A and one of B of the same task, prompt, seed and order. Scores place returns "
        "between the random policy (0) and the expert (1). Of twenty tasks that are the same, one is expected to "
        "look better or worse."
    )
    return section("At a glance", lead, f'<div class="cards">{"".join(cards)}</div>{facts}<p>{_pairing(found)}</p>')


def _bars(found: Comparison) -> str:
    rows = [row for row in found.tasks if row.unit == "score"]
    if not rows:
        return ""
    ends = [abs(x) for row in rows for x in (row.low, row.high, row.difference) if x is not None]
    reach = min(2.0, max(0.05, *ends))
    parts = [legend(VERDICTS)]
    for prompt in (group.prompt for group in found.overall):
        if len(found.overall) > 1:
            parts.append(f"<h3>Prompt {prompt}</h3>")
        parts.append(axis_row(-reach, reach, {-reach: "A better", 0.0: "0", reach: "B better"}))
        for row in sorted((row for row in rows if row.prompt == prompt), key=lambda row: row.difference):
            bar = Bar(kind=row.verdict, words=row.verdict, value=row.difference, low=row.low, high=row.high)
            parts.append(bar_row(row.id, [bar], -reach, reach, marks=(0.0,)))
    lead = "Score of B less that of A, worst first, with 95 % intervals."
    return section("Tasks", lead, "\n".join(parts))


def _groups(found: Comparison) -> str:
    rows = [
        (g.name, g.prompt, decimals(g.a), decimals(g.b), _difference(g), _improvement(g), str(g.tasks), _tally(g))
        for g in (*found.overall, *found.domains)
    ]
    names = ("", "prompt", "A", "B", "B - A", "probability of improvement", "tasks", "verdicts")
    lead = "Intervals resample the pairs of each task among themselves."
    return section("Domains", lead, table(names, rows, "Domains", ("verdicts",))) if rows else ""


def _tasks(found: Comparison) -> str:
    rows = [
        (
            row.id,
            row.prompt,
            row.verdict,
            row.unit,
            decimals(row.a),
            decimals(row.b),
            _difference(row),
            decimals(row.improvement),
            str(row.pairs),
        )
        for row in found.tasks
    ]
    names = ("task", "prompt", "verdict", "of", "A", "B", "B - A", "share improved", "pairs")
    lead = (
        f"A task is decided where its interval excludes 0 and it has {ENOUGH_PAIRS} pairs or more. Tasks without a "
        "baseline are compared by their returns and are in no mean."
    )
    return section("All tasks", lead, table(names, rows, "All tasks", ("verdict", "of")))


def _difference(row: TaskComparison | GroupComparison) -> str:
    return with_interval(row.difference, row.low, row.high, "+.2f")


def _improvement(group: GroupComparison) -> str:
    return with_interval(group.improvement, group.improvement_low, group.improvement_high)


def _tally(group: GroupComparison) -> str:
    return f"{group.better} better, {group.worse} worse, {group.undecided} undecided"


def _pairing(found: Comparison) -> str:
    failed = f"; {counted(found.failed, 'pair')} left out, for an episode that failed" if found.failed else ""
    alone = f"; without a partner: {found.unpaired_a} of A, {found.unpaired_b} of B"
    return (
        f"{counted(found.pairs, 'pair')} of episodes{failed}{alone if found.unpaired_a or found.unpaired_b else ''}."
    )
