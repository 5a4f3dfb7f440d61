"""Seeded episodes of a checkpoint on several tasks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing as closing_env
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import torch
from tqdm import tqdm

from gatito.data.previous_reward import known_as
from gatito.data.tasks import Reference, TaskSpec, get_task
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.config import EvaluationConfig
from gatito.eval.journal import Journal
from gatito.eval.prompts import Prompts, check_datasets
from gatito.eval.references import baseline_of
from gatito.eval.rollout import Acts, Job, Recorder, rollouts
from gatito.eval.scores import Baseline, EpisodeRecord, Prompt, TaskResult, task_results
from gatito.eval.simulator_pool import simulators
from gatito.eval.simulators import Simulators, closing
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.model.int8 import quantize_int8
from gatito.model.packed import pack_linears
from gatito.tokenizers import Layout, TokenSequence


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedTask:
    """A task that can be evaluated."""

    spec: TaskSpec
    """Environment and expert."""
    layout: Layout
    """Of the checkpoint, and of the environment."""
    baseline: Baseline
    """What its scores are measured between."""
    env: gym.Env[Any, Any]
    """For its spaces; closed."""
    demonstrated: TaskSpec | None = None
    """Task of the same layout whose expert gives the prompts; None is its own."""

    @property
    def reference(self) -> Reference | None:
        """The baseline, where there is a score."""
        if not self.baseline.is_scored or self.baseline.random is None or self.baseline.expert is None:
            return None
        return Reference(random=self.baseline.random, expert=self.baseline.expert)


def check_task(
    processor: GatitoProcessor, task: str | TaskSpec, config: EvaluationConfig | None = None
) -> CheckedTask:
    """What evaluating a task needs, its references measured where they were not.

    Raises `UserError` where it is unknown, or has other spaces now, and for demonstrations of another task or layout.
    """
    config = config or EvaluationConfig()
    spec, layout, env = check_environment(processor, task if isinstance(task, TaskSpec) else get_task(task))
    if config.demonstrations_from is not None:
        check_datasets(spec, layout, config.demonstrations_from)
    elif set(config.prompts) != {"none"} and not spec.has_expert:
        raise UserError(
            f"--prompt {config.prompt}: {spec.id} has no scripted expert to demonstrate; give --demonstrations-from"
        )
    baseline = baseline_of(spec, config.demonstrations_from, config.expert_return, config.processes)
    return CheckedTask(spec=spec, layout=layout, baseline=baseline, env=env)


def check_environment(processor: GatitoProcessor, spec: TaskSpec) -> tuple[TaskSpec, Layout, gym.Env[Any, Any]]:
    """The task as a checkpoint knows it, with the reward in its observations or without; its layout; and its
    environment, closed, for its spaces.

    Raises `UserError` where the checkpoint does not know the task, or knows it with other spaces.
    """
    layout = processor.layout(spec.id)
    spec = known_as(spec, layout)
    with closing_env(spec.make()) as env:
        fresh = spec.layout(env, layout.vocabulary, layout.text).binned_as(layout)
    if fresh.sha256 != layout.sha256:
        raise UserError(
            f"task {spec.id!r}: the environment's layout {fresh.sha256[:12]} is not the checkpoint's "
            f"{layout.sha256[:12]}; the spaces have changed since the data was built, train again"
        )
    return spec, layout, env


def check_tasks(
    processor: GatitoProcessor, tasks: Sequence[str | TaskSpec | CheckedTask], config: EvaluationConfig
) -> list[CheckedTask]:
    """All of them, before the first episode; raises `UserError` for one that is listed twice."""
    named = [task.spec if isinstance(task, CheckedTask) else task for task in tasks]
    ids = [task if isinstance(task, str) else task.id for task in named]
    for name in ids:
        if ids.count(name) > 1:
            raise UserError(f"task {name!r} is listed twice; raise --episodes instead")
    bar = tqdm(tasks, desc="check", unit="task", leave=False, disable=len(tasks) < 3)
    return [task if isinstance(task, CheckedTask) else check_task(processor, task, config) for task in bar]


def evaluate(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    tasks: Sequence[str | TaskSpec | CheckedTask],
    config: EvaluationConfig | None = None,
    *,
    journal: Journal | None = None,
    recorder: Recorder | None = None,
    share: tuple[int, int] = (0, 1),
    simulated_by: Simulators | None = None,
    on_episode: Callable[[], object] = lambda: None,
) -> list[EpisodeRecord]:
    """Play the seeded episodes of all tasks and prompts, and return their records in this order.

    Same checkpoint, settings and machine: same records. Which episodes share a batch changes rounding, no more.
    With a `journal` what is finished is written down at once, and what it says is not played again. `share` is the
    number of this process and how many there are; each plays every so-manieth context. `simulated_by` stays open.
    Raises `UserError` for a task that cannot be evaluated, and what `rollouts` and `make_actor` raise.
    """
    config = config or EvaluationConfig()
    checked = check_tasks(processor, tasks, config)
    records = [] if journal is None else list(journal.records)
    rank, world = share
    records += play(
        partial(make_actor, model, config),
        _jobs(model, checked, config)[rank::world],
        config,
        journal=journal,
        recorder=recorder,
        simulated_by=simulated_by,
        on_episode=on_episode,
        is_silent=rank > 0,
    )
    order = {key: i for i, key in enumerate(episodes_of(checked, config))}
    return sorted(records, key=lambda record: order[record.task, record.prompt, record.seed])


def play(
    make: Callable[[int], Acts],
    jobs: Sequence[Job],
    config: EvaluationConfig,
    *,
    journal: Journal | None = None,
    recorder: Recorder | None = None,
    simulated_by: Simulators | None = None,
    on_episode: Callable[[], object] = lambda: None,
    is_silent: bool = False,
) -> list[EpisodeRecord]:
    """Play the jobs that the journal does not have yet, write them down there, and return their records.

    `make` gives who plays, with so many sessions; it is not called where nothing is left to be played. Raises what
    it and `rollouts` raise.
    """
    done = set() if journal is None else {(r.task, r.prompt, r.seed) for r in journal.records}
    left = [job for job in jobs if not all((job.spec.id, job.part, seed) in done for seed in job.seeds)]
    total = sum(len(job.seeds) for job in jobs)
    records: list[EpisodeRecord] = []
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=total, desc="evaluate", unit="episode", disable=is_silent))
        bar.update(total - sum(len(job.seeds) for job in left))
        if left:
            actor = make(min(config.sessions, len(left)))
            these = simulated_by or stack.enter_context(closing(simulators(config.processes, limit_s=config.limit_s)))
            for finished in rollouts(actor, these, left, recorder=recorder):
                records.extend(finished)
                if journal is not None:
                    journal.add(finished)
                bar.set_postfix_str(finished[0].task)
                for record in finished:
                    bar.update()
                    on_episode()
                    if record.failure:
                        tqdm.write(f"failed: {record.task}, seed {record.seed}, {record.failure}")
            if actor.num_clipped:
                tqdm.write(f"{actor.num_clipped} observed values outside their bounds, clipped by the bins")
    return records


def evaluate_task(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    task: str | TaskSpec | CheckedTask,
    config: EvaluationConfig | None = None,
    *,
    on_episode: Callable[[], object] = lambda: None,
) -> TaskResult:
    """Score a checkpoint on one task, with the first of the prompts.

    Raises `UserError` where no episode could be finished, with what befell the first.
    """
    (checked,) = check_tasks(processor, [task], config or EvaluationConfig())
    records = evaluate(model, processor, [checked], config, on_episode=on_episode)
    if all(record.failure for record in records):
        raise UserError(f"no episode of {checked.spec.id} could be finished: {records[0].failure}")
    return task_results(records, baselines_of([checked]))[0]


def make_actor(model: GatitoForCausalLM, config: EvaluationConfig, num_sessions: int) -> Actor:
    """An actor of so many sessions that acts as configured; raises `UserError` for int8 on a GPU."""
    return Actor(
        quantize_int8(model) if config.int8 else pack_linears(model),
        num_sessions,
        decoding=config.decoding,
        memory=config.memory,
        prompt_slides=config.prompt_slides,
        cache_dtype=torch.bfloat16 if config.int8 else None,
        compiled=config.compile,
    )


def make_prompts(model: GatitoForCausalLM, task: CheckedTask, config: EvaluationConfig) -> Prompts:
    """The prompts of a task; raises `UserError` where there are too few demonstrations."""
    return Prompts(
        task.demonstrated or task.spec,
        task.layout,
        model.config.trunk,
        int(model.config.context),
        known=task.reference,
        count=config.num_demonstrations,
        each=config.demonstrations,
        source=config.demonstrations_from,
        limit_s=config.limit_s,
    )


def _cells(checked: Sequence[CheckedTask], config: EvaluationConfig) -> Iterator[tuple[CheckedTask, Prompt]]:
    return ((task, prompt) for task in checked for prompt in config.prompts)


def _jobs(model: GatitoForCausalLM, checked: Sequence[CheckedTask], config: EvaluationConfig) -> list[Job]:
    """All contexts, task by task; demonstrations are made when the first of their task is asked for."""
    made: dict[str, Prompts | UserError] = {}

    def prompt(task: CheckedTask, part: Prompt, number: int, seed: int) -> TokenSequence | None:
        if part == "none":
            return None
        if task.spec.id not in made:
            made.clear()  # contexts begin in the order of tasks
            try:
                made[task.spec.id] = make_prompts(model, task, config)
            except UserError as error:  # the next contexts need not try again
                made[task.spec.id] = error
        prompts = made[task.spec.id]
        if isinstance(prompts, UserError):
            raise prompts
        return prompts.prompt(part, number, seed)

    return [
        Job(
            spec=task.spec,
            layout=task.layout,
            part=part,
            prompt=partial(prompt, task, part, number, seeds[0]),
            seeds=seeds,
        )
        for task, part in _cells(checked, config)
        for number, seeds in enumerate(config.contexts(part))
    ]


def episodes_of(checked: Sequence[CheckedTask], config: EvaluationConfig) -> list[tuple[str, str, int]]:
    """Task, prompt and seed of every episode, in order."""
    return [
        (task.spec.id, part, seed)
        for task, part in _cells(checked, config)
        for seeds in config.contexts(part)
        for seed in seeds
    ]


def baselines_of(checked: Sequence[CheckedTask]) -> Mapping[str, Baseline]:
    """By task."""
    return {task.spec.id: task.baseline for task in checked}
