"""What parts measure: a training run, seeded episodes of what it learned, and its loss on what it has not seen."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gatito.data.previous_reward import known_as
from gatito.data.sampler import Sampler
from gatito.data.store import Store, open_store
from gatito.data.tasks import TaskSpec, get_task, registry
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import CheckedTask, baselines_of, check_tasks, evaluate
from gatito.eval.results import Results, read_results, write_results
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.policies import any_environment
from gatito.train.configs import Recipe
from gatito.train.parameters import count_parameters
from gatito.train.trainer import train
from gatito.train.watch import EVALUATIONS, METRICS, read_lines

HELD_OUT_ROWS = 96
"""Rows that the held-out loss is measured on."""
ROWS_AT_A_TIME = 16


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Seeded episodes to be played."""

    tasks: Sequence[str]
    """Task ids."""
    how: EvaluationConfig
    """Episodes, prompt and the like."""
    name: str = "eval"
    """Of its file."""
    shown: Mapping[str, str] = field(default_factory=dict)
    """Task to the one whose expert demonstrates it, where that is another."""


def find_task(task: str) -> TaskSpec:
    """A task, or an environment that an installed package has registered with Gymnasium; raises `UserError` for one
    that is unknown, or whose simulator is not installed."""
    return get_task(task) if task in registry() else any_environment(task)


def trained(
    folder: Path,
    recipe: Recipe,
    store: Path,
    evaluations: Sequence[Evaluation],
    *,
    init: Path | None = None,
    held_out: Path | None = None,
) -> dict[str, Any]:
    """Train in `folder/run`, continuing what was begun, and evaluate the last checkpoint.

    Returns parameters outside of lookup tables, positions, steps, and the curves of the losses and of the scores that
    were played while training.
    """
    going_on = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, resume="auto"))
    checkpoint = train(going_on, store, folder / "run", init=init)
    model, processor = load_checkpoint(checkpoint)
    for evaluation in evaluations:
        played(model, processor, evaluation, folder)
    lines, played_lines = (read_lines(folder / "run" / name) for name in (METRICS, EVALUATIONS))
    if not lines:
        raise UserError(f"{folder / 'run' / METRICS} is empty; remove {folder}, and the part is measured again")
    values = {
        "non_embedding": count_parameters(model.config).non_embedding,
        "steps": int(lines[-1]["step"]),
        "positions": int(lines[-1]["step"]) * recipe.train.batch * recipe.train.context,
        "curve": [{key: line[key] for key in line if key == "step" or key.startswith("loss")} for line in lines],
        "scores": [[line["step"], line["score"]] for line in played_lines if "score" in line],
    }
    if held_out is not None:
        values["held_out_loss"] = held_out_loss(model, open_store(held_out))
    return values


def played(model: GatitoForCausalLM, processor: GatitoProcessor, evaluation: Evaluation, folder: Path) -> Results:
    """Play an evaluation into `folder/NAME.json`, where it is not there yet."""
    path = folder / f"{evaluation.name}.json"
    if path.is_file():
        try:
            return read_results(path)
        except UserError as error:
            raise UserError(f"{error}; or remove it, and it is played again") from None
    specs = [find_task(task) for task in evaluation.tasks]
    checked = [_shown_by(task, evaluation.shown) for task in check_tasks(processor, specs, evaluation.how)]
    results = Results(
        records=evaluate(model, processor, checked, evaluation.how),
        baselines=baselines_of(checked),
        checkpoint=str(folder / "run"),
        settings=evaluation.how.to_json() | {"shown": dict(evaluation.shown)},
    )
    write_results(results, path)
    return results


def _shown_by(task: CheckedTask, shown: Mapping[str, str]) -> CheckedTask:
    other = shown.get(task.spec.id)
    if other is None:
        return task
    return dataclasses.replace(task, demonstrated=known_as(find_task(other), task.layout))


@torch.inference_mode()
def held_out_loss(model: GatitoForCausalLM, store: Store) -> dict[str, float]:
    """Mean cross-entropy over the ids of each group of targets, on rows of a store (nats a token), and `all`.

    It is over the ids of a target's own group, whatever the model was trained on: one loss for all that is compared.
    """
    sampler = Sampler(store=store, context=int(model.config.context), trunk=model.config.trunk, seed=10**6)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    with _loss_over("group", model):
        for first in range(0, HELD_OUT_ROWS, ROWS_AT_A_TIME):
            targets = model(**sampler.batch(first, ROWS_AT_A_TIME).to(model.device).tensors()).targets
            for group, total in targets.loss_sum.items():
                sums[group] = sums.get(group, 0.0) + float(total)
                counts[group] = counts.get(group, 0.0) + float(targets.num_targets[group])
    losses = {group: sums[group] / counts[group] for group in sums if counts[group]}
    return losses | {"all": sum(sums.values()) / sum(counts.values())}


@contextlib.contextmanager
def _loss_over(ids: str, model: GatitoForCausalLM) -> Iterator[None]:
    before, model.config.loss_over = model.config.loss_over, ids
    try:
        yield
    finally:
        model.config.loss_over = before


def check_held_out(tasks: Iterable[str], pretrained_on: Iterable[str], source: str | Path) -> None:
    """Raise `UserError` for a task that `source` is pretrained on, be it under another id."""
    for task in tasks:
        for other in sorted(pretrained_on):
            if task == other or _have_one_environment(task, other):
                known_as = "" if task == other else f" as {other!r}"
                raise UserError(
                    f"held-out task {task!r} is in the mixture that {source} is pretrained on{known_as}; choose one "
                    "that is not, or pretrain without it"
                )


def tasks_trained_on(init: str | Path) -> set[str]:
    """Tasks that a checkpoint was trained on, without those that its mixture held out."""
    _, processor = load_checkpoint(init)
    return processor.layouts.keys() - set(processor.held_out)


def _have_one_environment(task: str, other: str) -> bool:
    """Whether a registered task and an id of Gymnasium are the same environment, where both can be built here."""
    if (task in registry()) == (other in registry()):
        return False
    try:
        first, second = (_environment(name) for name in (task, other))
    except UserError:
        return False
    return first is not None and first == second


def _environment(task: str) -> tuple[str, Mapping[str, Any], Sequence[str]] | None:
    """Gymnasium's id of a task's environment, with what it is made with and wrapped into; None where it has none."""
    env = find_task(task).make()
    spec = env.spec
    env.close()
    if spec is None:
        return None
    given = {name: value for name, value in spec.kwargs.items() if value is not None}
    return spec.id, given, [wrapper.name for wrapper in spec.additional_wrappers]
