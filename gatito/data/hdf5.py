"""HDF5 files of others: opened only where they keep what they hold, and hold what they say."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gatito.errors import UserError

MOST_DEFLATED = 1100
"""Times its stored bytes that a dataset may hold: no filter of HDF5 compresses more."""
SMALL = 1 << 20
"""Bytes up to which a dataset may hold more than that: unwritten ones are zeros."""


@contextmanager
def open_hdf5(file: Path) -> Iterator[Any]:
    """Open a file to be read.

    Raises `UserError` where it would have other files read, by links, external or virtual data, where a dataset
    claims more than can be stored of it, where a group has two names, and where it is no HDF5 file.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"{file} is read by h5py: pip install 'gatito[hdf5]'") from None
    if not file.is_file():
        raise UserError(f"{file} is {'a folder; name a file in it' if file.is_dir() else 'missing'}")
    try:
        root = h5py.File(file, "r")
    except OSError as error:
        raise UserError(f"{file}: no HDF5 file ({error}); repair or drop the dataset") from None
    with root:
        _check_group(root, file, set())
        yield root


def _check_group(group: Any, file: Path, seen: set[Any]) -> None:
    """Check all that a group holds; of a second name of one that was seen there may be no end."""
    seen.add(group)
    for name in group:
        link, where = group.get(name, getlink=True), f"{file}: {group.name.rstrip('/')}/{name}"
        if type(link).__name__ != "HardLink":
            raise UserError(f"{where} is a link ({type(link).__name__}); copy what it points to into the file")
        try:
            member = group[name]
        except (OSError, RuntimeError, KeyError) as error:
            raise UserError(f"{where} cannot be read ({error}); repair or drop the dataset") from None
        if member in seen:
            raise UserError(f"{where} is another name of a group; copy the group, or drop the name")
        if hasattr(member, "keys"):
            _check_group(member, file, seen)
        elif hasattr(member, "shape"):
            _check_dataset(member, where)


def _check_dataset(member: Any, where: str) -> None:
    if member.external or member.is_virtual:
        raise UserError(f"{where} keeps its values in other files; copy them into this one")
    stored = member.id.get_storage_size()
    if member.nbytes > max(SMALL, MOST_DEFLATED * stored):
        raise UserError(
            f"{where} claims {member.nbytes} bytes of which {stored} are stored; repair or drop the dataset"
        )
