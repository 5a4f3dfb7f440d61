"""Mean returns of the random policy and of the expert: what scores are measured between."""

import math
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing as closing_env
from typing import Literal

import numpy as np
from tqdm import tqdm

from gatito.data.collect import end_with_parent
from gatito.data.filter import expert_return
from gatito.data.recording import collect_episode
from gatito.data.tasks import EVALUATION_SEEDS, ExpertFailed, TaskSpec, get_task, references
from gatito.errors import UserError
from gatito.eval.prompts import datasets_of
from gatito.eval.scores import Baseline
from gatito.eval.simulator_pool import simulators
from gatito.eval.simulators import Act, Begin, Failed, Moment, Simulators, closing

NUM_RANDOM_EPISODES = 50
"""Episodes of the random policy, where a task's references were not measured before."""


def baseline_of(
    spec: TaskSpec, demonstrations_from: str | None = None, expert: float | None = None, processes: int = 0
) -> Baseline:
    """What scores of a task are measured between.

    Where it was not measured before, the expert is what the user says, or the best stretch of the demonstrations
    (Reed et al. 2022, section 2.3), or the task's own expert, or unknown; and where it is known the random policy is
    measured, in so many processes. Raises `UserError` where the user says one of a task that was measured.
    """
    known = references().get(spec.id)
    if known is not None and expert is not None:
        raise UserError(
            f"--expert-return is for tasks whose expert was not measured; that of {spec.id} is {known.expert:g}"
        )
    if known is not None:
        return Baseline(random=known.random, expert=known.expert)
    if expert is None and demonstrations_from is not None:
        returns = [e.total_return for d in datasets_of(spec.id, demonstrations_from) for e in d.episodes()]
        expert = expert_return(np.array(returns))
    if expert is None and spec.has_expert:
        expert = mean_return(spec, "expert", NUM_RANDOM_EPISODES)
    if expert is None:
        return Baseline(random=None, expert=None)
    with closing(simulators(processes)) as these:
        return Baseline(random=random_return(spec, these), expert=expert)


def random_return(spec: TaskSpec, these: Simulators, episodes: int = NUM_RANDOM_EPISODES) -> float | None:
    """Mean return of the random policy over the first seeds of evaluation, those that fail left out; None of none."""
    with closing_env(spec.make()) as env:
        space = env.action_space
    returns = []
    for seed in range(EVALUATION_SEEDS, EVALUATION_SEEDS + episodes):
        space.seed(seed)
        total, answer = 0.0, these.exchange({0: Begin(spec=spec, seed=seed)})[0]
        while isinstance(answer, Moment) and not (answer.terminated or answer.truncated):
            answer = these.exchange({0: Act(action=space.sample())})[0]
            total += answer.reward if isinstance(answer, Moment) else 0.0
        if isinstance(answer, Moment) and math.isfinite(total):
            returns.append(total)
        else:
            reason = answer.reason if isinstance(answer, Failed) else "its rewards are no numbers"
            tqdm.write(f"random policy, {spec.id}, seed {seed} left out: {reason}")
    return float(np.mean(returns)) if returns else None


def measure_references(
    tasks: Sequence[str], episodes: int = 100, processes: int = 1
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield tasks as they are measured, with the mean returns of the random policy and of the expert over seeded
    episodes."""
    with tqdm(total=len(tasks), desc="measure", unit="task") as bar:
        if processes == 1:
            for task in tasks:
                yield task, _measure(task, episodes)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, end_with_parent) as pool:
            futures = {pool.submit(_measure, task, episodes): task for task in tasks}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
                    bar.update()
            except BrokenProcessPool:
                raise UserError("a measuring process died; measure what is missing again") from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _measure(task: str, episodes: int) -> dict[str, float]:
    spec = get_task(task)
    return {agent: mean_return(spec, agent, episodes) for agent in ("random", "expert")}


def mean_return(spec: TaskSpec, agent: Literal["random", "expert"], episodes: int) -> float:
    """Mean return over the first seeds of evaluation; raises `UserError` where the expert fails on all of them."""
    returns = []
    with closing_env(spec.make()) as env:
        for i in range(episodes):
            try:
                buffer = collect_episode(spec, env, EVALUATION_SEEDS + i, agent=agent)
                returns.append(sum(buffer.rewards))
            except ExpertFailed:  # passed over, as in collecting
                continue
    if not returns:
        raise UserError(f"task {spec.id!r}: the expert failed in all of {episodes} episodes")
    return float(np.mean(returns))
