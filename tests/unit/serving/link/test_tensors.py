from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eagleray.protocol.tensors import DTYPES
from eagleray.serving.link import tensors
from eagleray.serving.link.tensors import (
    TensorError,
    TensorSpec,
    head_of,
    put,
    read,
    read_apart,
    write,
)
from support.links import placed

NUMBERS = [dtype for name, dtype in DTYPES.items() if name != "BYTES"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
ARRAYS = st.one_of(
    st.sampled_from(NUMBERS).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)),
    hnp.arrays(object, SHAPES, elements=st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def joined(arrays) -> bytearray:
    return bytearray(b"".join(write(arrays)))


def same(found, arrays) -> None:
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        if array.dtype.hasobject:
            assert found[name].tolist() == array.tolist()
        else:
            assert found[name].tobytes() == array.tobytes()


@settings(max_examples=100, deadline=None)
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_what_was_written_is_read(arrays) -> None:
    same(read(joined(arrays)), arrays)
    place = memoryview(bytearray(1 << 17))  # 4 x 625 texts of 36 bytes
    head, length = placed(place, arrays)
    same(read_apart(head, place[:length]), arrays)


def test_reading_copies_nothing_and_is_aligned() -> None:
    body = joined({"flags": np.ones(3, np.uint8), "x": np.arange(8, dtype=np.float32)})
    found = read(body)
    assert found["x"].flags.aligned
    assert found["x"].flags.writeable
    body[-4:] = struct.pack("<f", 5.0)
    assert found["x"][-1] == 5.0


def test_large_arrays_are_sent_as_they_lie() -> None:
    array = np.zeros(10_000, np.float32)
    *_, values = write({"x": array})
    array[0] = 1.0
    assert bytes(values[:4]) == struct.pack("<f", 1.0)


def test_strides_and_byte_order_are_made_plain() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    assert read(joined({"x": array}))["x"].tolist() == array.tolist()


def test_a_head_can_be_made_for_bytes_that_somebody_has() -> None:
    head = head_of([TensorSpec("x", "FP32", (2, 1), 8)])
    assert read(head + struct.pack("<2f", 1, 2))["x"].tolist() == [[1.0], [2.0]]


def test_no_room_in_a_place() -> None:
    assert put(memoryview(bytearray(11)), write({"x": np.zeros(3, np.float32)})[1:]) is None


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=120))
def test_garbage_is_tensors_or_an_error(data: bytes) -> None:
    with contextlib.suppress(TensorError):
        assert isinstance(read(data), dict)


@settings(max_examples=100, deadline=None)
@given(
    arrays=st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=3),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3),
    cut=st.integers(0, 30),
)
def test_a_changed_body_is_tensors_or_an_error(arrays, changes, cut) -> None:
    data = joined(arrays)
    for at, value in changes:
        data[at % len(data)] = value
    for body in (data, data[: len(data) - cut], data + bytes(cut)):
        with contextlib.suppress(TensorError):
            assert isinstance(read(body), dict)


def raw(
    name: bytes, code: int, shape: tuple[int, ...], num_bytes: int, values: bytes = b"", count: int = 1
) -> bytes:
    line = struct.pack(
        f"<B{len(name)}sBB{len(shape)}IQ", len(name), name, code, len(shape), *shape, num_bytes
    )
    eights = -(-(4 + len(line)) // 8)
    return (struct.pack("<HH", count, eights) + line).ljust(eights * 8, b"\0") + values


FP32, BYTES, BOOL = (list(DTYPES).index(name) + 1 for name in ("FP32", "BYTES", "BOOL"))
BIG = 2**32 - 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (raw(b"x", FP32, (2, 2), 15, bytes(15)), r"shape \[2, 2\] takes 16 bytes, not 15"),
        (raw(b"x", FP32, (2, 2), 16, bytes(12)), "16 bytes of values, and there are 12"),
        (raw(b"x", FP32, (2, 2), 16, bytes(20)), "16 bytes of values, and there are 20"),
        (raw(b"x", FP32, (2**31, 2), 0), "takes 17179869184 bytes, not 0"),
        (raw(b"x", FP32, (2**16, 2**16, 2**16, 2**16), 0), "more than any body holds"),
        (raw(b"x", FP32, (BIG, BIG, BIG, BIG), 4), "more than any body holds"),
        (raw(b"x", FP32, (BIG, BIG, 0), 0), "more than any body holds"),
        (raw(b"x", FP32, (2**20,), 2**22), "4194304 bytes of values, and there are 0"),
        (raw(b"x", FP32, (1,) * 33, 4, bytes(4)), "33 dimensions"),
        (raw(b"x", 99, (1,), 4, bytes(4)), "no datatype has code 99"),
        (raw(b"\xff", FP32, (1,), 4, bytes(4)), "not UTF-8"),
        (raw(b"x", FP32, (1,), 4, bytes(4), count=2), "ends early|no datatype"),
        (raw(b"x", FP32, (1,), 4, bytes(4), count=0), "and more follows"),
        (raw(b"x", BYTES, (2**30,), 2**30), "takes 4294967296 bytes, not 1073741824"),
        (raw(b"x", BYTES, (1,), 8, struct.pack("<I", 2**32 - 1) + b"abcd"), "which are not there"),
        (raw(b"x", BYTES, (2,), 8, struct.pack("<I", 4) + b"abcd"), "element 1 of 2 is missing"),
        (raw(b"x", BYTES, (1,), 6, struct.pack("<I", 1) + b"ab"), "1 bytes are left"),
        (raw(b"x", BYTES, (1,), 5, struct.pack("<I", 1) + b"\xff"), "is not UTF-8"),
        (raw(b"x", BOOL, (2,), 2, b"\1\2"), "BOOL takes bytes 0 and 1"),
        (b"", "not even a head"),
        (struct.pack("<HH", 1, 9), "72 bytes, and there are 4"),
        (struct.pack("<HH", 1, 0), "0 bytes, and there are 0|ends early"),
    ],
)
def test_what_does_not_fit_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        read(body)


def test_two_of_one_name_are_refused() -> None:
    head = head_of([TensorSpec("x", "UINT8", (64,), 64), TensorSpec("x", "UINT8", (1,), 1)])
    with pytest.raises(TensorError, match="one name"):
        read(head + bytes(65))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([TensorSpec("x" * 256, "FP32", (1,), 4)], "256 bytes"),
        ([TensorSpec("x", "FP33", (1,), 4)], "not known"),
        ([TensorSpec("x", "FP32", (2**32,), 4)], "out of bounds"),
        ([TensorSpec("x", "FP32", (-1,), 4)], "out of bounds"),
        ([TensorSpec("x", "FP32", (1,) * 33, 4)], "out of bounds"),
        ([TensorSpec(str(i), "FP32", (1,), 4) for i in range(70_000)], "no room"),
    ],
)
def test_a_head_that_cannot_be_said(specs, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        head_of(specs)


def test_what_is_kept_of_heads_is_bounded() -> None:
    for size in range(1500):
        read(joined({f"x{size}": np.zeros(1, np.uint8)}))
    many = {f"{'n' * 200}{i}": np.zeros(1, np.uint8) for i in range(40)}
    before = tensors._layout.cache_info().currsize, tensors._head.cache_info().currsize
    same(read(joined(many)), many)
    assert (
        before == (tensors._layout.cache_info().currsize, tensors._head.cache_info().currsize) == (512, 512)
    )


def test_texts_of_all_kinds_and_what_is_none() -> None:
    texts = np.array([b"a", "ö"], object)
    assert read(joined({"t": texts}))["t"].tolist() == ["a", "ö"]
    assert read(joined({"t": np.array(["a", "bc"])}))["t"].tolist() == ["a", "bc"]
    with pytest.raises(TensorError, match="an element is int"):
        write({"t": np.array([1], object)})
    with pytest.raises(TensorError, match="half a surrogate"):
        write({"t": np.array(["\ud800"], object)})
