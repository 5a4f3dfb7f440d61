"""A chunk of a collection: the episodes of some seeds end to end in one file, kept as they are finished.

CHUNK/episodes.bin     the Arrow files of the episodes, one after the other
CHUNK/episodes.jsonl   a line per finished seed: size and metadata of its episode, or why the expert gave up

So an episode has no files of its own before its dataset is put together: making a folder with two files takes as long
as a quarter of the shortest level of BabyAI. A killed process leaves its finished seeds behind, and perhaps half an
episode or half a line, which the next one cuts off.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gatito.data.minari_arrow import EncodedEpisode

EPISODES, INDEX = "episodes.bin", "episodes.jsonl"


class DamagedChunk(ValueError):
    """An episode of a chunk is not the one that was written."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the index says of a finished seed."""

    seed: int
    """The seed."""
    size: int = 0
    """Bytes of its episode."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What is said of its episode beside the arrays, the SHA-256 of its bytes too; empty where there is none."""
    failed: str = ""
    """Why the expert gave up; empty where it did not."""

    def matches(self, content: bytes) -> bool:
        """Whether these bytes are what was written of the seed."""
        return bool(self.failed) or hashlib.sha256(content).hexdigest() == self.metadata.get("sha256")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What there is of a chunk."""

    episodes: int
    """How many are there."""
    failed: list[str]
    """Why the expert gave up on the other seeds."""
    whole: bool
    """Whether no seed is left to play."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A chunk, finished or not; its episodes are read one at a time."""

    path: Path
    """Its folder, which need not be there."""
    seeds: range
    """The seeds that it is of."""

    def entries(self) -> Iterator[Entry]:
        """Yield what is said of the finished seeds, in order."""
        return (entry for entry, _ in self._lines())

    def finished(self) -> Finished:
        """Count what is there; the episodes themselves are compared with their hashes as they are read."""
        found = list(self.entries())
        failed = [entry.failed for entry in found if entry.failed]
        size = (self.path / EPISODES).stat().st_size if found else 0
        whole = len(found) == len(self.seeds) and size == sum(entry.size for entry in found)
        return Finished(episodes=len(found) - len(failed), failed=failed, whole=whole)

    def episodes(self) -> Iterator[EncodedEpisode]:
        """Yield every episode, in order; raises `DamagedChunk` at one that does not match its SHA-256."""
        with (self.path / EPISODES).open("rb") as file:
            for entry in self.entries():
                content = file.read(entry.size)
                if not entry.matches(content):
                    raise DamagedChunk(f"{self.path}: the episode of seed {entry.seed} does not match its SHA-256")
                if not entry.failed:
                    yield EncodedEpisode(content=content, metadata=entry.metadata)

    @contextmanager
    def continued(self) -> Iterator["ChunkWriter"]:
        """Yield a writer that goes on after the seeds that are there, each compared with its hash."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / EPISODES).open("a+b") as file, (self.path / INDEX).open("a+b") as index:
            fcntl.flock(index, fcntl.LOCK_EX)  # a worker may outlive its killed parent by an instant
            file.seek(0)
            size = index_size = kept = 0
            for entry, line_size in self._lines():
                if not entry.matches(file.read(entry.size)):
                    break
                size, index_size, kept = size + entry.size, index_size + line_size, kept + 1
            index.truncate(index_size)  # first, so that it never names what is not there
            file.truncate(size)
            yield ChunkWriter(file, index, self.seeds[kept:])

    def _lines(self) -> Iterator[tuple[Entry, int]]:
        """Yield entries with the bytes of their lines, up to the first that is not whole or of another seed."""
        if not (self.path / INDEX).is_file():
            return
        with (self.path / INDEX).open("rb") as file:
            for seed, line in zip(self.seeds, file, strict=False):
                try:
                    entry = Entry(**json.loads(line))
                except (ValueError, TypeError):
                    return
                if entry.seed != seed or not line.endswith(b"\n"):
                    return
                yield entry, len(line)


class ChunkWriter:
    """Adds seeds to a chunk, in order; what was added outlives this process."""

    def __init__(self, file: BinaryIO, index: BinaryIO, seeds: range) -> None:
        """Write after what both files hold; `seeds` are left to play."""
        self.seeds = seeds
        self._file, self._index = file, index

    def add(self, seed: int, played: EncodedEpisode | str) -> None:
        """Add what came of the next seed: its episode, or why there is none."""
        if isinstance(played, EncodedEpisode):
            self.append(played)
        else:
            self.give_up(seed, played)

    def append(self, episode: EncodedEpisode) -> None:
        """Add the episode of the next seed."""
        self._file.write(episode.content)
        self._file.flush()
        seed = episode.metadata["seed"]
        self._add(Entry(seed=seed, size=len(episode.content), metadata=episode.metadata))

    def give_up(self, seed: int, why: str) -> None:
        """Say that the next seed has no episode."""
        self._add(Entry(seed=seed, failed=why))

    def _add(self, entry: Entry) -> None:
        self._index.write(json.dumps(vars(entry)).encode() + b"\n")
        self._index.flush()
