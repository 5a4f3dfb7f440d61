"""LeRobot datasets, v3.0 and v2.1: frames in parquet files, cameras there or in videos.

v3.0   meta/episodes/*/*.parquet says where each episode lies; files of data and videos hold many episodes
v2.1   meta/episodes.jsonl; a file of data, and one of each camera, per episode

The library itself is not needed. Paths follow from the layout's version and never from the file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gymnasium import spaces

from gatito.data.below import check_below
from gatito.data.formats.columns import episode_values
from gatito.data.formats.layout import ColumnLayout, own_episode
from gatito.data.formats.lerobot_export import BESIDE, DATA, feature_name
from gatito.data.formats.source import (
    REWARD,
    TERMINATED,
    TRUNCATED,
    EpisodeSource,
    ImportConfig,
    RawEpisode,
    SourceField,
    Space,
    Values,
    kept_metadata,
)
from gatito.data.formats.video import read_frames
from gatito.errors import UserError, reason_of

V3, V2 = "v3.0", "v2.1"
PATHS = {
    V3: (DATA, "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"),
    V2: (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
}
"""Of data and videos, by version."""
VIDEO_KEYS = ("chunk_index", "file_index", "from_timestamp")
"""Columns of an episode that say where it is in a video."""
TASK = "task"
"""Field of the instruction, which a table of the dataset has for each frame's `task_index`."""
INDICES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Fields that say where a frame belongs."""


@dataclass(frozen=True, kw_only=True)
class EpisodePlace:
    """Where an episode lies."""

    index: int
    length: int
    data: str
    """File of its frames, below the dataset."""
    videos: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """Camera to its file, and the second at which the episode begins there."""


KNOWN = {
    "action": "action", "reward": REWARD, "next.reward": REWARD, "next.done": TERMINATED,
    "next.terminated": TERMINATED, "next.truncated": TRUNCATED,
}  # fmt: skip
"""What features of these names are taken for; of two of a role the later one."""


ENDS = ("next.reward", "next.terminated", "next.truncated")
"""Features of a dataset that gatito exported."""


class LeRobotSource(EpisodeSource):
    """A dataset by folder. Cameras, states and the instruction become a Dict; actions have the bounds of the data."""

    def __init__(self, config: ImportConfig, given: tuple[Space, Space] | None) -> None:
        """Open a folder; raises `UserError` where it is none, or of another version."""
        self.root = Path(config.location)
        info = _read_json(self.root / "meta/info.json")
        self.version = str(info.get("codebase_version"))
        if self.version not in PATHS:
            raise UserError(
                f"{self.root / 'meta/info.json'}: codebase_version {self.version}, read are {V3} and {V2}"
            )
        self._check_paths(info)
        self.features = self._checked_features(info.get("features"))
        self.fps = _number(info, "fps", self.root)
        self.tasks = self._read_tasks()
        chunk = int(_number(info, "chunks_size", self.root)) if self.version == V2 else 0
        self._places = self._read_v3() if self.version == V3 else self._read_v2(chunk)
        stated = info.get("total_episodes")
        if stated != len(self._places):
            raise UserError(f"{self.root}: info.json states {stated} episodes, there are {len(self._places)}")
        for number, place in enumerate(self._places):
            if place.index != number:
                raise UserError(
                    f"{self.root}: episode {number} of {stated} has index {place.index}; number them anew"
                )
        self._own = self._own_layout(info, config)
        found = [self._field(name, feature) for name, feature in self.features.items() if name not in INDICES]
        found.append(SourceField(name=TASK, dtype="text", shape=()))
        guessed = {f.name: f.name for f in found if f.name.startswith("observation.")}
        guessed |= {role: name for name, role in KNOWN.items() if name in self.features}
        if len(set(self.tasks.values())) > 1:  # one alone tells nothing
            guessed[f"observation.{TASK}"] = TASK
        robot = info.get("robot_type") or "unknown robot"
        self.metadata = {"description": f"{robot}, {self.fps:g} frames a second, LeRobot {self.version}"}
        if self._own is not None:
            guessed = self._own.roles(ENDS)
            stated = info["gatito"].get("metadata")
            self.metadata = kept_metadata(dict(stated or {}), f"{self.root}, info.json")
        super().__init__(config, found, guessed, given)

    @property
    def num_episodes(self) -> int:
        """How many there are."""
        return len(self._places)

    def raw_episodes(self, first: int, last: int) -> Iterator[RawEpisode]:
        """Yield the episodes [first, last), in order."""
        if self._own is not None:
            yield from self._own_episodes(self._own, first, last)
            return
        names = [f.name for f in self.fields if f.role]
        for place in self._places[first:last]:
            where = f"{self.root}, episode {place.index}"
            yield RawEpisode(where=where, values=self._values(place, names, where))

    def stated_spaces(self) -> tuple[Space, Space] | None:
        """Those of the dataset that gatito exported."""
        return None if self._own is None else (self._own.observation_space, self._own.action_space)

    def _own_layout(self, info: Mapping[str, Any], config: ImportConfig) -> ColumnLayout | None:
        """The layout of a dataset that gatito exported, unless the user maps its fields."""
        own = info.get("gatito")
        if own is None or config.mapping:
            return None
        where = f"{self.root}, info.json"
        if not isinstance(own, dict) or not isinstance(own.get("layout"), str):
            raise UserError(f"{where}: its gatito metadata cannot be read; export it again")
        layout = ColumnLayout.from_json(own["layout"], where, feature_name)
        missing = [column.name for column in layout.columns if column.name not in self.features]
        if missing:
            raise UserError(f"{where}: {missing[0]} is no feature, but one of its gatito metadata; export it again")
        return layout

    def _own_episodes(self, layout: ColumnLayout, first: int, last: int) -> Iterator[RawEpisode]:
        """Those that gatito exported, [first, last), as they were."""
        names = [*(column.name for column in layout.columns), *ENDS]
        beside = _read_parquet(self.root / BESIDE)
        if len(beside) != len(self._places):
            raise UserError(f"{self.root / BESIDE}: {len(beside)} rows of {len(self._places)} episodes; export again")
        for row in range(first, last):
            place = self._places[row]
            where = f"{self.root}, episode {place.index}"
            (batch,) = beside.slice(row, 1).combine_chunks().to_batches()
            yield own_episode(layout, self._values(place, names, where), batch, where)

    def column(self, name: str) -> Iterator[Values]:
        """Yield the values of one field, an episode at a time."""
        for place in self._places:
            yield self._values(place, [name], f"{self.root}, episode {place.index}")[name]

    def space_of(self, found: SourceField) -> Space:
        """Actions go as far as they occur, so that bins divide what robots do, in whatever unit."""
        if found.role != "action" or np.dtype(found.dtype).kind != "f":
            return super().space_of(found)
        low, high = self.limits(found)
        return spaces.Box(low, np.where(high > low, high, low + 1).astype(low.dtype), found.shape, low.dtype.type)

    def _values(self, place: EpisodePlace, names: list[str], where: str) -> dict[str, Values]:
        table = self._frames(place, where)
        values: dict[str, Values] = {}
        for name in names:
            feature = self.features.get(name, {})
            if name == TASK:
                indices = np.asarray(episode_values(table.column("task_index"), f"{where}, task_index"))
                values[name] = self._instructions(indices.tolist(), where)
            elif feature["dtype"] == "video":
                file, begin = place.videos[name]
                times = np.asarray(episode_values(table.column("timestamp"), f"{where}, timestamp"), np.float64)
                video = check_below(self.root / file, self.root)
                values[name] = read_frames(video, begin + times, 0.5 / self.fps, f"{where}, {name}")
            else:
                column = episode_values(table.column(name), f"{where}, {name}")
                shape = (place.length, *feature["shape"])
                values[name] = column if isinstance(column, list) else self._shaped(column, shape, f"{where}, {name}")
        return values

    @staticmethod
    def _shaped(column: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
        """Numbers as their feature says they are shaped; a single one is stored bare, images may be anything."""
        if column.ndim == 4 and column.dtype == np.uint8:
            return column
        if column.size != np.prod(shape):
            raise UserError(f"{where}: shape {column.shape[1:]}, its feature states {shape[1:]}; repair info.json")
        return column.reshape(shape)

    def _instructions(self, indices: list[int], where: str) -> list[str]:
        unknown = next((index for index in indices if index not in self.tasks), None)
        if unknown is not None:
            raise UserError(f"{where}: task_index {unknown}, the tasks are {sorted(self.tasks)}; repair the file")
        return [self.tasks[index] for index in indices]

    def _frames(self, place: EpisodePlace, where: str) -> pa.RecordBatch:
        """The rows of an episode."""
        table = _read_parquet(check_below(self.root / place.data, self.root))
        for name in (*(n for n, f in self.features.items() if f["dtype"] != "video"), *INDICES):
            if name not in table.column_names:
                raise UserError(f"{self.root / place.data}: column {name} is missing; it is a feature of info.json")
        owners = table.column("episode_index").to_numpy()
        rows = np.flatnonzero(owners == place.index)
        if len(rows) != place.length or (len(rows) and rows[-1] - rows[0] != len(rows) - 1):
            raise UserError(
                f"{where}: {place.data} has {len(rows)} of its rows, stated are {place.length} one after another; "
                "download it again"
            )
        (batch,) = table.slice(int(rows[0]) if len(rows) else 0, len(rows)).combine_chunks().to_batches() or [None]
        if batch is None:
            raise UserError(f"{where}: it has no timesteps; drop it")
        return batch

    def _check_paths(self, info: Mapping[str, Any]) -> None:
        for name, expected in zip(("data_path", "video_path"), PATHS[self.version], strict=True):
            if info.get(name, expected) not in (expected, None):
                raise UserError(f"{self.root}: info.json has {name} {info[name]!r}, read is {expected!r} alone")

    def _checked_features(self, features: Any) -> dict[str, Mapping[str, Any]]:
        where = self.root / "meta/info.json"
        if not isinstance(features, dict) or not features:
            raise UserError(f"{where}: features are {features!r}, expected names and what each is")
        for name, feature in features.items():
            if not re.fullmatch(r"[\w.\-]+", name) or ".." in name:
                raise UserError(f"{where}: feature {name!r}, allowed are letters, digits, '.', '-' and '_'")
            shape = feature.get("shape") if isinstance(feature, dict) else None
            if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 1 << 24 for n in shape):
                raise UserError(f"{where}: feature {name} has shape {shape!r}, expected a list of sizes")
            if not isinstance(feature.get("dtype"), str):
                raise UserError(f"{where}: feature {name} has dtype {feature.get('dtype')!r}, expected its name")
        return dict(features)

    def _field(self, name: str, feature: Mapping[str, Any]) -> SourceField:
        dtype, shape = feature["dtype"], tuple(feature["shape"])
        if dtype == "string":
            return SourceField(name=name, dtype="text", shape=())
        if dtype in ("image", "video"):
            if len(shape) != 3:
                raise UserError(f"{self.root}: camera {name} has shape {shape}, expected three sizes")
            if shape[0] in (1, 3) and shape[2] not in (1, 3):  # some state channels first; frames have them last
                shape = (*shape[1:], shape[0])
            return SourceField(name=name, dtype="uint8", shape=shape)
        try:
            return SourceField(name=name, dtype=str(np.dtype(dtype)), shape=shape)
        except TypeError:
            raise UserError(f"{self.root}: feature {name} has dtype {dtype!r}, expected one of numpy") from None

    def _read_tasks(self) -> dict[int, str]:
        if self.version == V2:
            file = self.root / "meta/tasks.jsonl"
            return {
                _whole(row.get("task_index"), f"{file}, task_index"): _text(row.get("task"), f"{file}, task")
                for row in _read_lines(file)
            }
        table = _read_parquet(self.root / "meta/tasks.parquet")
        texts = next((n for n in (TASK, "__index_level_0__") if n in table.column_names), None)
        if texts is None or "task_index" not in table.column_names:
            raise UserError(
                f"{self.root / 'meta/tasks.parquet'}: columns {table.column_names}, expected task, task_index"
            )
        indices = table.column("task_index").to_pylist()
        return dict(zip(map(int, indices), map(str, table.column(texts).to_pylist()), strict=True))

    def _read_v3(self) -> list[EpisodePlace]:
        files = sorted((self.root / "meta/episodes").glob("*/*.parquet"))
        rows = [row for file in files for row in _place_rows(file)]
        cameras = [name for name, feature in self.features.items() if feature["dtype"] == "video"]
        data, video = PATHS[V3]
        places = []
        numbers = [_whole(row["episode_index"], f"{self.root}, meta/episodes, episode_index") for row in rows]
        for index, row in sorted(zip(numbers, rows, strict=True), key=itemgetter(0)):
            where = f"{self.root}, meta/episodes, episode {index}"
            videos = {}
            for camera in cameras:
                own = {key: row.get(f"videos/{camera}/{key}") for key in VIDEO_KEYS}
                chunk, file, begin = (_value(value, f"{where}, {key} of {camera}") for key, value in own.items())
                path = video.format(video_key=camera, chunk_index=int(chunk), file_index=int(file))
                videos[camera] = (path, float(begin))
            chunk, file = (
                _value(row.get(f"data/{key}"), f"{where}, data/{key}") for key in ("chunk_index", "file_index")
            )
            places.append(
                EpisodePlace(
                    index=index,
                    length=int(_value(row.get("length"), f"{where}, length")),
                    data=data.format(chunk_index=int(chunk), file_index=int(file)),
                    videos=videos,
                )
            )
        return places

    def _read_v2(self, chunks_size: int) -> list[EpisodePlace]:
        if chunks_size < 1:
            raise UserError(f"{self.root}: info.json has chunks_size {chunks_size}, allowed 1 and more")
        cameras = [name for name, feature in self.features.items() if feature["dtype"] == "video"]
        data, video = PATHS[V2]
        places = []
        for row in _read_lines(self.root / "meta/episodes.jsonl"):
            index = _whole(row.get("episode_index"), f"{self.root / 'meta/episodes.jsonl'}, episode_index")
            place = {"episode_chunk": index // chunks_size, "episode_index": index}
            length = int(_value(row.get("length"), f"{self.root}, meta/episodes.jsonl, length of episode {index}"))
            videos = {camera: (video.format(video_key=camera, **place), 0.0) for camera in cameras}
            places.append(EpisodePlace(index=index, length=length, data=data.format(**place), videos=videos))
        return places


def _place_rows(file: Path) -> list[dict[str, Any]]:
    """What is said of episodes, without their statistics."""
    table = _read_parquet(file)
    if "episode_index" not in table.column_names:
        raise UserError(f"{file}: column episode_index is missing; download it again")
    return list(table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist())


@lru_cache(maxsize=1)
def _cached_parquet(file: Path, modified: int) -> pa.Table:
    table = pq.read_table(file, partitioning=None)
    table.validate(full=True)
    return table


def _read_parquet(file: Path) -> pa.Table:
    """A file, which holds many episodes one after another; the last one read is kept."""
    try:
        return _cached_parquet(file, file.stat().st_mtime_ns)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(
            f"{file}: cannot be read ({str(reason_of(error)).splitlines()[0]}); download it again"
        ) from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: no LeRobot dataset there ({reason_of(error)}); give the folder that holds meta/"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: {type(values).__name__}, expected an object")
    return values


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({reason_of(error)}); download it again") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file}: expected an object a line")
    return rows


def _number(values: Mapping[str, Any], name: str, where: Path) -> float:
    number = float(_value(values.get(name), f"{where}, info.json, {name}"))
    if not 0 < number < 1e6:
        raise UserError(f"{where}, info.json, {name}: {number:g}, allowed above 0")
    return number


def _whole(value: Any, where: str) -> int:
    """A whole number from 0, or `UserError`."""
    if int(_value(value, where)) != value:
        raise UserError(f"{where}: {value!r}, expected a whole number; download it again")
    return int(value)


def _text(value: Any, where: str) -> str:
    """A text, or `UserError`."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {value!r:.80}, expected a text; download it again")
    return value


def _value(value: Any, where: str) -> float:
    """A number from 0, or `UserError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:
        raise UserError(f"{where}: {value!r}, expected a number from 0; download it again")
    return value
