"""Files of a dataset lie below its folder: whatever leads out of it, by name or by link, is refused."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from gatito.errors import UserError, reason_of


def is_below(path: Path, folder: Path) -> bool:
    """Whether a file is in a folder, links followed."""
    return _is_below(path if path.is_symlink() else path.parent, folder)


def check_below(path: Path, folder: Path) -> Path:
    """The file itself; raises `UserError` where it is not in the folder, links followed."""
    if not is_below(path, folder):
        raise UserError(f"{path}: it leads out of {folder}; copy the file into it")
    return path


def check_saved_files(folder: Path) -> None:
    """Raise `UserError` where a dataset that `save_to_disk` wrote names files outside of its folder, or links to
    them."""
    for state in sorted(folder.rglob("state.json")):
        try:
            listed = json.loads(state.read_text())["_data_files"]
            names = [entry["filename"] for entry in listed]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{state}: its files cannot be read ({reason_of(error)}); save the dataset again"
            ) from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"{state}: file {str(name)[:80]!r}, allowed are names of files beside it")
            check_below(state.parent / name, folder)


def check_card(folder: Path) -> None:
    """Raise `UserError` where the card of a dataset folder names data elsewhere: by address, absolute or with '..'.

    `datasets` would look there before anything it finds could be checked.
    """
    card = folder / "README.md"
    if not card.is_file():
        return
    head = card.read_text(errors="replace").removeprefix("---")
    try:
        values = yaml.safe_load(head.partition("\n---")[0]) if card.read_bytes().startswith(b"---") else {}
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{card}: its head is no YAML ({str(error).splitlines()[0]}); mend it") from None
    configs = values.get("configs") if isinstance(values, dict) else None
    for entry in configs if isinstance(configs, list) else []:
        for key in ("data_files", "data_dir"):
            for name in _texts(entry.get(key) if isinstance(entry, dict) else None):
                if "://" in name or Path(name).is_absolute() or ".." in Path(name).parts:
                    raise UserError(
                        f"{card}: {key} names {name[:80]!r}, outside of the folder; copy it, mend the card"
                    )


def _texts(value: Any) -> Iterator[str]:
    """All texts of nested lists and maps."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def check_data_files(data_files: Mapping[Any, Iterable[Any]] | None, place: Path | str, where: str) -> None:
    """Raise `UserError` for files that `datasets` found elsewhere than in the folder or repository of a dataset.

    Its card may name any. `place` is a folder, or `OWNER/NAME` on the hub.
    """
    for files in (data_files or {}).values():
        for file in map(str, files):
            if isinstance(place, Path):
                inside = "://" not in file and is_below(Path(file), place)
            else:
                inside = file.startswith((f"hf://datasets/{place}@", f"hf://datasets/{place}/"))
            if not inside:
                raise UserError(f"{where}: its card names {file}, outside of {place}; copy the file there")


@lru_cache(maxsize=64)
def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(_root(folder.resolve()))


def _root(folder: Path) -> Path:
    """The folder, or all of a repository in the hub's cache, whose snapshots are links to files beside them."""
    for inner in (folder, *folder.parents):
        if inner.parent.name == "snapshots" and inner.parent.parent.name.startswith("datasets--"):
            return inner.parent.parent
    return folder
