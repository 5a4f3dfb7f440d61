"""From a dataset in another format to a Minari dataset as ours."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gatito.data.formats.hdf5 import open_hdf5_source
from gatito.data.formats.hub import HubSource
from gatito.data.formats.lerobot import LeRobotSource
from gatito.data.formats.minari import MinariEpisodes
from gatito.data.formats.source import EpisodeSource, ImportConfig, Space
from gatito.data.minari_arrow import encode_episode
from gatito.data.minari_episodes import MinariWriter
from gatito.data.publish import check_writable, published
from gatito.data.tasks import EVALUATION_SEEDS
from gatito.errors import UserError, nearest

Opener = Callable[[ImportConfig, tuple[Space, Space] | None], EpisodeSource]
FORMATS: Mapping[str, Opener] = {
    "minari": MinariEpisodes, "hf": HubSource, "lerobot": LeRobotSource, "hdf5": open_hdf5_source
}  # fmt: skip
"""Scheme of a source to what opens it."""
NAME = "imported-v0"
"""Last part of the id of an imported dataset."""


def open_source(config: ImportConfig, given: tuple[Space, Space] | None = None) -> EpisodeSource:
    """Open a dataset in another format; `given` are the spaces of its environment, where that is known.

    Raises `UserError` for a scheme that there is not, and what the format raises.
    """
    if config.scheme not in FORMATS or not config.location:
        raise UserError(f"source {config.source!r}: {nearest(config.scheme, FORMATS, 'format')}, as in hdf5:FILE")
    return FORMATS[config.scheme](config, given)


def task_of(source: str, task: str | None, env: str | None) -> str:
    """The task id of a source: as the user says, that of the environment, or by the name of the source.

    Raises `UserError` for one that cannot be a folder.
    """
    if task is None:
        task = env
    if task is None:
        last = Path(source.partition(":")[2]).stem.lower()
        task = "imported/" + re.sub(r"[^a-z0-9_.-]+", "-", last).strip("-.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", task):
        raise UserError(f"--task {task!r}: allowed is domain/name, each of letters, digits, '-', '_' and '.'")
    return task


def import_episodes(
    config: ImportConfig,
    out: Path,
    *,
    given: tuple[Space, Space] | None = None,
    count: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """Write the first `count` episodes of a source, or all, as the Minari dataset `out`; returns how many.

    It appears whole or not at all. `metadata` replaces what the source says of itself. Raises `UserError` where a
    value is not of its space, where an episode has a seed of evaluation, and what the source raises.
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
    if config.agent is not None:
        stated["algorithm_name"] = config.agent
    total = source.num_episodes if count is None else min(count, source.num_episodes)
    with published(out) as folder:
        writer = MinariWriter(folder, f"{config.task}/{NAME}", source, stated)
        episodes = tqdm(source.episodes(count), desc=f"import {config.task}", total=total, unit="episode")
        written = 0
        for buffer, said in episodes:
            if buffer.seed is not None and buffer.seed >= EVALUATION_SEEDS:
                raise UserError(
                    f"{config.source}, episode {written}: its seed {buffer.seed} is kept for evaluation (from "
                    f"{EVALUATION_SEEDS} on); import it under another task, or drop the episode"
                )
            writer.append(encode_episode(buffer, source.observation_space, source.action_space, said))
            written += 1
        if not written:
            raise UserError(f"{config.source} has no episodes; nothing is imported")
        writer.close()
    return written
