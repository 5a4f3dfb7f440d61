"""Demonstrations for the tests of baselines."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from toy import Line, ToyEnv, layout_of, toy_episode

from gatito.baselines.demonstrations import Demonstrations
from gatito.data.episode import Episode, stack
from gatito.data.tasks import TaskSpec
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary

LINEAR = np.array([[0.3, -0.2], [0.0, 0.4], [-0.1, 0.1]])
"""From three numbers to two."""


def line_spec(continuous: bool = False) -> TaskSpec:
    return TaskSpec(id="toy/line", make=lambda: Line(continuous=continuous), expert=lambda env: lambda seen: 0)


def line_demonstrations(layout: Layout, continuous: bool = False) -> Demonstrations:
    """The one right episode."""
    observations, actions = Line(continuous=continuous).demonstration()
    return Demonstrations.of("toy/line", layout, [("the line", episode("toy/line", observations, actions))])


def episode(
    task: str, observations: Any, actions: Any, targets: Any = None, seed: int | None = 0, number: int = 0
) -> Episode:
    """An episode of values with a leading T axis."""
    T = len(actions[0]) if isinstance(actions, tuple) else len(actions)
    return Episode(
        task=task,
        id=number,
        agent="expert",
        observations=observations,
        actions=actions,
        rewards=np.ones(T),
        targets=np.ones(T, np.bool_) if targets is None else np.asarray(targets),
        seed=seed,
    )


def random_demonstrations(env: ToyEnv, layout: Layout, count: int = 3) -> Demonstrations:
    """Episodes of random values."""
    named = [(f"episode {i}", toy_episode(env, i)) for i in range(count)]
    return Demonstrations.of("toy/task", layout, named)


def labelled(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    act: Callable[[Any], Any],
    vocabulary: Vocabulary,
    text: TextTokenizer,
    *,
    length: int = 400,
    targets: Sequence[bool] | None = None,
) -> tuple[Demonstrations, list[Any]]:
    """Random observations with the actions of a policy, and the observations one by one."""
    env = ToyEnv(observation_space, action_space, length)
    observations = _seen(env, length)
    actions = stack(action_space, [act(seen) for seen in observations])
    shown = episode("toy/task", stack(observation_space, observations), actions, targets)
    layout = layout_of(env, vocabulary, text)
    return Demonstrations.of("toy/task", layout, [("made up", shown)]), observations


def _seen(env: gym.Env[Any, Any], length: int) -> list[Any]:
    observations = [env.reset(seed=3)[0]]
    while len(observations) < length:
        observations.append(env.step(env.action_space.sample())[0])
    return observations
