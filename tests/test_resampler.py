"""The resampler and the action decoder: what they see, exact likelihoods, and the flat trunk as it was."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from toy import TRUNKS, states_of, tiny_model
from transformers import DynamicCache

from gatito.data.packing import pack
from gatito.eval.actor import Actor
from gatito.model import GatitoForCausalLM
from gatito.model.embedding import rotary_angles
from gatito.model.loss import target_loss
from gatito.model.resampler import GatedSum, views
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary
from gatito.tokenizers.sequence import concatenate

T = 5
SPACE = spaces.Dict(at=spaces.Box(-9.0, 9.0, (3,), np.float32), image=spaces.Box(0, 255, (16, 32, 3), np.uint8))
OBSERVATIONS = {
    "at": np.linspace(-9, 9, T * 3).reshape(T, 3).astype(np.float32),
    "image": (np.arange(T * 16 * 32 * 3) % 251).reshape(T, 16, 32, 3).astype(np.uint8),
}
ACTIONS = np.stack([np.arange(T) % 3, np.arange(T) % 2], axis=1)


@pytest.fixture(scope="module")
def layout(vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
    return Layout.from_spaces(SPACE, spaces.MultiDiscrete([3, 2]), vocabulary=vocabulary, text=text)


@pytest.fixture(scope="module")
def sequence(layout: Layout) -> TokenSequence:
    return layout.episode_tokens(OBSERVATIONS, ACTIONS, targets=np.arange(T) != 2)


def changed(layout: Layout, timestep: int, element: int) -> TokenSequence:
    """The sequence with another value in one observation."""
    at = OBSERVATIONS["at"].copy()
    at[timestep, element] *= -0.5
    return layout.episode_tokens({**OBSERVATIONS, "at": at}, ACTIONS, targets=np.arange(T) != 2)


# The flat trunk


def test_the_flat_trunk_gives_the_loss_it_gave_before_there_were_others(
    vocabulary: Vocabulary, sequence: TokenSequence
) -> None:
    """The number is of the code before the resampler, on weights that are written down."""
    model = tiny_model(vocabulary).double()
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters(), start=1):
            wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (0.7 + 0.01 * k))
            parameter.copy_(0.3 * wave.view_as(parameter))
    row = [sequence, sequence.timesteps(0, 2, vocabulary.patch)]
    batch = pack([row], model.config.trunk, length=60)
    assert model(**batch.tensors()).loss.item() == pytest.approx(7.013219833374023, abs=2e-6)


def test_the_flat_trunk_is_embedding_blocks_and_norm_to_the_bit(
    vocabulary: Vocabulary, sequence: TokenSequence
) -> None:
    """Value and gradients of the loss, against the parts written out one after the other."""
    model = tiny_model(vocabulary, initializer_range=0.1)
    batch = pack([[sequence, sequence.timesteps(0, 2, vocabulary.patch)]], model.config.trunk)
    found = model(**batch.tensors()).loss
    found.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    net, images = model.model, (batch.patches, batch.patch_indices, batch.patch_positions)
    x = net.embedding(batch.input_ids, batch.local_positions, *images)
    L = x.shape[1]
    same = batch.segments[:, :, None] == batch.segments[:, None, :]
    mask = (torch.ones(L, L, dtype=torch.bool).tril() & same)[:, None]
    angles = rotary_angles(batch.positions, model.config.head_dim, model.config.rope_theta)
    for block in net.blocks:
        x = block(x, mask, angles, None)
    hidden = net.norm(x)
    predicts = batch.loss_mask[:, 1:] & (batch.segments[:, 1:] == batch.segments[:, :-1])
    states, wanted = hidden[:, :-1][predicts], batch.input_ids[:, 1:][predicts]
    rows = torch.zeros_like(wanted)
    head = model.lm_head.weight
    targets = target_loss(states, wanted, head, vocabulary=vocabulary, over="group", rows=rows, num_rows=1)
    loss = torch.stack(list(targets.loss_sum.values())).sum() / len(wanted)
    loss.backward()
    assert torch.equal(found, loss)
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert torch.equal(gradients[name], parameter.grad), name


def test_the_flat_trunk_has_neither_resampler_nor_decoder(vocabulary: Vocabulary) -> None:
    names = [name for name, _ in tiny_model(vocabulary).named_parameters()]
    assert not [name for name in names if "resampler" in name or "action_decoder" in name]
    assert [name for name, _ in tiny_model(vocabulary, latents=1).named_parameters() if "resampler" in name]


# What the latents see


@pytest.mark.parametrize("depth", [0, 1, 2])
@torch.no_grad()
def test_latents_see_their_own_timestep_and_nothing_else(
    vocabulary: Vocabulary, layout: Layout, sequence: TokenSequence, depth: int
) -> None:
    model = tiny_model(vocabulary, latents=2, resampler_depth=depth)

    def latents(of: TokenSequence) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hook = model.model.resampler.register_forward_hook(lambda module, args, output: seen.append(output))
        states_of(model, pack([[of]], model.config.trunk))
        hook.remove()
        return seen[0]  # (T, 2, D)

    before = latents(sequence)
    assert before.shape == (T, 2, 32)
    for timestep, element in itertools.product(range(T), range(3)):
        if OBSERVATIONS["at"][timestep, element] == 0:
            continue
        difference = (latents(changed(layout, timestep, element)) - before).abs().amax(dim=(1, 2))
        assert float(difference[timestep]) > 1e-3
        difference[timestep] = 0
        assert float(difference.max()) < 1e-6


@torch.no_grad()
def test_a_gated_sum_tells_which_value_stood_where(vocabulary: Vocabulary) -> None:
    model = tiny_model(vocabulary, latents=1, resampler_depth=0)
    gated: GatedSum = model.model.resampler.sum
    x = torch.randn(6, 32)
    swapped = x[[1, 0, 2, 3, 4, 5]]
    whole, other = gated(x, [(3, 2)]), gated(swapped, [(3, 2)])
    assert float((whole[0] - other[0]).abs().max()) > 0.1
    torch.testing.assert_close(whole[1], other[1])
    # Each group alone gives the same, whatever its neighbours' lengths.
    ragged = gated(torch.cat([x[:2], x]), [(2, 1), (3, 2)])
    torch.testing.assert_close(ragged[1:], whole)


def test_views_are_dense_and_in_order() -> None:
    x = torch.arange(11)
    assert [view.tolist() for view in views(x, [(1, 2), (3, 3)])] == [
        [[0], [1]],
        [[2, 3, 4], [5, 6, 7], [8, 9, 10]],
    ]
    assert [tuple(view.shape) for view in views(x[:0], [])] == [(0, 1)]


# Likelihoods


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.no_grad()
def test_the_likelihoods_of_all_legal_actions_sum_to_one(
    vocabulary: Vocabulary, layout: Layout, sequence: TokenSequence, trunk: str
) -> None:
    model = tiny_model(vocabulary, **TRUNKS[trunk]).double()
    seen = layout.observation_tokens({key: value[0] for key, value in OBSERVATIONS.items()})
    likelihoods = []
    for action in itertools.product(range(3), range(2)):
        ids = layout.action_ids(np.array([action]))[0]
        log = 0.0
        for j, (start, stop) in enumerate(layout.legal_ids):
            state = state_before(model, layout, seen, ids, j)
            log += float(torch.log_softmax(model.logits_over(state, start, stop), -1)[ids[j] - start])
        likelihoods.append(np.exp(log))
    assert sum(likelihoods) == pytest.approx(1.0, abs=1e-6)
    assert np.std(likelihoods) > 1e-3
    # The second token depends on the first: it is no product of two marginals.
    table = np.array(likelihoods).reshape(3, 2)
    assert np.abs(table - table.sum(1, keepdims=True) * table.sum(0, keepdims=True)).max() > 1e-4


def state_before(
    model: GatitoForCausalLM, layout: Layout, seen: TokenSequence, ids: np.ndarray, j: int
) -> torch.Tensor:
    """The state that predicts token j of an action of which the first j are known, in the way of acting."""
    decoder = model.model.action_decoder
    if decoder is None:
        known = concatenate([seen, layout.action_tokens(ids[:j])]) if j else seen
        return states_of(model, pack([[known]], model.config.trunk))[0][0, -1]
    state = states_of(model, pack([[seen]], model.config.trunk))[0][0, -1:]
    cache, previous = DynamicCache(), None
    for i in range(j + 1):
        predicting = decoder.step(state, previous, cache)
        previous = model.model.embedding.tokens(torch.tensor([int(ids[i])]))
    return predicting[0]


@pytest.mark.parametrize("trunk", [name for name in TRUNKS if "decoded" in name])
@torch.no_grad()
def test_the_decoder_step_by_step_gives_the_states_of_the_decoder_at_once(
    vocabulary: Vocabulary, sequence: TokenSequence, trunk: str
) -> None:
    model = tiny_model(vocabulary, **TRUNKS[trunk]).double()
    batch = pack([[sequence]], model.config.trunk)
    hidden, actions = states_of(model, batch)
    assert actions is not None
    expected = model.action_states(hidden, actions, batch.action_sizes, batch.action_slots).view(T, 2, -1)
    states, cache = hidden.flatten(0, 1)[batch.action_slots], DynamicCache()
    first = model.model.action_decoder.step(states, None, cache)
    second = model.model.action_decoder.step(states, actions.view(T, 2, -1)[:, 0], cache)
    torch.testing.assert_close(torch.stack([first, second], dim=1), expected)


@pytest.mark.parametrize("trunk", [name for name in TRUNKS if "decoded" in name])
@torch.no_grad()
def test_the_trunk_sees_the_action_that_was_taken(
    vocabulary: Vocabulary, layout: Layout, sequence: TokenSequence, trunk: str
) -> None:
    model = tiny_model(vocabulary, **TRUNKS[trunk])
    other = ACTIONS.copy()
    other[1] = [0, 0]
    assert (other != ACTIONS).any()
    replaced = layout.episode_tokens(OBSERVATIONS, other)
    states = [states_of(model, pack([[s]], model.config.trunk))[0][0] for s in (sequence, replaced)]
    difference = (states[0] - states[1]).abs().amax(-1)
    second = int(model.config.trunk.timestep_starts(sequence)[2])
    assert float(difference[:second].max()) < 1e-6  # nothing before it
    assert float(difference[second:].min()) > 1e-3  # everything after it


@pytest.mark.parametrize("latents", [1, 4])
@pytest.mark.parametrize("layers", [0, 1])
def test_a_timestep_is_acted_on_with_one_call_of_the_resampler(
    vocabulary: Vocabulary, layout: Layout, latents: int, layers: int
) -> None:
    model = tiny_model(vocabulary, latents=latents, action_layers=layers)
    calls: list[str] = []
    model.model.resampler.register_forward_hook(lambda *_: calls.append("resampler"))
    model.model.norm.register_forward_hook(lambda *_: calls.append("trunk"))
    actor = Actor(model, 3)
    for session in range(3):
        actor.reset(session, layout)
    for t in range(T):
        calls.clear()
        seen = {key: value[t] for key, value in OBSERVATIONS.items()}
        actor.act(dict.fromkeys(range(3), seen))
        # Where the second action token has a position it takes a call of its own, without anything to resample.
        assert calls.count("trunk") == (1 if layers else 2)
        assert calls[:2] == ["resampler", "trunk"]
