"""The reward of the timestep before as a field of the observation, for agents that learn from it in their context
(Laskin et al. 2022, Polubarov et al. 2025). Said here for datasets, simulators and users' own environments alike."""

import dataclasses
from contextlib import closing
from functools import partial
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from gatito.data.episode import Episode
from gatito.data.tasks import Policy, TaskSpec
from gatito.errors import UserError
from gatito.tokenizers import Layout

FIELD = "previous_reward"
"""Its name; at the first timestep of an episode it is 0."""
PLAIN = "observation"
"""Name of an observation that is no Dict, beside it."""


def rewarded_space(space: spaces.Space[Any]) -> spaces.Dict:
    """The space of observations with the reward; raises `UserError` where a field has its name already."""
    fields = dict(space.spaces) if isinstance(space, spaces.Dict) else {PLAIN: space}
    if has_field(space):
        raise UserError(f"the observations have a field {FIELD!r} already; leave the option out, or rename the field")
    return spaces.Dict({**fields, FIELD: spaces.Box(-np.inf, np.inf, (1,), np.float32)})


def rewarded_observation(observation: Any, reward: SupportsFloat) -> dict[str, Any]:
    """One observation with the reward before it."""
    return _beside(observation, np.array([float(reward)], np.float32))


def rewarded_episode(episode: Episode) -> Episode:
    """An episode whose observations have the rewards before them."""
    before = np.append(0.0, episode.rewards[:-1]).astype(np.float32)[:, None]  # (T, 1)
    return dataclasses.replace(episode, observations=_beside(episode.observations, before))


def _beside(observation: Any, reward: Any) -> dict[str, Any]:
    fields = observation if isinstance(observation, dict) else {PLAIN: observation}
    return {**fields, FIELD: reward}


class PreviousReward(gym.Wrapper[dict[str, Any], Any, Any, Any], RecordConstructorArgs):
    """An environment whose observations have the reward of the timestep before."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Raises `UserError` where its observations have a field of that name already."""
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.observation_space = rewarded_space(env.observation_space)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode, before which there is no reward."""
        observation, info = self.env.reset(seed=seed, options=options)
        return rewarded_observation(observation, 0.0), info

    def step(self, action: Any) -> tuple[dict[str, Any], SupportsFloat, bool, bool, dict[str, Any]]:
        """Act, and observe the reward beside what comes of it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return rewarded_observation(observation, reward), reward, terminated, truncated, info


def has_field(space: spaces.Space[Any]) -> bool:
    """Whether the observations of a space have the reward."""
    return isinstance(space, spaces.Dict) and FIELD in space.spaces


def has_previous_reward(layout: Layout) -> bool:
    """Whether the observations of a layout have the reward."""
    return any(field.path == (FIELD,) for field in layout.observations)


def rewarded_task(spec: TaskSpec) -> TaskSpec:
    """The task in an environment with the reward; its expert sees what it is used to."""
    return dataclasses.replace(
        spec,
        make=partial(_make, spec.make),
        expert=partial(_expert, spec.expert) if spec.has_expert else spec.expert,
        overrides={path or PLAIN: kind for path, kind in spec.overrides.items()},
    )


def known_as(spec: TaskSpec, layout: Layout) -> TaskSpec:
    """The task as a layout of it has it: in an environment with the reward where its own has none."""
    if not has_previous_reward(layout):
        return spec
    with closing(spec.make()) as env:
        return spec if has_field(env.observation_space) else rewarded_task(spec)


def _make(make: Any, **how: Any) -> gym.Env[Any, Any]:
    return PreviousReward(make(**how))


def _expert(expert: Any, env: gym.Env[Any, Any]) -> Policy:
    inner: Any = env
    while not isinstance(inner, PreviousReward):  # what renders may be around it
        inner = inner.env
    policy = expert(inner.env)
    is_dict = isinstance(inner.env.observation_space, spaces.Dict)

    def act(observation: dict[str, Any]) -> Any:
        plain = {name: value for name, value in observation.items() if name != FIELD}
        return policy(plain if is_dict else plain[PLAIN])

    return act
