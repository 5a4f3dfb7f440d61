"""A plain network from an observation to its action: a small CNN for each image, then an MLP, and a head for each
leaf of the action space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gatito.baselines.vectors import elements_of, flat
from gatito.tokenizers.fields import Field, Path, build_tree

CHANNELS = (16, 32, 32)
"""Of the convolutions, 3 x 3 with stride 2."""
POOLED = 7
"""Side of what is left of an image, at most."""


class Convolutions(nn.Sequential):
    """Images (B, H, W, C) of 8 bits to features (B, N)."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        height, width, before = shape
        layers: list[nn.Module] = []
        for channels in CHANNELS:
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), nn.GELU()]
            before, height, width = channels, -(-height // 2), -(-width // 2)
        pooled = min(POOLED, height), min(POOLED, width)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(pooled), nn.Flatten())
        self.num_features = before * pooled[0] * pooled[1]

    def forward(self, images: Tensor) -> Tensor:
        """See above."""
        features: Tensor = super().forward(images.permute(0, 3, 1, 2).float() / 255 - 0.5)
        return features


class Network(nn.Module):
    """Numbers (B, D) and images (B, H, W, C) to outputs (B, O)."""

    def __init__(
        self,
        num_numbers: int,
        image_shapes: Sequence[tuple[int, int, int]],
        num_outputs: int,
        *,
        width: int,
        layers: int,
    ) -> None:
        """`layers` hidden ones of `width`."""
        super().__init__()
        convolutions = [Convolutions(shape) for shape in image_shapes]
        before = num_numbers + sum(images.num_features for images in convolutions)
        hidden: list[nn.Module] = []
        for _ in range(layers):
            hidden += [nn.Linear(before, width), nn.GELU()]
            before = width
        self.images = nn.ModuleList(convolutions)
        self.mlp = nn.Sequential(*hidden, nn.Linear(before, num_outputs))

    def forward(self, numbers: Tensor, images: Sequence[Tensor]) -> Tensor:
        """See above."""
        seen = [own(pixels) for own, pixels in zip(self.images, images, strict=True)]
        outputs: Tensor = self.mlp(torch.cat([numbers, *seen], dim=1))
        return outputs


@dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """The leaves of an action space, and what is predicted of each.

    outputs    logits of the first discrete element, of the second, ... | the continuous numbers, standardised
    """

    fields: tuple[Field, ...]
    """Of the action space."""
    mean: NDArray[np.float64]
    """(C,) of the continuous numbers that were demonstrated."""
    deviation: NDArray[np.float64]
    """(C,) standard deviation, 1 where a number never changes."""

    @classmethod
    def measured(cls, fields: tuple[Field, ...], actions: Any) -> "Heads":
        """Measure actions with a leading T axis."""
        x = flat(fields, actions, "continuous").astype(np.float64)
        deviation = x.std(axis=0)
        return cls(fields=fields, mean=x.mean(axis=0), deviation=np.where(deviation > 0, deviation, 1.0))

    @property
    def num_values(self) -> list[int]:
        """Values of each discrete element."""
        return [n for field in self.fields if field.kind == "discrete" for n in field.num_values]

    @property
    def num_outputs(self) -> int:
        """O."""
        return sum(self.num_values) + len(self.mean)

    def targets(self, actions: Any) -> tuple[Tensor, Tensor]:
        """Discrete elements (T, E), counted from 0, and standardised numbers (T, C) of actions with a T axis."""
        numbers = (flat(self.fields, actions, "continuous") - self.mean) / self.deviation
        return torch.from_numpy(elements_of(self.fields, actions)), torch.from_numpy(numbers.astype(np.float32))

    def loss(self, outputs: Tensor, elements: Tensor, numbers: Tensor) -> Tensor:
        """Cross-entropy of discrete elements and squared error of numbers, the mean over all and the batch."""
        *logits, predicted = outputs.split([*self.num_values, len(self.mean)], dim=1)
        losses = [F.cross_entropy(own, elements[:, j]) for j, own in enumerate(logits)]
        losses += list(((predicted - numbers) ** 2).mean(dim=0))
        return torch.stack(losses).mean()

    def action(self, outputs: NDArray[np.float32], rng: np.random.Generator, temperature: float) -> Any:
        """The action of outputs (O,), within its bounds; at a temperature of 0 the likeliest of discrete values."""
        *logits, predicted = np.split(outputs.astype(np.float64), np.cumsum(self.num_values))
        elements = [_pick(own, rng, temperature) for own in logits]
        numbers = predicted * self.deviation + self.mean
        leaves: dict[Path, Any] = {}
        for field in self.fields:
            if field.kind == "discrete":
                own, elements = elements[: field.size], elements[field.size :]
                values = np.array(own) + np.array(field.start)
            else:
                x, numbers = numbers[: field.size], numbers[field.size :]
                values = np.clip(np.rint(x) if np.dtype(field.dtype).kind in "iu" else x, *field.bounds)
            leaves[field.path] = values.astype(field.dtype).reshape(field.shape)[()]
        return build_tree(leaves)


def _pick(logits: NDArray[np.float64], rng: np.random.Generator, temperature: float) -> int:
    """One of the values, drawn by their probabilities."""
    if temperature == 0:
        return int(logits.argmax())
    return int((logits / temperature + rng.gumbel(size=len(logits))).argmax())
