"""Scores as Markdown for a model card, with the `model-index` that the Hugging Face hub reads."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from gatito.eval.groups import GroupResult
from gatito.eval.results import Results
from gatito.eval.scores import TaskResult
from gatito.eval.wording import ABSENT, PROMPT_WORDS, counted, decimals, interval, why_unscored, with_interval

MODEL = "gatito"
"""Name in the index of a checkpoint that has none."""
TASK_TYPE = "reinforcement-learning"
Value = float | str | None
RETURN, SCORE, SUCCESS = "total_reward", "expert_normalized_total_reward", "success_rate"
"""Metrics of a task, the first two as JAT's card calls them."""
MEAN, IQM = f"mean_{SCORE}", f"iqm_over_tasks_{SCORE}"
"""Metrics of many tasks; JAT's `iqm_` pools the episodes of all tasks, which is another number."""


def results_card(results: Results) -> str:
    """YAML front matter with a `model-index`, and a section with the scores."""
    name = Path(results.checkpoint).name or MODEL
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK_TYPE,
        tags=["gatito", TASK_TYPE],
        model_name=name,
        eval_results=model_index(results) or None,
    )
    return f"---\n{front.to_yaml()}\n---\n{results_section(results)}"


def scored_card(card: str, results: Results) -> str:
    """The card of a checkpoint with its scores added: its `model-index` and a section at the end."""
    found: Any = ModelCard(card)
    found.data.model_name = Path(results.checkpoint).name or MODEL
    found.data.eval_results = model_index(results) or None
    return f"{str(found).rstrip()}\n\n{results_section(results)}"


def write_card(results: Results, path: Path) -> None:
    """Write the card, whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(results_card(results), encoding="utf-8")
    temporary.rename(path)


def model_index(results: Results) -> list[EvalResult]:
    """Every score and return of tasks, domains and all; the prompt is the configuration of the dataset."""
    found = [result for group in (*results.overall, *results.domains) for result in _of_group(group)]
    return found + [result for row in results.tasks for result in _of_task(row)]


def _of_task(row: TaskResult) -> list[EvalResult]:
    values = {
        RETURN: ("return", _value(row.mean_return)),
        SCORE: ("score", _value(row.score, row.ci_low, row.ci_high)),
        SUCCESS: ("success rate", _value(row.success, row.success_low, row.success_high)),
    }
    return _entries(row.id, f"{row.id}, {PROMPT_WORDS[row.prompt]}", row.prompt, values)


def _of_group(group: GroupResult) -> list[EvalResult]:
    values = {
        MEAN: ("mean score", _value(group.mean, group.mean_low, group.mean_high)),
        IQM: (
            "interquartile mean over tasks",
            _value(group.iqm, group.iqm_low, group.iqm_high),
        ),
    }
    name = f"{group.name}, {counted(group.tasks, 'task')}, {PROMPT_WORDS[group.prompt]}"
    return _entries(group.name, name, group.prompt, values)


def _entries(kind: str, name: str, prompt: str, values: dict[str, tuple[str, Value]]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=TASK_TYPE,
            task_name="Reinforcement learning",
            dataset_type=kind,
            dataset_name=name,
            dataset_config=f"prompt-{prompt}",
            metric_type=metric,
            metric_name=words,
            metric_value=value,
        )
        for metric, (words, value) in values.items()
        if value is not None
    ]


def _value(x: float | None, low: float | None = None, high: float | None = None) -> Value:
    """A number, or with its interval as other cards of the hub write it: `0.14 [0.14, 0.15]`."""
    if x is None or low is None or high is None:
        return None if x is None else round(x, 4)
    return f"{x:.2f} [{low:.2f}, {high:.2f}]"


def results_section(results: Results) -> str:
    """The scores as Markdown, without front matter."""
    summary = _table(
        ("", "prompt", "tasks", "mean score (95 % interval)", "interquartile mean (95 % interval)"),
        [
            (
                group.name,
                group.prompt,
                str(group.tasks),
                with_interval(group.mean, group.mean_low, group.mean_high),
                with_interval(group.iqm, group.iqm_low, group.iqm_high),
            )
            for group in (*results.overall, *results.domains)
        ],
    )
    tasks = _table(
        ("task", "prompt", "return", "score", "95 % interval", "success", "episodes", "failed"),
        [
            (
                row.id,
                row.prompt,
                decimals(row.mean_return),
                decimals(row.score),
                interval(row.ci_low, row.ci_high),
                decimals(row.success, ".0%"),
                str(row.episodes),
                str(row.failed),
            )
            for row in results.tasks
        ],
    )
    unscored = [row for row in results.tasks if row.score is None]
    parts = [
        "## Scores\n",
        "Mean return of seeded episodes, placed between the random policy (0) and the expert (1); the overall mean "
        "is over domains of the means over their tasks. Intervals resample the episodes of each task; those of "
        "success rates are Wilson's. Episodes that the simulator did not finish are counted as failed and left "
        "out.\n",
        _settings(results),
        summary,
        tasks,
    ]
    if unscored:
        reasons = "".join(f"- {_cell(row.id)}, prompt {row.prompt}: {why_unscored(row)}\n" for row in unscored)
        parts.append(f"Without a score, and in no mean above:\n\n{reasons}")
    return "\n".join(part for part in parts if part)


def _settings(results: Results) -> str:
    known = {"checkpoint": results.checkpoint, **results.settings}
    said = ", ".join(f"{_cell(name)} {_cell(str(value))}" for name, value in known.items() if value not in ("", None))
    return f"Evaluated with {said}.\n" if said else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(_cell(cell) or ABSENT for cell in line)} |\n" for line in lines) if rows else ""


def _cell(text: str) -> str:
    """Text that ends neither its cell nor its line, and that is no HTML."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())
