"""Where documents come from, as a build sees it."""

import glob
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gatito.data.store import sha256_of
from gatito.errors import UserError, reason_of
from gatito.tokenizers.documents import Document, Words

Kind = Literal["text", "pairs", "documents"]
"""How the sampler takes them: windows of texts; short documents with images, five to a sequence; long ones, whole."""


@dataclass(frozen=True, kw_only=True)
class DocumentSource:
    """Documents that can be read again and again, one at a time."""

    kind: Kind
    """What they are."""
    rows: Callable[[], Iterator[Any]]
    """Begin to read what documents are made of."""
    document: Callable[[Any], Document] | None = None
    """Makes a document of a row, in any thread; None where the rows are documents."""
    identity: Callable[[], str]
    """Hash of all that decides which documents there are."""
    is_endless: bool = False
    """Whether there is no last one."""

    def documents(self, threads: int = 1) -> Iterator[Document]:
        """Begin to read; `threads` make documents of the rows that follow while one is used.

        Raises `UserError`, naming file, line and field, where what comes next is no document.
        """
        return self.rows() if self.document is None else _in_order(self.document, self.rows(), threads)


def _in_order(function: Callable[[Any], Document], rows: Iterator[Any], threads: int) -> Iterator[Document]:
    """What threads make of rows, a few of them ahead; an error is raised where its document would have been."""
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Document]] = deque()
    has_more = True
    try:
        while True:
            while has_more and len(waiting) < 2 * threads:
                try:
                    waiting.append(pool.submit(function, next(rows)))
                except StopIteration:
                    has_more = False
                except UserError as error:
                    waiting.append(Future())
                    waiting[-1].set_exception(error)
                    has_more = False
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def files_at(place: str) -> list[Path]:
    """The file that is named, or those that a pattern such as `corpus/*.parquet` finds, sorted.

    Raises `UserError` where there are none.
    """
    if Path(place).is_file():
        return [Path(place)]
    if not glob.has_magic(place):
        raise UserError(f"cannot read {place}: it is missing")
    files = [Path(found) for found in sorted(glob.glob(place, recursive=True)) if Path(found).is_file()]
    if not files:
        raise UserError(f"cannot read {place}: the pattern finds no file; it runs from {Path.cwd()}")
    return files


def identity_of_files(files: Iterable[Path], *settings: str) -> str:
    """Hash of the names and contents of files, and of the settings they are read with; raises `UserError` where one
    cannot be read."""
    try:
        return _sha256([*settings, *(f"{file.name} {sha256_of(file)}" for file in files)])
    except OSError as error:
        raise UserError(f"cannot be read ({reason_of(error)})") from None


def identity_of_documents(documents: Iterable[Document]) -> str:
    """Hash of documents that are generated, or in memory."""
    digests = []
    for document in documents:
        digest = hashlib.sha256()
        for part in document.parts:
            if isinstance(part, Words):
                digest.update(f"{part.is_target} {part.text}\0".encode())
            else:
                digest.update(f"{part.shape}".encode() + part.tobytes())
        digests.append(digest.hexdigest())
    return _sha256(digests)


def _sha256(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
