"""Columns of Arrow tables in which a row is an episode: nested lists to arrays, pictures to pixels."""

import io
import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from gatito.data.formats.source import Values
from gatito.errors import UserError

PIXELS = 1 << 24
"""Most pixels of a picture that is decoded; a packed one may claim any number."""
SMALL, MOST_DEFLATED = 1 << 26, 1100
"""Bytes up to which a column may hold more than so many times its stored ones: values that never change take none."""
PICTURES = ("PNG", "JPEG")
MODES = {"L": 1, "RGB": 3, "RGBA": 4}


def check_claims(metadata: Any, file: str) -> None:
    """Raise `UserError` where a parquet file would hold far more values than its bytes can be for."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            column = group.column(j)
            claimed, stored = 8 * column.num_values, column.total_compressed_size
            if claimed > max(SMALL, MOST_DEFLATED * stored):
                raise UserError(
                    f"{file}: column {column.path_in_schema} claims {column.num_values} values in {stored} bytes; "
                    "repair or drop the dataset"
                )


def row_values(batch: pa.RecordBatch, name: str, where: str) -> Values:
    """The timesteps of a column in a batch of one row, see `episode_values`."""
    row = batch.column(name)[0]
    if not row.is_valid:
        raise UserError(f"{where}, {name}: the row has no values (null); drop the episode or fill it in")
    return episode_values(row.values, f"{where}, {name}")


def episode_values(column: pa.Array, where: str) -> Values:
    """The T timesteps of one episode, a list: (T, ...) numbers, (T, H, W, C) pixels, or T texts.

    Raises `UserError` for lists of unequal length, missing values, and what is neither.
    """
    kind = column.type
    if column.null_count:
        raise UserError(f"{where}: a value is missing (null); drop the episode or fill it in")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [str(text) for text in column.to_pylist()]
    if pa.types.is_struct(kind) and {"bytes", "path"} >= {f.name for f in kind}:
        return _pictures(column, where)
    return _numbers(column, where)


def element_type(kind: pa.DataType) -> str:
    """`text`, `picture`, or the numpy dtype of what the lists of a column hold; empty where it is none of these."""
    while isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType | pa.BaseExtensionType):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_struct(kind):
        return "picture" if "bytes" in {f.name for f in kind} else ""
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return str(np.dtype(kind.to_pandas_dtype()))
    return ""


def _numbers(column: pa.Array, where: str) -> NDArray[Any]:
    """Nested lists of numbers; their lengths are compared, nothing passes through Python."""
    shape = [len(column)]
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        kind = column.type
        if isinstance(kind, pa.FixedSizeListType):
            shape.append(kind.list_size)
        elif isinstance(kind, pa.ListType | pa.LargeListType):
            lengths = np.diff(column.offsets.to_numpy())
            if len(lengths) and (lengths != lengths[0]).any():
                t = int(np.argmax(lengths != lengths[0]))
                found = f"{lengths[t]} values where the first timestep has {lengths[0]}"
                raise UserError(f"{where}: list {t} has {found}; repair the file")
            shape.append(int(lengths[0]) if len(lengths) else 0)
        else:
            break
        column = column.flatten()
        if column.null_count:
            raise UserError(f"{where}: a value is missing (null); drop the episode or fill it in")
    if not element_type(column.type) or len(column) != math.prod(shape):
        raise UserError(f"{where}: values of type {column.type} cannot be read as numbers; leave the field out")
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def _pictures(column: pa.StructArray, where: str) -> NDArray[np.uint8]:
    frames = []
    for t, content in enumerate(column.field("bytes")):
        if not content.is_valid:
            raise UserError(
                f"{where}, timestep {t}: a picture that names another file; write its bytes into the column"
            )
        frames.append(_decoded(content.as_py(), f"{where}, timestep {t}"))
        if frames[-1].shape != frames[0].shape:
            raise UserError(f"{where}, timestep {t}: a picture of {frames[-1].shape}, the first is {frames[0].shape}")
    return np.stack(frames)


def _decoded(content: bytes, where: str) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of a PNG or JPEG."""
    try:
        with Image.open(io.BytesIO(content), formats=PICTURES) as picture:
            if picture.width * picture.height > PIXELS:
                raise UserError(f"{where}: a picture of {picture.width}x{picture.height}, allowed {PIXELS} pixels")
            if picture.mode not in MODES:
                raise UserError(f"{where}: a picture of mode {picture.mode}, allowed {', '.join(MODES)}; convert it")
            pixels = np.asarray(picture, np.uint8)
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: the picture cannot be decoded ({error}); repair or drop the episode") from None
    return pixels.reshape(*pixels.shape[:2], -1)
