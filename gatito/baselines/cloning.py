"""Behaviour cloning of one task: a plain network that is trained on demonstrations alone, see `network`.

It sees the numbers of `vectors`, standardised and one-hot, images in full, and of texts which of the demonstrated
pieces they have (their first layer is an embedding of each piece, summed). Pieces that were not demonstrated, and the
order of all, it does not see.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from gatito.baselines.config import CloneConfig
from gatito.baselines.demonstrations import Demonstrations
from gatito.baselines.network import Heads, Network
from gatito.baselines.vectors import Numbers, images_of, pieces_of
from gatito.errors import UserError
from gatito.tokenizers import Layout

LOGGED = 100
"""Last steps that the loss is a mean of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Senses:
    """What the network sees of an observation."""

    layout: Layout
    """Of the task."""
    numbers: Numbers
    """Continuous and discrete fields."""
    pieces: tuple[tuple[int, int], ...]
    """Of texts: number of the field and id of each piece that was demonstrated, ascending."""

    @classmethod
    def measured(cls, demonstrations: Demonstrations) -> "Senses":
        """Measure observations."""
        layout, observations = demonstrations.layout, demonstrations.observations
        said = pieces_of(layout.observations, observations, layout.text)
        return cls(
            layout=layout,
            numbers=Numbers.measured(layout.observations, observations),
            pieces=tuple(sorted(frozenset().union(*said))),
        )

    @property
    def num_numbers(self) -> int:
        """D, pieces among them."""
        return self.numbers.size + len(self.pieces)

    @property
    def image_shapes(self) -> list[tuple[int, int, int]]:
        """Height, width and channels of each image."""
        shapes = [field.shape for field in self.layout.observations if field.kind == "image"]
        return [(height, width, channels) for height, width, channels in shapes]

    def __call__(self, observations: Any) -> tuple[Tensor, list[Tensor]]:
        """Numbers (T, D), and images (T, H, W, C) of 8 bits, of observations with a leading T axis."""
        said = pieces_of(self.layout.observations, observations, self.layout.text)
        shown = np.array([[piece in pieces for piece in self.pieces] for pieces in said], np.float32)
        numbers = np.concatenate([self.numbers(observations), shown.reshape(len(said), -1)], axis=1)
        images = images_of(self.layout.observations, observations)
        return torch.from_numpy(numbers), [torch.from_numpy(pixels) for pixels in images]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clone:
    """A cloned policy of one task."""

    task: str
    """Task id."""
    senses: Senses
    """What it sees."""
    heads: Heads
    """What it does."""
    network: Network
    """Trained."""
    config: CloneConfig
    """How it was trained."""
    data_sha256: str
    """Of the demonstrations."""
    steps: int
    """Optimizer steps that it was trained for."""
    flops: float
    """What these cost."""
    loss: float
    """Mean of the last `LOGGED` steps."""

    @property
    def layout(self) -> Layout:
        """Of the task."""
        return self.senses.layout

    @torch.inference_mode()
    def act(self, observations: Sequence[Any], rngs: Sequence[np.random.Generator]) -> list[Any]:
        """The action for each observation, which has a time axis of one.

        Each is computed alone, so that an action does not depend on what is played beside it.
        """
        outputs = [self.network(*self.senses(observation))[0].numpy() for observation in observations]
        return [self.heads.action(own, rng, self.config.temperature) for own, rng in zip(outputs, rngs, strict=True)]


def clone(demonstrations: Demonstrations, config: CloneConfig | None = None) -> Clone:
    """Train a policy on the demonstrations of a task, on the CPU.

    The same demonstrations, configuration and number of threads give the same weights to the bit. Raises `UserError`
    where the budget does not pay for one step, and where the loss becomes no number.
    """
    config = config or CloneConfig()
    senses = Senses.measured(demonstrations)
    heads = Heads.measured(demonstrations.layout.actions, demonstrations.actions)
    network = new_network(senses, heads, config)
    numbers, images = senses(demonstrations.observations)
    elements, targets = heads.targets(demonstrations.actions)

    def loss_of(rows: Tensor) -> Tensor:
        outputs = network(numbers[rows], [pixels[rows] for pixels in images])
        return heads.loss(outputs, elements[rows], targets[rows])

    with FlopCounterMode(display=False) as counter:
        loss_of(torch.zeros(config.batch, dtype=torch.int64)).backward()
    steps = num_steps(config, counter.get_total_flops())
    return Clone(
        task=demonstrations.task,
        senses=senses,
        heads=heads,
        loss=_train(network, loss_of, demonstrations, config, steps),
        network=network.eval(),
        config=config,
        data_sha256=demonstrations.sha256,
        steps=steps,
        flops=float(counter.get_total_flops() * steps),
    )


def _train(
    network: Network,
    loss_of: Callable[[Tensor], Tensor],
    demonstrations: Demonstrations,
    config: CloneConfig,
    steps: int,
) -> float:
    """Train on batches of timesteps, of which `loss_of` gives the loss; returns the mean of the last ones."""
    drawn = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: deque[float] = deque(maxlen=LOGGED)
    for step in tqdm(range(steps), desc=f"clone {demonstrations.task}", unit="step"):
        optimizer.zero_grad()
        loss = loss_of(torch.randint(len(demonstrations), (config.batch,), generator=drawn))
        if not math.isfinite(loss.item()):
            raise UserError(f"task {demonstrations.task!r}: the loss is {loss.item()} at step {step}; lower --lr")
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        schedule.step()
    return float(np.mean(losses))


def new_network(senses: Senses, heads: Heads, config: CloneConfig) -> Network:
    """The network with the weights that training begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Network(
            senses.num_numbers, senses.image_shapes, heads.num_outputs, width=config.width, layers=config.layers
        )


def num_steps(config: CloneConfig, flops_of_step: float) -> int:
    """Optimizer steps that the configuration asks for; raises `UserError` where --flops pays for none."""
    if config.flops is None:
        return config.steps
    if config.flops < flops_of_step:
        raise UserError(
            f"--flops is {config.flops:g}, one step of {config.batch} timesteps takes {flops_of_step:g}; raise it, "
            "or lower --batch or --width"
        )
    return int(config.flops // flops_of_step)
