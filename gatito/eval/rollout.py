"""Seeded episodes of a policy, scored between the random policy (0) and the expert (1)."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from gatito.data.collect import end_with_parent
from gatito.data.minari_episodes import episode_from_buffer
from gatito.data.recording import collect_episode, finite_reward, simulation
from gatito.data.tasks import EVALUATION_SEEDS, PROMPT_SEEDS, ExpertFailed, Reference, TaskSpec, get_task, reference
from gatito.errors import UserError
from gatito.eval import TEMPERATURE
from gatito.eval.actor import Actor
from gatito.eval.agent import prompt_from
from gatito.eval.decoding import Decoding
from gatito.eval.statistics import bootstrap_interval, wilson_interval
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.trunk import Trunk

Prompt = Literal["none", "demo"]
DEMONSTRATION_SCORE = 0.5
"""Smallest score of an expert's episode that becomes a prompt."""
NUM_SESSIONS = 25
"""Environments stepped as one batch."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """Scores of one task, a row of `results.json`."""

    id: str
    """Task id."""
    domain: str
    """Part of the id before the slash."""
    prompt: str
    """`none` or `demo`."""
    episodes: int
    """Seeded episodes."""
    mean_return: float
    """Mean return (of success tasks: the success rate)."""
    score: float
    """(return - random) / (expert - random)."""
    ci_low: float
    """Lower end of the score's 95 % interval: bootstrap, for success tasks Wilson."""
    ci_high: float
    """Upper end."""
    random: float
    """Mean return of the random policy."""
    expert: float
    """Mean return of the scripted expert."""

    def to_json(self) -> dict[str, Any]:
        """The row as written to `results.json`."""
        values = asdict(self)
        return {("return" if key == "mean_return" else key): value for key, value in values.items()}


def demonstrations(spec: TaskSpec, layout: Layout, trunk: Trunk, context: int, count: int) -> list[TokenSequence]:
    """Prompts out of `count` seeded expert episodes that are neither trained nor evaluated on."""
    env, known = spec.make(), reference(spec.id)
    prompts: list[TokenSequence] = []
    too_long = failed = 0
    for seed in range(PROMPT_SEEDS, PROMPT_SEEDS + 10 * count):
        if len(prompts) == count:
            break
        try:
            episode = episode_from_buffer(collect_episode(spec, env, seed), spec.id, "expert")
        except ExpertFailed:
            failed += 1
            continue
        prompt = prompt_from(episode, layout, trunk, context)
        if known.score(episode.total_return) < DEMONSTRATION_SCORE:
            failed += 1
        elif prompt is None:
            too_long += 1
        else:
            prompts.append(prompt)
    env.close()
    if len(prompts) < count:
        raise UserError(
            f"task {spec.id!r}: {len(prompts)} of {count} demonstrations; the expert failed in {failed} others, and "
            f"of {too_long} not even the first timestep fits half the context of {context}"
        )
    return prompts


def play(
    spec: TaskSpec,
    actor: Actor,
    seeds: Sequence[int],
    prompts: Sequence[TokenSequence] | None = None,
    on_episode: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Play one episode per seed and return the returns (N,); sessions take the next seed as they finish."""
    count = min(len(actor.sessions), len(seeds))
    envs: list[gym.Env[Any, Any]] = [spec.make() for _ in range(count)]
    returns = np.zeros(len(seeds))
    waiting: Iterator[int] = iter(range(len(seeds)))
    playing: dict[int, int] = {}
    observations: dict[int, Any] = {}

    def begin(session: int) -> None:
        episode = next(waiting, None)
        if episode is None:
            return
        playing[session] = episode
        actor.reset(session, prompts[episode % len(prompts)] if prompts else None, seed=seeds[episode])
        with simulation(lambda: where(session)):
            observations[session] = envs[session].reset(seed=seeds[episode])[0]

    def where(session: int) -> str:
        return f"task {spec.id!r}, seed {seeds[playing[session]]}"

    try:
        for session in range(count):
            begin(session)
        while playing:
            for session, action in actor.act(observations, where).items():
                with simulation(partial(where, session)):
                    observation, reward, terminated, truncated, _ = envs[session].step(action)
                returns[playing[session]] += finite_reward(reward, where(session))
                observations[session] = observation
                if terminated or truncated:
                    del playing[session], observations[session]
                    on_episode()
                    begin(session)
    finally:
        for env in envs:
            env.close()
    return returns


def check_task(processor: GatitoProcessor, task: str) -> tuple[TaskSpec, Layout, Reference]:
    """What evaluating a task needs; raises `UserError` where it is unknown, unmeasured or has other spaces now."""
    spec, layout, known = get_task(task), processor.layout(task), reference(task)
    env = spec.make()
    fresh = spec.layout(env, layout.vocabulary, layout.text)
    env.close()
    if fresh.sha256 != layout.sha256:
        raise UserError(
            f"task {task!r}: the environment's layout {fresh.sha256[:12]} is not the checkpoint's "
            f"{layout.sha256[:12]}; the spaces have changed since the data was built, train again"
        )
    return spec, layout, known


def evaluate_task(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    task: str,
    *,
    episodes: int = 50,
    prompt: Prompt = "none",
    temperature: float = TEMPERATURE,
    on_episode: Callable[[], object] = lambda: None,
) -> TaskResult:
    """Score a checkpoint on one task. Same checkpoint, task, episodes and prompt: same result."""
    return _score(model, *check_task(processor, task), episodes, prompt, temperature, on_episode)


def _score(
    model: GatitoForCausalLM,
    spec: TaskSpec,
    layout: Layout,
    known: Reference,
    episodes: int,
    prompt: Prompt,
    temperature: float,
    on_episode: Callable[[], object],
) -> TaskResult:
    trunk, context = model.config.trunk, int(model.config.context)
    prompts = demonstrations(spec, layout, trunk, context, min(episodes, 20)) if prompt == "demo" else None
    actor = Actor(model, min(NUM_SESSIONS, episodes), decoding=Decoding(temperature=temperature))
    seeds = [EVALUATION_SEEDS + i for i in range(episodes)]
    returns = play(spec, actor, seeds, prompts, on_episode)
    if actor.num_clipped:
        tqdm.write(f"{spec.id}: {actor.num_clipped} observed values outside their bounds, clipped by the bins")
    scores = known.score(returns)
    if spec.success:
        rate_low, rate_high = wilson_interval(int(returns.sum()), episodes)
        low, high = known.score(rate_low), known.score(rate_high)
    else:
        low, high = bootstrap_interval(scores)
    return TaskResult(
        id=spec.id,
        domain=spec.domain,
        prompt=prompt,
        episodes=episodes,
        mean_return=float(returns.mean()),
        score=float(scores.mean()),
        ci_low=low,
        ci_high=high,
        random=known.random,
        expert=known.expert,
    )


def evaluate(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    tasks: Sequence[str],
    *,
    episodes: int = 50,
    prompt: Prompt = "none",
    temperature: float = TEMPERATURE,
) -> list[TaskResult]:
    """Score a checkpoint on several tasks, with one progress bar over all episodes."""
    if episodes < 1:
        raise UserError(f"--episodes is {episodes}, allowed 1 and more")
    for task in tasks:
        if list(tasks).count(task) > 1:
            raise UserError(f"task {task!r} is listed twice; raise --episodes instead")
    checked = [check_task(processor, task) for task in tasks]  # all of them before the first episode
    results = []
    with tqdm(total=len(tasks) * episodes, desc=f"evaluate, prompt {prompt}", unit="episode") as bar:
        for spec, layout, known in checked:
            results.append(_score(model, spec, layout, known, episodes, prompt, temperature, bar.update))
    return results


def mean_score(results: Sequence[TaskResult]) -> float:
    """Mean score over tasks."""
    return float(np.mean([result.score for result in results])) if results else float("nan")


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
    env = spec.make()
    means = {}
    for agent in ("random", "expert"):
        returns = []
        for i in range(episodes):
            try:
                buffer = collect_episode(spec, env, EVALUATION_SEEDS + i, agent=agent)
                returns.append(sum(buffer.rewards))
            except ExpertFailed:  # passed over, as in collecting
                continue
        if not returns:
            raise UserError(f"task {task!r}: the expert failed in all of {episodes} episodes")
        means[agent] = float(np.mean(returns))
    env.close()
    return means
