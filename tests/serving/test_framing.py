from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import BodyTooLarge, CallerError
from gateway.serving.grpc.framing import Deframer, Framed, framed


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 200), max_size=9), st.integers(0, 5))
def test_messages_are_the_same_however_a_body_is_split(contents: list[bytes], places: list[int], short: int) -> None:
    body = b"".join(map(framed, contents)) + bytes((0, 0, 0, 0, 9))[:short]
    cuts = [0, *sorted(min(place, len(body)) for place in places), len(body)]
    deframer = Deframer(max_bytes=20)
    found = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        deframer.feed(body[start:end])
        while deframer.is_ready:
            found.append(deframer.take())
        assert deframer.take() is None
    assert found == [Framed(False, content) for content in contents]
    assert deframer.size == short


@pytest.mark.parametrize(("head", "error"), [(b"\0\0\0\0\x15", BodyTooLarge), (b"\2\0\0\0\1", CallerError)])
def test_a_message_that_cannot_be_taken_is_refused_by_its_first_bytes(head: bytes, error: type[Exception]) -> None:
    deframer = Deframer(max_bytes=20)
    deframer.feed(head[:4])
    assert not deframer.is_ready and deframer.take() is None
    deframer.feed(head[4:])
    assert deframer.is_ready
    with pytest.raises(error):
        deframer.take()


def test_a_message_in_tiny_pieces_takes_no_more_memory_than_its_bytes() -> None:
    deframer = Deframer(max_bytes=2**20)
    deframer.feed(b"\0" + (2**20).to_bytes(4, "big"))
    tracemalloc.start()
    try:
        for _ in range(100_000):
            deframer.feed(bytes(bytearray(2)))
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()
