"""The simulators and experts themselves, a few episodes each."""

import numpy as np
import pytest

from gatito.data.domains import metaworld
from gatito.data.recording import collect_episode
from gatito.data.tasks import EVALUATION_SEEDS, get_task, reference


@pytest.mark.parametrize(
    "task",
    [
        "classic/cartpole",
        "classic/acrobot",
        "box2d/lunar-lander-continuous",
        "babyai/go-to-local-s5n2",
        "metaworld/door-unlock",
    ],
)
def test_the_expert_of_a_task_plays_as_its_reference_says(task: str) -> None:
    spec, known = get_task(task), reference(task)
    env = spec.make()
    returns = [sum(collect_episode(spec, env, EVALUATION_SEEDS + i).rewards) for i in range(3)]
    env.close()
    assert known.score(float(np.mean(returns))) > 0.6


@pytest.mark.parametrize("task", ["classic/cartpole", "box2d/lunar-lander", "babyai/go-to-obj", "metaworld/reach"])
def test_the_same_seed_gives_the_same_episode(task: str) -> None:
    spec = get_task(task)
    a, b = (collect_episode(spec, spec.make(), 5, noise=0.1) for _ in range(2))
    assert a.rewards == b.rewards
    assert np.array_equal(np.asarray(a.actions), np.asarray(b.actions))
    other = collect_episode(spec, spec.make(), 6, noise=0.1)
    assert str(other.observations) != str(a.observations)


def test_without_opengl_a_robot_is_drawn_from_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    monkeypatch.setattr(metaworld, "opengl_backend", lambda: None)
    env = metaworld.MetaWorld("reach", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.renders_state
    first = env.render()
    assert first is not None
    assert first.shape == (200, 200, 3)
    for _ in range(20):
        env.step(np.array([1, 1, 0, 0], np.float32))
    assert not np.array_equal(first, env.render())  # the hand has moved
    env.close()
