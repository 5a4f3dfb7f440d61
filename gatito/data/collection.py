"""One dataset that is being collected: which seeds, in which chunks, and what is there of them.

Seeds are collected in chunks below `OUT/TASK/.AGENTS-v0.chunks`, which keep every finished episode; the dataset is
put together of the finished chunks. Which episodes it holds depends on the seeds alone, not on the processes.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from gatito.data.chunk import Chunk, DamagedChunk
from gatito.data.engine import EngineName
from gatito.data.minari_arrow import EncodedEpisode, encode_episode
from gatito.data.minari_episodes import MinariWriter, check_spaces, open_minari
from gatito.data.publish import published, remove_folder
from gatito.data.recording import collect_episode
from gatito.data.shares import edges_of, whose_turn
from gatito.data.tasks import EVALUATION_SEEDS, ExpertFailed, TaskSpec
from gatito.errors import UserError, nearest

AGENTS = ("expert", "noisy", "random")
"""The scripted expert; the same with executed noise and the expert's actions as labels; the random policy."""

LOCK = "lock"
"""File that the process that collects into a folder of chunks holds locked; it says which one that is."""

CHUNK = 25
"""Seeds that a process plays without asking for more."""


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
    """Processes that simulate; for Ray, CPUs of the one that is started where `RAY_ADDRESS` names no cluster."""
    engine: EngineName = "local"
    """What runs them."""

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
        kept = {
            key: value for key, value in dataclasses.asdict(self.config).items() if key not in ("processes", "engine")
        }
        return {"task": self.spec.id, "noise": self.spec.noise, **kept}

    def is_finished(self) -> bool:
        """Whether the dataset is there; raises `UserError` where one of other settings is."""
        if not self.target.exists():
            return False
        remove_folder(self.chunks)  # of a run that was killed after it had put them together
        metadata = open_minari(self.target).dataset.storage.metadata
        self._check(metadata.get("gatito_collection"), self.target)
        return True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes off the folder of the chunks, and at the end remove it where no seed is finished.

        Raises `UserError` where another process is at it, or it holds chunks of other settings.
        """
        with self._lock() as lock:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            said = self.chunks / "settings.json"
            found = _read_json(said)
            if found is not None:
                self._check(found, self.chunks)
            else:
                temporary = said.with_suffix(f".{os.getpid()}")
                temporary.write_text(json.dumps(self.settings))
                temporary.rename(said)
            try:
                yield
            finally:
                self._remove_if_empty()

    def _lock(self) -> TextIO:
        """Open and lock the lock file; the system unlocks it when this process closes it, or ends."""
        while True:
            self.chunks.mkdir(parents=True, exist_ok=True)
            lock = (self.chunks / LOCK).open("a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                with lock:
                    lock.seek(0)
                    owner = lock.read()
                raise UserError(
                    f"{self.chunks} is being collected by process {owner or 'unknown'}; wait for it, or choose "
                    "another --out"
                ) from None
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(lock.fileno()), (self.chunks / LOCK).stat()):
                    return lock
            lock.close()  # its last owner removed it in the meantime

    def _remove_if_empty(self) -> None:
        if self.chunks.is_dir() and not any(list(chunk.entries()) for chunk in self._there()):
            remove_folder(self.chunks)
            with contextlib.suppress(OSError):  # a folder that holds something else stays
                self.target.parent.rmdir()
                self.target.parent.parent.rmdir()

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

    def advance(self) -> list[range]:
        """Seeds of the chunks that can be collected now; where all are there, the dataset is put together of them.

        Raises `UserError` where the expert gives up too often.
        """
        while True:
            chunks, left = self._planned()
            if left or self._assemble(chunks):
                return left

    def _planned(self) -> tuple[list[range], list[range]]:
        """Seeds of all chunks, as far as they are known, and of those among them that are not finished.

        Seeds on which the expert gives up are passed over: as many more follow.
        """
        N, first = self.config.episodes, self.config.first_seed
        stop = first + N
        more = [range(seed, min(seed + CHUNK, stop)) for seed in range(first, stop, CHUNK)]
        chunks: list[range] = []
        episodes = failures = 0
        last = ""
        while True:
            chunks += more
            left = []
            for seeds in more:
                finished = self.chunk(seeds).finished()
                episodes, failures = episodes + finished.episodes, failures + len(finished.failed)
                last = finished.failed[-1] if finished.failed else last
                if not finished.whole:
                    left.append(seeds)
            if left:
                return chunks, left
            if failures > 10 + N // 2:
                self._drop_failures(chunks)
                raise UserError(f"task {self.spec.id!r}: the expert failed {failures} times, last: {last}")
            if episodes == N:
                return chunks, []
            first = chunks[-1].stop
            more = [range(first, first + min(CHUNK, N - episodes))]
            if more[0].stop > EVALUATION_SEEDS:
                raise UserError(
                    f"task {self.spec.id!r}: seed {EVALUATION_SEEDS} is kept for evaluation; lower --first-seed"
                )

    def chunk(self, seeds: range) -> Chunk:
        """The chunk of these seeds."""
        return Chunk(path=self.chunks / f"{seeds.start:010d}-{len(seeds)}", seeds=seeds)

    def _drop_failures(self, chunks: Sequence[range]) -> None:
        """Remove the chunks with failures, so that a mended expert tries their seeds again."""
        for chunk in map(self.chunk, chunks):
            if chunk.finished().failed:
                remove_folder(chunk.path)

    def num_found(self) -> int:
        """Finished episodes."""
        return sum(chunk.finished().episodes for chunk in self._there())

    def _there(self) -> Iterator[Chunk]:
        """Chunks that were begun."""
        for path in sorted(self.chunks.glob("[0-9]*-[0-9]*")):
            first, count = map(int, path.name.split("-"))
            yield self.chunk(range(first, first + count))

    def _assemble(self, chunks: Sequence[range]) -> bool:
        """Put the dataset together of these chunks, and remove these; returns False where one is damaged.

        A damaged chunk is removed. Chunks and dataset lie on the disk side by side until the dataset is published:
        what is put together of it does not outlive this process.
        """
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
        chunk = self.chunk(chunks[0])
        try:
            with published(self.target) as folder:
                writer = MinariWriter(folder, f"{self.spec.id}/{self.config.name}", _environment(self.spec), metadata)
                for chunk in map(self.chunk, chunks):
                    failed |= {str(entry.seed): entry.failed for entry in chunk.entries() if entry.failed}
                    for episode in chunk.episodes():
                        writer.append(episode)
                writer.close(gatito_failed=failed)
        except DamagedChunk as error:
            tqdm.write(f"{error}: its {len(chunk.seeds)} seeds are collected anew", file=sys.stderr)
            remove_folder(chunk.path)
            return False
        remove_folder(self.chunks)
        return True


def _read_json(path: Path) -> Any:
    """What a file holds; None where it is not there, or was cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def collect_chunk(
    spec: TaskSpec, root: Path, config: CollectConfig, seeds: range, tick: Callable[[], object] = lambda: None
) -> None:
    """Play what is left of the seeds of a chunk; one episode at a time is in memory, and each is kept at once."""
    with Collection(spec=spec, root=root, config=config).chunk(seeds).continued() as chunk:
        for seed, played in played_seeds(spec, config, chunk.seeds):
            chunk.add(seed, played)
            if isinstance(played, EncodedEpisode):
                tick()


def played_seeds(
    spec: TaskSpec, config: CollectConfig, seeds: Iterable[int]
) -> Iterator[tuple[int, EncodedEpisode | str]]:
    """Play seeds, in order: each with its episode, or with why the expert gave up.

    Raises `UserError` for spaces and values that cannot be recorded.
    """
    env = _environment(spec)
    check_spaces(env, f"{spec.id}/{config.name}")
    for seed in seeds:
        agent = config.agent(seed)
        noise = spec.noise if agent == "noisy" else 0.0
        plays: Literal["expert", "random"] = "random" if agent == "random" else "expert"
        try:
            buffer = collect_episode(spec, env, seed, agent=plays, noise=noise, labels=config.labels)
        except ExpertFailed as error:
            yield seed, f"seed {seed}: {error}"
            continue
        yield seed, encode_episode(buffer, env.observation_space, env.action_space, {"agent": agent})


_built: list[tuple[TaskSpec, gym.Env[Any, Any]]] = []
"""The environment of this process: building one may take longer than an episode."""


def _environment(spec: TaskSpec) -> gym.Env[Any, Any]:
    if not _built or _built[0][0] is not spec:
        for _, env in _built:
            env.close()
        _built[:] = [(spec, spec.make())]
    return _built[0][1]
