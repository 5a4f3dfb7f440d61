"""Who acts, as the command line names it: random, a function of the user's, a checkpoint."""

import re
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from toy import ToyEnv, layout_of, tiny_recipe, toy_episode, write_store

from gatito.cli import run
from gatito.data.minari_episodes import open_minari
from gatito.data.recording import collect_episode
from gatito.data.tasks import TaskSpec
from gatito.errors import UserError
from gatito.policies import any_environment, played_by
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train.trainer import train

PILOT = """
import gymnasium as gym
import numpy as np

def left(env):
    return lambda observation: np.int64(0)

def observation_to_action(observation):
    return np.int64(1)

def global_dice(env):
    return lambda observation: np.int64(np.random.randint(2))

def too_strong(env):
    return lambda observation: np.array([7.0], np.float32)

def lost(env):
    return lambda observation: np.array([np.nan], np.float32)

class Mine(gym.Env):
    observation_space = gym.spaces.Tuple([gym.spaces.Discrete(3), gym.spaces.Dict(x=gym.spaces.Box(-1, 1, (2,)))])
    action_space = gym.spaces.Dict(a=gym.spaces.Discrete(2))
    def __init__(self, render_mode=None):
        self.t = 0
    def _see(self):
        return np.int64(self.t % 3), {"x": np.full(2, self.t / 9, np.float32)}
    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._see(), {}
    def step(self, action):
        self.t += 1
        return self._see(), 1.0, self.t == 5, False, {}

gym.register("Mine-v0", Mine)

def nested(env):
    return lambda observation: {"a": observation[0] % 2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pilot.py").write_text(PILOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def collect(line: str) -> None:
    run(["data", "collect", *line.split()])


def test_any_environment_is_collected_with_random_actions(folder: Path) -> None:
    collect("--env FrozenLake-v1 --policy random --episodes 3 --processes 1 --out d")
    source = open_minari(folder / "d/FrozenLake-v1/random-v0")
    assert (source.task, source.agent, len(source)) == ("FrozenLake-v1", "random", 3)
    assert source.dataset.observation_space == gym.make("FrozenLake-v1").observation_space
    again = [
        collect_episode(any_environment("FrozenLake-v1"), gym.make("FrozenLake-v1"), s, agent="random")
        for s in range(3)
    ]
    for episode, buffer in zip(source.episodes(), again, strict=True):
        np.testing.assert_array_equal(episode.actions, buffer.actions)


@pytest.mark.slow
def test_a_function_of_the_user_acts_in_other_processes_too(folder: Path) -> None:
    collect("--env CartPole-v1 --policy my_pilot:left --episodes 2 --processes 2 --out d")
    source = open_minari(folder / "d/CartPole-v1/my_pilot-left-v0")
    assert [episode.agent for episode in source.episodes()] == ["my_pilot-left"] * 2
    assert all((episode.actions == 0).all() for episode in source.episodes())


def test_a_known_task_is_played_by_a_policy_of_the_user(folder: Path) -> None:
    collect("--tasks classic/cartpole --policy my_pilot:left --episodes 1 --processes 1 --out d")
    assert (open_minari(folder / "d/classic/cartpole/my_pilot-left-v0").episode(0).actions == 0).all()


def test_a_function_that_is_no_policy_is_refused(folder: Path) -> None:
    spec, _ = played_by(any_environment("CartPole-v1"), "my_pilot:observation_to_action")
    with pytest.raises(UserError, match=r"--policy my_pilot:observation_to_action returned int64 for an environment"):
        collect_episode(spec, spec.make(), 0)


def test_dice_of_the_global_generator_follow_the_seed_of_the_episode(folder: Path) -> None:
    spec, _ = played_by(any_environment("CartPole-v1"), "my_pilot:global_dice")
    a, b, c = (collect_episode(spec, spec.make(), seed).actions for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert list(a) != list(c)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("too_strong", r"seed 0, timestep 0: action\[0\] is 7, allowed \[-1.0, 1.0\]; mend the policy"),
        ("lost", r"seed 0, timestep 0: NaN or Inf in the action \[nan\]; mend the policy"),
    ],
)
def test_actions_that_would_not_train_are_refused_at_once(function: str, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        collect(f"--env MountainCarContinuous-v0 --policy my_pilot:{function} --episodes 1 --processes 1 --out d")


def test_an_environment_that_the_policy_s_module_registers_is_collected(folder: Path) -> None:
    collect("--env Mine-v0 --policy my_pilot:nested --episodes 2 --processes 1 --out d")
    episode = open_minari(folder / "d/Mine-v0/my_pilot-nested-v0").episode(1)
    assert episode.observations[0].tolist() == [0, 1, 2, 0, 1]
    assert episode.actions["a"].tolist() == [0, 1, 0, 0, 1]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_environment_is_typed_with_the_module_that_registers_it(folder: Path, processes: int) -> None:
    (folder / "my_nest.py").write_text(PILOT.replace("Mine-v0", "Nest-v0"))
    collect(f"--env my_nest:Nest-v0 --policy random --episodes 2 --processes {processes} --out d")
    source = open_minari(folder / "d/Nest-v0/random-v0")
    assert (source.task, len(source)) == ("Nest-v0", 2)


def test_an_environment_id_that_names_a_module_is_refused() -> None:
    with pytest.raises(UserError, match=r"environment id 'evil:CartPole-v1' names a module"):
        any_environment("evil:CartPole-v1")


def test_a_checkpoint_acts_by_the_seed_of_the_episode(
    tmp_path: Path, text: TextTokenizer, vocabulary: Vocabulary
) -> None:
    make = partial(ToyEnv, spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(5))
    env = make()
    layout = layout_of(env, vocabulary, text)
    episodes = [toy_episode(env, seed) for seed in range(3)]
    sequences = [layout.episode_tokens(e.observations, e.actions) for e in episodes]
    store = write_store(tmp_path / "store", text, vocabulary, {"toy/line": (layout, sequences)})
    train(tiny_recipe(), store, tmp_path / "run")
    spec, name = played_by(TaskSpec(id="toy/line", make=make, expert=lambda env: None), str(tmp_path / "run"))
    assert re.fullmatch("checkpoint-" + str(tmp_path / "run").replace("/", "-").strip("-") + "-[0-9a-f]{8}", name)
    a, b, c = (collect_episode(spec, make(), seed).actions for seed in (1, 1, 2))
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert str(a) != str(c)
    with pytest.raises(UserError, match="this checkpoint was not trained on task 'toy/other'"):
        played_by(TaskSpec(id="toy/other", make=make, expert=lambda env: None), str(tmp_path / "run"))
