"""Messages of a policy server as bytes: those of openpi-client, and hostile ones."""

from typing import Any

import msgpack
import numpy as np
import pytest
from served import packed, unpacked

from gatito.errors import UserError
from gatito.serve.wire import MOST_ITEMS, pack, unpack

MESSAGE = {
    "observation": {"image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3), "state": np.linspace(0, 1, 5)},
    "gripper": np.float32(0.5),
    "prompt": "open the drawer",
    "numbers": [1, 2.5, True, None],
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return bool(a == b)


def test_messages_are_those_of_openpi_client_byte_for_byte() -> None:
    assert pack(MESSAGE) == packed(MESSAGE)
    assert same(unpack(packed(MESSAGE)), MESSAGE)
    assert same(unpacked(pack(MESSAGE)), MESSAGE)


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "<i8", ">f4", "f2", "f8"])
def test_arrays_keep_dtype_shape_and_values(dtype: str) -> None:
    for shape in ((), (0,), (3,), (2, 0, 3), (2, 3, 1)):
        array = np.ones(shape, dtype)
        assert same(unpack(pack({"x": array})), {"x": array})


@pytest.mark.parametrize(
    "value", [np.array(["a"]), np.array([object()]), np.zeros(1, np.complex64), object(), 1 << 70]
)
def test_what_has_no_bytes_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="the message cannot be packed"):
        pack({"x": value})


def array(**changes: Any) -> bytes:
    stated = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb({"x": stated | {key.encode(): value for key, value in changes.items()}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no msgpack message of numbers"),
        (b"\xc1", "no msgpack message"),
        (b"{}", "no msgpack message"),
        (packed(MESSAGE)[:-1], "no msgpack message"),
        (packed(MESSAGE) + b"\0", "no msgpack message"),
        (msgpack.packb([1]), "the message is a list, expected a map with names"),
        (msgpack.packb({b"x": 1}), "expected a map with names"),
        (msgpack.packb({1: 1}), "no msgpack message"),
        (b"\x91" * 5000, "no msgpack message"),
        (b"\xdd\xff\xff\xff\xff" * 100, rf"4294967295 exceeds max_array_len\({MOST_ITEMS}\)"),
        (b"\xdf\xff\xff\xff\xff", r"exceeds max_map_len"),
        (b"\xc6\xff\xff\xff\xff", "no msgpack message"),
        (msgpack.packb({"x": msgpack.ExtType(4, b"cos\nsystem\n")}), "no msgpack message"),
        (msgpack.packb({"x": msgpack.Timestamp(1)}), "no msgpack message"),
        (array(dtype="O"), r"dtype 'O', allowed are truth values, integers and floats"),
        (array(dtype="f4,f4"), "dtype 'f4,f4'"),
        (array(dtype=7), "dtype '7'"),
        (array(shape=[3]), r"shape \[3\] of float32 with 8 bytes; they do not fit"),
        (array(shape=[20_000, 20_000, 3]), r"shape \[20000, 20000, 3\] of float32 with 8 bytes"),
        (array(shape=[1 << 62, 1 << 62]), "they do not fit"),
        (array(shape=[-2]), r"an array of shape \[-2\], expected at most 8 sizes"),
        (array(shape=[1] * 9), "expected at most 8 sizes"),
        (array(shape=2), "an array of shape 2, expected"),
        (array(data="text"), "an array whose data is a str, expected bytes"),
        (array(more=1), "an array with the keys"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": b"abc", b"dtype": "<f4"}}), "a numpy scalar with"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "no msgpack message"),
    ],
)
def test_hostile_messages_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        unpack(content)


@pytest.mark.slow
def test_100_000_fuzzed_messages_are_read_or_refused() -> None:
    rng = np.random.default_rng(0)
    whole = [packed(MESSAGE), array(), packed({"gatito/reset": {"task": "a/b", "seed": 1}})]
    for i in range(100_000):
        content = bytearray(whole[i % 3])
        for place in rng.integers(len(content), size=rng.integers(1, 6)):
            content[place] = rng.integers(256)
        cut = content[: rng.integers(len(content) + 1)] if i % 5 == 0 else content
        try:
            assert isinstance(unpack(bytes(cut)), dict)
        except UserError:
            continue
