"""Dataset repositories of the Hugging Face hub whose rows are episodes, as JAT's (Gallouédec et al. 2024).

image_observations | continuous_observations | discrete_observations, text_observations
discrete_actions | continuous_actions      rewards

The parquet files are read where they are, on the hub or in a folder, a few rows at a time and only the columns that
are needed; no row becomes Python lists.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gatito.data.below import check_card, check_data_files
from gatito.data.formats.columns import check_claims, element_type, row_values
from gatito.data.formats.layout import MARK, ColumnLayout, own_episode
from gatito.data.formats.source import (
    REWARD,
    EpisodeSource,
    ImportConfig,
    RawEpisode,
    SourceField,
    Space,
    Values,
    kept_metadata,
)
from gatito.errors import UserError, nearest

OBSERVATIONS = ("image", "continuous", "discrete", "text")
ENDS = ("rewards", "terminations", "truncations")
"""Columns of a dataset that gatito exported."""
ROWS = 8
"""Episodes that are read at a time."""


class HubSource(EpisodeSource):
    """Parquet files in which a row is an episode and a column a list over its timesteps."""

    def __init__(self, config: ImportConfig, given: tuple[Space, Space] | None) -> None:
        """Find the files; raises `UserError` where there are none, or their columns differ."""
        self.location = config.location
        self.files = _files_of(config)
        schema, marks = self._checked_schema()
        self._own: ColumnLayout | None = None
        if MARK in marks and not config.mapping:
            self._own = ColumnLayout.from_json(marks[MARK], self.files[0])
        if self._own is not None:
            kept = {column.name for column in self._own.columns} | set(ENDS)
            missing = next((name for name in kept if name not in schema.names), None)
            if missing is not None:
                raise UserError(f"{self.files[0]}: column {missing} is missing; export the dataset again")
        else:
            kept = set(schema.names)
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{self.files[0]}: column {twice} is there twice; write it once")
        named = [name for name in schema.names if name in kept]
        found = [f for name in named if (f := self._field(name, schema.field(name).type)) is not None]
        names = {f.name for f in found}
        seen = {kind: f"{kind}_observations" for kind in OBSERVATIONS if f"{kind}_observations" in names}
        guessed = {f"observation.{kind}": name for kind, name in seen.items()}
        if len(seen) == 1:
            guessed = {"observation": next(iter(seen.values()))}
        known = (("action", "discrete_actions"), ("action", "continuous_actions"), (REWARD, "rewards"))
        guessed |= {role: name for role, name in known if name in names}
        self.metadata = {"description": f"episodes of {config.location}, split {config.split}"}
        if self._own is not None:
            guessed = self._own.roles(ENDS)
            self.metadata = _stated(marks, self.files[0])
        super().__init__(config, found, guessed, given)

    def stated_spaces(self) -> tuple[Space, Space] | None:
        """Those of the dataset that gatito exported."""
        return None if self._own is None else (self._own.observation_space, self._own.action_space)

    @property
    def num_episodes(self) -> int:
        """How many there are."""
        return sum(self._rows)

    def raw_episodes(self, first: int, last: int) -> Iterator[RawEpisode]:
        """Yield the rows [first, last) as episodes."""
        if self._own is not None:
            yield from self._own_episodes(self._own, first, last)
            return
        names = [f.name for f in self.fields if f.role]
        for where, batch in self._batches(names, first, last):
            values = {name: row_values(batch, name, where) for name in names}
            yield RawEpisode(where=where, values=values)

    def _own_episodes(self, layout: ColumnLayout, first: int, last: int) -> Iterator[RawEpisode]:
        """Those that gatito exported, [first, last), as they were."""
        lists = [*(column.name for column in layout.columns), *ENDS]
        for where, batch in self._batches([*lists, *layout.beside()], first, last):
            found = {name: row_values(batch, name, where) for name in lists}
            yield own_episode(layout, found, batch, where)

    def column(self, name: str) -> Iterator[Values]:
        """Yield the values of one field, an episode at a time."""
        for where, batch in self._batches([name]):
            yield row_values(batch, name, where)

    def _batches(
        self, names: list[str], first: int = 0, last: int | None = None
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Each of the rows [first, last) alone, with where it stands."""
        begin = 0
        for file, rows in zip(self.files, self._rows, strict=True):
            if begin + rows > first and (last is None or begin < last):
                stop = rows if last is None else min(rows, last - begin)
                yield from self._rows_of(file, names, max(0, first - begin), stop)
            begin += rows

    def _rows_of(self, file: str, names: list[str], first: int, last: int) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The rows [first, last) of a file; groups of rows before them are not read."""
        with _opened(file) as parquet:
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            groups = [i for i, start in enumerate(starts) if start + sizes[i] > first and start < last]
            row = starts[groups[0]] if groups else 0
            for batch in parquet.iter_batches(batch_size=ROWS, row_groups=groups, columns=names):
                batch.validate(full=True)
                for i in range(len(batch)):
                    if first <= row + i < last:
                        yield f"{file}, row {row + i}", batch.slice(i, 1)
                row += len(batch)
        if row < last:
            raise UserError(f"{file}: {row} rows could be read of {last}; it is cut off, download it again")

    def _checked_schema(self) -> tuple[pa.Schema, Mapping[bytes, bytes]]:
        """The columns of all files, and the metadata of the first."""
        schemas, self._rows = [], []
        marks: Mapping[bytes, bytes] = {}
        for file in self.files:
            with _opened(file) as parquet:
                marks = marks or parquet.schema_arrow.metadata or {}
                schemas.append(parquet.schema_arrow.remove_metadata())
                self._rows.append(parquet.metadata.num_rows)
            if not schemas[-1].equals(schemas[0]):
                differing = sorted({str(f) for f in schemas[-1]} ^ {str(f) for f in schemas[0]})
                raise UserError(f"{file}: its columns are not those of {self.files[0]} ({'; '.join(differing)})")
        return schemas[0], marks

    def _field(self, name: str, kind: pa.DataType) -> SourceField | None:
        """What a column of lists holds, by its first row."""
        if not isinstance(kind, pa.ListType | pa.LargeListType) or not (dtype := element_type(kind)):
            return None
        for where, batch in self._batches([name]):
            values = row_values(batch, name, where)
            if isinstance(values, list):
                return SourceField(name=name, dtype="text", shape=())
            return SourceField(name=name, dtype=str(values.dtype), shape=values.shape[1:])
        return SourceField(name=name, dtype=dtype, shape=())


def _stated(marks: Mapping[bytes, bytes], where: str) -> dict[str, Any]:
    """What the exported dataset said of itself."""
    try:
        values = json.loads(marks.get(MARK + b"_metadata", b"{}"))
        return kept_metadata(values, where)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: its gatito metadata cannot be read ({error}); export it again") from None


def _files_of(config: ImportConfig) -> list[str]:
    """Paths or addresses of the parquet files of a split, as `datasets` finds them; nothing is downloaded."""
    from datasets import load_dataset_builder

    folder, name = _repository(config.location)
    if Path(folder).is_dir():
        check_card(Path(folder))
    try:
        builder = load_dataset_builder(folder, name)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{config.source}: `datasets` finds no dataset there ({str(error).splitlines()[0]})"
        ) from None
    check_data_files(builder.config.data_files, Path(folder) if Path(folder).is_dir() else folder, config.source)
    splits: Mapping[str, Any] = builder.config.data_files or {}
    if config.split not in splits:
        raise UserError(f"{config.source}: {nearest(config.split, map(str, splits), 'split')}")
    files = [str(file) for file in splits[config.split]]
    other = next((file for file in files if not file.endswith(".parquet")), None)
    if other is not None:
        raise UserError(f"{config.source}: {other} is no parquet file; convert it with datasets' to_parquet")
    return files


def _repository(location: str) -> tuple[str, str | None]:
    """The repository or folder, and the configuration behind it, where one is named."""
    if Path(location).is_dir():
        return location, None
    folder, _, name = location.rpartition("/")
    if Path(folder).is_dir() and folder:
        return folder, name
    if location.startswith(("/", ".")) or ":" in location or location.count("/") not in (1, 2):
        raise UserError(f"hf:{location}: no such folder; on the hub it is hf:OWNER/NAME or hf:OWNER/NAME/CONFIG")
    return (folder, name) if location.count("/") == 2 else (location, None)


@contextmanager
def _opened(file: str) -> Iterator[pq.ParquetFile]:
    """A parquet file on disk or on the hub; raises `UserError` where it is damaged."""
    import fsspec

    try:
        with fsspec.open(file, "rb") as content:
            parquet = pq.ParquetFile(content)
            check_claims(parquet.metadata, file)
            yield parquet
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0]}); repair it") from None
