"""The Atari games: seeds, what is seen of them, and experts that know the game."""

import pickle
import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

import gatito.data.tasks as module
from gatito.data.domains import atari
from gatito.data.recording import collect_episode, random_policy
from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec

pytest.importorskip("ale_py", reason="needs pip install 'gatito[atari]'")

TASKS = {spec.id: spec for spec in atari.tasks()}


def return_of(spec: TaskSpec, agent: str, steps: int) -> float:
    """Return what an agent earns in the first steps of an episode."""
    env = spec.make()
    observation, _ = env.reset(seed=EVALUATION_SEEDS)
    env.action_space.seed(0)
    policy = spec.expert(env) if agent == "expert" else random_policy(env)
    total = 0.0
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total += float(reward)
        if terminated or truncated:
            break
    return total


def test_the_same_seed_gives_the_same_episode_and_another_seed_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atari, "MAX_FRAMES", 420)
    spec = TASKS["atari/breakout"]
    first, again, other = (collect_episode(spec, spec.make(), seed, noise=0.1) for seed in (5, 5, 6))
    assert sum(first.rewards) > 0
    assert first.rewards == again.rewards
    assert np.array_equal(np.asarray(first.observations), np.asarray(again.observations))
    assert np.array_equal(np.asarray(first.actions), np.asarray(again.actions))
    assert not np.array_equal(np.asarray(first.observations), np.asarray(other.observations))


def test_episodes_start_differently_before_anyone_acted() -> None:
    env = TASKS["atari/freeway"].make()
    assert len({env.reset(seed=seed)[0].tobytes() for seed in range(4)}) >= 3


def test_observations_show_the_ball_of_breakout() -> None:
    spec = TASKS["atari/breakout"]
    env = spec.make()
    observation, _ = env.reset(seed=3)
    policy, ale = spec.expert(env), env.unwrapped.ale  # type: ignore[attr-defined]
    seen = 0
    for _ in range(50):
        observation, *_ = env.step(policy(observation))
        assert observation.shape == (96, 80, 3)
        assert observation.dtype == np.uint8
        assert env.observation_space.contains(observation)
        x, y = int(ale.getRAM()[99]), int(ale.getRAM()[101])
        if 100 < y < 160:  # between the bricks and the paddle, where all else is black
            row, column = (y + 9) * 96 // 210 - 46, (x - 48) // 2 - 5
            air = observation[46:78, 5:75].max(axis=2).copy()
            seen += int(air.max() > 60)
            air[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4] = 0
            assert air.max() == 0
    assert seen > 20


@pytest.mark.parametrize(("game", "steps", "margin"), [("breakout", 400, 8.0), ("freeway", 160, 2.0)])
def test_the_expert_beats_the_random_policy_on_a_short_episode(game: str, steps: int, margin: float) -> None:
    spec = TASKS[f"atari/{game}"]
    assert return_of(spec, "expert", steps) >= return_of(spec, "random", steps) + margin


@pytest.mark.parametrize("task", TASKS)
def test_every_expert_starts_with_legal_actions_and_is_picklable(task: str) -> None:
    spec = pickle.loads(pickle.dumps(TASKS[task]))
    assert spec.license == "GPL-2.0-only"
    env = spec.make(render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    policy = spec.expert(env)
    for _ in range(10):
        action = policy(observation)
        assert isinstance(action, np.int64)
        assert env.action_space.contains(action)
        observation, *_ = env.step(action)
    screen = env.render()
    assert isinstance(screen, np.ndarray)
    assert screen.shape == (210, 160, 3)
    env.close()


def test_an_episode_ends_after_five_minutes_at_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert atari.MAX_FRAMES == 5 * 60 * 60
    monkeypatch.setattr(atari, "MAX_FRAMES", 60)
    spec = TASKS["atari/pong"]
    env = spec.make()
    assert env.spec is not None
    for limited in (env, gym.make(EnvSpec.from_json(env.spec.to_json()))):  # as Minari recovers it
        episode = collect_episode(spec, limited, 0)
        assert episode.truncations[-1]
        assert (60 - 29) / 4 <= len(episode.truncations) <= 60 / 4


def test_a_missing_ale_py_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name, *rest: None)
    said = TASKS["atari/pong"].missing_extra()
    assert said is not None
    assert re.fullmatch(r"task 'atari/pong' needs ale_py: pip install 'gatito\[atari\]'", said)
