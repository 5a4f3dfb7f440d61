"""Experts to Minari and back to episodes."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from conftest import SPACES
from gymnasium import spaces
from toy_data import Shape, Walk, walk_expert, write_minari

from gatito.data import collect as collecting
from gatito.data.collect import CollectConfig, collect, collect_episode, collect_task
from gatito.data.episode import Episode, row, stack
from gatito.data.minari_episodes import EXPLORATORY, MinariWriter, episode_from_buffer, open_minari
from gatito.data.publish import published
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


WALK = TaskSpec(id="toy/walk", make=Walk, expert=expert, noise=0.5)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make `collect_task` find this task specification."""

    def put(spec: TaskSpec) -> None:
        monkeypatch.setattr(collecting, "get_task", lambda task: spec)

    return put


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


def test_executed_noise_leaves_the_loss_mask(
    tmp_path: Path, register: Any, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    register(WALK)
    source = open_minari(collect_task("toy/walk", tmp_path, CollectConfig(episodes=3, labels="executed")))
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


def test_with_expert_labels_noisy_steps_stay_in_the_loss_mask(tmp_path: Path, register: Any) -> None:
    register(WALK)
    source = open_minari(collect_task("toy/walk", tmp_path, CollectConfig(episodes=3)))
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


def test_the_last_observation_which_has_no_action_is_dropped(tmp_path: Path, register: Any) -> None:
    register(WALK)
    source = open_minari(collect_task("toy/walk", tmp_path, CollectConfig(episodes=2)))
    raw, episode = source.dataset[1], source.episode(1)
    T = 5 + 1 % 4
    assert raw.observations["image"].shape[0] == T + 1
    assert len(episode) == T
    assert episode.observations["image"].shape == (T, 16, 20, 3)
    assert len(episode.observations["mission"]) == T
    assert episode.actions.shape == (T, 2)
    np.testing.assert_array_equal(episode.observations["image"], raw.observations["image"][:T])


def test_an_episode_read_back_is_the_one_that_was_collected(tmp_path: Path, register: Any) -> None:
    register(WALK)
    path = collect_task("toy/walk", tmp_path, CollectConfig(episodes=3))
    assert path == tmp_path / "toy/walk/expert-v0"
    source = open_minari(path)
    assert (source.task, source.agent, source.executed, len(source)) == ("toy/walk", "expert", False, 3)
    for seed, episode in enumerate(source.episodes()):
        expected = episode_from_buffer(collect_episode(WALK, Walk(), seed, noise=0.5), "toy/walk", "expert")
        assert len(episode) == len(expected) == 5 + seed % 4
        for name in ("observations", "actions", "rewards"):
            assert_same(getattr(expected, name), getattr(episode, name))
        assert episode.observations["image"].tobytes() == expected.observations["image"].tobytes()
        assert episode.observations["mission"][0] == f"go to {5 + seed % 4}"
        assert episode.total_return == len(episode)
        assert episode.id == seed


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


def test_minari_itself_opens_the_dataset(tmp_path: Path, register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    register(WALK)
    collect_task("toy/walk", tmp_path, CollectConfig(episodes=2))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("toy/walk/expert-v0")
    assert dataset.total_episodes == 2
    assert dataset.total_steps == 5 + 6
    assert dataset.observation_space == Walk().observation_space
    assert [episode.observations["mission"][0] for episode in dataset.iterate_episodes()] == ["go to 5", "go to 6"]
    assert len(open_minari("toy/walk/expert-v0")) == 2


# Seeds and processes


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """The same two tasks by this process and by two others."""
    episodes = {"classic/pendulum": 2, "classic/cartpole": 1}
    one, two = (tmp_path_factory.mktemp(f"by-{processes}") for processes in (1, 2))
    config = CollectConfig(episodes=2, first_seed=11)
    return {
        1: [collect_task(task, one, dataclasses.replace(config, episodes=n)) for task, n in episodes.items()],
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
        ("classic", "pendulum", "expert-v0"),
        ("classic", "cartpole", "expert-v0"),
    ]


def test_episodes_differ_by_seed(collected: dict[int, list[Path]]) -> None:
    a, b = open_minari(collected[1][0]).episodes()
    assert not np.array_equal(a.observations, b.observations)


# What fails, and what it leaves


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() or path.name.startswith(".")]


def test_nothing_is_left_when_the_expert_keeps_failing(tmp_path: Path, register: Any) -> None:
    register(dataclasses.replace(WALK, expert=always_give_up))
    with pytest.raises(UserError, match=r"task 'toy/walk': the expert failed 13 times, last: it is lost"):
        collect_task("toy/walk", tmp_path, CollectConfig(episodes=4))
    assert files_in(tmp_path) == []
    register(WALK)
    assert len(open_minari(collect_task("toy/walk", tmp_path, CollectConfig(episodes=1)))) == 1


def test_seeds_on_which_the_expert_gives_up_are_passed_over(tmp_path: Path, register: Any) -> None:
    register(dataclasses.replace(WALK, expert=give_up))
    source = open_minari(collect_task("toy/walk", tmp_path, CollectConfig(episodes=3)))
    assert [len(episode) for episode in source.episodes()] == [5, 7, 5]  # seeds 0, 2 and 4


def test_a_nan_reward_is_refused_and_nothing_is_left(tmp_path: Path, register: Any) -> None:
    register(dataclasses.replace(WALK, make=partial(Walk, nan_reward=True)))
    with pytest.raises(UserError, match=r"task 'toy/walk', seed 0, timestep 2: the reward is nan"):
        collect_task("toy/walk", tmp_path, CollectConfig(episodes=4))
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
def test_a_simulator_that_leaves_its_space_is_refused(message: str, tmp_path: Path, register: Any) -> None:
    class Broken(Walk):
        def _observe(self) -> dict[str, Any]:
            observation = super()._observe()
            if self.steps == 2:
                changes = BAD_OBSERVATIONS[message]
                observation = {k: v for k, v in (observation | changes).items() if v is not None}
            return observation

    blind = dataclasses.replace(WALK, make=Broken, expert=lambda env: lambda _: np.zeros(2, np.float32))
    register(blind)
    with pytest.raises(UserError, match=r"task 'toy/walk', seed 0, " + message):
        collect_task("toy/walk", tmp_path, CollectConfig(episodes=4))
    assert files_in(tmp_path) == []


def test_a_simulator_that_fails_is_named_with_its_timestep(tmp_path: Path, register: Any) -> None:
    class Broken(Walk):
        def step(self, action: np.ndarray) -> Any:
            if self.steps == 2:
                raise RuntimeError("the arm fell off\nand rolled away")
            return super().step(action)

    register(dataclasses.replace(WALK, make=Broken))
    message = r"seed 0, timestep 2: the environment or its expert failed: RuntimeError: the arm fell off$"
    with pytest.raises(UserError, match=message):
        collect_task("toy/walk", tmp_path, CollectConfig(episodes=4))
    assert files_in(tmp_path) == []


def test_an_environment_that_writes_into_one_array_is_recorded_as_it_was(tmp_path: Path, register: Any) -> None:
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
        register(dataclasses.replace(WALK, make=make))
        path = collect_task("toy/walk", tmp_path / make.__name__, CollectConfig(episodes=1))
        episodes.append(open_minari(path).episode(0))
    assert_same(episodes[0].observations, episodes[1].observations)
    assert not np.array_equal(episodes[0].observations["place"][0], episodes[0].observations["place"][-1])


def test_chunks_add_up_to_the_episodes_of_one_piece(
    tmp_path: Path, register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(WALK)
    whole = open_minari(collect_task("toy/walk", tmp_path / "whole", CollectConfig(episodes=5)))
    monkeypatch.setattr(collecting, "CHUNK", 2)
    parts = open_minari(collect_task("toy/walk", tmp_path / "parts", CollectConfig(episodes=5)))
    assert len(parts) == len(whole) == 5
    for a, b in zip(whole.episodes(), parts.episodes(), strict=True):
        assert_same(a.observations, b.observations)
        assert_same(a.actions, b.actions)


def test_no_seed_of_evaluation_is_ever_collected(tmp_path: Path, register: Any) -> None:
    register(dataclasses.replace(WALK, expert=give_up))
    config = CollectConfig(episodes=3, first_seed=EVALUATION_SEEDS - 3)
    with pytest.raises(UserError, match=rf"seed {EVALUATION_SEEDS} is kept for evaluation"):
        collect_task("toy/walk", tmp_path, config)
    assert files_in(tmp_path) == []


def test_a_space_that_minari_cannot_write_leaves_nothing(tmp_path: Path) -> None:
    env = Shape(spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2))
    with pytest.raises(UserError, match=r"toy/x-v0: .*Sequence"), published(tmp_path / "x-v0") as folder:
        MinariWriter(folder, "toy/x-v0", env, {})
    assert files_in(tmp_path) == []


def test_a_dataset_that_exists_is_never_overwritten(tmp_path: Path, register: Any) -> None:
    register(WALK)
    path = collect_task("toy/walk", tmp_path, CollectConfig(episodes=1))
    before = {file: file.read_bytes() for file in files_in(path)}
    message = r"toy/walk/expert-v0 exists; choose another --out or remove it"
    with pytest.raises(UserError, match=message):
        collect_task("toy/walk", tmp_path, CollectConfig(episodes=2))
    with pytest.raises(UserError, match=r"toy/walk/expert-v0 exists; remove it, .* or leave the task out"):
        collect(["toy/walk"], tmp_path, CollectConfig(episodes=2))
    assert {file: file.read_bytes() for file in files_in(tmp_path)} == before


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


def test_broken_metadata_is_named(tmp_path: Path, register: Any) -> None:
    register(WALK)
    path = collect_task("toy/walk", tmp_path, CollectConfig(episodes=1))
    metadata = path / "data/metadata.json"
    whole = metadata.read_text()
    metadata.write_text(whole[:-9])
    with pytest.raises(UserError, match=r"data/metadata\.json: not JSON"):
        open_minari(path)
    metadata.write_text(whole.replace('"action_space"', '"action_spade"'))
    with pytest.raises(UserError, match=r"data/metadata\.json: 'action_space' is missing"):
        open_minari(path)


@pytest.mark.parametrize("index", [-1, 2, 100])
def test_an_episode_that_is_not_there_is_named(tmp_path: Path, register: Any, index: int) -> None:
    register(WALK)
    source = open_minari(collect_task("toy/walk", tmp_path, CollectConfig(episodes=2)))
    with pytest.raises(UserError, match=rf"no episode {index}; it has 2, 0 to 1"):
        source.episode(index)


def test_a_damaged_episode_is_named(tmp_path: Path, register: Any) -> None:
    register(WALK)
    source = open_minari(collect_task("toy/walk", tmp_path, CollectConfig(episodes=2)))
    (file,) = (source.path / "data/1").rglob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    source.episode(0)
    with pytest.raises(UserError, match=r"episode 1: cannot be read .*; collect it again"):
        source.episode(1)


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
