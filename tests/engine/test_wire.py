from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.errors import WireError
from gateway.engine.wire import (
    HEADER,
    RUN,
    FrameReader,
    decode_result,
    decode_run,
    decode_tensors,
    encode_result,
    encode_run,
)
from gateway.protocol.datatypes import NUMPY_OF
from tests.tensors import same, tensors

TENSORS = st.lists(st.sampled_from(list(NUMPY_OF)).flatmap(tensors), min_size=1, max_size=4)


@given(TENSORS, st.integers(0, 2**64 - 1))
def test_tensors_come_back_bit_for_bit(sent: list[np.ndarray[Any, Any]], nanoseconds: int) -> None:
    frame = b"".join(encode_result(7, nanoseconds, sent))
    [(_, count, frame_id, payload)] = FrameReader().feed(frame)
    told, decoded = decode_result(payload, count)
    assert (told, frame_id) == (nanoseconds, 7)
    assert all(same(before, after) for before, after in zip(sent, decoded, strict=True))


@given(TENSORS, st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_whole_however_the_stream_is_cut(sent: list[np.ndarray[Any, Any]], cuts: list[int]) -> None:
    frame = b"".join(encode_run(3, [[tensor] for tensor in sent]))
    stream, reader, found = frame * 3, FrameReader(), []
    start = step = 0
    while start < len(stream):
        size = cuts[step % len(cuts)]
        found += [(kind, bytes(payload)) for kind, _, _, payload in reader.feed(stream[start : start + size])]
        start, step = start + size, step + 1
    assert found == [(RUN, frame[HEADER.size :])] * 3


def test_rows_of_several_requests_are_joined_in_order() -> None:
    one, two = np.ones((1, 2), "f4"), np.zeros((3, 2), "f4")
    [(_, count, _, payload)] = FrameReader().feed(b"".join(encode_run(1, [[one, two]], deadline=7.5)))
    deadline, [tensor] = decode_run(payload, count)
    assert deadline == 7.5 and tensor.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


def test_an_array_that_is_not_contiguous_is_sent_as_it_reads() -> None:
    array = np.arange(6, dtype="i8").reshape(2, 3).T
    [(_, count, _, payload)] = FrameReader().feed(b"".join(encode_run(1, [[array]])))
    assert decode_run(payload, count)[1][0].tolist() == array.tolist()


@given(st.binary(max_size=200), st.integers(0, 5))
def test_bytes_that_are_no_tensors_raise_only_a_wire_error(payload: bytes, count: int) -> None:
    try:
        decode_tensors(memoryview(payload), count)
    except WireError:
        pass
    try:
        decode_run(memoryview(payload), count)
    except WireError:
        pass


def test_a_length_beyond_the_limit_is_refused_before_it_is_waited_for() -> None:
    with pytest.raises(WireError, match="beyond"):
        list(FrameReader().feed(HEADER.pack(2**32 - 1, RUN, 0, 1)))
