"""Behaviour cloning: what is learned, that it is repeatable, saved and loaded, and what it may cost."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acting import ENVS, make
from demonstrated import LINEAR, labelled, random_demonstrations
from gymnasium import spaces
from toy import MISSIONS, layout_of, tiny_recipe

from gatito.baselines.budget import training_flops
from gatito.baselines.cloning import Clone, clone
from gatito.baselines.config import CloneConfig
from gatito.baselines.demonstrations import Demonstrations
from gatito.baselines.saved import DESCRIPTION, TEXT, WEIGHTS, load_clone, save_clone
from gatito.data.episode import row
from gatito.data.store import open_store
from gatito.errors import UserError
from gatito.model import GatitoConfig
from gatito.tokenizers import TextTokenizer, Vocabulary
from gatito.train.flops import batch_flops
from gatito.train.stream import stream_of

SMALL = CloneConfig(width=32, batch=32, steps=3)
THREE, TWO = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)


def acts(policy: Clone, observation: Any, seed: int = 0) -> Any:
    return policy.act([policy.layout.with_time_axis(observation)], [np.random.default_rng(seed)])[0]


def linear(observation: Any) -> Any:
    return (observation @ LINEAR).astype(np.float32)


def tensors_of(policy: Clone) -> dict[str, torch.Tensor]:
    return dict(policy.network.state_dict())


@pytest.fixture(scope="module")
def everything(vocabulary: Vocabulary, text: TextTokenizer) -> Demonstrations:
    """Images, texts and numbers, and actions of two kinds."""
    env = make("everything")
    return random_demonstrations(env, layout_of(env, vocabulary, text))


@pytest.fixture(scope="module")
def cloned(everything: Demonstrations) -> Clone:
    return clone(everything, SMALL)


def test_a_linear_expert_is_learned_to_tolerance(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    shown, seen = labelled(THREE, TWO, linear, vocabulary, text)
    policy = clone(shown, CloneConfig(width=64, layers=1, batch=64, steps=300, lr=3e-3))
    rng = np.random.default_rng(1)
    for observation in rng.uniform(-1, 1, (50, 3)).astype(np.float32):
        np.testing.assert_allclose(acts(policy, observation), linear(observation), atol=0.05)
    assert policy.loss < 1e-2
    assert np.std([linear(x) for x in seen]) > 0.1  # there was something to learn


@pytest.mark.parametrize("kind", ["image", "mission"])
def test_what_an_image_or_a_text_says_is_learned(kind: str, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    space = spaces.Dict(image=spaces.Box(0, 255, (16, 16, 3), np.uint8), mission=spaces.Text(40))

    def expert(observation: Any) -> Any:
        if kind == "mission":
            return np.int64(MISSIONS.index(observation["mission"]))
        return np.int64(observation["image"][:8].mean() > observation["image"][8:].mean())

    shown, _ = labelled(space, spaces.Discrete(4), expert, vocabulary, text, length=40)
    policy = clone(shown, CloneConfig(width=32, layers=1, batch=32, steps=80, lr=5e-3))
    right = [acts(policy, row(shown.observations, t)) == shown.actions[t] for t in range(40)]
    assert np.mean(right) > 0.95
    assert len(set(shown.actions.tolist())) > 1


def test_exploratory_actions_are_not_imitated(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    """Every other action was executed at random, which here is always the third."""
    targets = [t % 2 == 0 for t in range(200)]
    space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    turn = iter(targets)

    def expert(observation: Any) -> Any:
        return np.int64(observation[0] > 0) if next(turn) else np.int64(3)

    shown, _ = labelled(space, spaces.Discrete(4), expert, vocabulary, text, length=200, targets=targets)
    policy = clone(shown, CloneConfig(width=32, layers=1, batch=32, steps=200, lr=1e-2))
    assert [int(acts(policy, np.array([x], np.float32))) for x in (-0.6, -0.3, 0.3, 0.6)] == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ENVS)
def test_actions_are_of_the_space_whatever_its_leaves(name: str, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make(name)
    shown = random_demonstrations(env, layout_of(env, vocabulary, text))
    for temperature in (0.0, 5.0):
        policy = clone(shown, dataclasses.replace(SMALL, temperature=temperature))
        for t in range(0, len(shown), 9):
            assert env.action_space.contains(acts(policy, row(shown.observations, t), seed=t))


def test_integers_that_count_as_continuous_are_whole_and_in_bounds(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    space = spaces.Box(-3, 5000, (2,), np.int64)
    shown, seen = labelled(THREE, space, lambda x: np.array([-3, 4999]), vocabulary, text, length=20)
    policy = clone(shown, SMALL)
    assert space.contains(acts(policy, seen[0]))
    assert shown.layout.actions[0].kind == "continuous"


def test_the_same_seed_gives_the_same_weights_to_the_bit(everything: Demonstrations, cloned: Clone) -> None:
    torch.manual_seed(77)  # what others draw has no part in it
    again, other = clone(everything, SMALL), clone(everything, dataclasses.replace(SMALL, seed=1))
    for name, tensor in tensors_of(cloned).items():
        assert torch.equal(tensor, tensors_of(again)[name])
    assert not torch.equal(tensors_of(cloned)["mlp.0.weight"], tensors_of(other)["mlp.0.weight"])
    assert again.loss == cloned.loss


def test_a_policy_that_was_saved_is_loaded_equal(cloned: Clone, everything: Demonstrations, tmp_path: Path) -> None:
    save_clone(cloned, tmp_path / "policy")
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == sorted((DESCRIPTION, TEXT, WEIGHTS))
    loaded = load_clone(tmp_path / "policy")
    assert (loaded.task, loaded.config, loaded.steps, loaded.flops, loaded.loss, loaded.data_sha256) == (
        "toy/task", SMALL, 3, cloned.flops, cloned.loss, everything.sha256
    )  # fmt: skip
    assert loaded.layout.sha256 == cloned.layout.sha256
    for t in range(0, len(everything), 7):
        observation = row(everything.observations, t)
        assert repr(acts(loaded, observation)) == repr(acts(cloned, observation))
    for name, tensor in tensors_of(cloned).items():
        assert torch.equal(tensor, tensors_of(loaded)[name])


def test_damaged_policies_are_refused_naming_what_is_wrong(cloned: Clone, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    save_clone(cloned, folder)
    with pytest.raises(UserError, match="policy exists; choose another"):
        save_clone(cloned, folder)
    for name in (WEIGHTS, TEXT):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(UserError, match=rf"{name} does not match its SHA-256; use an undamaged copy"):
            load_clone(folder)
        (folder / name).write_bytes(content)
    values = json.loads((folder / DESCRIPTION).read_text())
    wrong: list[tuple[Any, str]] = [
        (values | {"schema": 7}, r"schema 7, expected 1; clone it again"),
        (values | {"config": {"width": 0}}, "--width is 0, allowed 1 and more"),
        (values | {"pieces": []}, "no cloned policy at .*; clone it again"),
        ({k: v for k, v in values.items() if k != "layout"}, "no cloned policy at .*'layout' is missing"),
        ([], "no cloned policy at"),
    ]
    for said, reason in wrong:
        (folder / DESCRIPTION).write_text(json.dumps(said))
        with pytest.raises(UserError, match=reason):
            load_clone(folder)
    with pytest.raises(UserError, match=r"no cloned policy at .*nothing: .*policy.json is missing; clone it again"):
        load_clone(tmp_path / "nothing")


def test_discrete_actions_are_drawn_by_their_probabilities_with_a_temperature(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    turn = iter(range(400))
    shown, seen = labelled(
        THREE, spaces.Discrete(4), lambda x: np.int64(next(turn) % 4 == 0), vocabulary, text
    )  # a quarter is 1, whatever is seen
    config = CloneConfig(width=8, layers=1, batch=64, steps=60, lr=1e-2)
    likeliest = clone(shown, config)
    assert {int(acts(likeliest, x)) for x in seen[:40]} == {0}
    drawn = dataclasses.replace(likeliest, config=dataclasses.replace(config, temperature=1.0))
    actions = [int(acts(drawn, seen[0], seed)) for seed in range(300)]
    assert 0.1 < np.mean([action == 1 for action in actions]) < 0.4
    assert actions == [int(acts(drawn, seen[0], seed)) for seed in range(300)]


def test_an_action_does_not_depend_on_what_is_played_beside(cloned: Clone, everything: Demonstrations) -> None:
    asked = [cloned.layout.with_time_axis(row(everything.observations, t)) for t in range(12)]
    rngs = [np.random.default_rng(0) for _ in asked]
    together = cloned.act(asked, rngs)
    assert repr(together) == repr([cloned.act([one], [np.random.default_rng(0)])[0] for one in asked])


def test_pieces_that_were_never_shown_are_not_seen(cloned: Clone, everything: Demonstrations) -> None:
    observation = row(everything.observations, 0)
    strange = observation | {"mission": observation["mission"] + " zzz"}
    added = set(cloned.layout.text.encode(strange["mission"])) - {piece for _, piece in cloned.senses.pieces}
    assert added
    assert acts(cloned, strange)[0] in range(-2, 4)


def test_a_budget_of_flops_decides_the_steps(everything: Demonstrations, cloned: Clone) -> None:
    step = cloned.flops / cloned.steps
    assert step > 2 * 3 * 32 * 32 * 32  # a multiplication and an addition, forward and backward, a hidden layer
    for budget, steps in ((5 * step, 5), (5.9 * step, 5)):
        found = clone(everything, dataclasses.replace(SMALL, flops=budget))
        assert (found.steps, found.flops) == (steps, steps * step)
    with pytest.raises(UserError, match=r"--flops is .*, one step of 32 timesteps takes .*; raise it, or lower"):
        clone(everything, dataclasses.replace(SMALL, flops=0.5 * step))


def test_the_budget_of_a_run_is_what_its_batches_cost(store: Path, vocabulary: Vocabulary) -> None:
    opened, train = open_store(store), tiny_recipe(steps=20, batch=4).train
    config = GatitoConfig(
        **vocabulary.to_json(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
        intermediate_size=64, context=train.context, latents=0, action_layers=0,
    )  # fmt: skip
    sampler = stream_of(opened, config.trunk, train)
    counted = sum(batch_flops(config, sampler.batch(4 * step, 4)) for step in range(20))
    assert training_flops(opened, config, train) == pytest.approx(counted, rel=0.1)
    shorter = dataclasses.replace(train, steps=10)
    first = sum(batch_flops(config, sampler.batch(4 * step, 4)) for step in range(10))
    assert training_flops(opened, config, shorter) == pytest.approx(first)


def test_a_loss_that_is_no_number_ends_the_training(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    shown, _ = labelled(THREE, TWO, linear, vocabulary, text, length=20)
    with pytest.raises(UserError, match=r"'toy/task': the loss is (nan|inf) at step \d+; lower --lr"):
        clone(shown, dataclasses.replace(SMALL, lr=1e30, steps=50))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 0}, "--width is 0, allowed 1 and more"),
        ({"steps": 0}, "--steps is 0, allowed 1 and more"),
        ({"flops": -1.0}, r"--flops is -1.0, expected a finite number above 0"),
        ({"lr": float("nan")}, "--lr is nan, expected a finite number above 0"),
        ({"seed": -1}, "--seed is -1, allowed 0 to"),
        ({"temperature": -1.0}, r"--temperature is -1.0, expected a finite number from 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        CloneConfig(**change)
