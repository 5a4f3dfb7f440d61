"""Training against transformers models of the same shape that are trained the usual way, in turn in one process.

Ours is what `gatito train` does: the optimizer step and the loader of gatito/train, rows packed full, logits at
targets only. The peers, a GPT-2 and a Llama of transformers, get the same windows of the same datasets in the same
shares, one to a row, padded to the context, and compute all logits; a patch is one placeholder id to them, so images
cost them nothing. Optimizer, precision, rows per step and context are the same. Tokens are those of the data: padding
does not count. MFU is useful FLOPs (gatito/train/flops.py; the peers' are counted like those of a flat trunk of ours)
over what the device could do (gatito/train/peak.py). The loader's share is the time that a step waits for its batch.

    python benchmarks/training.py --store demo/store
    python benchmarks/training.py --synthetic images --config 364m --rows 16 --rounds 20      # on a GPU
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from data import write_store
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from gatito.data.packing import Batch, pack
from gatito.data.sampler import Sampler
from gatito.data.store import Store, open_store
from gatito.model import GatitoForCausalLM
from gatito.recipes import load_recipe
from gatito.tokenizers.trunk import Trunk
from gatito.train.configs import ModelConfig, TrainConfig
from gatito.train.flops import batch_flops
from gatito.train.optimizer import build_optimizer
from gatito.train.peak import peak_flops
from gatito.train.sharding import begin_accelerator
from gatito.train.step import optimizer_step
from gatito.train.stream import MicroBatches, loader
from gatito.train.trainer import configure

PEERS = ("GPT-2, padded, all logits", "Llama, padded, all logits")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One step of one variant."""

    seconds: float
    """Wall time, waiting for the batch included."""
    loading: float
    """Of that, waiting for the batch."""
    tokens: int
    """Of the data."""
    timesteps: int
    """Of episodes."""
    flops: float
    """Useful ones."""


Step = Callable[[], Measured]


def wait(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(store: Store, model: ModelConfig, config: TrainConfig, accelerator: Accelerator, workers: int) -> Step:
    """What `gatito train` does in a step."""
    shape = model.build(store.vocabulary, config.context, store.text.end)
    sampler = Sampler(store=store, context=config.context, trunk=shape.trunk, seed=0)
    network = GatitoForCausalLM(shape)
    configure(network, config, accelerator.device)
    prepared, optimizer = accelerator.prepare(network, build_optimizer(network, config))
    prepared.train()
    stream = MicroBatches(sampler, dataclasses.replace(config, workers=workers), 0, 1)
    batches = loader(stream, 0, accelerator.device)

    def step() -> Measured:
        began = wait(accelerator.device)
        batch = next(batches)
        loaded = time.perf_counter()
        flops = batch_flops(shape, batch)
        result = optimizer_step(accelerator, prepared, optimizer, [batch], store.vocabulary, rate=1e-4, clip=1.0)
        seconds = wait(accelerator.device) - began
        return Measured(
            seconds=seconds, loading=loaded - began, tokens=result.tokens, timesteps=result.timesteps, flops=flops
        )

    return step


def peer_of(name: str, store: Store, model: ModelConfig, context: int) -> Any:
    """A network of transformers of the same width, depth and heads."""
    size: dict[str, Any] = {"vocab_size": store.vocabulary.size, "bos_token_id": None, "eos_token_id": None}
    if name.startswith("GPT-2"):
        shape = GPT2Config(
            **size, n_positions=context, n_embd=model.width, n_layer=model.layers, n_head=model.heads,
            n_inner=3 * model.feed_forward // 2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return GPT2LMHeadModel(shape)
    return LlamaForCausalLM(
        LlamaConfig(
            **size, max_position_embeddings=context, hidden_size=model.width, num_hidden_layers=model.layers,
            num_attention_heads=model.heads, intermediate_size=model.feed_forward, tie_word_embeddings=True,
        )
    )  # fmt: skip


def padded_rows(sampler: Sampler, rows: int) -> Iterator[Batch]:
    """One window of an episode, text or five pairs per row, padded to the context."""
    rng, first = np.random.default_rng(0), 0
    while True:
        found = [[sampler._sequence(sampler.dataset(i), sampler.context, rng)[0]] for i in range(first, first + rows)]
        first += rows
        yield pack(found, sampler.trunk, rngs=[rng] * rows, length=sampler.context)


def peer(name: str, store: Store, model: ModelConfig, config: TrainConfig, accelerator: Accelerator) -> Step:
    """A step of a transformers model, with labels beside padded rows."""
    flat = dataclasses.replace(model, latents=0, action_layers=0, resampler_depth=0, resample_images=False)
    counted = flat.build(store.vocabulary, config.context, store.text.end)
    trunk = Trunk(vocabulary=store.vocabulary)
    batches = padded_rows(Sampler(store=store, context=config.context, trunk=trunk, seed=0), config.batch)
    network = peer_of(name, store, model, config.context)
    prepared, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True))
    prepared.train()

    def step() -> Measured:
        began = wait(accelerator.device)
        batch = next(batches)
        loaded = time.perf_counter()
        flops, timesteps, tokens = (
            batch_flops(counted, batch),
            batch.num_timesteps(store.vocabulary.separator),
            batch.num_tokens,
        )
        here = batch.to(accelerator.device)
        labels = torch.where(here.loss_mask, here.input_ids, -100)
        with accelerator.autocast():
            loss = prepared(input_ids=here.input_ids, attention_mask=(here.segments > 0).long(), labels=labels).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds = wait(accelerator.device) - began
        return Measured(
            seconds=seconds, loading=loaded - began, tokens=tokens, timesteps=timesteps, flops=flops
        )  # fmt: skip

    return step


def variants(store: Store, arguments: argparse.Namespace, accelerator: Accelerator) -> dict[str, Callable[[], Step]]:
    """What is compared, by name; built when it is called."""
    model = load_recipe(arguments.config).model
    config = train_config(arguments)
    flat = dataclasses.replace(model, latents=0, action_layers=0)
    decoded = dataclasses.replace(model, latents=1, action_layers=1)
    built: dict[str, Callable[[], Step]] = {
        "gatito, flat trunk": lambda: ours(store, flat, config, accelerator, arguments.workers),
        "gatito, 1 latent, actions decoded": lambda: ours(store, decoded, config, accelerator, arguments.workers),
    }
    for name in PEERS:
        built[name] = lambda name=name: peer(name, store, model, config, accelerator)  # type: ignore[misc]
    return built


def train_config(arguments: argparse.Namespace) -> TrainConfig:
    cuda = torch.cuda.is_available()
    arguments.context = arguments.context or load_recipe(arguments.config).train.context
    return TrainConfig(
        steps=10**6,
        batch=arguments.rows,
        context=arguments.context,
        precision="bf16" if cuda else "no",
        compile=cuda,
    )


def peak_bytes(name: str, store: Store, arguments: argparse.Namespace, accelerator: Accelerator) -> int:
    """Bytes above what the process had before, at the highest moment of three steps."""
    before = memory_bytes("VmRSS")
    step = variants(store, arguments, accelerator)[name]()
    for _ in range(3):
        step()
    if accelerator.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return memory_bytes("VmHWM") - before


def memory_bytes(kind: str) -> int:
    """`VmRSS`, what this process has, or `VmHWM`, the most it ever had; the peak of getrusage is the parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="store that gatito data build wrote")
    parser.add_argument("--synthetic", choices=("states", "images"), help="or one made for this")
    parser.add_argument("--config", default="paper", help="recipe whose shape all have")
    parser.add_argument("--context", type=int, help="by default the recipe's")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare our batches")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if bool(arguments.store) == bool(arguments.synthetic):
        parser.error("give --store or --synthetic")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.store:
            store = open_store(arguments.store)
        else:
            store = write_store(Path(folder) / "store", arguments.synthetic)
        accelerator = begin_accelerator(train_config(arguments), Path(folder))
        if arguments.peak:
            print(json.dumps(peak_bytes(arguments.peak, store, arguments, accelerator)))
            return
        report(store, arguments, accelerator)


def report(store: Store, arguments: argparse.Namespace, accelerator: Accelerator) -> None:
    steps = {name: build() for name, build in variants(store, arguments, accelerator).items()}
    found: dict[str, list[Measured]] = {name: [] for name in steps}
    for i in range(arguments.rounds + 2):
        for name, step in steps.items():
            measured = step()
            if i > 1:
                found[name].append(measured)
    device = accelerator.device
    named = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    peak = peak_flops(device, accelerator.mixed_precision or "no")
    print(f"{named}, {torch.get_num_threads()} threads of {os.cpu_count()}, torch {torch.__version__}")
    print(f"peak {peak / 1e9:.0f} GFLOP/s; recipe {arguments.config}, {arguments.rows} rows of {arguments.context}\n")
    print("| variant | tokens/s | against GPT-2 | timesteps/s | MFU | loader's share | memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    rates = {name: median(m.tokens / m.seconds for m in rows) for name, rows in found.items()}
    for name, rows in found.items():
        seconds = sum(m.seconds for m in rows)
        cells = [
            f"{rates[name]:.0f}",
            f"{rates[name] / rates[PEERS[0]]:.2f}",
            f"{sum(m.timesteps for m in rows) / seconds:.0f}",
            f"{sum(m.flops for m in rows) / seconds / peak:.1%}",
            f"{sum(m.loading for m in rows) / seconds:.1%}",
            f"{subprocess_peak(name) / 2**20:.0f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def subprocess_peak(name: str) -> int:
    """Peak memory of a variant in a process of its own."""
    command = [sys.executable, *sys.argv, "--peak", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(output.splitlines()[-1])


if __name__ == "__main__":
    main()
