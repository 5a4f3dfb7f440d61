"""Gymnasium's MuJoCo tasks and the DeepMind Control Suite: scores, seeds, pixels, and machines without OpenGL."""

import pickle
from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest

from gatito.data.domains import dmc, mujoco, opengl
from gatito.data.recording import collect_episode
from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec
from gatito.errors import UserError
from gatito.tokenizers.fields import fields_of

TASKS = {spec.id: spec for spec in (*mujoco.tasks(), *dmc.tasks())}
MISSING = [missing for missing in (spec.missing_extra() for spec in TASKS.values()) if missing]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=" ".join(MISSING[:1]))
FROM_STATE = [task for task in TASKS if not task.endswith("-pixels")]
FROM_PIXELS = [task for task in TASKS if task.endswith("-pixels")]

QUICK = ["mujoco/reacher", "dmc/cartpole-swingup-sparse", "dmc/lqr-lqr-2-1", "dmc/point-mass-hard", "dmc/finger-spin"]
QUICK_PIXELS = ["dmc/ball-in-cup-catch-pixels", "dmc/lqr-lqr-2-1-pixels", "dmc/reacher-easy-pixels"]


def each(tasks: list[str]) -> pytest.MarkDecorator:
    """Run a test for each task, of which most are slow."""
    quick = (*QUICK, *QUICK_PIXELS)
    return pytest.mark.parametrize(
        "task", [pytest.param(task, marks=[] if task in quick else pytest.mark.slow) for task in tasks]
    )


needs_opengl = pytest.mark.skipif(opengl.opengl_backend() is None, reason="needs libegl1 or libosmesa6")


def threshold(task: str) -> float:
    """What the mean of 100 episodes reaches."""
    if task.startswith("dmc/"):
        return 800.0
    with closing(TASKS[task].make()) as env:
        assert env.spec is not None
        assert env.spec.reward_threshold is not None
        return float(env.spec.reward_threshold)


def mean_return(task: str, episodes: int) -> float:
    """Of the expert, without noise, on the seeds of evaluation."""
    spec = TASKS[task]
    with closing(spec.make()) as env:
        return float(
            np.mean([sum(collect_episode(spec, env, EVALUATION_SEEDS + i).rewards) for i in range(episodes)])
        )


def first_rewards(spec: TaskSpec, env: gym.Env, seed: int, steps: int = 60) -> list[float]:
    """Of the expert."""
    observation, _ = env.reset(seed=seed)
    policy, rewards = spec.expert(env), []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        rewards.append(float(reward))
        if terminated or truncated:
            break
    return rewards


@each(FROM_STATE)
def test_one_episode_of_the_expert_comes_near_the_threshold(task: str) -> None:
    wanted = threshold(task)
    assert mean_return(task, 1) >= wanted - 0.2 * abs(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("task", FROM_STATE)
def test_the_expert_is_over_the_threshold_in_the_mean_of_100_episodes(task: str) -> None:
    assert mean_return(task, 100) >= threshold(task)


@each(FROM_STATE)
def test_the_seed_alone_decides_the_episode_also_in_an_environment_that_was_used(task: str) -> None:
    spec = TASKS[task]
    with closing(spec.make()) as env, closing(spec.make()) as another:
        start = env.reset(seed=5)[0]
        rewards = first_rewards(spec, env, 5)
        other = env.reset(seed=6)[0]
        assert str(start) != str(other)
        assert first_rewards(spec, env, 5) == rewards
        assert first_rewards(spec, another, 5) == rewards
        assert str(another.reset(seed=5)[0]) == str(start)


@each(FROM_STATE)
def test_observations_and_actions_are_of_their_spaces_which_can_be_tokenized(task: str) -> None:
    spec = TASKS[task]
    with closing(spec.make()) as env:
        assert fields_of(env.observation_space, "observation")
        assert all(np.isfinite([*field.low, *field.high]).all() for field in fields_of(env.action_space, "action"))
        observation, _ = env.reset(seed=0)
        policy = spec.expert(env)
        for _ in range(5):
            assert env.observation_space.contains(observation)
            action = policy(observation)
            assert env.action_space.contains(action)
            observation, *_ = env.step(action)


@pytest.mark.parametrize("task", ["dmc/lqr-lqr-2-1", "dmc/reacher-easy"])
def test_an_episode_of_the_control_suite_is_cut_after_1000_steps(task: str) -> None:
    spec = TASKS[task]
    with closing(spec.make()) as env:
        env.reset(seed=0)
        ends = [env.step(np.zeros(env.action_space.shape))[2:4] for _ in range(1000)]
    assert not any(terminated or truncated for terminated, truncated in ends[:-1])
    assert ends[-1] == (False, True)


@needs_opengl
@each(FROM_PIXELS)
def test_with_pixels_actions_and_rewards_are_those_of_the_state(task: str) -> None:
    spec = TASKS[task]
    assert spec.returns_of is not None
    twin = TASKS[spec.returns_of]
    with closing(spec.make()) as env, closing(twin.make()) as from_state:
        image, state = env.reset(seed=3)[0], from_state.reset(seed=3)[0]
        first, policy, twin_policy = image, spec.expert(env), twin.expert(from_state)
        for _ in range(8):
            assert env.observation_space.contains(image)
            action = policy(image)
            assert np.array_equal(action, twin_policy(state))
            image, reward, *_ = env.step(action)
            state, twin_reward, *_ = from_state.step(action)
            assert reward == twin_reward
        assert image.shape == (64, 64, 3)
        assert image.std() > 5  # something is drawn
        assert not np.array_equal(first, image)


@needs_opengl
@pytest.mark.parametrize("task", ["dmc/pendulum-swingup", "dmc/pendulum-swingup-pixels", "mujoco/reacher"])
def test_frames_of_videos_are_larger_and_do_not_change_what_is_observed(task: str) -> None:
    with closing(TASKS[task].make(render_mode="rgb_array")) as env, closing(TASKS[task].make()) as silent:
        assert str(env.reset(seed=0)[0]) == str(silent.reset(seed=0)[0])
        frame = env.render()
        assert isinstance(frame, np.ndarray)
        assert (frame.shape, frame.dtype) == ((200, 200, 3), np.uint8)
        action = np.ones(env.action_space.shape, np.float32)
        assert np.array_equal(str(env.step(action)[0]), str(silent.step(action)[0]))


@pytest.mark.parametrize(
    ("task", "render_mode"),
    [("dmc/reacher-easy-pixels", None), ("dmc/reacher-easy", "rgb_array"), ("mujoco/reacher", "rgb_array")],
)
def test_without_opengl_what_must_draw_says_what_to_install(
    task: str, render_mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(opengl, "opengl_backend", lambda: None)
    with pytest.raises(UserError, match=r"MUJOCO_GL allows.*install libegl1 or libosmesa6"):
        TASKS[task].make(render_mode=render_mode)


def test_a_backend_that_is_not_there_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    opengl.opengl_backend.cache_clear()
    try:
        assert opengl.opengl_backend() is None
        with pytest.raises(UserError, match="no backend works that MUJOCO_GL allows"):
            opengl.choose_opengl("a test")
    finally:
        opengl.opengl_backend.cache_clear()


def test_closing_twice_is_harmless() -> None:
    env = TASKS["dmc/pendulum-swingup"].make()
    env.reset(seed=0)
    env.close()
    env.close()


def test_tasks_can_be_sent_to_other_processes() -> None:
    for spec in TASKS.values():
        copy = pickle.loads(pickle.dumps(spec))
        assert (copy.id, copy.modules) == (spec.id, spec.modules)
