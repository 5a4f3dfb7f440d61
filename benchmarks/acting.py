"""Acting, ms per environment step, against a transformers GPT-2 of the same size that acts the peers' way.

The peer recomputes its window for every action token, with all logits. Both see the same tokens, ours with a flat
trunk: what latents and the action decoder add is measured by benchmarks/resampler.py. In turn, step by step, in one
process:

    python benchmarks/acting.py
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces
from transformers import GPT2Config, GPT2LMHeadModel

from gatito.eval.actor import Actor
from gatito.model import GatitoForCausalLM
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.train.configs import ModelConfig

CONTEXT = 256
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


def acting_ours(ours: GatitoForCausalLM, layout: Layout) -> Callable[[np.ndarray], float]:
    """One environment step of one session: returns milliseconds."""
    actor = Actor(ours)
    actor.reset(0, layout)

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
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    vocabulary = Vocabulary()
    ours, peer = models(vocabulary)
    layout = Layout.from_spaces(
        spaces.Box(-np.inf, np.inf, (NUM_OBSERVATIONS,)),
        spaces.Box(-1, 1, (NUM_ACTIONS,)),
        vocabulary=vocabulary,
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

    a, b = (statistics.median(times[name][filled:]) for name in ("gatito", "transformers"))
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"width 128, 4 layers, context {CONTEXT}, {NUM_OBSERVATIONS} observations and {NUM_ACTIONS} actions a step")
    print("| measure | gatito | transformers GPT-2 | ratio |\n|---|---|---|---|")
    print(f"| acting, ms per step, window full | {a:.1f} | {b:.1f} | {b / a:.1f} times |")


if __name__ == "__main__":
    main()
