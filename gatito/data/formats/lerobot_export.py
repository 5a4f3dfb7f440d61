"""A Minari dataset as a LeRobotDataset v3.0, images as PNG in its parquet files.

What LeRobot has no place for lies beside what it reads: the spaces in `info.json`, the last observation, seed and
source agent of each episode in `gatito/episodes.parquet`. So importing it gives the dataset that was exported.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from gatito.data.formats.export import beside_row, check_exportable, listed
from gatito.data.formats.layout import Column, ColumnLayout, Kind, column_values
from gatito.data.formats.source import kept_metadata
from gatito.data.publish import published
from gatito.data.survey import Survey
from gatito.errors import UserError
from gatito.tokenizers import fields

BESIDE = "gatito/episodes.parquet"
"""What LeRobot has no place for, a row for each episode."""
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
META = "meta/episodes/chunk-000/file-000.parquet"
"""What is said of all episodes, in one file."""
FILE_BYTES, FILES = 100 << 20, 1000
"""Bytes of a data file, and files of a folder, as LeRobot has them."""
QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
SAMPLED = 1 << 16
"""Frames whose numbers are kept for quantiles."""


def feature_name(part: Literal["observations", "actions"], path: fields.Path, kind: Kind) -> str:
    """LeRobot's name of a leaf: `action`, `observation.state`, `observation.image`, or by its path."""
    prefix = "action" if part == "actions" else "observation.images" if kind == "image" and path else "observation"
    if not path:
        return prefix if part == "actions" else {"image": "observation.image"}.get(kind, "observation.state")
    return ".".join([prefix, *map(str, path)])


def export_lerobot(seen: Survey, out: Path, fps: float) -> list[Path]:
    """Write a surveyed dataset as a folder that LeRobot loads; returns its files.

    The instruction of a frame is what its first field of text says, or else the task id. Raises `UserError` where
    `out` is there, for a dataset with errors, and for names that LeRobot does not take.
    """
    check_exportable(seen, out)
    if not (math.isfinite(fps) and fps > 0):
        raise UserError(f"--fps is {fps}, allowed above 0")
    source = seen.source
    layout = ColumnLayout.of(source.dataset.observation_space, source.dataset.action_space, feature_name)
    names = [column.name for column in layout.columns]
    bad = next((name for name in names if names.count(name) > 1 or "/" in name), None)
    if bad is not None:
        raise UserError(f"{source.path}: feature {bad!r} is there twice, or has a '/'; rename the space's keys")
    with published(out) as folder:
        writer = _Writer(folder, layout, fps)
        for index in tqdm(range(len(source)), desc=f"export {source.task}", unit="episode"):
            data, metadata = source.read(index)
            writer.append(data, beside_row(layout, data, metadata, source.agent), source.task)
        stated = kept_metadata(source.dataset.storage.metadata, str(source.path))
        writer.close({"layout": layout.to_json(), "metadata": stated})
        return [out / path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]


@dataclass
class _Writer:
    """Files of data that episodes are appended to, a row group each, and what is to be said of all of them."""

    folder: Path
    layout: ColumnLayout
    fps: float
    tasks: dict[str, int] = field(default_factory=dict)
    episodes: list[dict[str, Any]] = field(default_factory=list)
    frames: int = 0
    files: int = 0
    size: int = 0
    data: pq.ParquetWriter | None = None
    beside: pq.ParquetWriter | None = None

    def __post_init__(self) -> None:
        self.stats = {column.name: _stats_of(column) for column in self.layout.columns if column.kind != "text"}
        self.instruction = next((c for c in self.layout.columns if c.kind == "text"), None)

    def append(self, data: Mapping[str, Any], beside: Mapping[str, pa.Array], task: str) -> None:
        """Write one episode."""
        T, index = len(data["rewards"]), len(self.episodes)
        columns: dict[str, Any] = {}
        for column in self.layout.columns:
            values = column_values(column, data[column.part])[:T]
            columns[column.name] = listed(column, values)
            if column.name in self.stats:
                self.stats[column.name].add(np.asarray(values))
        says = column_values(self.instruction, data["observations"])[:T] if self.instruction else [task] * T
        indices = [self.tasks.setdefault(str(text), len(self.tasks)) for text in says]
        columns |= {
            "next.reward": pa.array(np.asarray(data["rewards"], np.float64)),
            "next.terminated": pa.array(np.asarray(data["terminations"], np.bool_)),
            "next.truncated": pa.array(np.asarray(data["truncations"], np.bool_)),
            "timestamp": pa.array((np.arange(T) / self.fps).astype(np.float32)),
            "frame_index": pa.array(np.arange(T)),
            "episode_index": pa.array(np.full(T, index)),
            "index": pa.array(self.frames + np.arange(T)),
            "task_index": pa.array(np.asarray(indices)),
        }
        table = pa.table(columns)
        if self.data is not None and self.size >= FILE_BYTES:
            self.data.close()
            self.data = None
        if self.data is None:
            self.data, self.files, self.size = self._open(_data_file(self.files), table), self.files + 1, 0
        self.data.write_table(table)
        self.size += table.nbytes
        extra = pa.table(dict(beside))
        if self.beside is None:
            self.beside = self._open(BESIDE, extra)
        self.beside.write_table(extra)
        self.episodes.append(self._episode(T, [str(text) for text in dict.fromkeys(says)]))
        self.frames += T

    def close(self, own: Mapping[str, Any]) -> None:
        """Write what is said of the whole dataset."""
        for writer in (self.data, self.beside):
            if writer is not None:
                writer.close()
        self._write(META, pa.Table.from_pylist(self.episodes))
        self._write("meta/tasks.parquet", self._tasks())
        stats = {name: found.to_json() for name, found in self.stats.items()}
        (self.folder / "meta/stats.json").write_text(json.dumps(stats, indent=1))
        info = {
            "codebase_version": "v3.0",
            "fps": int(self.fps) if float(self.fps).is_integer() else self.fps,
            "features": self._features(),
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": FILES,
            "data_files_size_in_mb": FILE_BYTES >> 20,
            "video_files_size_in_mb": 200,
            "data_path": DATA,
            "video_path": None,
            "robot_type": None,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "gatito": own,
        }
        (self.folder / "meta/info.json").write_text(json.dumps(info, indent=1))

    def _episode(self, T: int, tasks: list[str]) -> dict[str, Any]:
        chunk, file = divmod(self.files - 1, FILES)
        return {
            "episode_index": len(self.episodes),
            "tasks": tasks,
            "length": T,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self.frames,
            "dataset_to_index": self.frames + T,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }

    def _features(self) -> dict[str, Any]:
        features: dict[str, Any] = {c.name: _feature(c) for c in self.layout.columns}
        one = {"shape": [1], "names": None}
        features |= {"next.reward": {"dtype": "float64", **one}}
        features |= {name: {"dtype": "bool", **one} for name in ("next.terminated", "next.truncated")}
        features |= {"timestamp": {"dtype": "float32", **one}}
        indices = ("frame_index", "episode_index", "index", "task_index")
        return features | {name: {"dtype": "int64", **one} for name in indices}

    def _tasks(self) -> pa.Table:
        """Instructions as the index of a table, as pandas writes it and LeRobot reads it."""
        import pandas as pd

        index = pd.Index(list(self.tasks), name="task")
        return pa.Table.from_pandas(pd.DataFrame({"task_index": list(self.tasks.values())}, index=index))

    def _open(self, name: str, table: pa.Table) -> pq.ParquetWriter:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return pq.ParquetWriter(path, table.schema, compression="snappy", use_dictionary=True)

    def _write(self, name: str, table: pa.Table) -> None:
        with self._open(name, table) as writer:
            writer.write_table(table)


def _data_file(number: int) -> str:
    chunk, file = divmod(number, FILES)
    return DATA.format(chunk_index=chunk, file_index=file)


def _feature(column: Column) -> dict[str, Any]:
    if column.kind == "text":
        return {"dtype": "string", "shape": [1], "names": None}
    if column.kind == "image":
        return {"dtype": "image", "shape": list(column.shape), "names": ["height", "width", "channels"]}
    return {"dtype": column.dtype, "shape": list(column.shape) or [1], "names": None}


def _stats_of(column: Column) -> "_Numbers | _Pixels":
    return _Pixels(column.shape[-1]) if column.kind == "image" else _Numbers(max(1, math.prod(column.shape)))


class _Numbers:
    """Statistics of the elements of a feature over all frames; memory stays flat.

    Quantiles are of up to `SAMPLED` frames, spread evenly.
    """

    def __init__(self, size: int) -> None:
        self.count, self.every = 0, 1
        self.mean, self.squares = np.zeros(size), np.zeros(size)
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)
        self.kept = np.zeros((0, size))

    def add(self, values: NDArray[Any]) -> None:
        """Take in frames (T, ...)."""
        frames = values.reshape(len(values), len(self.mean)).astype(np.float64)
        T = len(frames)
        offset = frames.mean(0) - self.mean  # Chan et al. 1979: two groups of frames together
        self.squares += frames.var(0) * T + offset**2 * self.count * T / (self.count + T)
        self.mean += offset * T / (self.count + T)
        self.low, self.high = np.minimum(self.low, frames.min(0)), np.maximum(self.high, frames.max(0))
        self.kept = np.concatenate([self.kept, frames[-self.count % self.every :: self.every]])
        self.count += T
        while len(self.kept) > SAMPLED:
            self.kept, self.every = self.kept[::2], 2 * self.every

    def to_json(self) -> dict[str, Any]:
        """Each a list of all elements; the count is of frames."""
        found = {"min": self.low, "max": self.high, "mean": self.mean, "std": np.sqrt(self.squares / self.count)}
        quantiles = np.quantile(self.kept, QUANTILES, axis=0)
        found |= dict(zip(map(_quantile_name, QUANTILES), quantiles, strict=True))
        return {name: value.tolist() for name, value in found.items()} | {"count": [self.count]}


class _Pixels:
    """Statistics of the channels of pictures as shares of 255, from counts of their values."""

    def __init__(self, channels: int) -> None:
        self.counts, self.frames = np.zeros((channels, 256), np.int64), 0

    def add(self, values: NDArray[np.uint8]) -> None:
        """Take in pictures (T, H, W, C)."""
        self.frames += len(values)
        for channel, counts in enumerate(self.counts):
            counts += np.bincount(values[..., channel].reshape(-1), minlength=256)

    def to_json(self) -> dict[str, Any]:
        """Each of shape (C, 1, 1), as LeRobot has them."""
        shares = np.arange(256) / 255
        found: dict[str, list[float]] = {}
        for counts in self.counts:
            total, cumulated = counts.sum(), np.cumsum(counts)
            mean = float(counts @ shares / total)
            values = {
                "min": shares[counts > 0][0],
                "max": shares[counts > 0][-1],
                "mean": mean,
                "std": math.sqrt(float(counts @ (shares - mean) ** 2 / total)),
                **{_quantile_name(q): shares[np.searchsorted(cumulated, q * total)] for q in QUANTILES},
            }
            for name, value in values.items():
                found.setdefault(name, []).append(float(value))
        return {name: [[[value]] for value in channels] for name, channels in found.items()} | {
            "count": [self.frames]
        }


def _quantile_name(quantile: float) -> str:
    return f"q{round(100 * quantile):02d}"
