"""Retrieve-and-play, and cloned networks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from acting import ENVS, make
from gymnasium import spaces
from toy import Line, ToyEnv, layout_of, toy_episode

from gatito.data.episode import Episode
from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.eval.rollout import Job, rollouts
from gatito.eval.simulators import LocalSimulators, closing
from gatito.experiment.floors import Cloned, Floor, RetrieveAndPlay, _shrunk
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary


def episode_of(observations: Any, actions: Any, targets: Any = None) -> Episode:
    T = len(actions[0]) if isinstance(actions, tuple) else len(actions)
    kept = np.ones(T, np.bool_) if targets is None else np.asarray(targets)
    shown = {"task": "toy/task", "id": 0, "agent": "expert", "rewards": np.zeros(T), "targets": kept}
    return Episode(observations=observations, actions=actions, **shown)


def returns_of(floor: Floor, layout: Layout, make_env: Any, seeds: Sequence[int]) -> list[float | None]:
    spec = TaskSpec(id="toy/line", make=make_env, expert=lambda env: lambda _: 0)
    jobs = [Job(spec=spec, layout=layout, part="none", prompt=lambda: None, seeds=(seed,)) for seed in seeds]
    with closing(LocalSimulators()) as simulators:
        return [record.total_return for finished in rollouts(floor, simulators, jobs) for record in finished]


def test_the_action_of_the_nearest_observation_is_taken(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    rng = np.random.default_rng(0)
    env = ToyEnv(spaces.Box(-9, 9, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32))
    seen, done = (
        rng.normal(0, [1, 5, 0.1], (50, 3)).astype(np.float32),
        rng.uniform(-1, 1, (50, 2)).astype(np.float32),
    )
    floor = RetrieveAndPlay(layout_of(env, vocabulary, text), [episode_of(seen, done)], 1)
    for query in rng.normal(0, [1, 5, 0.1], (20, 3)).astype(np.float32):
        distances = (((seen - query) / seen.std(axis=0)) ** 2).sum(axis=1)
        np.testing.assert_allclose(floor.act(query[None])[0], done[distances.argmin()])


def test_random_actions_of_a_demonstration_are_not_retrieved(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = ToyEnv(spaces.Box(-9, 9, (1,), np.float32), spaces.Discrete(4))
    seen = np.array([[0.0], [1.0], [2.0]], np.float32)
    shown = episode_of(seen, np.array([1, 2, 3]), targets=[True, False, True])
    floor = RetrieveAndPlay(layout_of(env, vocabulary, text), [shown], 1)
    assert floor.act(np.array([[0.9]], np.float32)).tolist() in ([[1]], [[3]])


@pytest.mark.parametrize("continuous", [False, True])
def test_a_line_is_walked_as_it_was_shown(continuous: bool, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = Line(continuous=continuous)
    layout = layout_of(env, vocabulary, text)
    floor = RetrieveAndPlay(layout, [episode_of(*env.demonstration())], 2)
    assert returns_of(floor, layout, lambda render_mode=None: Line(continuous=continuous), [0, 1, 2]) == [10.0] * 3


def test_a_text_that_is_another_is_far_away(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = ToyEnv(spaces.Dict(at=spaces.Box(-9, 9, (1,), np.float32), mission=spaces.Text(24)), spaces.Discrete(4))
    seen = {"at": np.array([[0.0], [1.0]], np.float32), "mission": ["left", "right"]}
    floor = RetrieveAndPlay(layout_of(env, vocabulary, text), [episode_of(seen, np.array([1, 2]))], 1)
    assert floor.act({"at": np.array([[0.0]], np.float32), "mission": ["right"]}).tolist() == [[2]]


def test_images_are_averaged_over_blocks() -> None:
    images = np.arange(28 * 30 * 3, dtype=np.uint8).reshape(1, 28, 30, 3)
    expected = images[:, :28, :30].reshape(1, 14, 2, 15, 2, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(_shrunk(images), expected, rtol=1e-5)
    assert _shrunk(np.zeros((2, 7, 9, 1), np.uint8)).shape == (2, 7, 9, 1)


def test_a_cloned_network_learns_a_linear_expert(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    rng = np.random.default_rng(0)
    env = ToyEnv(spaces.Box(-9, 9, (3,), np.float32), spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (1,)))))
    seen = rng.normal(size=(600, 3)).astype(np.float32)
    actions = (seen[:, :1].clip(-1, 1), np.digitize(seen[:, 1], [-0.5, 0.5]))
    shown = episode_of(seen, (actions[1], actions[0]))
    layout = layout_of(env, vocabulary, text)
    floor = Cloned(layout, [shown], 1, steps=600, batch=128, seed=0)
    new = rng.normal(size=(200, 3)).astype(np.float32)
    found = floor.act(new)
    assert np.mean(found[:, 0] == np.digitize(new[:, 1], [-0.5, 0.5])) > 0.9
    assert np.abs(found[:, 1] - new[:, 0].clip(-1, 1)).mean() < 0.1
    assert np.abs(found[:, 1]).max() <= 1.0


@pytest.mark.parametrize("name", list(ENVS))
def test_cloned_networks_of_a_seed_are_the_same_and_act_in_the_space(
    name: str, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = make(name)
    layout = layout_of(env, vocabulary, text)
    shown = [toy_episode(env, seed) for seed in range(2)]
    one, same, other = (Cloned(layout, shown, 1, steps=3, batch=4, seed=seed) for seed in (0, 0, 1))
    weights = [list(floor.network.parameters()) for floor in (one, same, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True))
    one.reset(0, layout)
    one.observe(0, env.reset(seed=9)[0])
    assert env.action_space.contains(one.decide()[0])
    assert one.decide() == {}


def test_a_floor_plays_its_own_task_alone(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env, other = Line(), Line(continuous=True)
    floor = RetrieveAndPlay(layout_of(env, vocabulary, text), [episode_of(*env.demonstration())], 1)
    with pytest.raises(UserError, match="is not that of the demonstrations"):
        floor.reset(0, layout_of(other, vocabulary, text))
    floor.reset(0, floor.layout)
    with pytest.raises(UserError, match="observation"):
        floor.observe(0, np.array([np.nan], np.float32))
    assert floor.decide() == {}
