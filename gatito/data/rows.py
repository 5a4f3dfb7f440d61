"""Rows of named values out of files and `datasets` datasets, one at a time: JSON lines, Parquet, Arrow, the hub."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from gatito.data.below import check_card, check_data_files, check_saved_files, is_below
from gatito.data.document_source import identity_of_files
from gatito.errors import UserError, reason_of

SUFFIXES = (".jsonl", ".parquet", ".arrow")
"""Of the files that hold rows."""
BATCH = 64
"""Rows that are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a dataset."""

    where: str
    """File or dataset and number of the row, for messages."""
    values: Mapping[str, Any]
    """Column to value."""
    folder: Path | None
    """What the names of files in it are relative to; None where they may name none on this machine."""

    def value(self, column: str) -> Any:
        """The value of a column; raises `UserError` where there is none."""
        if self.values.get(column) is None:
            there = ", ".join(map(repr, self.values)) or "none"
            raise UserError(
                f"{self.where}: no value of {column!r}; its fields are {there}; name others as SOURCE#FIELD"
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """The text of a column; raises `UserError` where it is none."""
        value = self.value(column)
        if not isinstance(value, str):
            raise UserError(f"{self.where}: {column!r} is {_shown(value)}, expected a text; mend it or leave it out")
        return value

    def image(self, value: Any, column: str) -> Path | bytes:
        """The file or the bytes of an image: a file name, or `{bytes, path}` as `datasets` stores it.

        Raises `UserError` for what is neither, and for a file outside of the dataset's folder.
        """
        if isinstance(value, str):
            return self._file(value, column)
        if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
            return bytes(value["bytes"])
        path = value.get("path") if isinstance(value, Mapping) else None
        if not isinstance(path, str):
            raise UserError(
                f"{self.where}: {column!r} is {_shown(value)}, expected the name of an image file, or "
                "{bytes, path} as datasets stores images"
            )
        is_streamed = self.folder is None and path.startswith("hf://datasets/")
        return self._fetched(path) if is_streamed else self._file(path, column)

    def _file(self, name: str, column: str) -> Path:
        first, *others = name.replace("\\", "/").split("/")
        outside = not first or first[1:2] == ":" or "://" in name or ".." in (first, *others)  # of C:, of a URL
        if self.folder is None or outside:
            raise UserError(f"{self.where}: {column!r} is {name!r}, allowed are files below the dataset's own folder")
        file = self.folder / name
        if not is_below(file, self.folder):
            raise UserError(
                f"{self.where}: {column!r} is {name!r}, a link out of the dataset's folder; copy the file"
            )
        if not file.is_file():
            raise UserError(f"{self.where}: {column!r} is {name!r}, and {file} is missing")
        return file

    def _fetched(self, url: str) -> bytes:
        """An image file of a dataset on the hub that is streamed."""
        try:
            with fsspec.open(url, "rb") as file:
                return bytes(file.read())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.where}: cannot read {url} ({reason_of(error)})") from None


def rows_of(file: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines, Parquet or Arrow; memory stays flat.

    Raises `UserError`, naming the row, where the file is damaged.
    """
    if file.suffix == ".jsonl":
        return _json_rows(file)
    return _arrow_rows(file)


def hub_rows(name: str) -> Iterator[Row]:
    """The rows of `OWNER/NAME[/CONFIG][:SPLIT]` on the hub, streamed, or of a folder.

    A folder is one that `save_to_disk` wrote, or one laid out like a repository of the hub. The split is `train`
    where none is named.

    Raises `UserError` where it cannot be opened or read on.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    folder, number = _located(name)[0], -1
    try:
        for number, values in enumerate(_opened(name)):
            yield Row(
                where=f"hf:{name}, row {number}",
                values=values,
                folder=folder if isinstance(folder, Path) else None,
            )
    except UserError:
        raise
    except (DatasetsError, OSError, ValueError, KeyError, TypeError, RuntimeError, pa.ArrowException) as error:
        where = "cannot be opened" if number < 0 else f"cannot be read after row {number}"
        reason = (str(error) if isinstance(error, DatasetsError) else reason_of(error)).partition("\n")[0]
        raise UserError(f"hf:{name}: {where} by datasets {datasets.__version__} ({reason})") from None


def hub_identity(name: str, *settings: str) -> str:
    """Hash of a dataset's files, or of the commit that the hub has now, and of the settings it is read with."""
    folder, _, _ = _located(name)
    if isinstance(folder, Path):
        return identity_of_files(sorted(path for path in folder.rglob("*") if path.is_file()), name, *settings)
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(folder).sha
    except Exception as error:  # no network, or whatever the hub says
        raise UserError(f"hf:{name}: the hub does not answer for it ({reason_of(error)})") from None
    return identity_of_files([], name, str(commit), *settings)


def _located(name: str) -> tuple[Path | str, str | None, str]:
    """Folder or repository, configuration and split."""
    path, _, split = name.partition(":")
    if Path(path).is_dir():
        return Path(path), None, split or "train"
    parts = path.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"hf:{name}: expected OWNER/NAME, OWNER/NAME/CONFIG, or a folder; :SPLIT may follow")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train"


def _opened(name: str) -> Iterator[dict[str, Any]]:
    """Rows of a map-style or streamed dataset, images as their files have them."""
    import datasets

    folder, config, split = _located(name)
    if isinstance(folder, Path) and any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        check_saved_files(folder)
        opened = datasets.load_from_disk(str(folder))
        if isinstance(opened, datasets.DatasetDict):
            if split not in opened:
                raise UserError(f"hf:{name}: no split {split!r}; it has {', '.join(opened)}")
            opened = opened[split]
        opened = opened.to_iterable_dataset()
    else:
        if isinstance(folder, Path):
            check_card(folder)
        builder = datasets.load_dataset_builder(str(folder), config)
        check_data_files(builder.config.data_files, folder, f"hf:{name}")
        opened = builder.as_streaming_dataset(split=split)
    # Where no columns are stated there are only values of JSON.
    return iter(opened if opened.features is None else opened.decode(False))


def _json_rows(file: Path) -> Iterator[Row]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{file}, line {number}"
                    yield Row(where=where, values=parsed_object(line, where), folder=file.parent)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason_of(error)})") from None


def parsed_object(content: bytes, where: str) -> dict[str, Any]:
    """The object that is written as JSON; raises `UserError` where it is none."""
    try:
        values = json.loads(content)
        if b"\\ud" in content.lower():  # an escape of half a character, of which no text consists
            json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON in UTF-8 ({reason_of(error)}); expected is one object") from None
    if not isinstance(values, dict):
        raise UserError(f'{where}: {_shown(values)}, expected an object such as {{"text": ...}}')
    return values


def _arrow_rows(file: Path) -> Iterator[Row]:
    number = 0
    try:
        for batch in _batches(file):
            batch.validate(full=True)  # offsets that point outside would be read otherwise
            for values in batch.to_pylist():
                yield Row(where=f"{file}, row {number}", values=values, folder=file.parent)
                number += 1
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise UserError(f"{file}: damaged at or after row {number} ({reason_of(error)}); write it again") from None


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".parquet":
        yield from pq.ParquetFile(file).iter_batches(BATCH)
        return
    with pa.memory_map(str(file)) as mapped:
        try:
            whole = pa.ipc.open_file(mapped)
        except pa.ArrowInvalid:  # the streaming layout, which datasets writes
            mapped.seek(0)
            for batch in pa.ipc.open_stream(mapped):
                yield from _cut(batch)
            return
        for index in range(whole.num_record_batches):
            yield from _cut(whole.get_batch(index))


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    batch.validate(full=True)
    return (batch.slice(first, BATCH) for first in range(0, batch.num_rows, BATCH))


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def columns_of(location: str, *defaults: str) -> tuple[str, Sequence[str]]:
    """The location before `#`, and the columns that are named after it, or the default ones."""
    place, mark, named = location.rpartition("#")
    if not mark:
        return location, defaults
    columns = named.split(",")
    if len(columns) != len(defaults) or not all(columns):
        raise UserError(f"{location}: {named!r} after '#', expected {len(defaults)} names ({', '.join(defaults)})")
    return place, columns
