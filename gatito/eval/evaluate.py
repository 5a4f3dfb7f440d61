"""Seeded episodes of a checkpoint on several tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing as closing_env
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
from tqdm import tqdm

from gatito.data.tasks import Reference, TaskSpec, get_task
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.config import EvaluationConfig
from gatito.eval.journal import Journal
from gatito.eval.prompts import NUM_DEMONSTRATIONS, Prompt, Prompts
from gatito.eval.references import baseline_of
from gatito.eval.rollout import Job, Recorder, rollouts
from gatito.eval.scores import Baseline, EpisodeRecord, TaskResult, task_results
from gatito.eval.simulators import Simulators, closing, simulators
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

    @property
    def reference(self) -> Reference | None:
        """The baseline, where there is a score."""
        if not self.baseline.is_scored or self.baseline.random is None or self.baseline.expert is None:
            return None
        return Reference(random=self.baseline.random, expert=self.baseline.expert)


def check_task(
    processor: GatitoProcessor, task: str | TaskSpec, config: EvaluationConfig | None = None
) -> CheckedTask:
    """What evaluating a task needs; raises `UserError` where it is unknown, or has other spaces now."""
    config = config or EvaluationConfig()
    spec = task if isinstance(task, TaskSpec) else get_task(task)
    layout = processor.layout(spec.id)
    with closing_env(spec.make()) as env:
        fresh = spec.layout(env, layout.vocabulary, layout.text)
    if fresh.sha256 != layout.sha256:
        raise UserError(
            f"task {spec.id!r}: the environment's layout {fresh.sha256[:12]} is not the checkpoint's "
            f"{layout.sha256[:12]}; the spaces have changed since the data was built, train again"
        )
    baseline = baseline_of(spec, config.demonstrations_from, config.expert_return)
    return CheckedTask(spec=spec, layout=layout, baseline=baseline, env=env)


def check_tasks(
    processor: GatitoProcessor, tasks: Sequence[str | TaskSpec], config: EvaluationConfig
) -> list[CheckedTask]:
    """All of them, before the first episode."""
    ids = [task if isinstance(task, str) else task.id for task in tasks]
    for task in ids:
        if ids.count(task) > 1:
            raise UserError(f"task {task!r} is listed twice; raise --episodes instead")
    bar = tqdm(tasks, desc="check", unit="task", leave=False, disable=len(tasks) < 3)
    return [check_task(processor, task, config) for task in bar]


def evaluate(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    tasks: Sequence[str | TaskSpec] | Sequence[CheckedTask],
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
    number of this process and how many there are; each plays every so-manieth context.
    """
    config = config or EvaluationConfig()
    checked = [t if isinstance(t, CheckedTask) else check_task(processor, t, config) for t in tasks]
    actor = make_actor(model, config, config.sessions)
    records = [] if journal is None else list(journal.records)
    rank, world = share
    jobs = _jobs(model, checked, config)
    own = [job for i, job in enumerate(jobs) if i % world == rank]
    done = {(r.task, r.prompt, r.seed) for r in records}
    left = [job for job in own if not all((job.spec.id, job.part, seed) in done for seed in job.seeds)]
    made = simulators(config.processes, limit_s=config.limit_s) if simulated_by is None else simulated_by
    total = sum(len(job.seeds) for job in own)
    with closing(made), tqdm(total=total, desc="evaluate", unit="episode", disable=rank > 0) as bar:
        bar.update(total - sum(len(job.seeds) for job in left))

        def tick() -> None:
            bar.update()
            on_episode()

        for finished in rollouts(actor, made, left, recorder=recorder, on_episode=tick):
            bar.set_postfix_str(finished[0].task)
            records.extend(finished)
            if journal is not None:
                journal.add(finished)
            for record in finished:
                if record.failure:
                    tqdm.write(f"failed: {record.failure}")
    if actor.num_clipped:
        tqdm.write(f"{actor.num_clipped} observed values outside their bounds, clipped by the bins")
    order: dict[tuple[str, str], int] = {
        (task.spec.id, prompt): i for i, (task, prompt) in enumerate(_cells(checked, config))
    }
    return sorted(records, key=lambda r: (order[r.task, r.prompt], r.seed))


def evaluate_task(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    task: str | TaskSpec,
    config: EvaluationConfig | None = None,
    *,
    on_episode: Callable[[], object] = lambda: None,
) -> TaskResult:
    """Score a checkpoint on one task, with the first of the prompts.

    Raises `UserError` where no episode could be finished, with what befell the first.
    """
    checked = check_task(processor, task, config)
    records = evaluate(model, processor, [checked], config, on_episode=on_episode)
    if all(record.failure for record in records):
        raise UserError(f"no episode of {checked.spec.id} could be finished: {records[0].failure}")
    return task_results(records, {checked.spec.id: checked.baseline})[0]


def make_actor(model: GatitoForCausalLM, config: EvaluationConfig, num_sessions: int) -> Actor:
    """An actor of so many sessions that acts as configured."""
    return Actor(
        quantize_int8(model) if config.int8 else pack_linears(model),
        num_sessions,
        decoding=config.decoding,
        memory=config.memory,
        prompt_slides=config.prompt_slides,
        compiled=config.compile,
    )


def make_prompts(
    model: GatitoForCausalLM, task: CheckedTask, config: EvaluationConfig, count: int = NUM_DEMONSTRATIONS
) -> Prompts:
    """The prompts of a task, out of `count` demonstrations at most."""
    return Prompts(
        task.spec,
        task.layout,
        model.config.trunk,
        int(model.config.context),
        known=task.reference,
        each=config.demonstrations,
        count=count,
        source=config.demonstrations_from,
    )


def _cells(checked: Sequence[CheckedTask], config: EvaluationConfig) -> Iterator[tuple[CheckedTask, Prompt]]:
    return ((task, prompt) for task in checked for prompt in config.prompts)


def _jobs(model: GatitoForCausalLM, checked: Sequence[CheckedTask], config: EvaluationConfig) -> list[Job]:
    """All contexts, task by task; demonstrations are made when the first of their task is asked for."""
    made: dict[str, Prompts] = {}

    def prompt(task: CheckedTask, part: Prompt, number: int, seed: int) -> TokenSequence | None:
        if part == "none":
            return None
        if task.spec.id not in made:
            made.clear()  # contexts begin in the order of tasks
            count = min(NUM_DEMONSTRATIONS, config.demonstrations * config.count(part))
            made[task.spec.id] = make_prompts(model, task, config, max(count, config.demonstrations))
        return made[task.spec.id].prompt(part, number, seed)

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


def baselines_of(checked: Sequence[CheckedTask]) -> Mapping[str, Baseline]:
    """By task."""
    return {task.spec.id: task.baseline for task in checked}
