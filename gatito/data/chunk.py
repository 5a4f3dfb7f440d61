"""A chunk of a collection: the episodes of some seeds end to end in one file.

CHUNK/episodes.bin     the Arrow files of the episodes, one after the other
CHUNK/chunk.json       metadata and size of each, and the seeds on which the expert gave up

So an episode has no files of its own before its dataset is put together: making a folder with two files takes as long
as a quarter of the shortest level of BabyAI.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gatito.data.minari_arrow import EncodedEpisode
from gatito.data.publish import published

EPISODES, CONTENTS = "episodes.bin", "chunk.json"


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A finished chunk; its episodes are read one at a time."""

    path: Path
    """Its folder."""
    sizes: list[int]
    """Bytes of each episode."""
    metadata: list[dict[str, Any]]
    """What is said of each episode beside its arrays."""
    failed: dict[str, str]
    """Why the expert gave up, by seed."""

    def __len__(self) -> int:
        return len(self.sizes)

    def episodes(self) -> Iterator[EncodedEpisode]:
        """Yield every episode, in order."""
        with (self.path / EPISODES).open("rb") as file:
            for size, metadata in zip(self.sizes, self.metadata, strict=True):
                yield EncodedEpisode(content=file.read(size), metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ChunkWriter:
    """A chunk that is being collected."""

    file: BinaryIO
    """Of its episodes."""
    sizes: list[int] = field(default_factory=list)
    """See `Chunk`."""
    metadata: list[dict[str, Any]] = field(default_factory=list)
    """See `Chunk`."""
    failed: dict[str, str] = field(default_factory=dict)
    """See `Chunk`."""

    def append(self, episode: EncodedEpisode) -> None:
        """Add an episode."""
        self.file.write(episode.content)
        self.sizes.append(len(episode.content))
        self.metadata.append(episode.metadata)


@contextmanager
def written_chunk(path: Path) -> Iterator[ChunkWriter]:
    """Yield a writer of a chunk, which appears as a whole at the end; a failure leaves nothing behind."""
    with published(path, replace=True, durable=False) as folder:
        with (folder / EPISODES).open("wb") as file:
            writer = ChunkWriter(file=file)
            yield writer
        said = {"sizes": writer.sizes, "metadata": writer.metadata, "failed": writer.failed}
        (folder / CONTENTS).write_text(json.dumps(said))


def read_chunk(path: Path) -> Chunk | None:
    """Open a chunk; None where it is not there as a whole."""
    try:
        said = json.loads((path / CONTENTS).read_text())
        chunk = Chunk(path=path, **said)
        whole = (path / EPISODES).stat().st_size == sum(chunk.sizes) and len(chunk.metadata) == len(chunk)
    except (OSError, ValueError, TypeError):
        return None
    return chunk if whole else None
