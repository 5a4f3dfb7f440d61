"""One seeded episode of an agent in an environment, recorded.

Demonstrations are diversified by executing a share of random actions while the expert's action is recorded as
the label (DART, Laskey et al. 2017): the expert shows how to come back, the noise itself is not imitated.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer

from gatito.data.alarm import time_limit
from gatito.data.episode import check_values, copied, stack
from gatito.data.minari_episodes import EXPLORATORY
from gatito.data.tasks import ExpertFailed, Policy, TaskSpec
from gatito.errors import UserError
from gatito.tokenizers.codec import check_bounds
from gatito.tokenizers.fields import fields_of, value_at

MAX_TIMESTEPS = 100_000
"""Timesteps after which an environment is taken for one that never ends."""


def random_policy(env: gym.Env[Any, Any]) -> Policy:
    """The policy that samples the action space."""
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

    Raises `ExpertFailed` where the expert gives up or the episode takes longer than the task's limit, `UserError`
    where the simulator fails, or returns NaN or values that are not of its space; floats may leave their bounds.
    """
    where = f"task {spec.id!r}, seed {seed}"
    actions, exploratory = [], []
    rewards: list[float] = []
    ends: list[tuple[bool, bool]] = []
    slow = ExpertFailed(f"the episode took more than {spec.cpu_limit_s} s of CPU time")
    with simulation(lambda: f"{where}, timestep {len(ends)}"), time_limit(spec.cpu_limit_s, "cpu", slow):
        observation, _ = env.reset(seed=seed)
        observations = [copied(observation)]  # some environments write the next one into the same array
        env.action_space.seed(seed)  # before the policy, which may draw from it
        policy = spec.expert(env) if agent == "expert" else random_policy(env)
        rng = np.random.default_rng([seed, 0xDA27])
        while not ends or not any(ends[-1]):
            if len(ends) == MAX_TIMESTEPS:
                raise UserError(f"{where}: no end after {MAX_TIMESTEPS} timesteps; wrap it in gymnasium's TimeLimit")
            action = policy(observation)
            explore = bool(rng.random() < noise)
            executed = env.action_space.sample() if explore else action
            actions.append(copied(executed if labels == "executed" else action))
            if isinstance(executed, np.ndarray) and not np.isfinite(executed).all():
                raise UserError(
                    f"{where}, timestep {len(ends)}: NaN or Inf in the action {executed}; mend the policy"
                )
            observation, reward, terminated, truncated, _ = env.step(executed)
            observations.append(copied(observation))
            rewards.append(finite_reward(reward, f"{where}, timestep {len(ends)}"))
            ends.append((bool(terminated), bool(truncated)))
            exploratory.append(explore)
    seen = stack(env.observation_space, observations, f"{where}, observation")
    check_values(env.observation_space, seen, f"{where}, observation", "repair the environment, or widen its space")
    recorded = stack(env.action_space, actions, f"{where}, action")
    advice = "mend the policy, or widen the action space"
    check_values(env.action_space, recorded, f"{where}, action", advice)
    for leaf in fields_of(env.action_space, "action"):
        check_bounds(leaf, value_at(recorded, leaf.path), where, advice)
    return EpisodeBuffer(
        seed=seed,
        observations=seen,
        actions=recorded,
        rewards=rewards,
        terminations=[terminated for terminated, _ in ends],
        truncations=[truncated for _, truncated in ends],
        infos={EXPLORATORY: np.array([*exploratory, False])[:, None]},
    )
