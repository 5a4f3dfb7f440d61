"""Toy environments, tiny models and stores for the tests of model, training and acting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from gatito.data.episode import Episode, stack
from gatito.data.packing import Batch, pack
from gatito.data.store import StoreWriter, write_mixture
from gatito.data.tasks import get_task
from gatito.model import GatitoConfig, GatitoForCausalLM
from gatito.model.modeling import EMBEDDED
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary, text_tokens
from gatito.tokenizers.sequence import concatenate
from gatito.train.configs import ModelConfig, Recipe, TrainConfig

CONTEXT = 64
TRUNKS: dict[str, dict[str, Any]] = {
    "flat": {"latents": 0, "action_layers": 0},
    "flat, decoded": {"latents": 0, "action_layers": 1},
    "1 latent": {"latents": 1, "resampler_depth": 1, "action_layers": 0},
    "4 latents": {"latents": 4, "resampler_depth": 2, "action_layers": 0, "resample_images": True},
    "1 latent, decoded": {"latents": 1, "resampler_depth": 0, "action_layers": 1},
    "4 latents, decoded": {"latents": 4, "resampler_depth": 1, "action_layers": 2, "resample_images": True},
}
"""Which positions the trunk sees: changes to `GatitoConfig`, by name."""
MISSIONS = ("go", "if the expression is a class", "the value of the statement", "return the next object name")


def tiny_model(vocabulary: Vocabulary, seed: int = 0, context: int = CONTEXT, **changes: Any) -> GatitoForCausalLM:
    """A model of width 32 with weights large enough that every token and position matters."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    shape |= {"intermediate_size": 64, "context": context, "initializer_range": 0.3}
    return GatitoForCausalLM(GatitoConfig(**(shape | vocabulary.to_json() | changes))).eval()


def tiny_recipe(**train: Any) -> Recipe:
    """A recipe of the tiny model, 20 steps of 4 rows; keywords change `TrainConfig`, `drop_path` and `trunk`, a name
    in `TRUNKS`, the model."""
    changes = {"drop_path": train.pop("drop_path", 0.0), **TRUNKS[train.pop("trunk", "flat")]}
    model = ModelConfig(width=32, layers=2, heads=2, head_dim=16, feed_forward=64, **changes)
    defaults = {"steps": 20, "batch": 4, "context": CONTEXT, "lr": 3e-3, "warmup": 5, "log_every": 1}
    return Recipe(model=model, train=TrainConfig(**(defaults | train)))


class ToyEnv(gym.Env[Any, Any]):
    """Random observations of any space for `length` timesteps; the reward is 1 each."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, length: int = 20) -> None:
        self.observation_space, self.action_space, self.length = observation_space, action_space, length
        self.actions: list[Any] = []

    def _observation(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        observation = self.observation_space.sample()
        if isinstance(observation, dict) and "mission" in observation:
            observation["mission"] = MISSIONS[int(self.np_random.integers(len(MISSIONS)))]
        return observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.actions = []
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), (action, self.action_space)
        self.actions.append(action)
        return self._observation(), 1.0, len(self.actions) >= self.length, False, {}


class Line(gym.Env[Any, Any]):
    """Walk a line of `length` places: only the right action, `secret[t]`, leads on; a wrong one ends the episode."""

    def __init__(self, length: int = 10, continuous: bool = False) -> None:
        self.length, self.continuous = length, continuous
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-2.0, 2.0, (2,), np.float32) if continuous else spaces.Discrete(4)
        rng = np.random.default_rng(5)
        self.secret = (
            rng.uniform(-2, 2, (length, 2)).astype(np.float32) if continuous else rng.integers(4, size=length)
        )

    def _observation(self) -> np.ndarray:
        return np.array([min(self.place, self.length - 1) / self.length], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = bool(np.allclose(action, self.secret[self.place], atol=4 / 1024))
        self.place += right
        return self._observation(), float(right), not right or self.place == self.length, False, {}

    def demonstration(self) -> tuple[Any, Any]:
        """Observations and actions of the one right episode."""
        observations = [np.array([t / self.length], np.float32) for t in range(self.length)]
        return stack(self.observation_space, observations), stack(self.action_space, list(self.secret))


def layout_of(env: gym.Env[Any, Any], vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
    """The layout of an environment."""
    return Layout.from_spaces(env.observation_space, env.action_space, vocabulary=vocabulary, text=text)


def toy_sequence(env: ToyEnv, layout: Layout, seed: int, targets: np.ndarray | None = None) -> TokenSequence:
    """Tokens of one episode of random actions."""
    episode = toy_episode(env, seed)
    return layout.episode_tokens(episode.observations, episode.actions, targets=targets)


def toy_episode(env: ToyEnv, seed: int, task: str = "toy/task") -> Episode:
    """One episode of random actions."""
    env.action_space.seed(seed)
    observations, actions = [env.reset(seed=seed)[0]], []
    done = False
    while not done:
        actions.append(env.action_space.sample())
        observation, _, done, _, _ = env.step(actions[-1])
        observations.append(observation)
    return Episode(
        task=task,
        id=seed,
        agent="random",
        observations=stack(env.observation_space, observations[:-1]),
        actions=stack(env.action_space, actions),
        rewards=np.ones(len(actions)),
        targets=np.ones(len(actions), np.bool_),
    )


def write_store(
    folder: Path,
    text: TextTokenizer,
    vocabulary: Vocabulary,
    control: Mapping[str, tuple[Layout, Sequence[TokenSequence]]],
    documents: Sequence[TokenSequence] = (),
) -> Path:
    """A store as `gatito data build` writes it, out of sequences in memory."""
    parts: list[tuple[str, dict[str, Any], Sequence[TokenSequence]]] = [
        (task.replace("/", "-"), {"kind": "control", "task": task, "layout": layout.to_json()}, sequences)
        for task, (layout, sequences) in control.items()
    ]
    if documents:
        parts.append(("text", {"kind": "text", "task": "text:toy"}, documents))
    for name, metadata, sequences in parts:
        writer = StoreWriter(folder / name, vocabulary)
        for sequence in sequences:
            writer.write(sequence, "expert")
        writer.close({"name": name, "source": "toy", **metadata})
    write_mixture(folder, vocabulary, text, {name: 1.0 for name, _, _ in parts})
    return folder


def write_mixed_store(folder: Path, vocabulary: Vocabulary, text: TextTokenizer) -> Path:
    """Vectors with one target in ten, images with missions, and text, which is all targets."""
    vectors = ToyEnv(spaces.Box(-9.0, 9.0, (3,), np.float32), spaces.Discrete(4), length=20)
    pictures = ToyEnv(
        spaces.Dict(image=spaces.Box(0, 255, (16, 32, 3), np.uint8), mission=spaces.Text(24)),
        spaces.Box(-1.0, 1.0, (2,), np.float32),
        length=8,
    )
    layouts = [layout_of(env, vocabulary, text) for env in (vectors, pictures)]
    return write_store(
        folder,
        text,
        vocabulary,
        {
            "toy/vectors": (
                layouts[0],
                [toy_sequence(vectors, layouts[0], i, np.arange(20) % 10 == 0) for i in range(4)],
            ),
            "toy/pictures": (layouts[1], [toy_sequence(pictures, layouts[1], i) for i in range(4)]),
        },
        [text_tokens("the value of an object is the class of a statement " * 4, text) for _ in range(2)],
    )


def write_task_store(folder: Path, tasks: Sequence[str], vocabulary: Vocabulary, text: TextTokenizer) -> Path:
    """Registered tasks, of random values in their spaces."""
    control = {}
    for task in tasks:
        env = get_task(task).make()
        toy = ToyEnv(env.observation_space, env.action_space)
        layout = layout_of(toy, vocabulary, text)
        control[task] = (layout, [toy_sequence(toy, layout, i) for i in range(3)])
    return write_store(folder, text, vocabulary, control)


def hidden_of(model: GatitoForCausalLM, sequences: Sequence[TokenSequence]) -> torch.Tensor:
    """Hidden states (L, D) of sequences joined to one row, without any cache."""
    return states_of(model, pack([[concatenate(sequences)]], model.config.trunk))[0][0]


def states_of(model: GatitoForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Hidden states (B, L, D) of rows that hold one sequence each, without any cache, and decoded action tokens."""
    inputs = {name: tensor for name, tensor in batch.tensors().items() if name in EMBEDDED}
    actions = None if batch.action_ids is None else model.model.embedding.tokens(batch.action_ids)
    return model.model(model.model.embed(**inputs), batch.positions, None), actions


def action_states_of(model: GatitoForCausalLM, sequences: Sequence[TokenSequence], num_tokens: int) -> torch.Tensor:
    """States (A, D) that predict the last action, of A tokens, of sequences joined to one row, without any cache."""
    batch = pack([[concatenate(sequences)]], model.config.trunk)
    hidden, actions = states_of(model, batch)
    if actions is None:
        return hidden[0, -num_tokens - 1 : -1]
    return model.action_states(hidden, actions, batch.action_sizes, batch.action_slots)[-num_tokens:]
