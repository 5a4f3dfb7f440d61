"""A Minari dataset as a dataset repository of the hub: an episode is a row, a column a list over its timesteps."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from gatito.data.card import dataset_card
from gatito.data.formats.layout import LAST, MARK, Column, ColumnLayout, column_values
from gatito.data.formats.source import kept_metadata
from gatito.data.minari_episodes import EXPLORATORY, MinariSource
from gatito.data.publish import check_writable, published
from gatito.data.survey import Survey
from gatito.errors import UserError

FILE_BYTES = 1 << 29
"""Bytes from which on another parquet file is begun."""
BESIDE = ("rewards", "terminations", "truncations")
"""Columns that every dataset has."""


def export_hub(seen: Survey, out: Path) -> list[Path]:
    """Write a surveyed dataset as a folder that `datasets.load_dataset` loads and the hub takes; returns its files.

    Pictures are PNG. What JAT's layout has no columns for stands beside: the last observation, how the episode ended,
    seed, source agent, and where a random action was executed. Raises `UserError` where `out` is there, and for a
    dataset with errors.
    """
    check_exportable(seen, out)
    source = seen.source
    spaces = source.dataset.observation_space, source.dataset.action_space
    layout = ColumnLayout.of(*spaces)
    with published(out) as folder:
        (folder / "data").mkdir()
        with _Files(folder / "data", layout, source) as files:
            for index in tqdm(range(len(source)), desc=f"export {source.task}", unit="episode"):
                files.append(index)
        (folder / "README.md").write_text(_card(seen))
        return [out / path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]


def check_exportable(seen: Survey, out: Path) -> None:
    """Raise `UserError` where a dataset has errors, or `out` cannot be written."""
    if seen.num_errors:
        raise UserError(f"{seen.source.path} has {seen.num_errors} errors; gatito data check says which")
    check_writable(out)


class _Files:
    """Parquet files that rows are appended to, a row group each: one episode at a time is in memory."""

    def __init__(self, folder: Path, layout: ColumnLayout, source: MinariSource) -> None:
        self.folder, self.layout, self.source = folder, layout, source
        stated = kept_metadata(source.dataset.storage.metadata, str(source.path))
        self.marks = {MARK: layout.to_json().encode(), MARK + b"_metadata": json.dumps(stated).encode()}
        self.schema = _features(layout).arrow_schema
        self.schema = self.schema.with_metadata({**(self.schema.metadata or {}), **self.marks})
        self.writer: pq.ParquetWriter | None = None
        self.count = self.size = 0

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def append(self, index: int) -> None:
        """Write episode `index`."""
        if self.writer is not None and self.size >= FILE_BYTES:
            self.writer.close()
            self.writer = None
        if self.writer is None:
            path = self.folder / f"train-{self.count:05d}.parquet"
            self.writer = pq.ParquetWriter(path, self.schema, compression="zstd")
            self.count, self.size = self.count + 1, 0
        table = pa.Table.from_pydict(self._row(index), schema=self.schema)
        self.size += table.nbytes
        self.writer.write_table(table)

    def _row(self, index: int) -> dict[str, pa.Array]:
        data, metadata = self.source.read(index)
        T = len(data["rewards"])
        row: dict[str, pa.Array] = {}
        for column in self.layout.columns:
            row[column.name] = _as_row(listed(column, column_values(column, data[column.part])[:T]))
        for name in BESIDE:
            dtype = np.float64 if name == "rewards" else np.bool_
            row[name] = pa.ListArray.from_arrays([0, T], pa.array(np.asarray(data[name], dtype)))
        return row | beside_row(self.layout, data, metadata, self.source.agent)


def beside_row(
    layout: ColumnLayout, data: Mapping[str, Any], metadata: Mapping[str, Any], agent: str
) -> dict[str, pa.Array]:
    """What is said of an episode once: its last observation, exploratory actions, seed and source agent."""
    T = len(data["rewards"])
    row = {
        LAST + column.name: _as_row(listed(column, column_values(column, data["observations"])[T:]))
        for column in layout.columns
        if column.part == "observations"
    }
    infos: Mapping[str, Any] = data["infos"] or {}
    explored = np.asarray(infos[EXPLORATORY]).reshape(-1)[:T].astype(np.bool_) if EXPLORATORY in infos else None
    row[EXPLORATORY] = pa.array([None if explored is None else explored.tolist()], pa.list_(pa.bool_()))
    row["seed"] = pa.array([metadata.get("seed")], pa.int64())
    row["agent"] = pa.array([str(metadata.get("agent", agent))])
    return row


def _features(layout: ColumnLayout) -> Any:
    """The columns as `datasets` knows them."""
    from datasets import Features, Image, List, Value

    columns: dict[str, Any] = {}
    for column in layout.columns:
        inner: Any = Image() if column.kind == "image" else Value("string" if column.kind == "text" else column.dtype)
        for _ in column.shape if column.kind in ("continuous", "discrete") else ():
            inner = List(inner)
        columns[column.name] = List(inner)
        if column.part == "observations":
            columns[LAST + column.name] = List(inner)
    bools = List(Value("bool"))
    beside = {"rewards": List(Value("float64")), "terminations": bools, "truncations": bools, EXPLORATORY: bools}
    return Features(columns | beside | {"seed": Value("int64"), "agent": Value("string")})


def _as_row(values: pa.Array) -> pa.Array:
    """A list of all values, as the one row of a column."""
    return pa.ListArray.from_arrays([0, len(values)], values)


def listed(column: Column, values: Any) -> pa.Array:
    """The values (N, ...) of a column as N of Arrow's: pictures as PNG, others as nested lists."""
    if column.kind == "image":
        rows = [{"bytes": _png(frame), "path": None} for frame in values]
        return pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.array(values, pa.string()) if column.kind == "text" else _nested(np.asarray(values))


def _nested(values: NDArray[Any]) -> pa.Array:
    """An array (N, ...) as N nested lists, without going through Python."""
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    lengths: Sequence[int] = values.shape
    for axis in range(values.ndim - 1, 0, -1):
        count = int(np.prod(lengths[:axis], dtype=np.int64))
        array = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * lengths[axis], array)
    return array


def _png(frame: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _card(seen: Survey) -> str:
    """The card of the Minari dataset, with the files and how they are loaded."""
    files = '- config_name: default\n  data_files:\n  - split: train\n    path: "data/train-*.parquet"\n'
    head, _, rest = dataset_card(seen).removeprefix("---\n").partition("---\n")
    called = 'dataset = load_dataset(FOLDER_OR_REPOSITORY, split="train")'
    loaded = f"    from datasets import load_dataset\n    {called}\n"
    words = f"\n## As rows\n\nEach row is an episode, each column a list over its timesteps:\n\n{loaded}"
    return f"---\n{head}configs:\n{files}---\n{rest}{words}"
