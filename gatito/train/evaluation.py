"""Prompted rollouts while training, the tasks shared among the processes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from gatito.data.tasks import matching, registry
from gatito.errors import UserError
from gatito.eval.rollout import check_task, evaluate_task
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.train.configs import TrainConfig
from gatito.train.watch import EVALUATIONS, append_line


def tasks_to_evaluate(config: TrainConfig, processor: GatitoProcessor) -> list[str]:
    """The tasks of `--train.evaluate_tasks`, by default all registered ones that are trained on.

    Raises `UserError` for one that the data does not know, before any training.
    """
    if not config.evaluate_every:
        return []
    if config.evaluate_tasks:
        tasks = matching([name.strip() for name in config.evaluate_tasks.split(",")])
    else:
        tasks = sorted(set(processor.layouts) & set(registry()))
    if not tasks:
        raise UserError(
            "--train.evaluate_every: the data has no task that is registered; name --train.evaluate_tasks"
        )
    for task in tasks:
        check_task(processor, task)
    return tasks


def evaluate_while_training(
    accelerator: Accelerator,
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    tasks: Sequence[str],
    config: TrainConfig,
    step: int,
    out: Path,
) -> dict[str, float]:
    """Score every task once and return the scores by name, on all processes.

    Each process plays its share of the tasks. Whatever fails in one is said of that task and counted: a process that
    raised would leave the others waiting for it.
    """
    began = time.monotonic()
    was_training = model.training
    model.eval()
    found: list[tuple[str, float | None, str]] = []
    for task in tasks[accelerator.process_index :: accelerator.num_processes]:
        try:
            result = evaluate_task(
                model, processor, task, episodes=config.evaluate_episodes, prompt=config.evaluate_prompt
            )
            found.append((task, result.score, ""))
        except Exception as error:
            found.append((task, None, " ".join(str(error).split())))
    model.train(was_training)
    everything: list[tuple[str, float | None, str]] = sorted(gather_object(found))
    scores = {task: score for task, score, _ in everything if score is not None}
    failed = {task: reason for task, score, reason in everything if score is None}
    values = {f"score/{task}": score for task, score in scores.items()}
    if scores:
        values["score"] = sum(scores.values()) / len(scores)
    if accelerator.is_main_process:
        line: dict[str, Any] = {"step": step, "seconds": time.monotonic() - began, "failed": failed, **values}
        append_line(out / EVALUATIONS, line)
        mean = f"mean score {values['score']:.3f} over {len(scores)} tasks" if scores else "no task was scored"
        tqdm.write(f"step {step}: {mean}" + "".join(f"; {task} failed: {why}" for task, why in failed.items()))
        if config.tracker != "none":
            accelerator.log(values, step=step)
    return values
