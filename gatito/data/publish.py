"""Folders that appear whole or not at all: datasets, stores and checkpoints."""

import contextlib
import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from gatito.errors import UserError

MANY_FILES = 64
"""Files from which on flushing all disks at once is cheaper than each file."""


def check_writable(folder: Path, option: str = "--out") -> None:
    """Raise `UserError` where nothing can be written into a folder that may not exist yet; `option` named it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"{option} {folder} cannot be written ({existing}: {error.strerror}); name another folder"
        ) from None


@contextmanager
def published(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a folder beside `target`, which it becomes at the end; a failure leaves nothing behind.

    It waits until all of it is on the disk, so that it outlives the machine and not just this process. What
    processes of this machine that were killed left beside it is removed first. Raises `UserError` where the
    target exists, unless `replace`.
    """
    if target.exists() and not replace:
        raise UserError(f"{target} exists; choose another --out or remove it")
    host = socket.gethostname()
    created = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".?*.{glob.escape(host)}-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            shutil.rmtree(left, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{host}-{os.getpid()}")
    try:
        temporary.mkdir()
        yield temporary
        _flush(list(temporary.rglob("*")))
        if replace and target.exists():
            old = target.with_name(f".{target.name}.old.{host}-{os.getpid()}")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(target)
        _fsync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # a folder that holds something else stays
            for parent in created:
                parent.rmdir()
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder, where there is one; out of sight before it is in pieces.

    What cannot be removed, because some process still reads it over a network, is removed by a later `published`.
    """
    hidden = folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _flush(paths: list[Path]) -> None:
    """Return when all files and folders are on the disk."""
    if len(paths) >= MANY_FILES and hasattr(os, "sync"):
        os.sync()
        return
    for path in paths:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
