"""Training timesteps/s: the flat trunk, the resampler with both ways of actions, and a JAT-like model, in turn.

All of ours are of equal width and depth, compute logits at targets only and over the target's own group, and are
timed from the packing of the rows to the optimizer's step. The JAT-like model is GPT-Neo of transformers with one
linear layer per observation and per action (2 positions a timestep), with a regression head, as JAT has it, and with
a head over the same 1024 ids for each action value as ours; its inputs are ready tensors. Meta-World and BabyAI are
episodes of our experts, the peers' shape is random.

    python benchmarks/resampler.py
"""

import argparse
import contextlib
import platform
import time
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from side_by_side import Step, measured
from transformers import GPTNeoConfig, GPTNeoModel

from gatito.data.minari_episodes import episode_from_buffer
from gatito.data.packing import pack
from gatito.data.recording import collect_episode
from gatito.data.tasks import ExpertFailed, get_task
from gatito.model import GatitoForCausalLM
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary
from gatito.tokenizers.trunk import Trunk
from gatito.train.configs import ModelConfig, TrainConfig
from gatito.train.trainer import build_optimizer

ROWS, POSITIONS = 8, 256
TASKS = {
    "metaworld/plate-slide": "Meta-World: 39 values, 4 actions",
    "babyai/go-to-local-s5n2": "BabyAI: 16 patches, direction, mission, 1 action",
}
EPISODES = 60
"""Of the expert, that the rows are filled with."""
PEERS = (spaces.Box(-np.inf, np.inf, (17,)), spaces.Box(-1, 1, (6,)))
"""HalfCheetah, where the public reproductions were measured."""
TRUNKS: dict[str, dict[str, Any]] = {
    "flat": {"latents": 0, "action_layers": 0},
    "1 latent, depth 0, actions in the trunk": {"latents": 1, "resampler_depth": 0, "action_layers": 0},
    "1 latent, depth 1, actions in the trunk": {"latents": 1, "resampler_depth": 1, "action_layers": 0},
    "1 latent, depth 0, actions decoded": {"latents": 1, "resampler_depth": 0, "action_layers": 1},
    "1 latent, depth 1, actions decoded": {"latents": 1, "resampler_depth": 1, "action_layers": 1},
}


def demonstrations(task: str, layout: Layout) -> list[TokenSequence]:
    """Seeded episodes of a task's expert."""
    spec = get_task(task)
    env = spec.make()
    sequences = []
    for seed in range(EPISODES):
        with contextlib.suppress(ExpertFailed):
            episode = episode_from_buffer(collect_episode(spec, env, seed), task, "expert")
            sequences.append(layout.episode_tokens(episode.observations, episode.actions))
    env.close()
    return sequences


def of_halfcheetah(layout: Layout) -> list[TokenSequence]:
    """Episodes of normal observations and uniform actions."""
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(8, 256, 17)), rng.uniform(-1, 1, (8, 256, 6))
    return [
        layout.episode_tokens(o.astype(np.float32), a.astype(np.float32))
        for o, a in zip(observations, actions, strict=True)
    ]


def filled(sequences: list[TokenSequence], trunk: Trunk, rng: np.random.Generator) -> list[TokenSequence]:
    """A row of `POSITIONS`, as the sampler fills it."""
    row: list[TokenSequence] = []
    room = POSITIONS
    while room > 0:
        head = trunk.head(sequences[int(rng.integers(len(sequences)))], room)
        if not len(head):
            break
        row.append(head)
        room -= trunk.length(head)
    return row


def ours(shape: ModelConfig, layout: Layout, sequences: list[TokenSequence]) -> Step:
    """A training step; returns timesteps per second."""
    config = shape.build(layout.vocabulary, POSITIONS, layout.text.end)
    model = GatitoForCausalLM(config).train()
    optimizer = build_optimizer(model, TrainConfig())
    rngs = [np.random.default_rng(i) for i in range(ROWS)]
    rows = [filled(sequences, config.trunk, rng) for rng in rngs]
    timesteps = sum(sequence.num_timesteps for row in rows for sequence in row)

    def step() -> float:
        began = time.perf_counter()
        batch = pack(rows, config.trunk, rngs=rngs, length=POSITIONS)
        model(**batch.tensors()).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return timesteps / (time.perf_counter() - began)

    return step


class JATLike(torch.nn.Module):
    """One linear layer per observation and per action in front of GPT-Neo, a linear layer behind it."""

    def __init__(self, width: int, observations: int, actions: int, bins: int | None) -> None:
        super().__init__()
        self.observe, self.act = torch.nn.Linear(observations, width), torch.nn.Linear(actions, width)
        self.trunk = GPTNeoModel(
            GPTNeoConfig(
                vocab_size=1, hidden_size=width, num_layers=4, num_heads=4, max_position_embeddings=POSITIONS,
                attention_types=[[["global", "local"], 2]], window_size=256, resid_dropout=0.0, embed_dropout=0.0,
                attention_dropout=0.0, bos_token_id=None, eos_token_id=None,
            )
        )  # fmt: skip
        self.bins = bins
        self.head = torch.nn.Linear(width, actions * (bins or 1))

    def forward(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Loss of actions (B, T, A) in [-1, 1] from observations (B, T, O) and the actions before: squared error,
        or the cross-entropy of their bins."""
        x = torch.stack([self.observe(observations), self.act(actions)], dim=2).flatten(1, 2)
        hidden = self.trunk(inputs_embeds=x, use_cache=False).last_hidden_state
        predicted = self.head(hidden[:, ::2])
        if self.bins is None:
            return torch.nn.functional.mse_loss(predicted, actions)
        wanted = ((actions + 1) / 2 * self.bins).long().clamp(max=self.bins - 1)
        return torch.nn.functional.cross_entropy(predicted.view(-1, self.bins), wanted.flatten())


def jat_like(width: int, bins: int | None) -> Step:
    """A training step of `ROWS` x `POSITIONS`; returns timesteps per second."""
    model = JATLike(width, 17, 6, bins).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    observations, actions = torch.randn(ROWS, POSITIONS // 2, 17), 2 * torch.rand(ROWS, POSITIONS // 2, 6) - 1

    def step() -> float:
        began = time.perf_counter()
        model(observations, actions).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return ROWS * POSITIONS // 2 / (time.perf_counter() - began)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    text = TextTokenizer.load()
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}; {ROWS} rows of {POSITIONS} positions, training timesteps/s")
    vocabulary = Vocabulary(text_size=text.size)
    for task, title in TASKS.items():
        spec = get_task(task)
        env = spec.make()
        layout = spec.layout(env, vocabulary, text)
        env.close()
        sequences = demonstrations(task, layout)
        steps = {name: ours(ModelConfig(**changes), layout, sequences) for name, changes in TRUNKS.items()}
        rates = measured(steps, arguments.rounds)
        print(f"\n{title}; width 128, 4 layers\n| trunk | timesteps/s | against flat |\n|---|---|---|")
        for name, rate in rates.items():
            print(f"| {name} | {rate:.0f} | {rate / rates['flat']:.1f} |")
    wide: dict[str, Any] = {"width": 256, "heads": 4, "head_dim": 64, "feed_forward": 688}
    layout = Layout.from_spaces(*PEERS, vocabulary=vocabulary, text=text)
    sequences = of_halfcheetah(layout)
    steps = {name: ours(ModelConfig(**wide, **changes), layout, sequences) for name, changes in TRUNKS.items()}
    peers = {"JAT-like": jat_like(256, None), "JAT-like, the same ids": jat_like(256, vocabulary.num_bins)}
    rates = measured(steps | peers, arguments.rounds)
    print("\n17 observations, 6 actions; width 256, 4 layers")
    print("| model | timesteps/s | against JAT-like | against it with the same ids |\n|---|---|---|---|")
    for name, rate in rates.items():
        ratios = [f"{rate / rates[peer]:.2f}" for peer in peers]
        print(f"| {name} | {rate:.0f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
