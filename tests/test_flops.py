"""Parameters, FLOPs and memory, counted against what PyTorch does, and the recipes that they describe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from gymnasium import spaces
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from toy import CONTEXT, TRUNKS, ToyEnv, layout_of, tiny_model, toy_sequence

from gatito.data.packing import Batch, pack
from gatito.errors import UserError
from gatito.model import GatitoConfig, GatitoForCausalLM
from gatito.recipes import load_recipe, recipe_names
from gatito.tokenizers import TextTokenizer, Vocabulary, text_tokens
from gatito.train.configs import Recipe, TrainConfig
from gatito.train.flops import Counts, batch_counts, batch_flops, forward_flops, num_compared
from gatito.train.info import assumed_row, cost_of
from gatito.train.memory import (
    FLOAT,
    HALF,
    Memory,
    available_bytes,
    check_fits,
    in_bytes,
    saved_bytes,
    training_memory,
)
from gatito.train.parameters import count_parameters
from gatito.train.tables import scaled

PAPER = {
    "79m": (8, 768, 24, 32, 3072),
    "364m": (12, 1536, 12, 128, 6144),
    "1.2b": (24, 2048, 16, 128, 8192),
}
"""Layers, width, heads, key size and stated feed-forward (Reed et al. 2022, appendix)."""
LADDER = {"ladder-0.3m": 0.3e6, "ladder-1m": 1e6, "ladder-3m": 3e6, "ladder-10m": 10e6}


def config_of(recipe: Recipe) -> GatitoConfig:
    return recipe.model.build(Vocabulary(), recipe.train.context, 2)


def mixed_batch(config: GatitoConfig, text: TextTokenizer) -> Batch:
    """Two rows: episodes with images and texts and a document; several episodes of numbers, then padding."""
    images = spaces.Dict(
        image=spaces.Box(0, 255, (16, 20, 3), np.uint8), mission=spaces.Text(24), direction=spaces.Discrete(4)
    )
    envs = [
        ToyEnv(images, spaces.MultiDiscrete([3, 4]), length=2),
        ToyEnv(spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (4,), np.float32), length=3),
    ]
    seen, numbers = ([toy_sequence(e, layout_of(e, config.vocabulary, text), s) for s in (0, 1)] for e in envs)
    return pack([[seen[0], text_tokens("return the value", text), seen[1]], numbers], config.trunk)


@pytest.mark.parametrize("loss_over", ["group", "full"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_flops_are_those_that_pytorch_counts(
    trunk: str, loss_over: str, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    model = tiny_model(vocabulary, context=256, loss_over=loss_over, **TRUNKS[trunk])
    batch = mixed_batch(model.config, text)
    counts = batch_counts(model.config, batch, dense=True)
    assert all(counts.targets.values())
    assert counts.patches
    with sdpa_kernel(SDPBackend.MATH):  # of the kernels the one whose products are counted one by one
        with FlopCounterMode(display=False) as forward:
            loss = model(**batch.tensors()).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    flops = forward_flops(model.config, counts)
    assert flops.forward == forward.get_total_flops()
    assert flops.training == forward.get_total_flops() + backward.get_total_flops()
    assert batch_flops(model.config, batch, dense=True) == flops.training
    assert (flops.resampler > 0, flops.action_decoder > 0) == (
        model.config.latents > 0,
        model.config.action_layers > 0,
    )


def test_useful_work_leaves_out_padding_other_segments_and_the_future(vocabulary: Vocabulary) -> None:
    model = tiny_model(vocabulary)
    zeros = torch.zeros((1, 6), dtype=torch.int64)
    batch = Batch(
        input_ids=zeros,
        loss_mask=torch.tensor([[True, True, False, True, False, False]]),
        local_positions=zeros,
        segments=torch.tensor([[1, 1, 1, 2, 2, 0]]),
        positions=torch.tensor([[0, 1, 2, 0, 1, 0]]),
        patches=torch.zeros((0, 16, 16, 3), dtype=torch.uint8),
        patch_indices=torch.zeros(0, dtype=torch.int64),
        patch_positions=torch.zeros((0, 2), dtype=torch.int64),
    )
    useful, dense = (batch_counts(model.config, batch, dense=dense) for dense in (False, True))
    assert (useful.positions, useful.pairs) == (5, 1 + 2 + 3 + 1 + 2)
    assert (dense.positions, dense.pairs) == (6, 36)
    # The first token of a sequence has nothing to be predicted from.
    assert useful.targets == dense.targets == {"text": 1, "continuous": 0, "discrete": 0}
    assert batch_flops(model.config, batch) < batch_flops(model.config, batch, dense=True)


def test_decoded_actions_see_the_past_of_their_own_action_alone(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    config = tiny_model(vocabulary, context=256, **TRUNKS["1 latent, decoded"]).config
    batch = mixed_batch(config, text)
    counts = batch_counts(config, batch)
    # Two episodes of 2 actions of 2 tokens, and two of 3 of 4.
    assert (counts.action_tokens, counts.action_pairs) == (4 * 2 + 6 * 4, 4 * 3 + 6 * 10)
    assert batch_counts(config, batch, dense=True).action_pairs == 4 * 4 + 6 * 16
    assert counts.observations == 10


@pytest.mark.parametrize("name", [*PAPER, *LADDER, "demo", "paper", "tiny"])
def test_parameters_of_a_recipe_are_those_of_its_model(name: str) -> None:
    config = config_of(load_recipe(name))
    with torch.device("meta"):
        model = GatitoForCausalLM(config)
    parameters = count_parameters(config)
    assert parameters.total == sum(p.numel() for p in model.parameters())
    tables = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    assert parameters.non_embedding == sum(p.numel() for p in model.parameters() if p not in tables)
    assert parameters.token_table == config.vocab_size * config.hidden_size


@pytest.mark.parametrize("name", PAPER)
def test_recipes_of_the_paper_have_its_shapes_and_schedule(name: str) -> None:
    recipe = load_recipe(name)
    model, train = recipe.model, recipe.train
    layers, width, heads, head_dim, feed_forward = PAPER[name]
    assert (model.layers, model.width, model.heads, model.head_dim) == (layers, width, heads, head_dim)
    assert (model.feed_forward % 64, abs(model.feed_forward - 2 / 3 * feed_forward) < 32) == (0, True)
    assert (model.latents, model.action_layers, model.rotary, model.loss_over) == (0, 0, False, "full")
    assert (train.steps, train.batch, train.context, train.warmup) == (1_000_000, 512, 1024, 15_000)
    assert (train.first_lr, train.lr, train.final_lr, train.weight_decay) == (1e-7, 1e-4, 0.1, 0.1)
    assert (train.beta1, train.beta2, train.precision) == (0.9, 0.95, "bf16")
    # It says which hardware it is for: 8 GPUs of 80 GB.
    config = config_of(recipe)
    cost = cost_of([assumed_row(config, train)], config)
    assert training_memory(config, train, count_parameters(config), cost.dense, 8).total < 72e9


@pytest.mark.parametrize("name", LADDER)
def test_rungs_of_the_ladder_have_the_size_of_their_names(name: str) -> None:
    recipe = load_recipe(name)
    assert count_parameters(config_of(recipe)).non_embedding == pytest.approx(LADDER[name], rel=0.1)
    assert 14 <= recipe.model.width / recipe.model.layers + 0.5 <= 20.5
    assert (recipe.model.latents, recipe.model.action_layers) == (1, 1)


def test_a_row_that_is_assumed_has_the_targets_of_the_recipe() -> None:
    config = config_of(load_recipe("paper"))
    shares = []
    for predict_observations in (False, True):
        train = TrainConfig(context=config.context, predict_observations=predict_observations)
        cost = cost_of([assumed_row(config, train)], config)
        shares.append(cost.targets / cost.tokens)
    # Of 44 tokens the 4 of the action, or all but the separator.
    assert shares == pytest.approx([4 / 44, 43 / 44], abs=0.02)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_weights_gradients_and_moments_have_the_bytes_of_real_tensors(
    trunk: str, vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    model = tiny_model(vocabulary, context=256, **TRUNKS[trunk])
    batch, train = mixed_batch(model.config, text), TrainConfig(batch=2, context=256)
    optimizer = torch.optim.AdamW(model.parameters())
    step_of(model, batch, "no")
    optimizer.step()
    memory = training_memory(model.config, train, count_parameters(model.config), row_of(model, batch), 1)
    parameters = list(model.parameters())
    assert memory.weights == sum(p.nbytes for p in parameters)
    assert memory.gradients == sum(p.grad.nbytes for p in parameters)
    moments = [state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert memory.moments == sum(moments)


def flat_batch(vocabulary: Vocabulary, rows: int = 4, share: int = 8) -> Batch:
    """Rows of one sequence of continuous values each, of which one in `share` is a target."""
    shape = (rows, CONTEXT)
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    loss_mask[:, ::share] = True
    return Batch(
        input_ids=torch.randint(vocabulary.continuous_start, vocabulary.discrete_start, shape),
        loss_mask=loss_mask,
        local_positions=torch.zeros(shape, dtype=torch.int64),
        segments=torch.ones(shape, dtype=torch.int64),
        positions=torch.arange(CONTEXT).expand(shape),
        patches=torch.zeros((0, 16, 16, 3), dtype=torch.uint8),
        patch_indices=torch.zeros(0, dtype=torch.int64),
        patch_positions=torch.zeros((0, 2), dtype=torch.int64),
    )


def row_of(model: GatitoForCausalLM, batch: Batch) -> Counts:
    return batch_counts(model.config, batch, dense=True).scaled(1 / len(batch.input_ids))


def step_of(model: GatitoForCausalLM, batch: Batch, precision: str) -> None:
    """Forward and backward pass, as the trainer does them."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(**batch.tensors()).loss.backward()


def checkpointed(model: GatitoForCausalLM) -> None:
    """Let blocks compute their activations again in the backward pass."""

    def again(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: checkpoint(forward, *given, use_reentrant=False)

    for block in model.model.blocks:
        block.forward = again(block.forward)


@contextmanager
def saved_storages(model: GatitoForCausalLM) -> Iterator[dict[int, Any]]:
    """Storages, by address, that autograd saves; those of weights and of their bf16 copies left out."""
    saved: dict[int, Any] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {s for p in model.parameters() if p.ndim >= 2 for s in (p.shape, p.shape[::-1])}

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        is_copy = tensor.dtype == torch.bfloat16 and tensor.shape in shapes
        if storage.data_ptr() not in weights and not is_copy:
            saved[storage.data_ptr()] = storage  # held, so that no address comes again
        return tensor

    with saved_tensors_hooks(kept, lambda tensor: tensor):
        yield saved


# Not both: the angles that a checkpoint is given in a tuple are kept, but not as saved tensors.
@pytest.mark.parametrize(("checkpointing", "rotary"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_activations_are_those_that_autograd_saves(
    precision: str, checkpointing: bool, rotary: bool, vocabulary: Vocabulary
) -> None:
    model = tiny_model(vocabulary, num_hidden_layers=4, rotary=rotary, loss_over="full").train()
    batch = flat_batch(vocabulary)
    if checkpointing:
        checkpointed(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), saved_storages(model) as saved:
        model(**batch.tensors())
    counts = batch_counts(model.config, batch, dense=True)
    softmax = sum(n * num_compared(model.config, group) for group, n in counts.targets.items()) * FLOAT
    size = HALF if precision == "bf16" else FLOAT
    expected = saved_bytes(model.config, counts, size, checkpointing) + softmax
    assert sum(storage.nbytes() for storage in saved.values()) == pytest.approx(expected, rel=0.02)


def test_activations_beside_a_flat_trunk_are_about_those_that_autograd_saves(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    for changes in TRUNKS.values():
        model = tiny_model(vocabulary, context=256, **changes).train()
        batch = mixed_batch(model.config, text)
        with saved_storages(model) as saved:
            model(**batch.tensors())
        counts = batch_counts(model.config, batch, dense=True)
        softmax = sum(n * num_compared(model.config, group) for group, n in counts.targets.items()) * FLOAT
        expected = saved_bytes(model.config, counts, FLOAT, False) + softmax
        assert sum(storage.nbytes() for storage in saved.values()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_fullest_moment_of_a_step_is_about_the_total(
    precision: Any, checkpointing: bool, vocabulary: Vocabulary
) -> None:
    model = tiny_model(
        vocabulary, hidden_size=64, intermediate_size=168, num_hidden_layers=6, rotary=False, loss_over="full"
    ).train()
    batch = flat_batch(vocabulary, rows=32)
    if checkpointing:
        checkpointed(model)
    step_of(model, batch, precision)  # a later micro-batch finds gradients
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step_of(model, batch, precision)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max()
    train = TrainConfig(batch=32, context=CONTEXT, precision=precision, activation_checkpointing=checkpointing)
    memory = training_memory(model.config, train, count_parameters(model.config), row_of(model, batch), 1)
    assert memory.activations + memory.logits + memory.weight_copies == pytest.approx(peak, rel=0.1)


def large(gpus: int = 8, **changes: Any) -> Memory:
    """Memory of the recipe 1.2b on so many GPUs, on rows without a store."""
    recipe = load_recipe("1.2b")
    config = config_of(recipe)
    row = cost_of([assumed_row(config, recipe.train)], config).dense
    return training_memory(config, replace(recipe.train, **changes), count_parameters(config), row, gpus)


def test_shards_divide_weights_gradients_and_moments_among_the_gpus() -> None:
    whole, sharded = large(sharding="none"), large(sharding="fsdp")
    assert sharded.weights == sharded.gradients == pytest.approx(whole.weights / 8, rel=1e-6)
    assert sharded.moments == pytest.approx(whole.moments / 8, rel=1e-6)
    assert whole.gradients == 2 * whole.weights  # and the buckets of DDP
    assert sharded.activations == whole.activations
    assert sharded.total < whole.total
    alone = large(gpus=1, sharding="fsdp", accumulation=32)
    assert alone == large(gpus=1, sharding="none", accumulation=32)
    assert alone.gradients == alone.weights


def test_micro_batches_and_checkpointing_take_less_for_activations() -> None:
    kept = large()
    assert large(accumulation=8).activations == pytest.approx(kept.activations / 2, rel=1e-6)
    # An input per block, and one of the 24 blocks: below a fifth.
    assert large(activation_checkpointing=True).activations < kept.activations / 5
    assert large(activation_checkpointing=True).logits == kept.logits
    with pytest.raises(
        UserError, match=r"--train\.batch 512 does not divide by 3 GPUs or processes x --train\.accumulation 4"
    ):
        large(gpus=3)


NEED = Memory(
    weights=2_000, gradients=2_000, moments=4_000, weight_copies=0, activations=70_000_000_000, logits=10_000_000_000
)


@pytest.mark.parametrize(
    ("available", "gpus", "changes", "said"),
    [
        (50_000_000_000, 1, {}, "training takes about 80.0 GB, and 50.0 GB are free; use "
         "--train.accumulation 4, which takes 40.0 GB"),
        (25_000_000_000, 1, {}, "use --train.accumulation 8, which takes 20.0 GB"),
        (9_000, 1, {}, "try --train.activation_checkpointing, --train.sharding fsdp on several GPUs, "
         "--train.accumulation 16, or a smaller recipe"),
        (7_000, 4, {"activation_checkpointing": True}, "for each of 4 processes, and 7.0 kB are free; "
         "try --train.sharding fsdp on several GPUs, --train.accumulation 4, or"),
        (7_000, 8, {"activation_checkpointing": True, "sharding": "fsdp"}, "try a shorter --train.context, or a sm"),
    ],
)  # fmt: skip
def test_a_run_that_does_not_fit_is_told_what_helps(
    available: int, gpus: int, changes: dict[str, Any], said: str
) -> None:
    train = TrainConfig(batch=16, accumulation=2, **changes)
    with pytest.raises(UserError) as error:
        check_fits(NEED, available, train, gpus)
    assert said in str(error.value)


def test_a_run_that_fits_or_whose_device_does_not_say_goes_on() -> None:
    check_fits(NEED, NEED.total, TrainConfig(), 1)
    check_fits(NEED, None, TrainConfig(), 1)
    assert available_bytes(torch.device("meta")) is None


def test_processes_on_cpus_share_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8_000))
    assert available_bytes(torch.device("cpu")) == 8_000
    assert available_bytes(torch.device("cpu"), processes=4) == 2_000


def test_the_table_of_sizes_is_what_the_recipes_have() -> None:
    page = (Path(__file__).parents[1] / "docs" / "sizes.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    assert [name.strip("`") for name, *_ in sorted(rows)] == recipe_names()
    for name, *cells in rows:
        recipe = load_recipe(name.strip("`"))
        config, train = config_of(recipe), recipe.train
        parameters, cost = count_parameters(config), cost_of([assumed_row(config, train)], config)
        micro = train.batch // train.accumulation // 8
        alone = replace(train, accumulation=train.batch // micro) if name.strip("`") in PAPER else train
        assert cells == [
            str(recipe.model.layers),
            str(recipe.model.width),
            f"{parameters.total:,}",
            f"{parameters.non_embedding:,}",
            scaled(cost.flops.forward / cost.tokens),
            scaled(cost.flops.training / cost.tokens),
            scaled(cost.flops.training * train.batch * train.steps),
            in_bytes(training_memory(config, alone, parameters, cost.dense, 1).total),
            in_bytes(training_memory(config, train, parameters, cost.dense, 8).total),
        ]
