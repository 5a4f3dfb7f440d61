"""Experts to Minari and back to episodes."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from conftest import SPACES
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from toy import ToyEnv
from toy_data import Shape, Walk, walk_expert, write_minari

from gatito.data import collection as collecting
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig, parse_agents
from gatito.data.episode import Episode, row, stack
from gatito.data.minari_episodes import EXPLORATORY, MinariWriter, episode_from_buffer, open_minari
from gatito.data.publish import published
from gatito.data.recording import collect_episode
from gatito.data.tasks import EVALUATION_SEEDS, ExpertFailed, Policy, TaskSpec
from gatito.errors import UserError
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.tokenizers.fields import fields_of, value_at


def expert(env: gym.Env) -> Policy:
    return walk_expert


def give_up(env: gym.Env, first: int = 0) -> Policy:
    """An expert that fails in the third timestep, on every even seed or on all of them."""

    def act(observation: dict[str, Any]) -> np.ndarray:
        if env.unwrapped.steps == 2 and (env.unwrapped.limit + first) % 2 == 0:  # type: ignore[attr-defined]
            raise ExpertFailed("it is lost")
        return walk_expert(observation)

    return act


def always_give_up(env: gym.Env) -> Policy:
    def act(observation: dict[str, Any]) -> np.ndarray:
        raise ExpertFailed("it is lost")

    return act


def mostly_fails(env: gym.Env) -> Policy:
    """An expert that succeeds on the seeds 3, 7, 11 and so on alone."""

    def act(observation: dict[str, Any]) -> np.ndarray:
        if env.unwrapped.limit < 8:  # type: ignore[attr-defined]
            raise ExpertFailed("it is lost")
        return walk_expert(observation)

    return act


WALK = TaskSpec(id="toy/walk", make=Walk, expert=expert, noise=0.5)


def collect_here(spec: TaskSpec | str, root: Path, **values: Any) -> Path:
    """Collect one task in this process."""
    return collect([spec], root, CollectConfig(processes=1, **values))[0]


def assert_same(a: Any, b: Any) -> None:
    """Equal nested values, to the dtype."""
    if isinstance(a, dict):
        assert isinstance(b, dict)
        assert set(a) == set(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, tuple):
        assert isinstance(b, tuple)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, list):
        assert list(map(str, a)) == list(map(str, b))
    else:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


# Labels and noise


def test_the_expert_s_action_is_recorded_while_random_ones_are_executed() -> None:
    env = Walk()
    differ = 0
    for seed in range(6):
        buffer = collect_episode(WALK, env, seed, noise=0.5)
        T = len(buffer.rewards)
        asked = np.stack([walk_expert(observation) for observation in env.seen[:T]])
        np.testing.assert_array_equal(buffer.actions, asked)
        executed = np.stack(env.executed)
        noisy = (executed != asked).any(axis=1)
        np.testing.assert_array_equal(buffer.infos[EXPLORATORY], np.append(noisy, False)[:, None])
        differ += int(noisy.sum())
    assert 10 < differ < 35  # of 40 steps, half of them random


def test_with_executed_labels_the_executed_action_is_recorded() -> None:
    env = Walk()
    buffer = collect_episode(WALK, env, 3, noise=0.5, labels="executed")
    np.testing.assert_array_equal(buffer.actions, np.stack(env.executed))
    assert buffer.infos[EXPLORATORY].any()


def test_executed_noise_leaves_the_loss_mask(tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    source = open_minari(collect_here(WALK, tmp_path, episodes=3, labels="executed"))
    layout = Layout.from_spaces(
        source.dataset.observation_space, source.dataset.action_space, vocabulary=vocabulary, text=text
    )
    left_out = 0
    for index, episode in enumerate(source.episodes()):
        flags = collect_episode(WALK, Walk(), index, noise=0.5, labels="executed").infos[EXPLORATORY][:-1, 0]
        np.testing.assert_array_equal(episode.targets, ~flags)
        sequence = layout.episode_tokens(episode.observations, episode.actions, targets=episode.targets)
        is_action = sequence.local_positions == 512
        np.testing.assert_array_equal(sequence.loss_mask[is_action], np.repeat(~flags, 2))
        left_out += int(flags.sum())
    assert 0 < left_out < 18


def test_with_expert_labels_noisy_steps_stay_in_the_loss_mask(tmp_path: Path) -> None:
    source = open_minari(collect_here(WALK, tmp_path, episodes=3))
    assert any(source.dataset[i].infos[EXPLORATORY].any() for i in range(3))
    assert all(episode.targets.all() for episode in source.episodes())


def test_without_noise_the_expert_s_action_is_executed() -> None:
    env = Walk()
    buffer = collect_episode(WALK, env, 0)
    np.testing.assert_array_equal(buffer.actions, np.stack(env.executed))
    assert not buffer.infos[EXPLORATORY].any()


def test_the_random_agent_samples_the_action_space_by_seed() -> None:
    a, b, c = (collect_episode(WALK, Walk(), seed, agent="random").actions for seed in (4, 4, 5))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a[:5], c[:5])


# Minari and back


def test_the_last_observation_which_has_no_action_is_dropped(tmp_path: Path) -> None:
    source = open_minari(collect_here(WALK, tmp_path, episodes=2))
    raw, episode = source.dataset[1], source.episode(1)
    T = 5 + 1 % 4
    assert raw.observations["image"].shape[0] == T + 1
    assert len(episode) == T
    assert episode.observations["image"].shape == (T, 16, 20, 3)
    assert len(episode.observations["mission"]) == T
    assert episode.actions.shape == (T, 2)
    np.testing.assert_array_equal(episode.observations["image"], raw.observations["image"][:T])


def test_an_episode_read_back_is_the_one_that_was_collected(tmp_path: Path) -> None:
    path = collect_here(WALK, tmp_path, episodes=3)
    assert path == tmp_path / "toy/walk/noisy-v0"
    source = open_minari(path)
    assert (source.task, source.agent, source.executed, len(source)) == ("toy/walk", "noisy", False, 3)
    for seed, episode in enumerate(source.episodes()):
        expected = episode_from_buffer(collect_episode(WALK, Walk(), seed, noise=0.5), "toy/walk", "expert")
        assert len(episode) == len(expected) == 5 + seed % 4
        for name in ("observations", "actions", "rewards"):
            assert_same(getattr(expected, name), getattr(episode, name))
        assert episode.observations["image"].tobytes() == expected.observations["image"].tobytes()
        assert episode.observations["mission"][0] == f"go to {5 + seed % 4}"
        assert episode.total_return == len(episode)
        assert (episode.id, episode.seed, episode.agent) == (seed, seed, "noisy")


@pytest.mark.parametrize("space", [pytest.param(space, id=name) for name, space in SPACES])
def test_every_space_survives_minari_without_loss(tmp_path: Path, space: spaces.Space) -> None:
    space.seed(0)
    observations = [space.sample() for _ in range(4)]
    path = write_minari(tmp_path, "toy/space", space, spaces.Discrete(3), [(observations, [0, 1, 2], [0, 0, 1])])
    episode = open_minari(path).episode(0)
    expected = stack(space, observations[:3])
    for field in fields_of(space, "observation"):
        values, again = value_at(expected, field.path), value_at(episode.observations, field.path)
        assert len(again) == 3
        if field.kind == "text":
            assert list(again) == values
        else:
            assert np.asarray(again).dtype == values.dtype
            assert np.asarray(again).tobytes() == values.tobytes()
        row(episode.observations, 0)


@pytest.mark.parametrize(
    "space",
    [
        pytest.param(s, id=n)
        for n, s in SPACES
        if n in ("discrete-start", "multidiscrete-2d", "box-wide", "multibinary", "tuple", "dict-nested")
    ],
)
def test_actions_survive_minari_without_loss(tmp_path: Path, space: spaces.Space) -> None:
    space.seed(0)
    actions = [space.sample() for _ in range(3)]
    path = write_minari(tmp_path, "toy/space", spaces.Discrete(3), space, [([0, 1, 2, 0], actions, [0, 0, 1])])
    assert_same(stack(space, actions), open_minari(path).episode(0).actions)


def test_minari_itself_opens_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect_here(WALK, tmp_path, episodes=2)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("toy/walk/noisy-v0")
    assert dataset.total_episodes == 2
    assert dataset.total_steps == 5 + 6
    assert dataset.observation_space == Walk().observation_space
    assert [episode.observations["mission"][0] for episode in dataset.iterate_episodes()] == ["go to 5", "go to 6"]
    assert len(open_minari("toy/walk/noisy-v0")) == 2


# Seeds and processes


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """The same two tasks by this process and by two others."""
    episodes = {"classic/pendulum": 2, "classic/cartpole": 1}
    one, two = (tmp_path_factory.mktemp(f"by-{processes}") for processes in (1, 2))
    config = CollectConfig(episodes=2, first_seed=11)
    return {
        1: [collect_here(task, one, episodes=n, first_seed=11) for task, n in episodes.items()],
        2: collect(list(episodes), two, config, {"classic/cartpole": 1}),
    }


def test_the_same_seeds_give_the_same_episodes_by_one_process_and_by_two(collected: dict[int, list[Path]]) -> None:
    compared = 0
    for one, two in zip(collected[1], collected[2], strict=True):
        assert one != two
        for a, b in zip(open_minari(one).episodes(), open_minari(two).episodes(), strict=True):
            for name in ("observations", "actions", "rewards"):
                assert_same(getattr(a, name), getattr(b, name))
            compared += 1
    assert compared == 3


def test_the_number_of_episodes_can_differ_by_task(collected: dict[int, list[Path]]) -> None:
    assert [len(open_minari(path)) for path in collected[2]] == [2, 1]
    assert [path.parts[-3:] for path in collected[2]] == [
        ("classic", "pendulum", "noisy-v0"),
        ("classic", "cartpole", "noisy-v0"),
    ]


def test_episodes_differ_by_seed(collected: dict[int, list[Path]]) -> None:
    a, b = open_minari(collected[1][0]).episodes()
    assert not np.array_equal(a.observations, b.observations)


# What fails, and what it leaves


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() or path.name.startswith(".")]


def test_nothing_is_left_when_the_expert_keeps_failing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task 'toy/walk': the expert failed 16 times, last: seed 15: it is lost"):
        collect_here(dataclasses.replace(WALK, expert=always_give_up), tmp_path, episodes=4)
    assert files_in(tmp_path) == []
    assert len(open_minari(collect_here(WALK, tmp_path, episodes=1))) == 1


def test_seeds_on_which_the_expert_gives_up_are_passed_over_and_said(tmp_path: Path) -> None:
    source = open_minari(collect_here(dataclasses.replace(WALK, expert=give_up), tmp_path, episodes=3))
    assert [episode.seed for episode in source.episodes()] == [0, 2, 4]
    assert [len(episode) for episode in source.episodes()] == [5, 7, 5]
    failed = source.dataset.storage.metadata["gatito_failed"]
    assert failed == {"1": "seed 1: it is lost", "3": "seed 3: it is lost"}


def loops(env: gym.Env) -> Policy:
    """An expert that thinks for ever on every second seed."""

    def act(observation: dict[str, Any]) -> np.ndarray:
        while env.unwrapped.limit % 2 == 0:  # type: ignore[attr-defined]
            pass
        return walk_expert(observation)

    return act


def test_an_expert_that_loops_for_ever_is_stopped_by_its_cpu_time(tmp_path: Path) -> None:
    spec = dataclasses.replace(WALK, expert=loops, cpu_limit_s=0.05)
    source = open_minari(collect_here(spec, tmp_path, episodes=2))
    assert [episode.seed for episode in source.episodes()] == [0, 2]
    assert source.dataset.storage.metadata["gatito_failed"] == {
        "1": "seed 1: the episode took more than 0.05 s of CPU time"
    }


# Mixed quality


def test_each_episode_names_its_source_agent_by_its_share(tmp_path: Path) -> None:
    agents = parse_agents("expert=2,noisy=2,random=1")
    source = open_minari(collect_here(WALK, tmp_path, episodes=10, agents=agents))
    assert source.path.name == "expert-noisy-random-v0"
    episodes = list(source.episodes())
    assert sorted(episode.agent for episode in episodes) == ["expert"] * 4 + ["noisy"] * 4 + ["random"] * 2
    noisy = {episode.agent: 0 for episode in episodes}
    for episode in episodes:
        asked = np.clip(-episode.observations["place"] / 2, -1, 1)
        assert np.array_equal(episode.actions, asked) == (episode.agent != "random")
        noisy[episode.agent] += int(source.dataset[episode.id].infos[EXPLORATORY].sum())
    assert noisy["noisy"] > 5
    assert noisy["expert"] == noisy["random"] == 0


def test_who_plays_a_seed_does_not_depend_on_how_many_are_collected() -> None:
    few, many = (CollectConfig(episodes=n, agents={"expert": 1.0, "random": 3.0}) for n in (5, 500))
    assert [few.agent(seed) for seed in range(5)] == [many.agent(seed) for seed in range(5)]
    assert sum(many.agent(seed) == "random" for seed in range(400)) == pytest.approx(300, abs=2)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("exprt", r"unknown agent 'exprt'; did you mean 'expert'\?"),
        ("expert=x", "the share of agent 'expert' is 'x', expected a number"),
        ("expert=1,", "unknown agent ''"),
    ],
)
def test_agents_that_are_none_are_refused(typed: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_agents(typed)


# Killed and continued


def test_a_collection_that_was_interrupted_continues_with_the_episodes_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "CHUNK", 2)
    whole = open_minari(collect_here(WALK, tmp_path / "whole", episodes=7))
    played: list[int] = []

    def counted(spec: TaskSpec, env: gym.Env, seed: int, **values: Any) -> Any:
        if seed == 5 and 5 not in played:
            played.append(seed)
            raise KeyboardInterrupt
        played.append(seed)
        return collect_episode(spec, env, seed, **values)

    monkeypatch.setattr(collecting, "collect_episode", counted)
    with pytest.raises(KeyboardInterrupt):
        collect_here(WALK, tmp_path / "parts", episodes=7)
    assert not (tmp_path / "parts/toy/walk/noisy-v0").exists()
    parts = open_minari(collect_here(WALK, tmp_path / "parts", episodes=7))
    assert played == [0, 1, 2, 3, 4, 5, 5, 6]  # all that were finished were kept
    assert [path.name for path in (tmp_path / "parts/toy/walk").iterdir()] == ["noisy-v0"]
    assert [episode.seed for episode in parts.episodes()] == list(range(7))
    for a, b in zip(whole.episodes(), parts.episodes(), strict=True):
        assert_same(a.observations, b.observations)
        assert_same(a.actions, b.actions)


def test_a_damaged_chunk_is_collected_anew_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = collect_here(WALK, tmp_path / "whole", episodes=4)
    monkeypatch.setattr(collecting, "CHUNK", 2)
    with monkeypatch.context() as patch:
        patch.setattr(collecting.Collection, "_assemble", interrupt)
        with pytest.raises(KeyboardInterrupt):
            collect_here(WALK, tmp_path, episodes=4)
    file = tmp_path / "toy/walk/.noisy-v0.chunks/0000000002-2/episodes.bin"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    path = collect_here(WALK, tmp_path, episodes=4)
    said = [line for line in capsys.readouterr().err.splitlines() if "SHA-256" in line]
    assert len(said) == 1
    assert "the episode of seed 3 does not match its SHA-256: its 2 seeds are collected anew" in said[0]
    assert_same_files(whole, path)
    assert [found.name for found in (tmp_path / "toy/walk").iterdir()] == ["noisy-v0"]


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def assert_same_files(a: Path, b: Path) -> None:
    """The same files to the byte, all but the metadata of the dataset: it has the time of collecting."""
    names = sorted(file.relative_to(a) for file in a.rglob("*") if file.is_file())
    assert names == sorted(file.relative_to(b) for file in b.rglob("*") if file.is_file())
    assert len(names) > 2
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_chunks_that_a_mended_expert_does_not_need_stay_out_of_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "CHUNK", 1)
    with pytest.raises(UserError, match="the expert failed 15 times"):
        collect_here(dataclasses.replace(WALK, expert=mostly_fails), tmp_path, episodes=8)
    kept = sorted(path.name for path in tmp_path.glob("toy/walk/.noisy-v0.chunks/0*"))
    assert kept == ["0000000003-1", "0000000007-1", "0000000011-1", "0000000015-1"]
    source = open_minari(collect_here(WALK, tmp_path, episodes=8))
    assert [episode.seed for episode in source.episodes()] == list(range(8))


HOLDER = """
import sys, time
from pathlib import Path
from toy import ToyEnv
from toy_data import Walk
from gatito.data.collection import CollectConfig, Collection
from gatito.data.tasks import TaskSpec
spec = TaskSpec(id="toy/walk", make=Walk, expert=None, noise=0.5)
with Collection(spec=spec, root=Path(sys.argv[1]), config=CollectConfig(episodes=2, processes=1)).held():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_what_another_process_is_collecting_is_left_alone_until_it_ends(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"is being collected by process {other.pid}; wait for it, or choose"):
            collect_here(WALK, tmp_path, episodes=2)
        other.kill()
    assert (tmp_path / "toy/walk/.noisy-v0.chunks/lock").read_text() == str(other.pid)
    assert len(open_minari(collect_here(WALK, tmp_path, episodes=2))) == 2


@pytest.mark.parametrize("left", ["", "[", str(os.getppid()), json.dumps([socket.gethostname(), 1])])
def test_a_lock_that_nobody_holds_locks_nobody_out(tmp_path: Path, left: str) -> None:
    (tmp_path / "toy/walk/.noisy-v0.chunks").mkdir(parents=True)
    (tmp_path / "toy/walk/.noisy-v0.chunks/lock").write_text(left)
    assert len(open_minari(collect_here(WALK, tmp_path, episodes=2))) == 2


def test_a_task_that_fails_leaves_the_others_to_finish(tmp_path: Path) -> None:
    broken = dataclasses.replace(WALK, id="toy/broken", make=partial(Walk, nan_reward=True))
    worse = dataclasses.replace(broken, id="toy/worse")
    with pytest.raises(
        UserError, match=r"'toy/broken', seed 0, timestep 2: the reward is nan.*1 more tasks .*toy/worse"
    ):
        collect([broken, worse, WALK], tmp_path, CollectConfig(episodes=2, processes=1))
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["walk"]
    assert len(open_minari(tmp_path / "toy/walk/noisy-v0")) == 2


def test_a_finished_dataset_is_kept_by_the_same_call_and_refused_by_another(tmp_path: Path) -> None:
    path = collect_here(WALK, tmp_path, episodes=2)
    before = {file: file.read_bytes() for file in files_in(path)}
    assert collect_here(WALK, tmp_path, episodes=2) == path
    with pytest.raises(UserError, match=r"noisy-v0 holds episodes of other settings \(episodes\); remove it"):
        collect_here(WALK, tmp_path, episodes=3)
    with pytest.raises(UserError, match=r"noisy-v0 holds episodes of other settings \(first_seed\)"):
        collect_here(WALK, tmp_path, episodes=2, first_seed=7)
    assert {file: file.read_bytes() for file in files_in(tmp_path)} == before


PLAYER = """
import sys, time
from pathlib import Path
from toy import ToyEnv
from toy_data import Walk, walk_expert
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.tasks import TaskSpec

def expert(env):
    with open(sys.argv[2], "a") as played:
        played.write(f"{env.unwrapped.limit}\\n")
    def act(observation):
        if len(Path(sys.argv[2]).read_text().splitlines()) == int(sys.argv[3]) and env.unwrapped.steps == 2:
            print("in the middle of an episode", flush=True)
            time.sleep(60)
        return walk_expert(observation)
    return act

spec = TaskSpec(id="toy/walk", make=Walk, expert=expert, noise=0.5)
collect([spec], Path(sys.argv[1]), CollectConfig(episodes=30, processes=1))
"""


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_a_chunk_has_its_finished_seeds_kept(tmp_path: Path) -> None:
    played, root = tmp_path / "played", tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", PLAYER, str(root), str(played)]
    with subprocess.Popen(
        [*command, "9"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"in the middle of an episode\n"
        first.kill()
    chunk = root / "toy/walk/.noisy-v0.chunks/0000000000-25"
    assert len((chunk / "episodes.jsonl").read_text().splitlines()) == 8
    subprocess.run([*command, "0"], env=environment, check=True, stderr=subprocess.DEVNULL)
    seeds = [*range(9), *range(8, 30)]  # the ninth, of seed 8, was cut off and played again; no other
    assert played.read_text().split() == [str(5 + seed % 4) for seed in seeds]
    assert_same_files(collect_here(WALK, tmp_path / "whole", episodes=30), root / "toy/walk/noisy-v0")


@pytest.mark.slow
def test_a_command_killed_with_its_workers_is_continued_to_the_same_dataset(tmp_path: Path) -> None:
    """The real thing: the command is killed with its workers, then typed again."""
    line = "data collect --tasks classic/acrobot --episodes 60 --processes 2 --out"
    command = [sys.executable, "-m", "gatito", *line.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    chunks = tmp_path / "killed/classic/acrobot/.noisy-v0.chunks"

    def kept() -> list[str]:
        return [line for file in sorted(chunks.glob("*/episodes.jsonl")) for line in file.read_text().splitlines()]

    deadline = time.monotonic() + 60
    while len(kept()) < 9 and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert 9 <= len(kept()) < 60
    done = subprocess.run([*command, str(tmp_path / "killed")], env=environment, check=True, capture_output=True)
    assert b"SHA-256" not in done.stderr
    again = collect_here("classic/acrobot", tmp_path / "whole", episodes=60)
    assert_same_files(again, tmp_path / "killed/classic/acrobot/noisy-v0")


def test_a_nan_reward_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task 'toy/walk', seed 0, timestep 2: the reward is nan"):
        collect_here(dataclasses.replace(WALK, make=partial(Walk, nan_reward=True)), tmp_path, episodes=4)
    assert files_in(tmp_path) == []


BAD_OBSERVATIONS = {
    r"observation place, timestep 2: NaN or Inf in \[nan": {"place": np.array([np.nan, 0])},
    r"observation place, timestep 2: shape \(3,\) of float64, expected \(2,\) of float32": {"place": np.zeros(3)},
    r"observation image, timestep 2: .* has fractions, expected uint8": {"image": np.full((16, 20, 3), 0.5)},
    r"observation image, timestep 2: .* does not fit into uint8": {"image": np.full((16, 20, 3), 300)},
    r"observation mission, timestep 2: int, expected text": {"mission": 3},
    r"observation, timestep 2: keys \['image', 'mission'\], 'place' is missing": {"place": None},
}


@pytest.mark.parametrize("message", BAD_OBSERVATIONS)
def test_a_simulator_that_leaves_its_space_is_refused(message: str, tmp_path: Path) -> None:
    class Broken(Walk):
        def _observe(self) -> dict[str, Any]:
            observation = super()._observe()
            if self.steps == 2:
                changes = BAD_OBSERVATIONS[message]
                observation = {k: v for k, v in (observation | changes).items() if v is not None}
            return observation

    blind = dataclasses.replace(WALK, make=Broken, expert=lambda env: lambda _: np.zeros(2, np.float32))
    with pytest.raises(UserError, match=r"task 'toy/walk', seed 0, " + message):
        collect_here(blind, tmp_path, episodes=4)
    assert files_in(tmp_path) == []


WIDE = spaces.Box(0, 9, (2, 2), np.int64)
IMPOSSIBLE = [
    (spaces.Discrete(3), 7, r"observation, timestep 2: value 7, allowed \[0, 2\]; repair the environment, or widen"),
    (spaces.Discrete(3, start=1), 0, r"observation, timestep 2: value 0, allowed \[1, 3\]"),
    (spaces.MultiDiscrete([3, 5]), [2, 5], r"observation\[1\], timestep 2: value 5, allowed \[0, 4\]"),
    (spaces.MultiBinary(2), [0, 2], r"observation\[1\], timestep 2: value 2, allowed \[0, 1\]"),
    (WIDE, [[0, 9], [10, 0]], r"observation\[1, 0\], timestep 2: value 10, allowed \[0, 9\]"),
    (
        spaces.Dict(a=spaces.Tuple([spaces.Text(4, charset="abc"), WIDE])),
        {"a": ("abcab", np.zeros((2, 2), np.int64))},
        r"observation a 0, timestep 2: 'abcab' has 5 characters, allowed 1 to 4 of 'abc'; repair the environment",
    ),
    (spaces.Text(4, charset="abc"), "a:b", r"observation, timestep 2: 'a:b' has ':', allowed 1 to 4 of 'abc'"),
]


@pytest.mark.parametrize(("space", "value", "message"), IMPOSSIBLE)
def test_a_value_that_is_impossible_in_its_space_is_refused(
    space: spaces.Space, value: Any, message: str, tmp_path: Path
) -> None:
    class Once(ToyEnv):
        def _observation(self) -> Any:
            return value if len(self.actions) == 2 else super()._observation()

    make = partial(Once, space, spaces.Discrete(2), 4)
    spec = TaskSpec(id="toy/once", make=make, expert=lambda env: lambda _: np.int64(1))
    with pytest.raises(UserError, match="task 'toy/once', seed 0, " + message):
        collect_here(spec, tmp_path, episodes=2)
    assert files_in(tmp_path) == []


def test_an_action_that_is_impossible_in_its_space_is_refused(tmp_path: Path) -> None:
    class Lenient(ToyEnv):
        def step(self, action: Any) -> Any:
            return super().step(np.int64(1))

    make = partial(Lenient, spaces.Discrete(2), spaces.Discrete(2), 4)
    spec = TaskSpec(id="toy/lenient", make=make, expert=lambda env: lambda _: np.int64(5))
    message = r"task 'toy/lenient', seed 0, action, timestep 0: value 5, allowed \[0, 1\]; mend the policy, or widen"
    with pytest.raises(UserError, match=message):
        collect_here(spec, tmp_path, episodes=2)


def test_floats_outside_their_bounds_are_collected(tmp_path: Path) -> None:
    class Far(Walk):
        def _observe(self) -> dict[str, Any]:
            return super()._observe() | {"place": np.array([3.0, 0.0], np.float32)}

    blind = dataclasses.replace(WALK, make=Far, expert=lambda env: lambda _: np.zeros(2, np.float32))
    assert open_minari(collect_here(blind, tmp_path, episodes=1)).episode(0).observations["place"].max() == 3.0


def test_a_simulator_that_fails_is_named_with_its_timestep(tmp_path: Path) -> None:
    class Broken(Walk):
        def step(self, action: np.ndarray) -> Any:
            if self.steps == 2:
                raise RuntimeError("the arm fell off\nand rolled away")
            return super().step(action)

    message = r"seed 0, timestep 2: the environment or its expert failed: RuntimeError: the arm fell off$"
    with pytest.raises(UserError, match=message):
        collect_here(dataclasses.replace(WALK, make=Broken), tmp_path, episodes=4)
    assert files_in(tmp_path) == []


def test_an_environment_that_writes_into_one_array_is_recorded_as_it_was(tmp_path: Path) -> None:
    class InPlace(Walk):
        def _observe(self) -> dict[str, Any]:
            new = super()._observe()
            if not hasattr(self, "shared"):
                self.shared = {key: np.array(new[key]) for key in ("place", "image")}
            for key, array in self.shared.items():
                array[...] = new[key]
            return self.shared | {"mission": new["mission"]}

    episodes = []
    for make in (Walk, InPlace):
        path = collect_here(dataclasses.replace(WALK, make=make), tmp_path / make.__name__, episodes=1)
        episodes.append(open_minari(path).episode(0))
    assert_same(episodes[0].observations, episodes[1].observations)
    assert not np.array_equal(episodes[0].observations["place"][0], episodes[0].observations["place"][-1])


def test_no_seed_of_evaluation_is_ever_collected(tmp_path: Path) -> None:
    spec = dataclasses.replace(WALK, expert=give_up)
    with pytest.raises(UserError, match=rf"seed {EVALUATION_SEEDS} is kept for evaluation"):
        collect_here(spec, tmp_path, episodes=3, first_seed=EVALUATION_SEEDS - 3)
    left = [int(path.name[:10]) for path in tmp_path.glob("toy/walk/.noisy-v0.chunks/0*")]
    assert all(seed < EVALUATION_SEEDS for seed in left)


def test_a_space_that_minari_cannot_write_leaves_nothing(tmp_path: Path) -> None:
    env = Shape(spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2))
    with pytest.raises(UserError, match=r"toy/x-v0: .*Sequence"), published(tmp_path / "x-v0") as folder:
        MinariWriter(folder, "toy/x-v0", env, {})
    assert files_in(tmp_path) == []


def test_a_task_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 'classic/cartpole' is listed twice"):
        collect(["classic/cartpole", "classic/cartpole"], tmp_path, CollectConfig(episodes=1))


def test_an_unknown_task_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown task 'classic/cartpol'; did you mean 'classic/cartpole'\?"):
        collect(["classic/cartpol"], tmp_path, CollectConfig(episodes=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"episodes": 0}, "episodes is 0, allowed 1 and more"),
        ({"first_seed": -1}, r"first_seed -1 with 100 episodes leaves \[0, 1073741824\)"),
        ({"first_seed": EVALUATION_SEEDS - 99}, "seeds from there on are kept for evaluation"),
        ({"processes": 0}, "processes is 0, allowed 1 and more"),
        ({"agents": {}}, "agents names nobody; choose of expert, noisy, random"),
        (
            {"agents": {"expert": -1.0}},
            "the share of agent 'expert' is -1.0, allowed > 0; leave the agent out instead",
        ),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CollectConfig(**values)


def test_the_last_training_seed_is_below_those_of_evaluation() -> None:
    config = CollectConfig(first_seed=EVALUATION_SEEDS - 100)
    assert config.first_seed + config.episodes == EVALUATION_SEEDS


# What is no Minari dataset


def test_a_folder_without_a_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no Minari dataset at .*: .*metadata\.json is missing"):
        open_minari(tmp_path)


def test_broken_metadata_is_named(tmp_path: Path) -> None:
    path = collect_here(WALK, tmp_path, episodes=1)
    metadata = path / "data/metadata.json"
    whole = metadata.read_text()
    metadata.write_text(whole[:-9])
    with pytest.raises(UserError, match=r"data/metadata\.json: not JSON"):
        open_minari(path)
    metadata.write_text(whole.replace('"action_space"', '"action_spade"'))
    with pytest.raises(UserError, match=r"data/metadata\.json: 'action_space' is missing"):
        open_minari(path)


@pytest.mark.parametrize("seed", ["x", [1], -3, 1.5, True])
def test_a_seed_that_is_none_is_named(tmp_path: Path, seed: Any) -> None:
    source = open_minari(collect_here(WALK, tmp_path, episodes=1))
    file = source.path / "data/0/metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seed": seed}))
    with pytest.raises(UserError, match=r"episode 0: its metadata has the seed .*, allowed whole numbers from 0"):
        source.episode(0)


@pytest.mark.parametrize("index", [-1, 2, 100])
def test_an_episode_that_is_not_there_is_named(tmp_path: Path, index: int) -> None:
    source = open_minari(collect_here(WALK, tmp_path, episodes=2))
    with pytest.raises(UserError, match=rf"no episode {index}; it has 2, 0 to 1"):
        source.episode(index)


def test_a_damaged_episode_is_named(tmp_path: Path) -> None:
    source = open_minari(collect_here(WALK, tmp_path, episodes=2))
    (file,) = (source.path / "data/1").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    source.episode(0)
    with pytest.raises(UserError, match=rf"episode 1: cannot be read .*; remove {source.path} and collect it again"):
        source.episode(1)
    file.unlink()
    with pytest.raises(
        UserError, match=rf"episode 1: cannot be read \({file} is missing\); remove {source.path} and"
    ):
        source.episode(1)


def test_episodes_that_were_mixed_up_are_named(tmp_path: Path) -> None:
    source = open_minari(collect_here(WALK, tmp_path, episodes=3))
    (source.path / "data/1").rename(source.path / "data/x")
    (source.path / "data/2").rename(source.path / "data/1")
    source.episode(0)
    with pytest.raises(UserError, match=r"episode 1: its metadata says it is episode 2; episodes are mixed up"):
        source.episode(1)


@pytest.fixture
def hdf5_dataset(tmp_path: Path) -> Path:
    """A dataset as Minari writes it by default."""
    (tmp_path / "h5/data").mkdir(parents=True)
    storage = MinariStorage.new(tmp_path / "h5/data", spaces.Discrete(3), spaces.Discrete(2), data_format="hdf5")
    ends = {"terminations": [False, True], "truncations": [False, False]}
    buffer = EpisodeBuffer(
        observations=np.array([0, 1, 2]), actions=np.array([0, 1]), rewards=[0.0, 1.0], seed=4, infos={}, **ends
    )
    storage.update_episodes([buffer])
    storage.update_metadata({"dataset_id": "toy/h5-v0", "minari_version": minari.__version__})
    return tmp_path / "h5"


def test_minari_s_own_hdf5_datasets_are_read(hdf5_dataset: Path) -> None:
    episode = open_minari(hdf5_dataset).episode(0)
    assert (episode.observations.tolist(), episode.actions.tolist(), episode.seed) == ([0, 1], [0, 1], 4)


def test_a_damaged_dataset_of_another_is_not_to_be_collected_again(hdf5_dataset: Path) -> None:
    metadata = hdf5_dataset / "data/metadata.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"total_episodes": 2}))
    with pytest.raises(UserError, match=r"episode 1: cannot be read .*; repair or drop it"):
        open_minari(hdf5_dataset).episode(1)
    metadata.unlink()
    with pytest.raises(
        UserError, match=r"metadata.json is missing though there are episodes beside it; repair or drop"
    ):
        open_minari(hdf5_dataset)


def link_out(file: Any) -> None:
    file["episode_0/elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")


def external_storage(file: Any) -> None:
    file.create_dataset("episode_0/raw", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual_dataset(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file.create_virtual_dataset("episode_0/virtual", layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link_out, r"main_data\.hdf5: /episode_0/elsewhere is a link \(ExternalLink\)"),
        (external_storage, "/episode_0/raw keeps its values in other files"),
        (virtual_dataset, "/episode_0/virtual keeps its values in other files"),
    ],
)
def test_an_hdf5_file_that_would_read_others_is_refused(hdf5_dataset: Path, change: Any, message: str) -> None:
    with h5py.File(hdf5_dataset / "data/main_data.hdf5", "a") as file:
        change(file)
    with pytest.raises(UserError, match=message):
        open_minari(hdf5_dataset)


def test_an_episode_shows_sizes_and_never_values() -> None:
    episode = Episode(
        task="toy/walk",
        id=3,
        agent="expert",
        observations=np.zeros(4),
        actions=np.zeros(4),
        rewards=np.full(4, 0.5),
        targets=np.ones(4, np.bool_),
    )
    assert repr(episode) == "Episode(toy/walk, id 3, 4 timesteps, return 2)"
