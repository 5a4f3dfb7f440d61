"""One dataset that is being collected: which seeds, in which chunks, and what is there of them.

Seeds are collected in chunks, each published by rename into `OUT/TASK/.AGENTS-v0.chunks`; the dataset is put together
of the finished chunks. Which episodes it holds depends on the seeds alone, not on the processes.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import psutil

from gatito.data.chunk import Chunk, read_chunk, written_chunk
from gatito.data.minari_arrow import encode_episode
from gatito.data.minari_episodes import MinariWriter, check_spaces, open_minari
from gatito.data.publish import published
from gatito.data.recording import collect_episode
from gatito.data.shares import edges_of, whose_turn
from gatito.data.tasks import EVALUATION_SEEDS, ExpertFailed, TaskSpec
from gatito.errors import UserError, nearest

AGENTS = ("expert", "noisy", "random")
"""The scripted expert; the same with executed noise and the expert's actions as labels; the random policy."""

LOCK = "lock"
"""File with the host and process that collects into a folder of chunks."""

CHUNK = 25
"""Seeds that are published together, and lost together where a run is killed."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """What `gatito data collect` collects."""

    episodes: int = 100
    """Episodes per task."""
    agents: Mapping[str, float] = field(default_factory=lambda: {"noisy": 1.0})
    """Source agents and their shares of the episodes: `expert`, `noisy`, `random`."""
    labels: Literal["expert", "executed"] = "expert"
    """Which action is recorded where noise was executed; executed noise later leaves the loss mask."""
    first_seed: int = 0
    """Seed of the first episode; the next ones count up."""
    processes: int = 2
    """Processes that simulate."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError(f"episodes is {self.episodes}, allowed 1 and more")
        if self.processes < 1:
            raise UserError(f"processes is {self.processes}, allowed 1 and more")
        if not self.agents:
            raise UserError(f"agents names nobody; choose of {', '.join(AGENTS)}")
        for agent, share in self.agents.items():
            if not (np.isfinite(share) and share > 0):
                raise UserError(f"the share of agent {agent!r} is {share}, allowed > 0; leave the agent out instead")
        if not 0 <= self.first_seed <= EVALUATION_SEEDS - self.episodes:
            raise UserError(
                f"first_seed {self.first_seed} with {self.episodes} episodes leaves [0, {EVALUATION_SEEDS}); "
                "seeds from there on are kept for evaluation"
            )

    @property
    def name(self) -> str:
        """Last part of a dataset's id."""
        return f"{'-'.join(sorted(self.agents))}-v0"

    def agent(self, seed: int) -> str:
        """Who plays the episode of a seed."""
        names = sorted(self.agents)
        edges = edges_of(np.array([self.agents[name] for name in names]))
        return names[whose_turn(edges, seed)]


def parse_agents(typed: str) -> dict[str, float]:
    """Read `noisy` or `expert=4,noisy=4,random=2`; raises `UserError` for an agent that there is not."""
    agents: dict[str, float] = {}
    for part in typed.split(","):
        name, _, share = (word.strip() for word in part.partition("="))
        if name not in AGENTS:
            raise UserError(nearest(name, AGENTS, "agent"))
        try:
            agents[name] = float(share or 1.0)
        except ValueError:
            raise UserError(f"the share of agent {name!r} is {share!r}, expected a number") from None
    return agents


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The chunks of one dataset, as far as they are there."""

    spec: TaskSpec
    """What is played."""
    root: Path
    """Folder of all datasets."""
    config: CollectConfig
    """How."""

    @property
    def target(self) -> Path:
        """Folder of the finished dataset."""
        return self.root / self.spec.id / self.config.name

    @property
    def chunks(self) -> Path:
        """Folder of the finished chunks."""
        return self.target.with_name(f".{self.target.name}.chunks")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which episodes are collected."""
        kept = {key: value for key, value in dataclasses.asdict(self.config).items() if key != "processes"}
        return {"task": self.spec.id, "noise": self.spec.noise, **kept}

    def is_finished(self) -> bool:
        """Whether the dataset is there; raises `UserError` where one of other settings is."""
        if not self.target.exists():
            return False
        _remove(self.chunks)  # of a run that was killed after it had put them together
        metadata = open_minari(self.target).dataset.storage.metadata
        self._check(metadata.get("gatito_collection"), self.target)
        return True

    def begin(self) -> None:
        """Make the folder of the chunks.

        Raises `UserError` where it holds some of other settings, or another process is at it.
        """
        self.chunks.mkdir(parents=True, exist_ok=True)
        owner = self._owner()
        if owner not in (None, os.getpid()) and psutil.pid_exists(owner):
            raise UserError(
                f"{self.chunks} is being collected by process {owner}; wait for it, or choose another --out"
            )
        (self.chunks / LOCK).write_text(json.dumps([socket.gethostname(), os.getpid()]))
        said = self.chunks / "settings.json"
        found = _read_json(said)
        if found is not None:
            self._check(found, self.chunks)
        else:
            temporary = said.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(self.settings))
            temporary.rename(said)

    def _owner(self) -> int | None:
        """The process of this machine that collects into the folder of the chunks."""
        said = _read_json(self.chunks / LOCK)
        return int(said[1]) if isinstance(said, list) and said[0] == socket.gethostname() else None

    def _check(self, found: Any, where: Path) -> None:
        if found == self.settings:
            return
        differing = [
            key for key in self.settings if not isinstance(found, dict) or found.get(key) != self.settings[key]
        ]
        raise UserError(
            f"{where} holds episodes of other settings ({', '.join(differing)}); remove it, choose another --out or "
            "leave the task out"
        )

    def todo(self) -> list[range]:
        """Seeds of the chunks that can be collected now; empty where all are there.

        Seeds on which the expert gives up are passed over: as many more follow. Raises `UserError` where it gives
        up too often.
        """
        N, first = self.config.episodes, self.config.first_seed
        stop = first + N
        planned = [range(seed, min(seed + CHUNK, stop)) for seed in range(first, stop, CHUNK)]
        while True:
            missing = [seeds for seeds in planned if read_chunk(self.chunk(seeds)) is None]
            if missing:
                return missing
            episodes, reasons = self.found(planned)
            if len(reasons) > 10 + N // 2:
                self._drop_failures(planned)
                raise UserError(f"task {self.spec.id!r}: the expert failed {len(reasons)} times, last: {reasons[-1]}")
            if episodes == N:
                return []
            first = planned[-1].stop
            planned.append(range(first, first + min(CHUNK, N - episodes)))
            if planned[-1].stop > EVALUATION_SEEDS:
                raise UserError(
                    f"task {self.spec.id!r}: seed {EVALUATION_SEEDS} is kept for evaluation; lower --first-seed"
                )

    def chunk(self, seeds: range) -> Path:
        """Where the chunk of these seeds is."""
        return self.chunks / f"{seeds.start:010d}-{len(seeds)}"

    def found(self, chunks: Sequence[range]) -> tuple[int, list[str]]:
        """Episodes in these chunks, and why the expert gave up on the other seeds."""
        there = [chunk for seeds in chunks if (chunk := read_chunk(self.chunk(seeds))) is not None]
        return sum(map(len, there)), [why for chunk in there for why in chunk.failed.values()]

    def _drop_failures(self, chunks: Sequence[range]) -> None:
        """Remove the chunks with failures, so that a mended expert tries their seeds again."""
        for seeds in chunks:
            if self.found([seeds])[1]:
                _remove(self.chunk(seeds))

    def end(self) -> None:
        """Release the folder of the chunks, and remove it where it holds none."""
        if not self.chunks.is_dir() or self._owner() not in (None, os.getpid()):
            return
        (self.chunks / LOCK).unlink(missing_ok=True)
        if not self._there():
            _remove(self.chunks)
            with contextlib.suppress(OSError):  # a folder that holds something else stays
                self.target.parent.rmdir()
                self.target.parent.parent.rmdir()

    def num_found(self) -> int:
        """Episodes in finished chunks."""
        return sum(map(len, self._there()))

    def _there(self) -> list[Chunk]:
        """Finished chunks in the order of their seeds."""
        read = [read_chunk(path) for path in sorted(self.chunks.glob("[0-9]*"))]
        return [chunk for chunk in read if chunk is not None]

    def assemble(self) -> Path:
        """Put the dataset together of its chunks, and remove these."""
        names = sorted(self.config.agents)
        noise = f"; noisy: {self.spec.noise:.0%} random actions executed" if "noisy" in names else ""
        metadata = {
            "algorithm_name": ", ".join(names),
            "gatito_task": self.spec.id,
            "gatito_actions": self.config.labels,
            "gatito_license": self.spec.license,
            "gatito_collection": self.settings,
            "description": f"episodes of {self.spec.id} by {', '.join(names)}{noise}",
        }
        failed: dict[str, str] = {}
        with published(self.target) as folder:
            writer = MinariWriter(folder, f"{self.spec.id}/{self.config.name}", _environment(self.spec), metadata)
            for chunk in self._there():
                failed |= chunk.failed
                for episode in chunk.episodes():
                    writer.append(episode)
            writer.close(gatito_failed=failed)
        _remove(self.chunks)
        return self.target


def _read_json(path: Path) -> Any:
    """What a file holds; None where it is not there, or was cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _remove(folder: Path) -> None:
    """Remove a folder, out of sight before it is in pieces."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}")
        folder.rename(hidden)
        shutil.rmtree(hidden)


def collect_chunk(
    spec: TaskSpec, root: Path, config: CollectConfig, seeds: range, tick: Callable[[], object] = lambda: None
) -> None:
    """Play the episodes of some seeds and publish them as a chunk; one episode at a time is in memory."""
    env = _environment(spec)
    check_spaces(env, f"{spec.id}/{config.name}")
    with written_chunk(Collection(spec=spec, root=root, config=config).chunk(seeds)) as chunk:
        for seed in seeds:
            agent = config.agent(seed)
            noise = spec.noise if agent == "noisy" else 0.0
            plays: Literal["expert", "random"] = "random" if agent == "random" else "expert"
            try:
                buffer = collect_episode(spec, env, seed, agent=plays, noise=noise, labels=config.labels)
            except ExpertFailed as error:
                chunk.failed[str(seed)] = f"seed {seed}: {error}"
                continue
            chunk.append(encode_episode(buffer, env.observation_space, env.action_space, {"agent": agent}))
            tick()


_built: list[tuple[TaskSpec, gym.Env[Any, Any]]] = []
"""The environment of this process: building one may take longer than an episode."""


def _environment(spec: TaskSpec) -> gym.Env[Any, Any]:
    if not _built or _built[0][0] is not spec:
        for _, env in _built:
            env.close()
        _built[:] = [(spec, spec.make())]
    return _built[0][1]
