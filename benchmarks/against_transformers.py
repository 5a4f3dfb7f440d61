"""Training tokens/s and acting ms/step against a transformers GPT-2 of the same size, fed the peers' way.

The peer computes all logits over the whole vocabulary in training, and recomputes its window for every action
token when it acts. Both see the same rows of tokens, ours with a flat trunk: what latents and the action decoder add
is measured by benchmarks/resampler.py. The peer embeds a placeholder id where we embed a patch, so images cost it
nothing. Measured in turn, round by round, in one process:

    python benchmarks/against_transformers.py --store demo/store
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from transformers import GPT2Config, GPT2LMHeadModel

from gatito.data.packing import Batch
from gatito.data.sampler import Sampler
from gatito.data.store import open_store
from gatito.eval.actor import Actor
from gatito.model import GatitoForCausalLM
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.train.configs import ModelConfig

CONTEXT, ROWS = 256, 16
NUM_OBSERVATIONS, NUM_ACTIONS = 17, 6
"""Shape of HalfCheetah, where the public reproductions were measured."""


def models(vocabulary: Vocabulary) -> tuple[GatitoForCausalLM, GPT2LMHeadModel]:
    """Ours and the peer, of equal depth and width, with fresh weights."""
    flat = ModelConfig(latents=0, action_layers=0)
    ours = GatitoForCausalLM(flat.build(vocabulary, CONTEXT, end_id=2))
    shape = GPT2Config(
        bos_token_id=None,
        eos_token_id=None,
        vocab_size=vocabulary.size, n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4, n_inner=512,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return ours, GPT2LMHeadModel(shape)


def training_step(model: torch.nn.Module, loss_of: Callable[[Batch], torch.Tensor]) -> Callable[[Batch], float]:
    """One optimizer step, timed: returns tokens per second."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(batch: Batch) -> float:
        began = time.perf_counter()
        loss_of(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return batch.input_ids.numel() / (time.perf_counter() - began)

    return step


def peer_loss(peer: GPT2LMHeadModel, batch: Batch) -> torch.Tensor:
    """Cross-entropy over all logits, the targets chosen afterwards."""
    labels = torch.where(batch.loss_mask, batch.input_ids, -100)
    loss: torch.Tensor = peer(input_ids=batch.input_ids, labels=labels).loss
    return loss


def acting_ours(ours: GatitoForCausalLM, layout: Layout) -> Callable[[np.ndarray], float]:
    """One environment step of one session: returns milliseconds."""
    actor = Actor(ours, layout)

    def step(observation: np.ndarray) -> float:
        began = time.perf_counter()
        actor.act({0: observation})
        return 1e3 * (time.perf_counter() - began)

    return step


def acting_peer(peer: GPT2LMHeadModel, layout: Layout) -> Callable[[np.ndarray], float]:
    """The same, with the window recomputed for each action token and all logits computed."""
    peer.eval()
    window: list[int] = []

    @torch.inference_mode()
    def step(observation: np.ndarray) -> float:
        began = time.perf_counter()
        window.extend(layout.observation_tokens(observation).ids.tolist())
        for start, stop in layout.legal_ids:
            logits = peer(input_ids=torch.tensor([window[-CONTEXT:]])).logits[0, -1]
            window.append(int(logits[start:stop].argmax()) + start)
        return 1e3 * (time.perf_counter() - began)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="store that gatito data build wrote")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    store = open_store(arguments.store)
    ours, peer = models(store.vocabulary)
    sampler = Sampler(store=store, context=CONTEXT, trunk=ours.config.trunk, seed=0)
    batches = [sampler.batch(i * ROWS, ROWS) for i in range(arguments.rounds + 1)]
    train = {
        "gatito": training_step(ours, lambda batch: ours(**batch.tensors()).loss),
        "transformers": training_step(peer, lambda batch: peer_loss(peer, batch)),
    }
    rates: dict[str, list[float]] = {name: [] for name in train}
    for i, batch in enumerate(batches):
        for name, step in train.items():
            rate = step(batch)
            if i:
                rates[name].append(rate)

    layout = Layout.from_spaces(
        spaces.Box(-np.inf, np.inf, (NUM_OBSERVATIONS,)),
        spaces.Box(-1, 1, (NUM_ACTIONS,)),
        vocabulary=store.vocabulary,
        text=TextTokenizer.load(),
    )
    act = {"gatito": acting_ours(ours, layout), "transformers": acting_peer(peer, layout)}
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in act}
    for _ in range(6 * arguments.rounds):
        observation = rng.normal(size=NUM_OBSERVATIONS)
        for name, environment_step in act.items():
            times[name].append(environment_step(observation))
    filled = CONTEXT // (NUM_OBSERVATIONS + 1 + NUM_ACTIONS)

    def median(values: dict[str, list[float]], name: str, first: int = 0) -> float:
        return statistics.median(values[name][first:])

    targets = sum(int(b.loss_mask.sum()) for b in batches) / sum(b.input_ids.numel() for b in batches)
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"width 128, 4 layers, context {CONTEXT}, {ROWS} rows a step, {targets:.1%} of the tokens are targets")
    print("| measure | gatito | transformers GPT-2 | ratio |")
    print("|---|---|---|---|")
    a, b = median(rates, "gatito"), median(rates, "transformers")
    print(f"| training, tokens/s | {a:.0f} | {b:.0f} | {a / b:.1f} times |")
    a, b = median(times, "gatito", filled), median(times, "transformers", filled)
    print(f"| acting, ms per step, window full | {a:.1f} | {b:.1f} | {b / a:.1f} times |")


if __name__ == "__main__":
    main()
