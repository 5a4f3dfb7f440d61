"""Acting, CPU-ms per environment step, against what is usual, on the same weights where that is possible.

At the peers' shape (width 256, 4 layers, 17 values and 6 actions) from the first step to the thousandth, in a batch
of 8 and with observations read into latents, beside a transformers GPT-2 that acts the peers' way: it recomputes its
window for every action token, with all logits. At the paper's smallest shape (8 layers of 768, 20 observation tokens
and 6 actions) beside our own model through `forward` and transformers' DynamicCache, which refills a full window as
ours does. All see the same observations, in turn, step by step, in one process:

    python benchmarks/acting.py             about 5 minutes
    python benchmarks/acting.py --quick     half a minute, a look only
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from gymnasium import spaces
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from gatito.eval.actor import Actor
from gatito.eval.decoding import Decoding
from gatito.model import GatitoForCausalLM
from gatito.model.int8 import quantize_int8
from gatito.model.packed import pack_linears
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.tokenizers.vocabulary import ACTION_POSITION
from gatito.train.configs import ModelConfig

CONTEXT = 1024
NUM_ACTIONS = 6
GREEDY = Decoding(temperature=0.0)
Step = Callable[[], object]
"""Acts once in every environment."""


def layout_of(num_observations: int, vocabulary: Vocabulary) -> Layout:
    """Values and continuous actions."""
    return Layout.from_spaces(
        spaces.Box(-np.inf, np.inf, (num_observations,)),
        spaces.Box(-1, 1, (NUM_ACTIONS,)),
        vocabulary=vocabulary,
        text=TextTokenizer.load(),
    )


def network(
    vocabulary: Vocabulary, width: int, layers: int, latents: int = 0, context: int = CONTEXT
) -> GatitoForCausalLM:
    """Fresh weights, on a flat trunk or with observations read into latents and actions decoded."""
    shape = ModelConfig(
        width=width, layers=layers, heads=width // 32, head_dim=32, feed_forward=8 * width // 3 // 8 * 8,
        latents=latents, action_layers=min(latents, 1),
    )  # fmt: skip
    return GatitoForCausalLM(shape.build(vocabulary, context, end_id=2)).eval()


def ours(model: GatitoForCausalLM, layout: Layout, count: int = 1, cache: torch.dtype | None = None) -> Step:
    """`count` environments in one batch; keys and values are kept in `cache`."""
    actor, rng = Actor(model, count, decoding=GREEDY, cache_dtype=cache), np.random.default_rng(0)
    for session in range(count):
        actor.reset(session, layout)
    size = layout.observations[0].size
    return lambda: actor.act({session: rng.normal(size=size) for session in range(count)})


def with_dynamic_cache(model: GatitoForCausalLM, layout: Layout) -> Step:
    """The same weights through `forward` and transformers' cache: one call a token, with all logits of the last.

    A full window loses its oldest half of timesteps and is fed anew, in one call with the next observation, as ours.
    """
    rng, size = np.random.default_rng(0), layout.observations[0].size
    timesteps: list[tuple[list[int], list[int]]] = []
    cache, waiting = DynamicCache(config=model.config), ([], [])  # type: tuple[DynamicCache, tuple[list[int], ...]]

    @torch.inference_mode()
    def step() -> None:
        nonlocal cache, waiting
        observed = layout.observation_tokens(rng.normal(size=size))
        ids, local = observed.ids.tolist(), observed.local_positions.tolist()
        if (len(timesteps) + 1) * (len(ids) + NUM_ACTIONS) > CONTEXT:
            del timesteps[: len(timesteps) - len(timesteps) // 2]
            cache = DynamicCache(config=model.config)
            waiting = [i for t in timesteps for i in t[0]], [i for t in timesteps for i in t[1]]
        new = [*waiting[0], *ids], [*waiting[1], *local]
        for start, stop in layout.legal_ids:
            given, places = torch.tensor([new[0]]), torch.tensor([new[1]])
            out = model(given, local_positions=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = int(out.logits[0, -1, start:stop].argmax()) + start
            ids, local, new = [*ids, token], [*local, ACTION_POSITION], ([token], [ACTION_POSITION])
        timesteps.append((ids, local))
        waiting = new

    return step


def recomputing(vocabulary: Vocabulary, layout: Layout, width: int, layers: int) -> Step:
    """A GPT-2 of the same size that recomputes its window for each action token, with all logits."""
    shape = GPT2Config(
        bos_token_id=None, eos_token_id=None,
        vocab_size=vocabulary.size, n_positions=CONTEXT, n_embd=width, n_layer=layers, n_head=width // 32,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    peer, rng, size = GPT2LMHeadModel(shape).eval(), np.random.default_rng(0), layout.observations[0].size
    window: list[int] = []

    @torch.inference_mode()
    def step() -> None:
        window.extend(layout.observation_tokens(rng.normal(size=size)).ids.tolist())
        for start, stop in layout.legal_ids:
            logits = peer(input_ids=torch.tensor([window[-CONTEXT:]])).logits[0, -1]
            window.append(int(logits[start:stop].argmax()) + start)

    return step


def timed(step: Step) -> float:
    """CPU-ms of one call."""
    began = time.process_time()
    step()
    return 1e3 * (time.process_time() - began)


def interleaved(steps: dict[str, Step], count: int, skipped: int = 0) -> dict[str, list[float]]:
    """CPU-ms of `count` steps of each, in turn, after `skipped` that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for t in range(skipped + count):
        for name, step in steps.items():
            spent = timed(step)
            if t >= skipped:
                times[name].append(spent)
    return times


def row(name: str, times: Sequence[float], count: int = 1, base: float | None = None) -> None:
    """Print the median and the mean, which has the refills in it, per environment."""
    median, mean = statistics.median(times) / count, statistics.fmean(times) / count
    ratio = "" if base is None else f"{median / base:.2f}"
    print(f"| {name} | {median:.1f} | {mean:.1f} | {ratio} |", flush=True)


def peers_shape(vocabulary: Vocabulary, steps: int, recomputed: int) -> None:
    """Width 256, 4 layers."""
    layout = layout_of(17, vocabulary)
    flat, latent = pack_linears(network(vocabulary, 256, 4)), pack_linears(network(vocabulary, 256, 4, latents=1))
    short = pack_linears(network(vocabulary, 256, 4, context=256))
    print("\n| width 256, 4 layers, 17 + 1 + 6 tokens a step | median | mean | |\n|---|---|---|---|")
    one = ours(flat, layout)
    times = [timed(one) for _ in range(steps)]
    for first, last in ((0, 50), (steps // 2, steps // 2 + 50), (steps - 50, steps)):
        row(f"gatito, flat trunk, context {CONTEXT}, steps {first + 1} to {last}", times[first:last])
    others = {
        "gatito, flat trunk, context 256": (ours(short, layout), 1),
        f"gatito, flat trunk, context {CONTEXT}, 8 environments, for each": (ours(flat, layout, 8), 8),
        f"gatito, flat trunk, context {CONTEXT}, 8 environments, for each, keys and values in bfloat16": (
            ours(flat, layout, 8, torch.bfloat16),
            8,
        ),
        "gatito, flat trunk, context 256, 8 environments, for each": (ours(short, layout, 8), 8),
        "gatito, 1 latent, actions decoded": (ours(latent, layout), 1),
        "gatito, 1 latent, actions decoded, 8 environments, for each": (ours(latent, layout, 8), 8),
    }
    spent = interleaved({name: step for name, (step, _) in others.items()}, steps // 10, skipped=steps // 20)
    for name, (_, count) in others.items():
        row(name, spent[name], count)
    naive = recomputing(vocabulary, layout, 256, 4)
    times = [timed(naive) for _ in range(recomputed)]
    row("GPT-2, window recomputed, step 1", times[:1])
    row(f"GPT-2, window recomputed, step {recomputed}", times[-1:])


def paper_shape(vocabulary: Vocabulary, steps: int) -> None:
    """Width 768, 8 layers: the paper's smallest."""
    layout = layout_of(19, vocabulary)
    model = network(vocabulary, 768, 8)
    peer = "transformers' DynamicCache, all logits"
    run = {
        peer: with_dynamic_cache(model, layout),
        "gatito": ours(model, layout),
        "gatito, linears packed": ours(pack_linears(model), layout),
        "gatito, linears in int8": ours(quantize_int8(model), layout),
        "gatito, linears in int8, keys and values in bfloat16": ours(
            quantize_int8(model), layout, cache=torch.bfloat16
        ),
    }
    full = CONTEXT // 26
    times = interleaved(run, steps, skipped=full // 2)  # from here on the window is half full to full
    print(f"\n| width 768, 8 layers, context {CONTEXT}, 20 + 6 tokens a step | median | mean | ratio |")
    print("|---|---|---|---|")
    for name, spent in times.items():
        row(name, spent, base=statistics.median(times[peer]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="a hundred steps each at the peers' shape")
    parser.add_argument("--quick", action="store_true", help="few steps: a look, not a measurement")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vocabulary = Vocabulary()
    print(f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}; CPU-ms, batch 1, fp32")
    peers_shape(vocabulary, 200 if arguments.quick else 100 * arguments.rounds, 4 if arguments.quick else 20)
    paper_shape(vocabulary, 8 if arguments.quick else 8 * arguments.rounds)


if __name__ == "__main__":
    main()
