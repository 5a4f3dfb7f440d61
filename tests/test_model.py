"""The network: against a reference, packed against single rows, its loss, generation and files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from safetensors import safe_open
from toy import CONTEXT, TRUNKS, ToyEnv, hidden_of, layout_of, tiny_model, toy_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor, StableLmConfig, StableLmForCausalLM
from transformers.initialization import guard_torch_init_functions

import gatito
from gatito.data.packing import pack
from gatito.errors import UserError
from gatito.model import GatitoConfig, GatitoForCausalLM, GatitoProcessor
from gatito.model.loss import spread_cross_entropy
from gatito.tokenizers import TextTokenizer, TokenSequence, Vocabulary, pair_tokens, text_tokens
from gatito.tokenizers.trunk import Trunk


@pytest.fixture
def sequences(vocabulary: Vocabulary, text: TextTokenizer) -> list[TokenSequence]:
    """One of each: vectors with Box actions, images with missions and Discrete actions, a captioned image, text."""
    vectors = ToyEnv(spaces.Box(-9.0, 9.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32), length=2)
    pictures = ToyEnv(
        spaces.Dict(image=spaces.Box(0, 255, (16, 32, 3), np.uint8), mission=spaces.Text(24)),
        spaces.Discrete(3),
        length=2,
    )
    image = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16, 1)
    return [
        toy_sequence(vectors, layout_of(vectors, vocabulary, text), 1),
        toy_sequence(pictures, layout_of(pictures, vocabulary, text), 2),
        pair_tokens(image, "a class", vocabulary, text),
        text_tokens("the value of an object", text),
    ]


def gradients(model: GatitoForCausalLM) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        assert float((found[name] - value).abs().max()) < tolerance * scale, name


def reference_pair(vocabulary: Vocabulary, tied: bool) -> tuple[GatitoForCausalLM, StableLmForCausalLM]:
    """Our decoder and a StableLM with the same weights; our local positions are zero."""
    ours = tiny_model(vocabulary, tie_word_embeddings=tied)
    config = StableLmConfig(
        vocab_size=ours.config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        hidden_act="gelu",
        layer_norm_eps=ours.config.layer_norm_eps,
        tie_word_embeddings=tied,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
    )
    theirs = StableLmForCausalLM(config).eval()
    with torch.no_grad():
        ours.model.embedding.local_positions.weight.zero_()
        for name, parameter in ours.named_parameters():
            if name.endswith("norm.bias"):
                parameter.normal_()
            elif name.endswith("norm.weight"):
                parameter.normal_(1.0, 0.3)
        state = ours.state_dict()
        mapped = {
            "model.embed_tokens.weight": state["model.embedding.tokens.weight"],
            "model.norm.weight": state["model.norm.weight"],
            "model.norm.bias": state["model.norm.bias"],
            "lm_head.weight": state["lm_head.weight"],
        }
        for i in range(2):
            a, b = f"model.blocks.{i}.", f"model.layers.{i}."
            q, k, v = state[a + "attention.qkv.weight"].chunk(3)
            mapped |= {f"{b}self_attn.{n}_proj.weight": w for n, w in zip("qkv", (q, k, v), strict=True)}
            mapped[b + "self_attn.o_proj.weight"] = state[a + "attention.out.weight"]
            for theirs_name, our_name in (("gate", "gate"), ("up", "value"), ("down", "out")):
                mapped[f"{b}mlp.{theirs_name}_proj.weight"] = state[f"{a}feed_forward.{our_name}.weight"]
            for kind in ("weight", "bias"):
                mapped[f"{b}input_layernorm.{kind}"] = state[f"{a}attention_norm.{kind}"]
                mapped[f"{b}post_attention_layernorm.{kind}"] = state[f"{a}feed_forward_norm.{kind}"]
    missing, unexpected = theirs.load_state_dict(mapped, strict=False)
    assert not unexpected
    assert not missing
    return ours, theirs


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_the_decoder_gives_the_logits_of_stablelm_with_its_weights(vocabulary: Vocabulary, tied: bool) -> None:
    ours, theirs = reference_pair(vocabulary, tied)
    ids = torch.randint(vocabulary.size, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    expected = theirs(ids).logits
    assert float(expected.std()) > 1.0  # the logits say something
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_decoder_gives_the_logits_of_stablelm_for_left_padded_rows(vocabulary: Vocabulary) -> None:
    ours, theirs = reference_pair(vocabulary, tied=True)
    ids = torch.randint(vocabulary.size, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    found = ours(ids, attention_mask=mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_rotary_only_the_set_of_the_past_matters(vocabulary: Vocabulary) -> None:
    ids = torch.arange(10)[None]
    swapped = ids.clone()
    swapped[0, [2, 5]] = ids[0, [5, 2]]
    for rotary in (False, True):
        model = tiny_model(vocabulary, rotary=rotary)
        # One layer sees a set; in deeper ones the tokens between the swapped pair carry what they saw.
        model.model.blocks = model.model.blocks[:1]
        first, second = model(ids).logits[0, -1], model(swapped).logits[0, -1]
        assert torch.allclose(first, second, atol=1e-5) == (not rotary)


@torch.no_grad()
def test_the_local_position_of_text_is_used_where_none_is_given(vocabulary: Vocabulary) -> None:
    model, ids = tiny_model(vocabulary), torch.arange(8)[None]
    default = model(ids).logits
    torch.testing.assert_close(default, model(ids, local_positions=torch.full_like(ids, 513)).logits)
    assert not torch.allclose(default, model(ids, local_positions=torch.zeros_like(ids)).logits, atol=1e-2)


@pytest.mark.parametrize("over", ["full", "group"])
def test_the_loss_is_the_masked_cross_entropy_of_all_logits_in_value_and_gradient(
    vocabulary: Vocabulary, sequences: list[TokenSequence], over: str
) -> None:
    # In float64: the norm of one channel a group leaves the patch embedding's biases gradients of rounding alone.
    model = tiny_model(vocabulary, loss_over=over, initializer_range=0.1).double()
    batch = pack([sequences[:2], sequences[2:]], model.config.trunk)
    output = model(**batch.tensors())
    output.loss.backward()
    found = gradients(model)

    model.zero_grad()
    inputs = batch.tensors()
    wanted_mask = inputs.pop("loss_mask")
    logits = model(**inputs).logits[:, :-1]
    targets = batch.input_ids[:, 1:]
    wanted = wanted_mask[:, 1:] & (batch.segments[:, 1:] == batch.segments[:, :-1])
    losses = []
    for b, t in wanted.nonzero().tolist():
        target, row = int(targets[b, t]), logits[b, t]
        for start, stop in vocabulary.groups.values():
            if over == "group" and start <= target < stop:
                row, target = logits[b, t, start:stop], target - start
                break
        losses.append(F.cross_entropy(row[None], torch.tensor([target])))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert {n: int(c) for n, c in output.targets.num_targets.items()} == {
        "continuous": 4,
        "discrete": 2,
        "text": len(sequences[3]) - 1 + int(sequences[2].loss_mask.sum()),
    }
    torch.testing.assert_close(output.loss.double(), expected, atol=1e-6, rtol=1e-6)
    assert_same_gradients(found, gradients(model), 1e-6)


def test_the_loss_over_the_group_differs_from_the_loss_over_everything(
    vocabulary: Vocabulary, sequences: list[TokenSequence]
) -> None:
    batch = pack([sequences], Trunk(vocabulary=vocabulary)).tensors()
    full, group = (tiny_model(vocabulary, loss_over=over)(**batch).loss for over in ("full", "group"))
    assert full.item() > group.item() + 0.1


def test_a_spread_target_is_the_cross_entropy_against_a_gaussian_over_the_bins() -> None:
    logits, wanted = torch.randn(3, 50, dtype=torch.float64), torch.tensor([0, 20, 49])
    losses = spread_cross_entropy(logits, wanted, 2.0, (0, 50))
    bins = torch.arange(50, dtype=torch.float64)
    distance = bins[None] - wanted[:, None]
    gaussian = torch.exp(-0.5 * (distance / 2.0) ** 2) * (distance.abs() <= 6)
    gaussian /= gaussian.sum(1, keepdim=True)
    torch.testing.assert_close(losses, F.cross_entropy(logits, gaussian, reduction="none"))


def test_targets_are_spread_only_while_training_and_only_where_they_are_continuous(
    vocabulary: Vocabulary, sequences: list[TokenSequence]
) -> None:
    batch = pack([sequences], Trunk(vocabulary=vocabulary)).tensors()
    plain, spread = (tiny_model(vocabulary, target_spread=s) for s in (0.0, 3.0))
    spread.load_state_dict(plain.state_dict())
    torch.testing.assert_close(spread.eval()(**batch).loss, plain.eval()(**batch).loss)
    own, other = (model.train()(**batch).targets.loss_sum for model in (plain, spread))
    assert own["continuous"] != other["continuous"]
    assert own["text"] == other["text"]
    assert own["discrete"] == other["discrete"]


def test_a_batch_without_targets_has_loss_zero_and_finite_gradients(
    vocabulary: Vocabulary, sequences: list[TokenSequence]
) -> None:
    model = tiny_model(vocabulary)
    batch = pack([sequences], model.config.trunk)
    output = model(**replace(batch, loss_mask=torch.zeros_like(batch.loss_mask)).tensors())
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert all(bool((g == 0).all()) for g in gradients(model).values())


def test_hits_are_counted_by_group(vocabulary: Vocabulary, sequences: list[TokenSequence]) -> None:
    model = tiny_model(vocabulary, tie_word_embeddings=False)
    batch = pack([sequences], model.config.trunk)
    ids = batch.input_ids[0].tolist()
    inputs = batch.tensors()
    del inputs["loss_mask"]
    a, b = vocabulary.groups["discrete"]
    targets = [t for t in range(1, len(ids)) if batch.loss_mask[0, t] and a <= ids[t] < b]
    states: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_hook(lambda module, args, output: states.append(output))
    model(**inputs)
    hook.remove()
    with torch.no_grad():  # the head now ranks the first of them first
        model.lm_head.weight[ids[targets[0]]] = 100 * states[0][0, targets[0] - 1]
    logits = model(**inputs).logits[0]
    expected = sum(int(logits[t - 1, a:b].argmax()) == ids[t] - a for t in targets)
    assert expected > 0
    assert int(model(**batch.tensors()).targets.num_correct["discrete"]) == expected


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("trunk", TRUNKS)
@torch.no_grad()
def test_packed_rows_have_the_hidden_states_of_separate_sequences(
    vocabulary: Vocabulary, sequences: list[TokenSequence], rotary: bool, trunk: str
) -> None:
    model = tiny_model(vocabulary, rotary=rotary, **TRUNKS[trunk]).double()
    batch = pack([sequences], model.config.trunk, length=CONTEXT + 30)
    inputs = {k: v for k, v in batch.tensors().items() if k != "loss_mask"}
    packed = model(**inputs).logits[0]
    leaking = model(**{k: v for k, v in inputs.items() if k != "segments"}).logits[0]
    start = 0
    for number, sequence in enumerate(sequences):
        stop = start + model.config.trunk.length(sequence)
        alone = model.lm_head(hidden_of(model, [sequence]))
        torch.testing.assert_close(packed[start:stop], alone, atol=1e-6, rtol=1e-6)
        if number:  # without the segment mask the test must fail
            assert float((leaking[start:stop] - alone).abs().max()) > 1e-2
        start = stop


@pytest.mark.parametrize("trunk", TRUNKS)
def test_packed_rows_have_the_gradients_of_separate_sequences(
    vocabulary: Vocabulary, sequences: list[TokenSequence], trunk: str
) -> None:
    model = tiny_model(vocabulary, initializer_range=0.1, **TRUNKS[trunk]).double()

    def gradients_of(batches: list) -> dict[str, torch.Tensor]:
        model.zero_grad()
        for batch in batches:
            output = model(**batch.tensors())
            torch.stack(list(output.targets.loss_sum.values())).sum().div(10.0).backward()
        return gradients(model)

    separate = gradients_of([pack([[s]], model.config.trunk) for s in sequences])
    packed = gradients_of([pack([sequences], model.config.trunk, length=90)])
    assert_same_gradients(packed, separate, 1e-6)
    batch = pack([sequences], model.config.trunk)
    merged = gradients_of([replace(batch, segments=torch.ones_like(batch.segments))])
    name = "model.blocks.0.attention.qkv.weight"
    assert float((merged[name] - separate[name]).abs().max()) > 1e-4 * float(separate[name].abs().max())


@torch.no_grad()
def test_equal_patches_are_embedded_alike_wherever_they_stand_in_the_batch(
    vocabulary: Vocabulary, sequences: list[TokenSequence]
) -> None:
    model = tiny_model(vocabulary)
    batch = pack([[sequences[1], sequences[1]], [sequences[2], sequences[1]]], model.config.trunk)
    assert len(batch.patches) < len(batch.patch_indices)  # repeated patches are stored once
    inputs = {k: v for k, v in batch.tensors().items() if k != "loss_mask"}
    logits, n = model(**inputs).logits, len(sequences[1])
    torch.testing.assert_close(logits[0, :n], logits[0, n : 2 * n], atol=1e-5, rtol=1e-5)
    m = len(sequences[2])
    torch.testing.assert_close(logits[0, :n], logits[1, m : m + n], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_pixels_and_patch_places_reach_the_logits(vocabulary: Vocabulary, sequences: list[TokenSequence]) -> None:
    model = tiny_model(vocabulary)
    batch = pack([[sequences[1]]], model.config.trunk)
    inputs = {k: v for k, v in batch.tensors().items() if k != "loss_mask"}
    logits = model(**inputs).logits
    for name, other in (("patches", 255 - batch.patches), ("patch_positions", 127 - batch.patch_positions)):
        assert float((model(**{**inputs, name: other}).logits - logits).abs().max()) > 1e-2, name


def test_stochastic_depth_acts_in_training_only_and_drops_whole_rows(vocabulary: Vocabulary) -> None:
    model, ids = tiny_model(vocabulary, drop_path=0.5), torch.arange(12).repeat(64, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, tiny_model(vocabulary)(ids).logits)
        model.train()
        hidden = model(ids).logits
        embedding = model.model.embedding
        x = embedding.tokens(ids) + embedding.local_positions(torch.full_like(ids, 513))
        embedded = model.lm_head(model.model.norm(x))
    plain = torch.isclose(hidden, embedded, atol=1e-5).all(dim=(1, 2))  # all four branches dropped: 1 in 16
    assert 0 < int(plain.sum()) < 16
    assert len({round(float(v), 4) for v in hidden[:, -1, 0]}) > 4


def test_stochastic_depth_keeps_the_mean_of_a_branch(vocabulary: Vocabulary) -> None:
    block = tiny_model(vocabulary, drop_path=0.25).model.blocks[0].train()
    kept = block._dropped(torch.ones(20_000, 1, 1))
    assert sorted(set(kept.ravel().tolist())) == [0.0, pytest.approx(4 / 3)]
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)


# Generation


@pytest.fixture
def processor(vocabulary: Vocabulary, text: TextTokenizer) -> GatitoProcessor:
    return GatitoProcessor(Trunk(vocabulary=vocabulary), text, {})


@pytest.fixture(params=["flat", "4 latents"])
def writer(
    request: pytest.FixtureRequest, vocabulary: Vocabulary, text: TextTokenizer
) -> tuple[GatitoForCausalLM, GatitoProcessor]:
    """A model and its processor, whose images have a position per patch, or are resampled."""
    model = tiny_model(vocabulary, **TRUNKS[request.param])
    return model, GatitoProcessor(model.config.trunk, text, {})


PROMPTS = ["the", "if the expression is a class then the value is", "an object"]
IMAGES = [np.full((16, 32, 3), value, np.uint8) for value in (10, 120, 250)]


def continued(model: GatitoForCausalLM, inputs: dict, **options: object) -> list[list[int]]:
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None, **options)
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("with_images", [False, True])
def test_a_batch_of_unequal_prompts_continues_as_each_alone(
    writer: tuple[GatitoForCausalLM, GatitoProcessor], with_images: bool
) -> None:
    model, processor = writer
    together = processor(PROMPTS, images=IMAGES if with_images else None)
    assert len(set(together["attention_mask"].sum(-1).tolist())) == 3  # the lengths do differ
    alone = [
        continued(model, processor(p, images=[image] if with_images else None))[0]
        for p, image in zip(PROMPTS, IMAGES, strict=True)
    ]
    assert continued(model, together) == alone
    assert len({tuple(ids) for ids in alone}) == 3


@pytest.mark.parametrize("with_images", [False, True])
def test_generating_with_and_without_a_cache_agrees(
    writer: tuple[GatitoForCausalLM, GatitoProcessor], with_images: bool
) -> None:
    model, processor = writer
    inputs = processor(PROMPTS, images=IMAGES if with_images else None)
    assert continued(model, inputs, use_cache=True) == continued(model, inputs, use_cache=False)


def test_the_image_in_a_prompt_changes_what_is_written(writer: tuple[GatitoForCausalLM, GatitoProcessor]) -> None:
    model, processor = writer
    black, white = (continued(model, processor(images=[np.full((16, 16, 1), v, np.uint8)])) for v in (0, 255))
    assert black != white


def test_generate_writes_text_ids_only(vocabulary: Vocabulary, processor: GatitoProcessor) -> None:
    model, inputs = tiny_model(vocabulary), processor(PROMPTS)
    with torch.no_grad():
        free = model(**inputs).logits[:, -1].argmax(-1)
    assert int((free >= vocabulary.text_size).sum()) > 0  # the model alone would not have written text
    for options in ({"do_sample": False}, {"do_sample": True, "temperature": 5.0}, {"num_beams": 2}):
        torch.manual_seed(0)
        ids = model.generate(**inputs, max_new_tokens=20, **options)[:, inputs["input_ids"].shape[1] :]
        assert int(ids.max()) < vocabulary.text_size


def test_generate_stops_at_the_end_token(vocabulary: Vocabulary, processor: GatitoProcessor) -> None:
    model = tiny_model(vocabulary, eos_token_id=processor.text.end)
    inputs = processor("the")
    free = continued(model, inputs)[0]
    model.generation_config.eos_token_id = free[3]
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert ids.tolist() == free[: free.index(free[3]) + 1]


def test_beams_over_a_batch_of_images_are_those_of_each_alone(
    writer: tuple[GatitoForCausalLM, GatitoProcessor],
) -> None:
    model, processor = writer
    inputs = processor(PROMPTS, images=IMAGES)
    beams = model.generate(**inputs, max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=None)
    for row, (prompt, image) in enumerate(zip(PROMPTS, IMAGES, strict=True)):
        alone = processor(prompt, images=[image])
        expected = model.generate(**alone, max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=None)
        assert beams[row, -6:].tolist() == expected[0, -6:].tolist()


# Files


def test_auto_classes_load_a_saved_folder(
    tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer, processor: GatitoProcessor
) -> None:
    assert gatito.GatitoForCausalLM is GatitoForCausalLM
    env = ToyEnv(spaces.Dict(a=spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2)))), spaces.Discrete(2))
    processor = GatitoProcessor(Trunk(vocabulary=vocabulary), text, {"toy/task": layout_of(env, vocabulary, text)})
    model = tiny_model(vocabulary)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, GatitoConfig)
    assert config.to_diff_dict() | {"_name_or_path": ""} == model.config.to_diff_dict() | {"_name_or_path": ""}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, GatitoForCausalLM)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, GatitoProcessor)
    assert again.vocabulary == vocabulary
    assert again.text.sha256 == text.sha256
    assert repr(again) == "GatitoProcessor(1 layouts: toy/task)"
    assert again.layout("toy/task").sha256 == processor.layout("toy/task").sha256
    assert again.layout("toy/task").observations == processor.layout("toy/task").observations


def test_a_checkpoint_says_how_many_positions_it_has_and_an_older_one_is_flat(
    tmp_path: Path, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    trunk = tiny_model(vocabulary, **TRUNKS["4 latents, decoded"]).config.trunk
    GatitoProcessor(trunk, text, {}).save_pretrained(tmp_path)
    assert GatitoProcessor.from_pretrained(tmp_path).trunk == trunk
    path = tmp_path / "processor_config.json"
    values = json.loads(path.read_text())
    del values["trunk"]
    path.write_text(json.dumps(values))
    assert GatitoProcessor.from_pretrained(tmp_path).trunk.is_flat


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_safetensors_and_a_tied_head_is_written_once(
    tmp_path: Path, vocabulary: Vocabulary, tied: bool
) -> None:
    model = tiny_model(vocabulary, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) == (not tied)  # noqa: SIM118
        written = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert written == sum(p.numel() for p in model.parameters())
    loaded = GatitoForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embedding.tokens.weight) == tied
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_a_processor_without_its_files_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.model is missing"):
        GatitoProcessor.from_pretrained(tmp_path)


def test_the_default_vocabulary_has_a_head_of_34112_rows() -> None:
    config = GatitoConfig()
    assert config.vocab_size == 34_112
    assert config.vocabulary == Vocabulary()
    # The size follows from the ranges, whatever is asked for.
    assert GatitoConfig(vocab_size=7).vocab_size == 34_112
    with torch.device("meta"):
        model = GatitoForCausalLM(config)
    assert model.lm_head.weight.shape == (34_112, 128)
    assert model.model.embedding.tokens.weight.shape == (34_112, 128)


def test_overlapping_discrete_ids_shrink_the_head_and_count_as_text(vocabulary: Vocabulary) -> None:
    config = GatitoConfig(overlapping_discrete=True)
    assert config.vocab_size == 33_088  # 32 000 + 1024 + separator + patch, to a multiple of 64
    assert list(config.vocabulary.groups) == ["text", "continuous"]
    model = tiny_model(Vocabulary(text_size=1100, overlapping_discrete=True))
    ids = torch.tensor([[1100 + 1024, 5, 1100, 7]])
    output = model(ids, loss_mask=torch.tensor([[False, True, True, True]]))
    assert {n: int(c) for n, c in output.targets.num_targets.items()} == {"text": 2, "continuous": 1}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"patch_channels": 40}, "patch_channels is 40, allowed multiples of 32"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"latents": 9}, "latents is 9, allowed 0 .* to 8"),
        ({"resampler_depth": 3}, "resampler_depth is 3, allowed 0 to 2"),
        ({"action_layers": -1}, "action_layers is -1, allowed 0"),
        ({"resample_images": True}, "resample_images needs latents"),
        ({"target_spread": 101.0}, "target_spread is 101.0, allowed 0 to 100"),
        ({"loss_over": "groups"}, "loss_over is 'groups', allowed 'group' or 'full'"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        GatitoConfig(**changes)


def test_weights_that_were_loaded_are_not_made_anew(vocabulary: Vocabulary) -> None:
    model = tiny_model(vocabulary)
    table = model.model.embedding.tokens
    before = table.weight.detach().clone()
    table.weight._is_hf_initialized = True  # as transformers marks what it has loaded
    with torch.no_grad(), guard_torch_init_functions():
        model._init_weights(table)
    assert torch.equal(table.weight, before)
