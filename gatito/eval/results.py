"""`results.json`, and the same as a table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gatito.eval.rollout import TaskResult, mean_score

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was measured of one checkpoint."""

    tasks: Sequence[TaskResult]
    """One row per task and prompt."""
    captions: dict[str, float | int] | None = None
    """Score of captions, see `caption_score`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage."""

    def to_json(self) -> dict[str, Any]:
        """The contents of `results.json`; `mean_score` is over the unprompted tasks where there are any."""
        unprompted = [row for row in self.tasks if row.prompt == "none"] or list(self.tasks)
        return {
            "schema": SCHEMA,
            "mean_score": mean_score(unprompted),
            "tasks": [row.to_json() for row in self.tasks],
            "captions": self.captions,
            "seconds": self.seconds,
        }


def write_results(results: Results, path: Path) -> None:
    """Write `results.json`, whole or not at all."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    temporary.rename(path)


def print_results(results: Results) -> None:
    """Print the table."""
    print(f"\n{'task':36} {'prompt':7} {'return':>9} {'random':>9} {'expert':>9}  score (95 % interval)")
    for row in results.tasks:
        print(
            f"{row.id:36} {row.prompt:7} {row.mean_return:9.2f} {row.random:9.2f} {row.expert:9.2f}  "
            f"{row.score:5.2f} ({row.ci_low:.2f} to {row.ci_high:.2f}), {row.episodes} episodes"
        )
    for prompt in ("none", "demo"):
        rows = [row for row in results.tasks if row.prompt == prompt]
        if rows:
            print(f"mean score, prompt {prompt}: {mean_score(rows):.3f} over {len(rows)} tasks")
    if results.captions:
        c = results.captions
        print(
            f"exact captions: {c['exact']:.1%} ({c['ci_low']:.1%} to {c['ci_high']:.1%}) of {c['images']} held-out "
            f"images; always the commonest answer: {c['commonest_answer']:.1%}"
        )
