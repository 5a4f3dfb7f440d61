"""Options of a dataset that change what is observed: the previous reward as a field, and bins that are even."""

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from runs import weights_of
from toy import CONTEXT, tiny_recipe

from gatito.data.build import build
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.minari_episodes import open_minari
from gatito.data.mixture import DatasetConfig, HeldOutConfig, MixtureConfig
from gatito.data.previous_reward import PreviousReward, has_previous_reward, known_as, rewarded_space, rewarded_task
from gatito.data.recording import collect_episode
from gatito.data.store import Store, open_store
from gatito.data.tasks import EVALUATION_SEEDS, get_task, no_expert
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import check_environment, evaluate
from gatito.eval.scores import EpisodeRecord
from gatito.policies import played_by
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.train.trainer import train

TASK = "classic/mountain-car-continuous"
"""Its rewards differ from timestep to timestep, its observations are companded."""
PIXELS = "babyai/go-to-obj-s4"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five demonstrations, seeds 0 to 4."""
    (path,) = collect(
        [TASK], tmp_path_factory.mktemp("data"), CollectConfig(episodes=5, agents={"expert": 1.0}, processes=1)
    )
    return path


def built(out: Path, dataset: Path, held_out: HeldOutConfig | None = None, **options: Any) -> Store:
    entry = DatasetConfig(source=f"minari:{dataset}", expert_filter=None, **options)
    return build(MixtureConfig(datasets=[entry], held_out=held_out or HeldOutConfig()), out)


def layout_of(store: Store) -> Layout:
    return Layout.from_json(store.layouts()[TASK], store.text)


# The previous reward


def test_what_is_built_of_a_dataset_is_what_the_wrapped_environment_shows(tmp_path: Path, dataset: Path) -> None:
    store = built(tmp_path / "store", dataset, previous_reward=True)
    layout = layout_of(store)
    spec = rewarded_task(get_task(TASK))
    env = spec.make()
    assert isinstance(env, PreviousReward)
    assert spec.layout(env, layout.vocabulary, layout.text) == layout
    episode = open_minari(dataset).episode(2)
    observation, _ = env.reset(seed=episode.seed)
    for t, action in enumerate(episode.actions):
        np.testing.assert_array_equal(observation["observation"], episode.observations[t])
        assert observation["previous_reward"] == np.float32(0.0 if t == 0 else episode.rewards[t - 1])
        assert env.observation_space.contains(observation)
        seen = layout.observation_tokens(observation)
        first = store.datasets[0].episode_timesteps[2] + t
        stored = store.datasets[0].sequence(int(first), int(first) + 1)
        np.testing.assert_array_equal(seen.ids, stored.ids[: len(seen.ids)])
        observation = env.step(action)[0]
    assert t > 3
    env.close()


def test_the_expert_of_a_wrapped_task_does_what_it_did() -> None:
    for name in (TASK, PIXELS):
        spec = get_task(name)
        wrapped = rewarded_task(spec)
        (env, other) = spec.make(), wrapped.make()
        plain, rewarded = collect_episode(spec, env, 7), collect_episode(wrapped, other, 7)
        np.testing.assert_array_equal(plain.actions, rewarded.actions)
        assert plain.rewards == rewarded.rewards
        fields = rewarded.observations
        assert fields["previous_reward"].shape == (len(plain.rewards) + 1, 1)
        np.testing.assert_allclose(fields["previous_reward"][1:, 0], plain.rewards, rtol=1e-6)
        env.close()
        other.close()


def test_a_task_without_an_expert_has_none_with_the_reward_either() -> None:
    assert not rewarded_task(dataclasses.replace(get_task(TASK), expert=no_expert)).has_expert
    assert rewarded_task(get_task(TASK)).has_expert


def test_overrides_follow_an_observation_that_gets_a_name() -> None:
    spec = dataclasses.replace(get_task(TASK), overrides={"": "discrete"})
    assert rewarded_task(spec).overrides == {"observation": "discrete"}
    assert rewarded_task(get_task(PIXELS)).overrides == get_task(PIXELS).overrides


def test_observations_that_have_the_field_are_refused_and_known_as_they_are(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    space = spaces.Dict(previous_reward=spaces.Box(-1, 1, (1,)))
    with pytest.raises(UserError, match="have a field 'previous_reward' already; leave the option out"):
        rewarded_space(space)
    once = rewarded_task(get_task(TASK))
    with closing(once.make()) as env:
        layout = once.layout(env, vocabulary, text)
    assert known_as(once, layout) is once
    assert has_previous_reward(layout)


@pytest.mark.parametrize("options", [{"previous_reward": True}, {"bins": "linear"}])
def test_documents_have_neither(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="allowed of control tasks, not of documents"):
        DatasetConfig(source="text:x", **options)


# Bins


def test_even_bins_span_what_each_element_has_and_undo_to_half_a_bin(tmp_path: Path, dataset: Path) -> None:
    store = built(tmp_path / "store", dataset, bins="linear")
    (field,) = layout_of(store).observations
    source = open_minari(dataset)
    values = np.concatenate([source.episode(i).observations for i in range(len(source))])
    np.testing.assert_allclose(field.low, values.min(axis=0))
    np.testing.assert_allclose(field.high, values.max(axis=0))
    ids = store.datasets[0].ids.reshape(-1, 4)[:, :2] - store.vocabulary.continuous_start
    span = values.max(axis=0) - values.min(axis=0)
    centres = values.min(axis=0) + (ids + 0.5) / 1024 * span
    assert np.abs(centres - values).max() <= 0.5001 * (span / 1024).max()
    assert ids.min() == 0
    assert ids.max() == 1023


def test_an_element_that_never_changes_has_bins_around_it(tmp_path: Path) -> None:
    store = built(
        tmp_path / "s", collect([TASK], tmp_path, CollectConfig(episodes=2, agents={"noisy": 1.0}, processes=1))[0]
    )
    layout = layout_of(store)
    even = layout.binned_over([np.array([[0.25, 3.0], [0.25, 5.0]])])
    assert (even.observations[0].low, even.observations[0].high) == ((-0.25, 3.0), (0.75, 5.0))
    tokens = even.observation_tokens(np.array([0.25, 9.0], np.float32))  # beyond what was seen: the last bin
    assert (tokens.ids[:2] - layout.vocabulary.continuous_start).tolist() == [512, 1023]


def test_bins_are_of_the_episodes_that_are_trained_on(tmp_path: Path, dataset: Path) -> None:
    whole = layout_of(built(tmp_path / "all", dataset, bins="linear")).observations[0]
    rule = HeldOutConfig(seeds=[[0, 4]])
    store = built(tmp_path / "one", dataset, rule, bins="linear")
    one = layout_of(store).observations[0]
    last = open_minari(dataset).episode(4).observations
    np.testing.assert_allclose(one.low, last.min(axis=0))
    assert one != whole
    assert store.held_out[0].metadata["layout"] == store.datasets[0].metadata["layout"]


def test_another_option_builds_a_dataset_anew(tmp_path: Path, dataset: Path) -> None:
    keys = [
        built(tmp_path / "store", dataset, **options).datasets[0].metadata["key"]
        for options in ({}, {"bins": "linear"}, {"previous_reward": True}, {})
    ]
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]


# Acting


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """A checkpoint with both options."""
    folder = tmp_path_factory.mktemp("trained")
    built(folder / "store", dataset, previous_reward=True, bins="linear")
    return train(tiny_recipe(steps=3, context=CONTEXT), folder / "store", folder / "run")


def test_a_checkpoint_acts_as_it_was_trained_and_needs_no_flag(trained: Path) -> None:
    model, processor = load_checkpoint(trained)
    spec, layout, _ = check_environment(processor, get_task(TASK))
    assert layout.sha256 == processor.layout(TASK).sha256
    assert [field.name for field in layout.observations] == ["observation", "previous_reward"]
    assert layout.observations[0].scaled
    with closing(spec.make()) as env:
        assert set(env.reset(seed=0)[0]) == {"observation", "previous_reward"}
    records = evaluate(model, processor, [TASK], EvaluationConfig(episodes=2, prompted_episodes=2, prompt="none,end"))
    assert [(r.prompt, r.seed - EVALUATION_SEEDS, r.failure) for r in records] == [
        ("none", 0, ""),
        ("none", 1, ""),
        ("end", 0, ""),
        ("end", 1, ""),
    ]


def test_demonstrations_without_the_reward_prompt_a_checkpoint_that_knows_it(trained: Path, dataset: Path) -> None:
    model, processor = load_checkpoint(trained)
    how = EvaluationConfig(episodes=1, prompted_episodes=1, prompt="end", demonstrations_from=str(dataset))
    (record,) = evaluate(model, processor, [TASK], how)
    assert isinstance(record, EpisodeRecord)
    assert record.failure == ""


def test_a_checkpoint_that_knows_the_reward_collects_with_it(trained: Path, tmp_path: Path) -> None:
    spec, _ = played_by(get_task(TASK), str(trained))
    (path,) = collect([spec], tmp_path, CollectConfig(episodes=1, agents={"expert": 1.0}, processes=1))
    source = open_minari(path)
    observed = source.episode(0).observations["previous_reward"][:, 0]
    np.testing.assert_allclose(observed[1:], source.episode(0).rewards[:-1], rtol=1e-6)


def test_fine_tuning_on_other_bins_is_refused(trained: Path, tmp_path: Path, dataset: Path) -> None:
    built(tmp_path / "store", dataset)
    with pytest.raises(UserError, match=r"has the layout .* in the store and .* in the checkpoint"):
        train(tiny_recipe(steps=1), tmp_path / "store", tmp_path / "run", init=trained)
    built(tmp_path / "same", dataset, previous_reward=True, bins="linear")
    path = train(tiny_recipe(steps=1), tmp_path / "same", tmp_path / "run", init=trained)
    assert weights_of(path)
    assert open_store(tmp_path / "same").layouts()[TASK]
