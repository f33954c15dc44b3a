from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.engine.errors import WireError
from gateway.engine.wire import HEADER, RUN, FrameReader, decode_result, decode_tensors, encode_result, encode_run
from gateway.protocol.datatypes import NUMPY_OF

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NUMBERS = st.sampled_from([dtype for dtype in NUMPY_OF.values() if dtype.kind != "O"]).flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES)
)
STRINGS = hnp.arrays(object, SHAPES, elements=st.text(st.characters(exclude_categories=("Cs",)), max_size=8))
TENSORS = st.lists(st.one_of(NUMBERS, STRINGS), min_size=1, max_size=4)


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if one.dtype.kind == "O":
        return one.shape == other.shape and one.tolist() == other.tolist()
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@given(TENSORS, st.integers(0, 2**64 - 1))
def test_tensors_come_back_bit_for_bit(tensors: list[np.ndarray[Any, Any]], nanoseconds: int) -> None:
    frame = b"".join(encode_result(7, nanoseconds, tensors))
    [(_, count, frame_id, payload)] = FrameReader().feed(frame)
    told, decoded = decode_result(payload, count)
    assert (told, frame_id) == (nanoseconds, 7)
    assert all(same(sent, got) for sent, got in zip(tensors, decoded, strict=True))


@given(TENSORS, st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_whole_however_the_stream_is_cut(tensors: list[np.ndarray[Any, Any]], cuts: list[int]) -> None:
    frame = b"".join(encode_run(3, [[tensor] for tensor in tensors]))
    stream, reader, found = frame * 3, FrameReader(), []
    start = step = 0
    while start < len(stream):
        size = cuts[step % len(cuts)]
        found += [(kind, bytes(payload)) for kind, _, _, payload in reader.feed(stream[start : start + size])]
        start, step = start + size, step + 1
    assert found == [(RUN, frame[HEADER.size :])] * 3


def test_rows_of_several_requests_are_joined_in_order() -> None:
    one, two = np.ones((1, 2), "f4"), np.zeros((3, 2), "f4")
    [(_, count, _, payload)] = FrameReader().feed(b"".join(encode_run(1, [[one, two]])))
    assert decode_tensors(payload, count)[0].tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


def test_an_array_that_is_not_contiguous_is_sent_as_it_reads() -> None:
    array = np.arange(6, dtype="i8").reshape(2, 3).T
    [(_, count, _, payload)] = FrameReader().feed(b"".join(encode_run(1, [[array]])))
    assert decode_tensors(payload, count)[0].tolist() == array.tolist()


@given(st.binary(max_size=200), st.integers(0, 5))
def test_bytes_that_are_no_tensors_raise_only_a_wire_error(payload: bytes, count: int) -> None:
    try:
        decode_tensors(memoryview(payload), count)
    except WireError:
        pass


def test_a_length_beyond_the_limit_is_refused_before_it_is_waited_for() -> None:
    with pytest.raises(WireError, match="beyond"):
        list(FrameReader().feed(HEADER.pack(2**32 - 1, RUN, 0, 1)))
