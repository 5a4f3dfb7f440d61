"""Which episodes of an evaluation are filmed, and where in them attention is looked at."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from gatito.data.alarm import time_limit
from gatito.data.tasks import EVALUATION_SEEDS
from gatito.eval.attention import AttentionView, view_attention
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import CheckedTask, make_actor, make_prompts
from gatito.eval.prompts import EPISODE_LIMITS
from gatito.eval.results import Results
from gatito.eval.scores import EpisodeRecord, TaskResult
from gatito.eval.videos import Video, record_episode
from gatito.model import GatitoForCausalLM

MAX_VIEWS = 2
"""Filmed episodes of which the report shows what the model looks at."""


def film(
    results: Results,
    folder: Path,
    model: GatitoForCausalLM,
    checked: Sequence[CheckedTask],
    config: EvaluationConfig,
    videos: int,
    attention_step: int,
) -> tuple[list[Video], list[AttentionView]]:
    """Videos of the worst tasks and the best, and what the model looked at in two of the episodes.

    They are played with the last of the prompts. An episode that cannot be played again, or takes `EPISODE_LIMITS`
    times as long as a timestep may, costs its video, not the report.
    """
    actor, part = make_actor(model, config, 1), config.prompts[-1]
    slow = TimeoutError(f"it takes more than {EPISODE_LIMITS} times --limit-s")
    by_id = {task.spec.id: task for task in checked}
    filmed: list[Video] = []
    shown: list[tuple[int, AttentionView]] = []
    for row in tqdm(worst_and_best(results.tasks, part, videos), desc="film", unit="episode", disable=not videos):
        task, episode = by_id[row.id], lowest(results.records, row)
        number = (episode.seed - EVALUATION_SEEDS) // config.episodes_in_context
        try:
            with time_limit(EPISODE_LIMITS * config.limit_s, "wall", slow):
                prompt = (
                    None if part == "none" else make_prompts(model, task, config).prompt(part, number, episode.seed)
                )
                filmed.append(record_episode(actor, task, folder, seed=episode.seed, prompt=prompt, part=part))
                step = min(attention_step, filmed[-1].length - 1)
                shown.append((step, view_attention(actor, task, step, seed=episode.seed, prompt=prompt)))
        except Exception as error:  # whatever another package's simulator raises
            tqdm.write(f"not filmed: {row.id}, seed {episode.seed}: {type(error).__name__}: {error}")
    # Late steps have more to look at; of equal ones those of the worst task and of the best.
    ranked = sorted(range(len(shown)), key=lambda i: (-shown[i][0], min(i, len(shown) - 1 - i)))
    return filmed, [shown[i][1] for i in sorted(ranked[:MAX_VIEWS])]


def worst_and_best(rows: Sequence[TaskResult], part: str, count: int) -> list[TaskResult]:
    """Rows of as many tasks with a prompt: the worse half of them the worst, the rest the best."""
    played = [row for row in rows if row.prompt == part and row.episodes]
    ranked = sorted(played, key=lambda row: (row.score is not None, row.score or 0.0))
    if len(ranked) <= count:
        return ranked
    return ranked[: (count + 1) // 2] + ranked[len(ranked) - count // 2 :]


def lowest(records: Sequence[EpisodeRecord], row: TaskResult) -> EpisodeRecord:
    """The finished episode of a row with the lowest return, the first of a context."""
    own = [r for r in records if (r.task, r.prompt) == (row.id, row.prompt) and r.total_return is not None]
    return min(own, key=lambda r: (r.order, r.total_return or 0.0))
