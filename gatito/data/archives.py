"""Rows out of tar files as WebDataset lays them out: the files of one sample follow each other and share their key.

a/0001.jpg a/0001.txt a/0001.json | a/0002.jpg ...         the key is all up to the first dot of the name

An image file is the value `image`, `.txt` is `text`, and the object in `.json` gives its own fields; other files are
passed over. An archive is read from its beginning to its end and nothing of it is written to disk.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gatito.data.rows import Row, parsed_object
from gatito.errors import UserError, reason_of
from gatito.tokenizers.images import SUFFIXES as IMAGES

SUFFIX = ".tar"
LARGEST = 1 << 28
"""Bytes that a file in an archive may have: it is read whole."""


def tar_rows(file: Path) -> Iterator[Row]:
    """The samples of an archive; memory stays flat.

    Raises `UserError`, naming archive and file in it, for links and devices, absolute names and such with '..', files
    that are too large or named twice, `.json` and `.txt` that are none,
    and where the archive is cut off.
    """
    key, values = "", dict[str, Any]()
    try:
        with tarfile.open(file, "r|") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # which would grow
                if member.isdir():
                    continue
                where = f"{file}, {member.name}"
                own, column = _key_and_column(member, where)
                if own != key and values:
                    yield _row(file, key, values)
                    values = {}
                key = own
                found = _values(archive, member, column, where)
                twice = next((name for name in found if name in values), None)
                if twice is not None:
                    raise UserError(f"{where}: another {twice!r} of the same sample; name it apart")
                values |= found
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: no tar file, or cut off after {key!r} ({reason_of(error)}); mend it") from None
    if values:
        yield _row(file, key, values)


def _row(file: Path, key: str, values: dict[str, Any]) -> Row:
    return Row(where=f"{file}, {key}", values=values, folder=None)


def _key_and_column(member: tarfile.TarInfo, where: str) -> tuple[str, str]:
    """The sample a file belongs to, and what is behind the first dot of its name."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: an absolute name, or one with '..'; allowed are plain names")
    if not member.isfile():
        raise UserError(f"{where}: a link or device, allowed are files; copy what it stands for")
    if member.size > LARGEST:
        raise UserError(f"{where}: {member.size} bytes, allowed {LARGEST}; leave it out")
    name, _, column = path.name.partition(".")
    return str(path.parent / name), column


def _values(archive: tarfile.TarFile, member: tarfile.TarInfo, column: str, where: str) -> dict[str, Any]:
    """What a file says of its sample."""
    is_image = f".{column.lower()}" in IMAGES
    if not is_image and column not in ("txt", "json"):
        return {}
    opened = archive.extractfile(member)
    assert opened is not None
    content = opened.read()
    if len(content) < member.size:
        raise UserError(f"{where}: {len(content)} of its {member.size} bytes are there; the archive is cut off")
    if is_image:
        return {"image": {"bytes": content, "path": member.name}}
    if column == "json":
        return parsed_object(content, where)
    try:
        return {"text": content.decode("utf-8-sig").strip()}
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: no text in UTF-8 ({reason_of(error)}); mend it or leave it out") from None
