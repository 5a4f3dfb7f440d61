"""One dataset that is being collected: which seeds, in which chunks, and what is there of them.

Seeds are collected in chunks, each published by rename into `OUT/TASK/.AGENTS-v0.chunks`; the dataset is put together
of the finished chunks by hard links. Which episodes it holds depends on the seeds alone, not on the processes.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from gatito.data.minari_arrow import write_episode
from gatito.data.minari_episodes import MinariWriter, check_spaces, open_minari
from gatito.data.publish import published
from gatito.data.recording import collect_episode
from gatito.data.shares import edges_of, whose_turn
from gatito.data.tasks import EVALUATION_SEEDS, ExpertFailed, TaskSpec
from gatito.errors import UserError, nearest

AGENTS = ("expert", "noisy", "random")
"""The scripted expert; the same with executed noise and the expert's actions as labels; the random policy."""

CHUNK_FILE = "chunk.json"
"""What a finished chunk says of itself."""

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
        metadata = open_minari(self.target).dataset.storage.metadata
        self._check(metadata.get("gatito_collection"), self.target)
        return True

    def begin(self) -> None:
        """Make the folder of the chunks; raises `UserError` where it holds some of other settings."""
        said = self.chunks / "settings.json"
        if said.is_file():
            self._check(json.loads(said.read_text()), self.chunks)
        else:
            self.chunks.mkdir(parents=True, exist_ok=True)
            temporary = said.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(self.settings))
            temporary.rename(said)

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
            missing = [seeds for seeds in planned if not self.chunk(seeds).exists()]
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
        said = [_read_chunk(self.chunk(seeds)) for seeds in chunks]
        return sum(episodes for episodes, _ in said), [why for _, failed in said for why in failed.values()]

    def _drop_failures(self, chunks: Sequence[range]) -> None:
        """Remove the chunks with failures, so that a mended expert tries their seeds again."""
        for seeds in chunks:
            if self.found([seeds])[1]:
                shutil.rmtree(self.chunk(seeds))

    def end(self) -> None:
        """Remove the folder of the chunks where it holds none."""
        if self.chunks.is_dir() and not any(path.is_dir() for path in self.chunks.iterdir()):
            shutil.rmtree(self.chunks)
            with contextlib.suppress(OSError):  # a folder that holds something else stays
                self.target.parent.rmdir()
                self.target.parent.parent.rmdir()

    def num_found(self) -> int:
        """Episodes in finished chunks."""
        return sum(_read_chunk(path)[0] for path in self._there())

    def _there(self) -> list[Path]:
        return sorted(path for path in self.chunks.glob("[0-9]*") if path.is_dir())

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
                episodes, more = _read_chunk(chunk)
                failed |= more
                for index in range(episodes):
                    writer.link(chunk, index)
            writer.close(gatito_failed=failed)
        shutil.rmtree(self.chunks)
        return self.target


def _read_chunk(chunk: Path) -> tuple[int, dict[str, str]]:
    """Number of episodes of a chunk, and why the expert gave up, by seed."""
    said = json.loads((chunk / CHUNK_FILE).read_text())
    return int(said["episodes"]), said["failed"]


def collect_chunk(
    spec: TaskSpec, root: Path, config: CollectConfig, seeds: range, tick: Callable[[], object] = lambda: None
) -> None:
    """Play the episodes of some seeds and publish them as a chunk; one episode at a time is in memory."""
    env, failed, episodes = _environment(spec), {}, 0
    check_spaces(env, f"{spec.id}/{config.name}")
    chunk = Collection(spec=spec, root=root, config=config).chunk(seeds)
    with published(chunk, durable=False) as folder:
        for seed in seeds:
            agent = config.agent(seed)
            noise = spec.noise if agent == "noisy" else 0.0
            plays: Literal["expert", "random"] = "random" if agent == "random" else "expert"
            try:
                buffer = collect_episode(spec, env, seed, agent=plays, noise=noise, labels=config.labels)
            except ExpertFailed as error:
                failed[str(seed)] = f"seed {seed}: {error}"
                continue
            write_episode(folder, episodes, buffer, env.observation_space, env.action_space, {"agent": agent})
            episodes += 1
            tick()
        (folder / CHUNK_FILE).write_text(json.dumps({"episodes": episodes, "failed": failed}))


_built: list[tuple[TaskSpec, gym.Env[Any, Any]]] = []
"""The environment of this process: building one may take longer than an episode."""


def _environment(spec: TaskSpec) -> gym.Env[Any, Any]:
    if not _built or _built[0][0] is not spec:
        for _, env in _built:
            env.close()
        _built[:] = [(spec, spec.make())]
    return _built[0][1]
