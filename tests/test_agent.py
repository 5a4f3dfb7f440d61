"""An agent out of a checkpoint in a Gymnasium loop."""

import shutil
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from huggingface_hub.errors import LocalEntryNotFoundError
from toy import ToyEnv, layout_of, tiny_recipe, toy_episode, toy_sequence, write_store

import gatito
import gatito.eval.agent as module
from gatito.data.minari_episodes import episode_from_buffer
from gatito.data.recording import collect_episode
from gatito.data.tasks import get_task
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint, prompt_from
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.tokenizers.trunk import Trunk
from gatito.train.checkpoint import list_checkpoints
from gatito.train.trainer import train

CARTPOLE = "classic/cartpole"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary, text: TextTokenizer) -> Path:
    """Two steps of training on a cart-pole episode and a toy task."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("agent")
    env = gym.make("CartPole-v1")
    layout = layout_of(env, vocabulary, text)
    demonstration = cartpole_demonstration()
    toy = ToyEnv(spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,), np.float32))
    data = write_store(
        folder / "store",
        text,
        vocabulary,
        {
            CARTPOLE: (layout, [layout.episode_tokens(demonstration.observations, demonstration.actions)]),
            "toy/task": (layout_of(toy, vocabulary, text), [toy_sequence(toy, layout_of(toy, vocabulary, text), 0)]),
        },
    )
    train(tiny_recipe(steps=2), data, folder / "run")
    return folder / "run"


def cartpole_demonstration() -> object:
    spec = get_task(CARTPOLE)
    return episode_from_buffer(collect_episode(spec, spec.make(), 0), CARTPOLE, "expert")


@pytest.mark.parametrize("prompted", [False, True])
def test_an_agent_acts_in_a_gymnasium_loop(run: Path, prompted: bool) -> None:
    agent = gatito.load_agent(run)
    assert agent.tasks == [CARTPOLE, "toy/task"]
    env = gym.make("CartPole-v1")
    totals = []
    for _ in range(2):
        agent.reset(task=CARTPOLE, demonstration=cartpole_demonstration() if prompted else None)
        observation, _ = env.reset(seed=0)
        total, done = 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(agent.act(observation))
            total += float(reward)
            done = terminated or truncated
        totals.append(total)
    assert totals[0] == totals[1] >= 8
    prompt = agent._actor.sessions[0].window.pinned
    assert (prompt is not None) == prompted
    if prompted:
        assert prompt.num_timesteps == 5  # of 4 + separator + 1 tokens each, in half of 64


def test_the_folder_of_a_run_means_its_newest_checkpoint(run: Path) -> None:
    a, b = load_checkpoint(run)[0], load_checkpoint(run / "checkpoints/step-00000002")[0]
    assert torch.equal(a.lm_head.weight, b.lm_head.weight)


def test_a_checkpoint_on_the_hub_is_loaded_without_its_optimizer(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, ignore_patterns: list[str]) -> str:
        assert repository == "owner/name"
        newest = list_checkpoints(run)[-1]
        shutil.copytree(newest, tmp_path / "hub", ignore=lambda folder, names: {"training"} & set(names))
        assert ignore_patterns == ["training/*"]
        return str(tmp_path / "hub")

    monkeypatch.setattr(module, "snapshot_download", download)
    agent = gatito.load_agent("hf:owner/name")
    assert agent.tasks == gatito.load_agent(run).tasks


def test_a_repository_that_cannot_be_reached_is_an_error_of_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, ignore_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(module, "snapshot_download", download)
    with pytest.raises(UserError, match="cannot load checkpoint hf:owner/name: LocalEntryNotFoundError: offline"):
        load_checkpoint("hf:owner/name")


def test_an_agent_switches_between_tasks_with_one_set_of_weights(run: Path) -> None:
    agent = gatito.load_agent(run)
    agent.reset(task="toy/task")
    action = agent.act(1)
    assert action.shape == (2,)
    assert action.dtype == np.float32
    agent.reset(task=CARTPOLE)
    assert agent.act(np.zeros(4, np.float32)) in (0, 1)
    agent.reset(task="toy/task")
    np.testing.assert_array_equal(agent.act(1), action)


def test_a_prompt_is_the_first_whole_timesteps_of_a_demonstration(run: Path) -> None:
    layout = load_checkpoint(run)[1].layout(CARTPOLE)
    demonstration = cartpole_demonstration()
    whole = layout.episode_tokens(demonstration.observations, demonstration.actions)
    prompt = prompt_from(demonstration, layout, Trunk(vocabulary=layout.vocabulary), 64)
    assert prompt is not None
    np.testing.assert_array_equal(prompt.ids, whole.ids[:30])
    assert (
        prompt_from(demonstration, layout, Trunk(vocabulary=layout.vocabulary), 11) is None
    )  # 5 tokens hold no timestep of 6


def test_a_demonstration_of_another_task_is_refused(run: Path) -> None:
    agent = gatito.load_agent(run)
    other = toy_episode(ToyEnv(spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,), np.float32)), 0, "toy/task")
    with pytest.raises(UserError, match=f"a demonstration of 'toy/task' cannot prompt '{CARTPOLE}'"):
        agent.reset(task=CARTPOLE, demonstration=other)


def test_an_unknown_task_is_answered_with_the_nearest(run: Path) -> None:
    agent = gatito.load_agent(run)
    with pytest.raises(UserError, match="not trained on task 'cartpole'; did you mean 'classic/cartpole'"):
        agent.reset(task="cartpole")


def test_acting_before_the_first_reset_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="reset the agent for a task before it acts"):
        gatito.load_agent(run).act(np.zeros(4, np.float32))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at .*; run gatito train"):
        gatito.load_agent(tmp_path)
