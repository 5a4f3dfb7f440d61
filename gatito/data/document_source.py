"""Where documents come from, as a build sees it."""

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    documents: Callable[[], Iterator[Document]]
    """Begin to read; raises `UserError`, naming file, line and field, where what comes next is no document."""
    identity: Callable[[], str]
    """Hash of all that decides which documents there are."""
    is_endless: bool = False
    """Whether there is no last one."""


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
