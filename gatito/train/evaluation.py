"""Prompted rollouts while training, the tasks shared among the processes."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from gatito.data.alarm import OutOfTime, time_limit
from gatito.data.tasks import matching, registry
from gatito.errors import UserError, nearest
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import CheckedTask, check_tasks, evaluate_task
from gatito.eval.scores import TaskResult
from gatito.eval.wording import why_unscored
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.train.configs import TrainConfig
from gatito.train.stop import Stop
from gatito.train.watch import EVALUATIONS, append_line

LONGEST_REASON = 200
"""Letters of why a task failed."""


def tasks_to_evaluate(config: TrainConfig, processor: GatitoProcessor, known: Collection[str]) -> list[CheckedTask]:
    """The tasks of `--train.evaluate_tasks`, by default all registered ones that are trained on (`known`).

    A pattern or group stands for those of its tasks that are trained on. Raises `UserError` for a task that the data
    does not have, before any training.
    """
    if not config.evaluate_every:
        return []
    names = [name.strip() for name in config.evaluate_tasks.split(",")] if config.evaluate_tasks else ["all"]
    for name in names:
        if name in registry() and name not in known:
            raise UserError(f"--train.evaluate_tasks: {nearest(name, known, 'task of the data')}")
    tasks = [task for task in matching(names) if task in known]
    if not tasks:
        raise UserError(f"--train.evaluate_tasks {', '.join(names)}: the data has no such task that is registered")
    return check_tasks(processor, tasks, how_to_evaluate(config))


def how_to_evaluate(config: TrainConfig) -> EvaluationConfig:
    """In this process: the others have their own shares."""
    return EvaluationConfig(episodes=config.evaluate_episodes, prompt=config.evaluate_prompt)


class _Interrupted(Exception):
    """The run was told to end while it evaluated."""


def evaluate_while_training(
    accelerator: Accelerator,
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    tasks: Sequence[CheckedTask],
    config: TrainConfig,
    step: int,
    out: Path,
    stop: Stop,
) -> None:
    """Score every task once and write the scores down.

    Each process plays its share of the tasks. Whatever fails in one, or is not done after `--train.evaluate_limit_s`,
    is said of that task and counted: a process that raised, or hung, would leave the others waiting for it. Once any
    process was told to end, nothing is written.
    """
    began = time.monotonic()
    model.eval()
    found: list[tuple[str, float | None, str]] = []

    def look_up() -> None:
        if stop.asked:
            raise _Interrupted

    for task in tasks[accelerator.process_index :: accelerator.num_processes]:
        try:
            look_up()
            left = config.evaluate_limit_s - (time.monotonic() - began)
            slow = OutOfTime(f"the evaluation took more than {config.evaluate_limit_s:g} s")
            if left <= 0:
                raise slow
            with time_limit(left, "wall", slow), torch.compiler.set_stance("force_eager"):
                result = evaluate_task(model, processor, task, how_to_evaluate(config), on_episode=look_up)
            found.append((task.spec.id, result.score, _what_failed(result)))
        except _Interrupted:
            break
        except Exception as error:
            found.append((task.spec.id, None, " ".join(str(error).split())[:LONGEST_REASON]))
    model.train()
    everything: list[tuple[str, float | None, str]] = sorted(gather_object(found))
    if len(everything) == len(tasks) and accelerator.is_main_process:
        _write(accelerator, everything, config, step, out, time.monotonic() - began)


def _what_failed(result: TaskResult) -> str:
    if result.score is None:
        return f"it has no score: {why_unscored(result)}"
    return f"{result.failed} of {result.failed + result.episodes} episodes failed" if result.failed else ""


def _write(
    accelerator: Accelerator,
    found: Sequence[tuple[str, float | None, str]],
    config: TrainConfig,
    step: int,
    out: Path,
    seconds: float,
) -> None:
    values = {f"score/{task}": score for task, score, _ in found if score is not None}
    failed = {task: reason for task, _, reason in found if reason}
    said = "no task was scored"
    if values:
        said = f"mean score {sum(values.values()) / len(values):.3f} over {len(values)} tasks"
        values["score"] = sum(values.values()) / len(values)
    append_line(out / EVALUATIONS, {"step": step, "seconds": seconds, "failed": failed, **values})
    tqdm.write(f"step {step}: {said}" + "".join(f"; {task}: {why}" for task, why in failed.items()))
    if config.tracker != "none":
        accelerator.log(values, step=step)
