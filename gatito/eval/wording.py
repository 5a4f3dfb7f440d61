"""How scores are written wherever people read them: tables, pages, cards."""

from collections.abc import Mapping

from gatito.eval.scores import TaskResult

PROMPT_WORDS: Mapping[str, str] = {
    "none": "no prompt",
    "beginning": "a demonstration's beginning",
    "end": "a demonstration's end",
    "uniform": "a drawn stretch of a demonstration",
}
"""What the prompts are called."""
ABSENT = "-"
"""Stands for what could not be measured."""


def decimals(x: float | None, spec: str = ".2f") -> str:
    """A number in this format; what rounds to zero has no minus."""
    text = ABSENT if x is None else f"{x:{spec}}"
    return text if text == ABSENT or text.strip("-+0.%") else text.lstrip("-")


def interval(low: float | None, high: float | None, spec: str = ".2f") -> str:
    """An interval's ends."""
    return ABSENT if low is None or high is None else f"{decimals(low, spec)} to {decimals(high, spec)}"


def with_interval(x: float | None, low: float | None, high: float | None, spec: str = ".2f") -> str:
    """A number with its interval."""
    return decimals(x, spec) if low is None or high is None else f"{decimals(x, spec)} ({interval(low, high, spec)})"


def why_unscored(row: TaskResult) -> str:
    """Why a task has no score."""
    if row.is_scored:
        return "no episode was finished"
    if row.random is None or row.expert is None:
        return "no reference returns were measured (--expert-return says that of the expert)"
    return f"the expert ({row.expert:.2f}) is not above the random policy ({row.random:.2f})"


def counted(count: int, what: str) -> str:
    """A number of things: `1 task`, `2 tasks`."""
    return f"{count} {what}{'' if count == 1 else 's'}"
