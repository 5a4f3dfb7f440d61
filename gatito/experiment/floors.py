"""What a generalist has to beat: retrieve-and-play, and a plain network cloned from the same demonstrations.

Both play one task and act on the observation at hand alone: they have no context, and a prompt is nothing to them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from gatito.data.episode import Episode
from gatito.errors import UserError
from gatito.serve.messages import action_of
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.fields import Field, value_at

SIDE = 14
"""Rows and columns that an image is averaged to for retrieval."""
OTHER_TEXT = 10.0
"""Squared distance of observations whose texts differ, in squared standard deviations of a number."""
HIDDEN = 256
"""Width of the cloned network."""
CHANNELS = (16, 32, 32)
"""Of its convolutions, each of stride 2."""


class Features:
    """Observations as vectors: numbers standardised over the demonstrations, discrete values and texts one-hot, and
    images apart."""

    def __init__(self, layout: Layout, episodes: Sequence[Episode]) -> None:
        """`episodes` are demonstrations of the task of `layout`."""
        self.fields = layout.observations
        self._texts: dict[tuple[str, str], int] = {}
        for f in self._of("text"):
            for text in sorted({str(text) for e in episodes for text in value_at(e.observations, f.path)}):
                self._texts[f.name, text] = len(self._texts)
        numbers = np.concatenate([self._numbers(e.observations) for e in episodes])
        self._mean, deviation = numbers.mean(axis=0), numbers.std(axis=0)
        self._scale = np.where(deviation > 1e-6, deviation, 1.0)

    def vectors(self, observations: Any) -> NDArray[np.float32]:
        """(T, D) of nested observations with a leading time axis, without their images."""
        numbers = (self._numbers(observations) - self._mean) / self._scale
        hot = [_one_hot(f, value_at(observations, f.path)) for f in self._of("discrete")]
        return np.concatenate([numbers, *hot, self._hot_texts(observations, len(numbers))], axis=1).astype(np.float32)

    def images(self, observations: Any) -> list[NDArray[np.uint8]]:
        """Each image field (T, H, W, C)."""
        return [np.asarray(value_at(observations, f.path), np.uint8) for f in self._of("image")]

    def _of(self, kind: str) -> list[Field]:
        return [f for f in self.fields if f.kind == kind]

    def _numbers(self, observations: Any) -> NDArray[np.float64]:
        values = [np.asarray(value_at(observations, f.path), np.float64) for f in self._of("continuous")]
        rows = [value.reshape(len(value), -1) for value in values]
        T = len(value_at(observations, self.fields[0].path))
        return np.concatenate([np.zeros((T, 0)), *rows], axis=1)

    def _hot_texts(self, observations: Any, T: int) -> NDArray[np.float64]:
        """A text that no demonstration has is no vector's."""
        hot = np.zeros((T, len(self._texts)))
        for f in self._of("text"):
            for t, text in enumerate(value_at(observations, f.path)):
                place = self._texts.get((f.name, str(text)))
                if place is not None:
                    hot[t, place] = 1.0
        return hot * math.sqrt(OTHER_TEXT / 2)  # two that differ are OTHER_TEXT apart


class Floor(ABC):
    """Acts in sessions of one task, for `rollouts`."""

    def __init__(self, layout: Layout, num_sessions: int) -> None:
        """All sessions play the task of `layout`."""
        self.layout, self.num_sessions = layout, num_sessions
        self._observed: dict[int, Any] = {}

    @abstractmethod
    def act(self, observations: Any) -> NDArray[Any]:
        """Actions (N, A), joined as by `joined_actions`, on N observations with a leading axis."""

    def reset(self, session: int, layout: Layout, prompt: TokenSequence | None = None, seed: int = 0) -> None:
        """Begin an episode; raises `UserError` for another task's layout."""
        if layout.sha256 != self.layout.sha256:
            raise UserError(f"session {session}: the layout {layout.sha256[:12]} is not that of the demonstrations")
        self._observed.pop(session, None)

    def go_on(self, session: int, seed: int) -> None:
        """Begin another episode, as if it were the first."""
        self._observed.pop(session, None)

    def observe(self, session: int, observation: Any, where: str = "observation") -> None:
        """Take in what a session sees; raises `UserError` for what is not of the task's space."""
        self.layout.observation_tokens(observation, where)  # raises
        self._observed[session] = self.layout.with_time_axis(observation, where)

    def decide(self) -> dict[int, Any]:
        """Act in every session that has observed: session to action."""
        observed, self._observed = self._observed, {}
        actions = {}
        for session, observation in sorted(observed.items()):
            row = self.act(observation)
            actions[session] = action_of(self.layout.actions, row)
        return actions


class RetrieveAndPlay(Floor):
    """The action of the nearest observation of the demonstrations; of equally near ones the first (Sridhar et al.
    2025, retrieve-and-play)."""

    def __init__(self, layout: Layout, episodes: Sequence[Episode], num_sessions: int) -> None:
        """Memory is T x (D + 14 x 14 x 3 for each image) floats of 4 bytes, over all T timesteps."""
        super().__init__(layout, num_sessions)
        self.features = Features(layout, episodes)
        self._known = np.concatenate([self._rows(e.observations)[e.targets] for e in episodes])
        self._actions = np.concatenate([_joined(layout, e)[e.targets] for e in episodes])
        self._squares = (self._known**2).sum(axis=1)

    def act(self, observations: Any) -> NDArray[Any]:
        """Actions (N, A) on N observations."""
        rows = self._rows(observations)
        nearest = (self._squares - 2 * rows @ self._known.T).argmin(axis=1)
        found: NDArray[Any] = self._actions[nearest]
        return found

    def _rows(self, observations: Any) -> NDArray[np.float32]:
        vectors = self.features.vectors(observations)
        small = [_shrunk(images).reshape(len(vectors), -1) for images in self.features.images(observations)]
        return np.concatenate([vectors, *small], axis=1)


class Cloned(Floor):
    """A multilayer perceptron, with convolutions where images are observed, trained on the demonstrations: a softmax
    for each discrete number of the action, squared error of the standardised others."""

    def __init__(
        self,
        layout: Layout,
        episodes: Sequence[Episode],
        num_sessions: int,
        *,
        steps: int,
        batch: int,
        seed: int,
        lr: float = 1e-3,
    ) -> None:
        """Train for so many steps of so many timesteps."""
        super().__init__(layout, num_sessions)
        self.features = Features(layout, episodes)
        actions = np.concatenate([_joined(layout, e)[e.targets] for e in episodes]).astype(np.float64)
        self._mean, deviation = actions.mean(axis=0), actions.std(axis=0)
        self._scale = np.where(deviation > 1e-6, deviation, 1.0)
        self._columns = list(_columns(layout))
        vectors = np.concatenate([self.features.vectors(e.observations)[e.targets] for e in episodes])
        images = [
            np.concatenate([self.features.images(e.observations)[i][e.targets] for e in episodes])
            for i in range(sum(f.kind == "image" for f in layout.observations))
        ]
        torch.manual_seed(seed)
        outputs = sum(count or 1 for _, count, _ in self._columns)
        self.network = _Network(vectors.shape[1], [image.shape[1:] for image in images], outputs)
        self._train(vectors, images, actions, steps, batch, lr, np.random.default_rng(seed))

    def act(self, observations: Any) -> NDArray[Any]:
        """Actions (N, A) on N observations: the likeliest values, and the mean of others within their bounds."""
        with torch.inference_mode():
            vectors = torch.from_numpy(self.features.vectors(observations))
            out = self.network(vectors, [torch.from_numpy(i) for i in self.features.images(observations)]).numpy()
        rows, at = np.zeros((len(out), len(self._columns))), 0
        for j, (start, count, bounds) in enumerate(self._columns):
            if count:
                rows[:, j] = start + out[:, at : at + count].argmax(axis=1)
            else:
                rows[:, j] = np.clip(out[:, at] * self._scale[j] + self._mean[j], *bounds)
            at += count or 1
        return rows

    def _train(
        self,
        vectors: NDArray[np.float32],
        images: Sequence[NDArray[np.uint8]],
        actions: NDArray[np.float64],
        steps: int,
        batch: int,
        lr: float,
        rng: np.random.Generator,
    ) -> None:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=lr, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in tqdm(range(steps), desc="clone", unit="step", leave=False):
            chosen = rng.integers(0, len(vectors), batch)
            out = self.network(torch.from_numpy(vectors[chosen]), [torch.from_numpy(i[chosen]) for i in images])
            loss = self._loss(out, actions[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    def _loss(self, out: Tensor, actions: NDArray[np.float64]) -> Tensor:
        losses, at = [], 0
        for j, (start, count, _) in enumerate(self._columns):
            if count:
                wanted = torch.from_numpy(actions[:, j].astype(np.int64) - start)
                losses.append(F.cross_entropy(out[:, at : at + count], wanted))
            else:
                scaled = (actions[:, j] - self._mean[j]) / self._scale[j]
                losses.append(F.mse_loss(out[:, at], torch.from_numpy(scaled.astype(np.float32))))
            at += count or 1
        return torch.stack(losses).mean()


class _Network(nn.Module):
    """Convolutions over each image, joined with the vector, and two hidden layers."""

    def __init__(self, width: int, images: Sequence[tuple[int, ...]], outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([_convolutions(shape[-1]) for shape in images])
        with torch.no_grad():
            sizes = [
                c(torch.zeros(1, shape[-1], *shape[:2])).numel()
                for c, shape in zip(self.convolutions, images, strict=True)
            ]
        self.head = nn.Sequential(
            nn.Linear(width + sum(sizes), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, outputs),
        )  # fmt: skip

    def forward(self, vectors: Tensor, images: Sequence[Tensor]) -> Tensor:
        """Outputs (N, O) of vectors (N, D) and images (N, H, W, C) uint8."""
        seen = [
            c(image.movedim(-1, 1).float() / 127.5 - 1).flatten(1)
            for c, image in zip(self.convolutions, images, strict=True)
        ]
        out: Tensor = self.head(torch.cat([vectors, *seen], dim=1))
        return out


def _convolutions(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in CHANNELS:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)


def _one_hot(f: Field, values: Any) -> NDArray[np.float64]:
    """(T, the sum of the numbers of values) of a discrete field."""
    rows = np.asarray(values, np.int64).reshape(len(values), -1)
    hot = [np.eye(n)[rows[:, i] - start] for i, (start, n) in enumerate(zip(f.start, f.num_values, strict=True))]
    return np.concatenate(hot, axis=1)


def _shrunk(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(T, SIDE, SIDE, C) of images (T, H, W, C), averaged over blocks, from 0 to 1; smaller ones as they are."""
    T, H, W, C = images.shape
    rows, columns = max(1, H // SIDE), max(1, W // SIDE)
    cut = images[:, : H // rows * rows, : W // columns * columns]
    blocks = cut.reshape(T, H // rows, rows, W // columns, columns, C)
    mean: NDArray[np.float32] = blocks.mean(axis=(2, 4), dtype=np.float32) / 255
    return mean


def _joined(layout: Layout, episode: Episode) -> NDArray[Any]:
    """Actions (T, A) of an episode."""
    parts = [np.asarray(value_at(episode.actions, f.path)).reshape(len(episode), -1) for f in layout.actions]
    return np.concatenate(parts, axis=1)


def _columns(layout: Layout) -> Iterator[tuple[int, int, tuple[float, float]]]:
    """Of each number of an action: its smallest value, how many it has, 0 where it is continuous, and its bounds."""
    for f in layout.actions:
        if f.kind == "discrete":
            yield from ((start, count, (0.0, 0.0)) for start, count in zip(f.start, f.num_values, strict=True))
        else:
            low, high = f.bounds
            yield from ((0, 0, (float(a), float(b))) for a, b in zip(low, high, strict=True))
