"""Demonstrations from scripted experts into Minari datasets.

Demonstrations are diversified by executing a share of random actions while the expert's action is recorded as
the label (DART, Laskey et al. 2017): the expert shows how to come back, the noise itself is not imitated.
"""

import contextlib
import copy
import dataclasses
import math
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer
from tqdm import tqdm

from gatito.data.episode import stack
from gatito.data.minari_episodes import EXPLORATORY, MinariWriter
from gatito.data.publish import check_writable, published
from gatito.data.tasks import EVALUATION_SEEDS, ExpertFailed, Policy, TaskSpec, get_task
from gatito.errors import UserError

CHUNK = 100
"""Episodes held in memory before they are written."""


MAX_TIMESTEPS = 100_000
"""Timesteps after which an environment is taken for one that never ends."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What `gatito data collect` collects."""

    episodes: int = 100
    """Episodes per task."""
    agent: Literal["expert", "random"] = "expert"
    """Who acts."""
    labels: Literal["expert", "executed"] = "expert"
    """Which action is recorded where noise was executed; executed noise later leaves the loss mask."""
    first_seed: int = 0
    """Seed of the first episode; the next ones count up."""
    processes: int = 2
    """Tasks collected at the same time."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"episodes is {self.episodes}, allowed 1 and more")
        if self.processes < 1:
            raise UserError(f"processes is {self.processes}, allowed 1 and more")
        if not 0 <= self.first_seed <= EVALUATION_SEEDS - self.episodes:
            raise UserError(
                f"first_seed {self.first_seed} with {self.episodes} episodes leaves [0, {EVALUATION_SEEDS}); "
                "seeds from there on are kept for evaluation"
            )


def random_policy(env: gym.Env[Any, Any], seed: int) -> Policy:
    """The policy that samples the action space, seeded."""
    env.action_space.seed(seed)
    return lambda _: env.action_space.sample()


@contextlib.contextmanager
def simulation(where: Callable[[], str]) -> Iterator[None]:
    """Turn whatever an environment or its expert raises into a `UserError` that names `where`."""
    try:
        yield
    except (UserError, ExpertFailed):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{where()}: the environment or its expert failed: {reason}") from error


def finite_reward(reward: SupportsFloat, where: str) -> float:
    """Return the reward, or raise `UserError` for NaN and Inf."""
    if not math.isfinite(float(reward)):
        raise UserError(f"{where}: the reward is {float(reward)}; repair the environment")
    return float(reward)


def collect_episode(
    spec: TaskSpec,
    env: gym.Env[Any, Any],
    seed: int,
    *,
    agent: Literal["expert", "random"] = "expert",
    noise: float = 0.0,
    labels: Literal["expert", "executed"] = "expert",
) -> EpisodeBuffer:
    """Play one seeded episode and return it with its T + 1 observations.

    Raises `ExpertFailed` where the expert gives up, `UserError` where the simulator fails, or returns NaN or
    values that are not of its space.
    """
    where = f"task {spec.id!r}, seed {seed}"
    actions, exploratory = [], []
    rewards: list[float] = []
    ends: list[tuple[bool, bool]] = []
    with simulation(lambda: f"{where}, timestep {len(ends)}"):
        observation, _ = env.reset(seed=seed)
        observations = [copy.deepcopy(observation)]  # some environments write the next one into the same array
        policy = spec.expert(env) if agent == "expert" else random_policy(env, seed)
        env.action_space.seed(seed)
        rng = np.random.default_rng([seed, 0xDA27])
        while not ends or not any(ends[-1]):
            if len(ends) == MAX_TIMESTEPS:
                raise UserError(f"{where}: no end after {MAX_TIMESTEPS} timesteps; wrap it in gymnasium's TimeLimit")
            action = policy(observation)
            explore = bool(rng.random() < noise)
            executed = env.action_space.sample() if explore else action
            actions.append(copy.deepcopy(executed if labels == "executed" else action))
            observation, reward, terminated, truncated, _ = env.step(executed)
            observations.append(copy.deepcopy(observation))
            rewards.append(finite_reward(reward, f"{where}, timestep {len(ends)}"))
            ends.append((bool(terminated), bool(truncated)))
            exploratory.append(explore)
    return EpisodeBuffer(
        seed=seed,
        observations=stack(env.observation_space, observations, f"{where}, observation"),
        actions=stack(env.action_space, actions, f"{where}, action"),
        rewards=rewards,
        terminations=[terminated for terminated, _ in ends],
        truncations=[truncated for _, truncated in ends],
        infos={EXPLORATORY: np.array([*exploratory, False])[:, None]},
    )


def episodes_of(spec: TaskSpec, config: CollectConfig) -> Iterator[EpisodeBuffer]:
    """Yield the asked number of episodes; seeds on which the expert gives up are passed over."""
    env = spec.make()
    noise = spec.noise if config.agent == "expert" else 0.0
    seed, failures, found = config.first_seed, 0, 0
    while found < config.episodes:
        try:
            yield collect_episode(spec, env, seed, agent=config.agent, noise=noise, labels=config.labels)
            found += 1
        except ExpertFailed as error:
            failures += 1
            if failures > 10 + config.episodes // 2:
                raise UserError(f"task {spec.id!r}: the expert failed {failures} times, last: {error}") from None
        seed += 1
        if seed >= EVALUATION_SEEDS and found < config.episodes:
            raise UserError(f"task {spec.id!r}: seed {seed} is kept for evaluation; lower --first-seed")
    env.close()


def collect_task(task: str, root: Path, config: CollectConfig, tick: Callable[[], object] = lambda: None) -> Path:
    """Collect one task into `root/TASK/AGENT-v0`; nothing is left behind unless all of it succeeded."""
    spec = get_task(task)
    noise = f"; {spec.noise:.0%} random actions executed" if config.agent == "expert" else ""
    metadata = {
        "algorithm_name": config.agent,
        "gatito_task": task,
        "gatito_actions": config.labels,
        "description": f"{config.agent} episodes of {task}{noise}",
    }
    target = _dataset(root, task, config)
    with published(target) as folder:
        writer = MinariWriter(folder, f"{task}/{target.name}", spec.make(), metadata)
        chunk: list[EpisodeBuffer] = []
        for buffer in episodes_of(spec, config):
            chunk.append(buffer)
            tick()
            if len(chunk) == CHUNK:
                writer.write(chunk)
                chunk = []
        writer.write(chunk)
        writer.close()
    return target


def _dataset(root: Path, task: str, config: CollectConfig) -> Path:
    return root / task / f"{config.agent}-v0"


def collect(
    tasks: Sequence[str], root: Path, config: CollectConfig, counts: dict[str, int] | None = None
) -> list[Path]:
    """Collect several tasks, `config.processes` at a time, with one progress bar over all episodes.

    `counts` overrides the number of episodes of some tasks. Same seeds, same episodes, whatever the processes.
    """
    configs = {t: dataclasses.replace(config, episodes=(counts or {}).get(t, config.episodes)) for t in tasks}
    for task in tasks:
        get_task(task)
        if tasks.count(task) > 1:
            raise UserError(f"task {task!r} is listed twice; raise the number of its episodes instead")
        if _dataset(root, task, config).exists():
            raise UserError(
                f"{_dataset(root, task, config)} exists; remove it, choose another --out or leave the task out"
            )
    check_writable(root)
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(config.processes, mp_context=context, initializer=_end_with_parent) as pool,
        tqdm(total=sum(c.episodes for c in configs.values()), desc="collect", unit="episode") as bar,
    ):
        ticks = manager.Queue()
        futures = [pool.submit(_collect_in_worker, task, root, configs[task], ticks) for task in tasks]
        try:
            while not all(future.done() for future in futures) or not ticks.empty():
                with contextlib.suppress(queue.Empty):
                    bar.update(ticks.get(timeout=0.2))
                for future in futures:
                    if future.done():
                        future.result()
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError("a collecting process died; finished tasks are kept, collect the others again") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when the process that started it ends, be it by kill -9."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _collect_in_worker(task: str, root: Path, config: CollectConfig, ticks: Any) -> Path:
    return collect_task(task, root, config, lambda: ticks.put(1))
