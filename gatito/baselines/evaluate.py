"""Plays a baseline on the seeded episodes that a checkpoint is evaluated on."""

from collections.abc import Callable, Sequence
from contextlib import closing as closing_env
from functools import partial

from gatito.baselines.acting import Memoryless, MemorylessActor
from gatito.data.tasks import TaskSpec, get_task
from gatito.errors import UserError
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import CheckedTask, episodes_of, play
from gatito.eval.journal import Journal
from gatito.eval.references import baseline_of
from gatito.eval.rollout import Job
from gatito.eval.scores import EpisodeRecord
from gatito.eval.simulator_pool import simulators
from gatito.eval.simulators import closing
from gatito.tokenizers import TextTokenizer, Vocabulary

MakePolicy = Callable[[CheckedTask], Memoryless]
"""Gives the policy of a task, when its first episode is to be played."""


def check_tasks(tasks: Sequence[str | TaskSpec], source: str, config: EvaluationConfig) -> list[CheckedTask]:
    """What playing the tasks needs: layouts, and returns that scores are measured between.

    `source` holds demonstrations, see `load_demonstrations`; they tell the expert's return where it was not measured.
    Raises `UserError` for a task that is unknown or listed twice.
    """
    text, checked = TextTokenizer.load(), list[CheckedTask]()
    for task in tasks:
        spec = task if isinstance(task, TaskSpec) else get_task(task)
        if any(other.spec.id == spec.id for other in checked):
            raise UserError(f"task {spec.id!r} is listed twice; raise --episodes instead")
        with closing_env(spec.make()) as env:
            layout = spec.layout(env, Vocabulary(text_size=text.size), text)
        baseline = baseline_of(spec, source, config.expert_return, config.processes)
        checked.append(CheckedTask(spec=spec, layout=layout, baseline=baseline, env=env))
    return checked


def evaluate_baseline(
    tasks: Sequence[CheckedTask],
    make: MakePolicy,
    config: EvaluationConfig | None = None,
    *,
    journal: Journal | None = None,
) -> list[EpisodeRecord]:
    """Play the seeded episodes of all tasks, one task after the other, and return their records in this order.

    Seeds, simulators, failures and the journal are those of `evaluate`, so that the records of a checkpoint pair with
    these. Raises `UserError` for settings with a prompt, and what `make` raises.
    """
    config = config or EvaluationConfig()
    if config.prompts != ("none",):
        raise UserError(
            f"--prompt {config.prompt}: a baseline acts by the present observation alone; allowed is none"
        )
    records = [] if journal is None else list(journal.records)
    with closing(simulators(config.processes, limit_s=config.limit_s)) as these:
        for task in tasks:
            jobs = [
                Job(spec=task.spec, layout=task.layout, part="none", prompt=lambda: None, seeds=seeds)
                for seeds in config.contexts("none")
            ]
            records += play(partial(_actor, make, task), jobs, config, journal=journal, simulated_by=these)
    order = {key: i for i, key in enumerate(episodes_of(tasks, config))}
    return sorted(records, key=lambda record: order[record.task, record.prompt, record.seed])


def _actor(make: MakePolicy, task: CheckedTask, num_sessions: int) -> MemorylessActor:
    return MemorylessActor(make(task), num_sessions)
