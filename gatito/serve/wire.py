"""Messages as bytes: msgpack with numpy arrays, as openpi-client 0.1.2 packs them.

    array    {b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [2, 3]}
    scalar   {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f8"}

What comes in is hostile until it has been checked: there are no objects, no pickle and no dtypes but numbers, and an
array is as long as its shape says before there is one.
"""

import math
import re
from typing import Any

import msgpack
import numpy as np

from gatito.errors import UserError, reason_of

DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
"""Of the arrays that are read: truth values, integers and floats."""
MOST_ITEMS = 1 << 12
"""Of a map or list; what is longer is an array."""
MOST_AXES = 8
ALLOWED = "numbers, texts, arrays, lists and maps"
_ARRAY = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR = {b"__npgeneric__", b"data", b"dtype"}


def pack(message: Any) -> bytes:
    """The bytes of a message; raises `UserError` for a value that there are no bytes of."""
    try:
        return bytes(msgpack.packb(message, default=_packed))
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"the message cannot be packed ({error}); send numbers, texts, arrays, lists and maps"
        ) from None


def unpack(content: bytes) -> dict[str, Any]:
    """A message of named values; raises `UserError` for what is none."""
    try:
        message = msgpack.unpackb(
            content,
            object_hook=_unpacked,
            max_array_len=MOST_ITEMS,
            max_map_len=MOST_ITEMS,
            max_ext_len=0,
        )
    except UserError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise UserError(
            f"no msgpack message of numbers, texts, arrays, lists and maps ({reason_of(error)})"
        ) from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise UserError(f"the message is a {type(message).__name__}, expected a map with names for keys")
    return message


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"a {type(value).__name__}{f' of {value.dtype}' if hasattr(value, 'dtype') else ''}")


def _unpacked(values: dict[Any, Any]) -> Any:
    """A map, or the array or scalar that it stands for."""
    if b"__ndarray__" in values:
        return _array(values)
    if b"__npgeneric__" in values:
        if values.keys() != _SCALAR or not isinstance(values[b"data"], bool | int | float):
            raise UserError(f"a numpy scalar with the keys {sorted(map(str, values))}, expected data and dtype")
        with np.errstate(over="ignore"):  # it becomes infinite, and no observation may be
            return _dtype(values[b"dtype"]).type(values[b"data"])
    return values


def _array(values: dict[Any, Any]) -> np.ndarray[Any, Any]:
    if values.keys() != _ARRAY:
        raise UserError(f"an array with the keys {sorted(map(str, values))}, expected data, dtype and shape")
    data, shape, dtype = values[b"data"], values[b"shape"], _dtype(values[b"dtype"])
    if not isinstance(data, bytes):
        raise UserError(f"an array whose data is a {type(data).__name__}, expected bytes")
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise UserError(f"an array of shape {str(shape)[:80]}, expected at most {MOST_AXES} sizes")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise UserError(f"an array of shape {shape} of {dtype} with {len(data)} bytes; they do not fit")
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str) or not DTYPE.fullmatch(name):
        raise UserError(f"dtype {str(name)[:40]!r}, allowed are truth values, integers and floats such as '<f4'")
    return np.dtype(name)
