"""Linear layers for acting on a CPU, packed or in int8: close to the float ones, and never in a checkpoint."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from acting import make, play, prompt_of
from torch import nn
from toy import TRUNKS, layout_of, states_of, tiny_model, toy_sequence

from gatito.data.packing import pack
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.model import GatitoForCausalLM
from gatito.model.int8 import Int8Linear, quantize_int8
from gatito.model.packed import ActingLinear, PackedLinear, pack_linears
from gatito.tokenizers import TextTokenizer, Vocabulary


def test_a_product_in_int8_is_within_the_rounding_of_its_factors() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 64, bias=False).requires_grad_(False)
    x = torch.randn(3, 5, 256) * torch.logspace(-3, 3, 5)[:, None]
    exact, rounded = linear(x), Int8Linear(linear)(x)
    # Each factor is off by at most half a step, 1/254 of the largest value of its row.
    weight = linear.weight
    off_x = x.abs().amax(-1, keepdim=True) / 254 * weight.abs().sum(-1)
    off_weight = x.abs().sum(-1, keepdim=True) * weight.abs().amax(-1) / 254
    assert bool(((exact - rounded).abs() <= 1.01 * (off_x + off_weight)).all())
    assert float((exact - rounded).norm() / exact.norm()) < 0.01


def test_what_else_is_in_the_batch_changes_no_row() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(32, 16, bias=False).requires_grad_(False))
    x = torch.randn(4, 1, 32)
    alone = torch.cat([layer(row[None]) for row in x])
    torch.testing.assert_close(layer(torch.cat([x, 1000 * x]))[:4], alone, atol=0, rtol=0)


def test_a_row_of_zeros_gives_zeros() -> None:
    layer = Int8Linear(nn.Linear(32, 16, bias=False).requires_grad_(False))
    assert layer(torch.zeros(2, 32)).tolist() == torch.zeros(2, 16).tolist()


@pytest.mark.parametrize("trunk", ["flat", "4 latents, decoded"])
def test_logits_stay_close_and_most_greedy_actions_the_same(
    trunk: str, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = make("missions", length=60)
    layout = layout_of(env, vocabulary, text)
    model = tiny_model(vocabulary, initializer_range=0.2, **TRUNKS[trunk])
    quantized = quantize_int8(model)
    batch = pack([[prompt_of(env, layout, model.config.trunk)]], model.config.trunk)
    with torch.no_grad():
        exact, rounded = (states_of(m, batch)[0] @ m.lm_head.weight.T for m in (model, quantized))
    assert 0 < float((exact - rounded).std() / exact.std()) < 0.05
    actions = []
    for m in (model, quantized):
        actor = Actor(m, decoding=Decoding(temperature=0.0))
        plans = [[(seed, None) for seed in range(9)]]
        actions.append(np.concatenate(play(actor, [layout], [make("missions", length=8)], plans, 64)[0]))
    assert len(set(actions[0].tolist())) >= 2
    assert (actions[0] == actions[1]).mean() > 0.85


@pytest.mark.parametrize("trunk", ["flat", "4 latents, decoded"])
def test_packed_linears_give_the_same_states(trunk: str, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make("missions", length=60)
    layout = layout_of(env, vocabulary, text)
    model = tiny_model(vocabulary, **TRUNKS[trunk])
    packed = pack_linears(model)
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    batch = pack([[prompt_of(env, layout, model.config.trunk)]], model.config.trunk)
    with torch.no_grad():
        torch.testing.assert_close(states_of(packed, batch)[0], states_of(model, batch)[0], atol=1e-5, rtol=1e-5)


def test_a_model_in_other_numbers_is_not_packed(vocabulary: Vocabulary) -> None:
    model = tiny_model(vocabulary).to(torch.bfloat16)
    assert pack_linears(model) is model


@pytest.mark.parametrize("make_other", [quantize_int8, pack_linears])
def test_the_model_it_is_made_of_stays_as_it_is_and_saves(
    make_other: Callable[[GatitoForCausalLM], GatitoForCausalLM], tmp_path: Path, vocabulary: Vocabulary
) -> None:
    model = tiny_model(vocabulary)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = make_other(model)
    assert other.model.embedding.tokens.weight is model.model.embedding.tokens.weight
    assert not any(isinstance(module, ActingLinear) for module in model.modules())
    model.save_pretrained(tmp_path)
    loaded = GatitoForCausalLM.from_pretrained(tmp_path).state_dict()
    assert before.keys() == loaded.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(loaded[name], tensor, atol=0, rtol=0)
    with pytest.raises(UserError, match="for acting only; save the one that it was made of"):
        other.save_pretrained(tmp_path)


def test_keys_and_values_in_bfloat16_change_logits_by_their_rounding(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    env = make("missions", length=60)
    layout = layout_of(env, vocabulary, text)
    model = tiny_model(vocabulary, initializer_range=0.2, **TRUNKS["flat"])
    action = layout.action_tokens([start for start, _ in layout.legal_ids])
    states = []
    for dtype in (None, torch.bfloat16):
        actor = Actor(model, cache_dtype=dtype)
        actor.reset(0, layout, prompt_of(env, layout, model.config.trunk))
        actor.observe(0, env.reset(seed=9)[0])
        with torch.no_grad():
            many = actor._feed([0])
            actor.sessions[0].window.pending.append(action)
            states.append(torch.cat([many, actor._feed([0])]))
    exact, rounded = (state @ model.lm_head.weight.detach().T for state in states)
    assert 0 < float((exact - rounded).std() / exact.std()) < 0.02


def test_every_linear_of_the_blocks_is_in_int8_and_takes_a_quarter(vocabulary: Vocabulary) -> None:
    quantized = quantize_int8(tiny_model(vocabulary, **TRUNKS["4 latents, decoded"]))
    for part in (quantized.model.blocks, quantized.model.resampler, quantized.model.action_decoder):
        assert any(isinstance(module, Int8Linear) for module in part.modules())
        assert not any(isinstance(module, nn.Linear) for module in part.modules())
    qkv = quantized.model.blocks[0].attention.qkv
    assert qkv.weight.element_size() == 1
    assert qkv.weight.shape == (96, 32)


def test_a_model_that_is_not_on_a_cpu_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match="int8 linears are for a CPU, the model is on meta"):
        quantize_int8(tiny_model(vocabulary).to("meta"))


def test_a_prompt_in_int8_gives_what_its_tokens_one_by_one_give(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    env = make("vectors", length=60)
    layout = layout_of(env, vocabulary, text)
    model = quantize_int8(tiny_model(vocabulary, **TRUNKS["flat"]))
    sequence = toy_sequence(env, layout, 0).timesteps(0, 4, vocabulary.patch)
    refilled, stepped = (Actor(model, decoding=Decoding(temperature=0.0)) for _ in range(2))
    refilled.reset(0, layout, sequence)
    stepped.reset(0, layout)
    window = stepped.sessions[0].window
    for t in range(4):
        one = sequence.timesteps(t, t + 1, vocabulary.patch)
        window.admit(one, len(one))
        window.timesteps.append(one)
        stepped._feed([0])
    observation = env.reset(seed=9)[0]
    assert refilled.act({0: observation})[0].tolist() == stepped.act({0: observation})[0].tolist()
