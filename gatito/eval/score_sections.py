"""Sections of the report on scores: at a glance, above the expert's percentages, by domain, prompt and order."""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby

from gatito.errors import UserError
from gatito.eval.charts import colour_of
from gatito.eval.compare import Comparison, GroupComparison, compare
from gatito.eval.groups import GroupResult
from gatito.eval.results import Results
from gatito.eval.score_charts import Bar, above_chart, axis_row, bar_row
from gatito.eval.scores import TaskResult
from gatito.eval.wording import PROMPT_WORDS, counted, decimals, interval, with_interval
from gatito.pages import facts_list, legend, section, table

SHOWN_PERCENTAGES = (0, 25, 50, 75, 90, 100)
"""Of the expert, in the table below the chart."""
HALF = 50
"""Percentage of the expert that is counted at a glance, as the paper does."""
MANY_TASKS = 80
"""Tasks from which on the domains are folded."""
SCORE_MARKS = {0.0: "0 random", 1.0: "1 expert"}


def at_a_glance(results: Results, facts: Mapping[str, str]) -> str:
    """The scores over all tasks, and how they were measured."""
    cards = []
    for group in results.overall:
        domains = sum(1 for d in results.domains if d.prompt == group.prompt and d.tasks)
        words = (
            f"mean score, 95 % interval {interval(group.mean_low, group.mean_high)}; "
            f"{counted(group.tasks, 'task')} in {counted(domains, 'domain')}, {PROMPT_WORDS[group.prompt]}; "
            f"interquartile mean {with_interval(group.iqm, group.iqm_low, group.iqm_high)}"
        )
        cards.append(f"<div><b>{decimals(group.mean)}</b>{words}</div>")
    for prompt in results.prompts[:1]:
        rows = [row for row in results.above if row.prompt == prompt]
        reached, tasks = sum(row.counts[HALF] for row in rows), sum(row.tasks for row in rows)
        if tasks:
            cards.append(
                f"<div><b>{reached} of {tasks}</b>tasks at half of the expert or more, {PROMPT_WORDS[prompt]}</div>"
            )
    for score in results.language:
        if score.exact is not None:
            cards.append(
                f"<div><b>{score.exact:.1%}</b>of {counted(score.documents, 'answer')} of {escape(score.source)} "
                f"exact, 95 % interval {score.ci_low:.1%} to {score.ci_high:.1%}; always the commonest: "
                f"{score.commonest:.1%}</div>"
            )
    lead = (
        "A score places a task's mean return between the random policy (0) and the expert (1). The mean is over "
        "domains of the means over their tasks. Episodes are seeded, and their seeds were not trained on."
    )
    known = {"checkpoint": results.checkpoint, **results.settings}
    shown = {name: str(value) for name, value in known.items() if value not in ("", None)} | dict(facts)
    return section("At a glance", lead, f'<div class="cards">{"".join(cards)}</div>{facts_list(shown)}')


def tasks_above_expert(results: Results) -> str:
    """Reed et al. 2022, figure 5, a chart and a table per prompt."""
    if not results.above:
        return ""
    domains = sorted({row.domain for row in results.above})
    charts = []
    for prompt, group in groupby(results.above, lambda row: row.prompt):
        rows = list(group)
        total = sum(row.tasks for row in rows)
        what = f"Tasks at or above each percentage of the expert, {PROMPT_WORDS[prompt]}"
        cells = [(row.domain, str(row.tasks), *(str(row.counts[p]) for p in SHOWN_PERCENTAGES)) for row in rows]
        counts = [str(sum(row.counts[p] for row in rows)) for p in SHOWN_PERCENTAGES]
        cells.append(("all", str(total), *counts))
        head = ("domain", "tasks", *(f"{p} %" for p in SHOWN_PERCENTAGES))
        charts.append(
            f"<div><h3>{PROMPT_WORDS[prompt].capitalize()}</h3>{above_chart(rows, domains, total, what)}"
            f"<details><summary>the counts</summary>{table(head, cells, what)}</details></div>"
        )
    lead = (
        "How many tasks reach each percentage of the expert's score, or exceed it (0 % is the random policy), "
        f"stacked by domain; of {counted(len({row.id for row in results.tasks if row.is_scored}), 'task')}."
    )
    colours = {colour_of(domain, domains): domain for domain in domains}
    body = f'{legend(colours)}<div class="charts above">{"".join(charts)}</div>'
    return section("Tasks above a percentage of the expert", lead, body)


def by_domain(results: Results) -> str:
    """Bars of every task with a score, below the mean of its domain."""
    rows = [row for row in results.tasks if row.score is not None]
    if not rows:
        return ""
    low, high = _range(rows)
    is_open = "" if len({row.id for row in rows}) > MANY_TASKS else " open"
    parts = [_prompt_legend(results.prompts)]
    for domain, in_domain in groupby(rows, lambda row: row.domain):
        means = [group for group in results.domains if group.name == domain and group.mean is not None]
        bars = [_bar(group.prompt, group.mean, group.mean_low, group.mean_high) for group in means]
        parts.append(
            f"<details{is_open}><summary><h3>{escape(domain)}</h3></summary>{axis_row(low, high, SCORE_MARKS)}"
        )
        parts.append(bar_row(f"mean of {domain}", bars, low, high, whole=True))
        for task, group in groupby(in_domain, lambda row: row.id):
            bars = [_bar(row.prompt, row.score, row.ci_low, row.ci_high) for row in group]
            parts.append(bar_row(task.partition("/")[2], bars, low, high))
        parts.append("</details>")
    lead = "Bars are mean scores, lines their 95 % intervals: bootstrap over episodes, Wilson's of success rates."
    return section("Scores by domain", lead, "\n".join(parts))


def by_prompt(results: Results) -> str:
    """What prompts change, on the seeds that were played with both."""
    if len(results.prompts) < 2:
        return ""
    first, *others = results.prompts
    compared = {prompt: _compared(results, first, prompt) for prompt in others}
    rows = []
    for group in results.overall:
        found = compared.get(group.prompt)
        total = found.overall[0] if found and found.overall else None
        rows.append(
            (
                group.prompt,
                with_interval(group.mean, group.mean_low, group.mean_high),
                with_interval(group.iqm, group.iqm_low, group.iqm_high),
                str(group.tasks),
                with_interval(total.difference, total.low, total.high, "+.2f") if total else "-",
                f"{total.better} / {total.worse} / {total.undecided}" if total else "-",
            )
        )
    names = ("prompt", "mean score", "interquartile mean", "tasks", "paired difference", "better / worse / undecided")
    lead = (
        f"Differences to {PROMPT_WORDS[first]}, of the episodes that were played with both prompts on the same "
        "seeds. A task is better or worse where its 95 % interval excludes 0."
    )
    body = table(names, rows, "Prompts compared") + _differences(compared)
    return section("Prompts compared", lead, body)


def by_order(results: Results) -> str:
    """Scores of the first episodes of contexts, of the second, and so on."""
    groups = [(order, group) for order, group in results.orders if group.mean is not None]
    if not groups:
        return ""
    low, high = _range([group for _, group in groups])
    parts = [_prompt_legend([p for p in results.prompts if any(p == g.prompt for _, g in groups)])]
    parts.append(axis_row(low, high, SCORE_MARKS))
    for order, at_order in groupby(groups, lambda pair: pair[0]):
        bars = [_bar(group.prompt, group.mean, group.mean_low, group.mean_high) for _, group in at_order]
        parts.append(bar_row(f"episode {order + 1}", bars, low, high))
    rows = [
        (
            f"episode {order + 1}",
            group.prompt,
            with_interval(group.mean, group.mean_low, group.mean_high),
            with_interval(group.iqm, group.iqm_low, group.iqm_high),
            str(group.tasks),
        )
        for order, group in groups
    ]
    names = ("order", "prompt", "mean score", "interquartile mean", "tasks")
    lead = "Mean scores over domains of the first episode of each context, of the second, and so on."
    return section("Episodes of one context", lead, "\n".join(parts) + table(names, rows, "Scores by order"))


def _compared(results: Results, first: str, second: str) -> Comparison | None:
    try:
        return compare(results, results, prompts=(first, second), names=(first, second))
    except UserError:  # no seed was played with both
        return None


def _differences(compared: Mapping[str, Comparison | None]) -> str:
    """Bars of the paired differences by domain."""
    rows: dict[str, list[tuple[str, GroupComparison]]] = {}
    for prompt, found in compared.items():
        for group in (*found.domains, *found.overall) if found else ():
            rows.setdefault(group.name, []).append((prompt, group))
    if not rows:
        return ""
    reach = max(
        0.05, *(abs(x or 0.0) for pairs in rows.values() for _, g in pairs for x in (g.low, g.high, g.difference))
    )
    parts = [_prompt_legend(list(compared)), axis_row(-reach, reach, {-reach: "worse", 0.0: "0", reach: "better"})]
    for name in sorted(rows, key=lambda name: (name == "overall", name)):
        bars = [_bar(prompt, g.difference, g.low, g.high) for prompt, g in rows[name]]
        parts.append(bar_row(name, bars, -reach, reach, marks=(0.0,)))
    return f"<h3>Differences by domain</h3>{''.join(parts)}"


def _bar(prompt: str, value: float | None, low: float | None, high: float | None) -> Bar:
    assert value is not None
    return Bar(kind=prompt, words=PROMPT_WORDS[prompt], value=value, low=low, high=high)


def _prompt_legend(prompts: Sequence[str]) -> str:
    return legend({prompt: PROMPT_WORDS[prompt] for prompt in prompts})


def _range(rows: Sequence[TaskResult | GroupResult]) -> tuple[float, float]:
    """Ends of a scale of scores: 0 to 1, and what exceeds them down to -1 and up to 2."""
    ends = [0.0, 1.0]
    for row in rows:
        found = (row.score, row.ci_low, row.ci_high) if isinstance(row, TaskResult) else (row.mean_low, row.mean_high)
        ends += [x for x in found if x is not None]
    return max(-1.0, min(ends)), min(2.0, max(ends))
