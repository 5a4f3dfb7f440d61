"""From a dataset in another format to a Minari dataset as ours."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gatito.data.engine import EngineName, ray_engine
from gatito.data.formats.hdf5 import open_hdf5_source
from gatito.data.formats.hub import HubSource
from gatito.data.formats.lerobot import LeRobotSource
from gatito.data.formats.minari import MinariEpisodes
from gatito.data.formats.source import EpisodeSource, ImportConfig, Space, naming
from gatito.data.minari_arrow import EncodedEpisode, encode_episode
from gatito.data.minari_episodes import MinariWriter
from gatito.data.publish import check_writable, published
from gatito.data.tasks import EVALUATION_SEEDS
from gatito.errors import UserError, nearest

Opener = Callable[[ImportConfig, tuple[Space, Space] | None], EpisodeSource]
FORMATS: Mapping[str, Opener] = {
    "minari": MinariEpisodes, "hf": HubSource, "lerobot": LeRobotSource, "hdf5": open_hdf5_source
}  # fmt: skip
"""Scheme of a source to what opens it."""
EPISODES = 16
"""Episodes that a worker of Ray reads at a time."""
NAME = "imported-v0"
"""Last part of the id of an imported dataset."""


def check_scheme(source: str) -> None:
    """Raise `UserError` for a source of no known format, or that names nothing."""
    scheme, _, location = source.partition(":")
    if scheme not in FORMATS or not location:
        raise UserError(f"source {source!r}: {nearest(scheme, FORMATS, 'format')}, as in hdf5:FILE")


def open_source(config: ImportConfig, given: tuple[Space, Space] | None = None) -> EpisodeSource:
    """Open a dataset in another format; `given` are the spaces of its environment, where that is known.

    Raises `UserError` for a scheme that there is not, and what the format raises.
    """
    check_scheme(config.source)
    with naming(config.source):
        return FORMATS[config.scheme](config, given)


def task_of(source: str, task: str | None, env: str | None) -> str:
    """The task id of a source: as the user says, that of the environment, or by the name of the source.

    Raises what `check_scheme` raises.
    """
    check_scheme(source)
    if task is None:
        task = env
    if task is None:
        last = Path(source.partition(":")[2]).stem.lower()
        task = "imported/" + re.sub(r"[^a-z0-9_.-]+", "-", last).strip("-.")
    return task


def import_episodes(
    config: ImportConfig,
    out: Path,
    *,
    given: tuple[Space, Space] | None = None,
    count: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    engine: EngineName = "local",
    processes: int = 2,
) -> int:
    """Write the first `count` episodes of a source, or all, as the Minari dataset `out`; returns how many.

    With the engine `ray` its workers read them, on this machine so many; the dataset is the same to the bit. It
    appears whole or not at all. `metadata` replaces what the source says of itself. Raises `UserError` where a value
    is not of its space, where an episode has a seed of evaluation, and what the source raises.
    """
    check_writable(out)
    if out.exists():
        raise UserError(f"--out {out} exists; choose another folder or remove it")
    source = open_source(config, given)
    stated = {
        "algorithm_name": config.agent or "unknown",
        "gatito_actions": "executed",
        **source.metadata,
        "gatito_task": config.task,
        **(metadata or {}),
    }
    if isinstance(stated.get("author"), list):
        stated["author"] = set(stated["author"])  # as Minari wants several
    if config.agent is not None:
        stated["algorithm_name"] = config.agent
    total = source.num_episodes if count is None else min(count, source.num_episodes)
    with published(out) as folder:
        writer = MinariWriter(folder, f"{config.task}/{NAME}", source, stated)
        if not total:
            raise UserError(f"{config.source} has no episodes; nothing is imported")
        spaces = source.observation_space, source.action_space
        if engine == "ray":
            jobs = [
                _Range(config, spaces, first, min(first + EPISODES, total)) for first in range(0, total, EPISODES)
            ]
            episodes = _on_ray(jobs, processes)
        else:
            episodes = _encoded(source, 0, total)
        for episode in tqdm(episodes, desc=f"import {config.task}", total=total, unit="episode"):
            writer.append(episode)
        writer.close()
    return total


@dataclass(frozen=True)
class _Range:
    """Episodes [first, last) that a worker reads."""

    config: ImportConfig
    spaces: tuple[Space, Space]
    first: int
    last: int


def _encoded(source: EpisodeSource, first: int, last: int) -> Iterator[EncodedEpisode]:
    with naming(source.config.source):
        yield from _checked(source, first, last)


def _checked(source: EpisodeSource, first: int, last: int) -> Iterator[EncodedEpisode]:
    for index, (buffer, said) in enumerate(source.episodes(first, last), start=first):
        if buffer.seed is not None and buffer.seed >= EVALUATION_SEEDS:
            raise UserError(
                f"{source.config.source}, episode {index}: its seed {buffer.seed} is kept for evaluation (from "
                f"{EVALUATION_SEEDS} on); import it under another task, or drop the episode"
            )
        yield encode_episode(buffer, source.observation_space, source.action_space, said)


_opened: list[EpisodeSource] = []
"""The source that this worker has opened last: the next range is of the same."""


def _read_on_ray(job: _Range) -> list[EncodedEpisode]:
    if not _opened or _opened[0].config != job.config:
        _opened[:] = [open_source(job.config, job.spaces)]
    return list(_encoded(_opened[0], job.first, job.last))


def _on_ray(jobs: Sequence[_Range], processes: int) -> Iterator[EncodedEpisode]:
    """What Ray's workers read, in order."""
    with ray_engine(processes) as engine:
        for outcome in engine.run(_read_on_ray, jobs, in_order=True):
            yield from outcome.value()
