"""Demonstrations of one task, checked and put together to one table of timesteps."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.data.checks import checked_tokens
from gatito.data.episode import Episode
from gatito.data.minari_episodes import MinariSource
from gatito.data.tasks import EVALUATION_SEEDS, TaskSpec
from gatito.errors import UserError
from gatito.eval.prompts import check_datasets
from gatito.eval.wording import counted
from gatito.tokenizers import Layout
from gatito.tokenizers.fields import Field, build_tree, value_at

MAX_BYTES = 1 << 31
"""Size of the observations of a task that are held in memory."""
Named = tuple[str, Episode]
"""How an episode is named in errors, and the episode."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstrations:
    """T timesteps of the episodes of a task, in order, without those whose action is not to be imitated."""

    task: str
    """Task id."""
    layout: Layout
    """Of its spaces."""
    observations: Any
    """Nested as the observation space, each leaf with a leading T axis (text: a list of T)."""
    actions: Any
    """Nested as the action space, each leaf with a leading T axis."""
    num_episodes: int
    """Episodes that they are of."""

    def __len__(self) -> int:
        return len(value_at(self.actions, self.layout.actions[0].path))

    @cached_property
    def sha256(self) -> str:
        """Hash of task, layout and all values."""
        digest = hashlib.sha256(f"{self.task}\n{self.layout.sha256}\n".encode())
        for fields, tree in ((self.layout.observations, self.observations), (self.layout.actions, self.actions)):
            for field in fields:
                values = value_at(tree, field.path)
                data = "\0".join(values).encode() if field.kind == "text" else np.ascontiguousarray(values).tobytes()
                digest.update(hashlib.sha256(data).digest())
        return digest.hexdigest()

    @classmethod
    def of(cls, task: str, layout: Layout, episodes: Iterable[Named]) -> "Demonstrations":
        """Put episodes together.

        Raises `UserError` for one of another task, with a seed of evaluation, or with values that are not of the
        spaces; where nothing is to be imitated; and for observations of more than `MAX_BYTES`.
        """
        kept, size_bytes = [], 0
        for name, episode in episodes:
            _check(task, layout, name, episode)
            kept.append(episode)
            size_bytes += sum(_size_bytes(value_at(episode.observations, f.path)) for f in layout.observations)
            if size_bytes > MAX_BYTES:
                raise UserError(
                    f"task {task!r}: {counted(len(kept), 'demonstration')} have {size_bytes / 1e9:.2f} GB "
                    f"of observations, allowed {MAX_BYTES / 1e9:.2f} GB; ask for fewer with --demonstrations"
                )
        if not any(episode.targets.any() for episode in kept):
            raise UserError(
                f"task {task!r}: {counted(len(kept), 'demonstration')} without an action to imitate; collect some"
            )
        targets = np.concatenate([episode.targets for episode in kept])
        return cls(
            task=task,
            layout=layout,
            observations=_joined(layout.observations, [episode.observations for episode in kept], targets),
            actions=_joined(layout.actions, [episode.actions for episode in kept], targets),
            num_episodes=len(kept),
        )

    def action(self, t: int) -> Any:
        """The action of a timestep, for the environment; what overshot its bounds is clipped to them."""
        return build_tree({f.path: _within(f, value_at(self.actions, f.path)[t]) for f in self.layout.actions})


def load_demonstrations(spec: TaskSpec, layout: Layout, source: str, count: int | None = None) -> Demonstrations:
    """The first `count` demonstrations of a task, by default all, of the dataset or folder of datasets `source`.

    Datasets of a folder follow each other by name. Raises `UserError` where there are fewer or none, for a dataset of
    another task or layout, and what `Demonstrations.of` raises.
    """
    datasets = check_datasets(spec, layout, source)
    found = sum(len(dataset) for dataset in datasets)
    if count is not None and not 1 <= count <= found:
        raise UserError(
            f"--demonstrations is {count}, allowed 1 to {found}: {source} has {found} of {spec.id!r}; collect more, "
            "or ask for fewer"
        )
    return Demonstrations.of(spec.id, layout, islice(_named(datasets), count))


def _named(datasets: Iterable[MinariSource]) -> Iterator[Named]:
    for dataset in datasets:
        for episode in dataset.episodes():
            yield f"{dataset.path}, episode {episode.id}", episode


def _check(task: str, layout: Layout, name: str, episode: Episode) -> None:
    if episode.task != task:
        raise UserError(f"{name}: it demonstrates {episode.task!r}, expected {task!r}; give episodes of that task")
    if episode.seed is not None and episode.seed >= EVALUATION_SEEDS:
        raise UserError(
            f"{name}: its seed {episode.seed} is one of evaluation, allowed below {EVALUATION_SEEDS}; demonstrations "
            "of what is scored would be copied"
        )
    checked_tokens(layout, episode, where=name)


def _size_bytes(values: Any) -> int:
    return sum(map(len, values)) if isinstance(values, list) else int(np.asarray(values).nbytes)


def _joined(fields: tuple[Field, ...], trees: list[Any], targets: NDArray[np.bool_]) -> Any:
    """The values of all episodes at the timesteps that are targets (T,), nested as each of them."""
    leaves = {}
    for field in fields:
        parts = [value_at(tree, field.path) for tree in trees]
        if field.kind == "text":
            texts = [text for part in parts for text in part]
            leaves[field.path] = [texts[t] for t in np.flatnonzero(targets)]
        else:
            leaves[field.path] = np.concatenate(parts)[targets]
    return build_tree(leaves)


def _within(field: Field, value: Any) -> Any:
    if field.kind != "continuous":
        return np.asarray(value, field.dtype)[()]
    low, high = (bound.reshape(field.shape) for bound in field.bounds)
    return np.clip(value, low, high).astype(field.dtype)
