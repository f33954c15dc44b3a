from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.arena import Arena
from gateway.engine.errors import WireError
from gateway.engine.wire import (
    HEADER,
    LARGE_BYTES,
    RUN,
    SCRATCH_BYTES,
    FrameReader,
    decode_arena,
    decode_result,
    decode_run,
    decode_run_of_one,
    decode_tensors,
    encode_arena,
    encode_result,
    encode_run,
    join_parts,
)
from gateway.protocol.binary import Packed, texts_of
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


def test_many_strings_of_a_result_stay_packed_until_they_are_read() -> None:
    many, few = np.array([["a", "bc"]] * 1000, object), np.array(["d"], object)
    [(_, count, _, payload)] = FrameReader().feed(b"".join(encode_result(7, 1, [many, few])))
    _, (packed, read) = decode_result(payload, count, largest_texts=2000)
    assert isinstance(packed, Packed) and (packed.shape, packed.ndim, len(packed)) == ((1000, 2), 2, 1000)
    assert same(packed.read(), many) and same(read, few)
    with pytest.raises(TypeError):
        packed[:1]  # type: ignore[index]


def test_strings_that_have_their_bytes_by_them_are_sent_as_these() -> None:
    texts = texts_of(["a", "bc", ""]).reshape(3, 1)
    pieces = encode_run(1, [[texts, texts[1:]]])
    assert any(piece is texts.packed for piece in pieces)
    [(_, count, _, payload)] = FrameReader().feed(b"".join(pieces))
    [[got]] = decode_run(payload, count)[1]
    assert got.tolist() == [["a"], ["bc"], [""], ["bc"], [""]]


def test_a_frame_whose_strings_are_not_as_many_as_its_shape_has_is_refused() -> None:
    frame = bytearray(b"".join(encode_result(7, 1, [np.array(["a", "bc"], object)])))
    frame[HEADER.size + 12] = 1  # strings
    [(_, count, _, payload)] = FrameReader().feed(bytes(frame))
    with pytest.raises(WireError, match="1 strings"):
        decode_result(payload, count)


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


def put(reader: FrameReader, received: bytes) -> list[tuple[int, bytes]]:
    """As a protocol does: into the reader's own buffer, as much as it holds."""
    found = []
    while received:
        place = reader.buffer()
        count = min(len(place), len(received))
        place[:count] = received[:count]
        found += [(frame_id, bytes(payload)) for _, _, frame_id, payload in reader.received(count)]
        received = received[count:]
    return found


@given(
    st.lists(
        st.sampled_from([0, 8, 1000, LARGE_BYTES - 1, LARGE_BYTES + 1, 3 * SCRATCH_BYTES]), min_size=1, max_size=6
    ),
    st.lists(st.integers(1, 2 * SCRATCH_BYTES), min_size=1),
    st.booleans(),
)
def test_large_frames_come_whole_too_whether_fed_or_received_in_place(
    sizes: list[int], cuts: list[int], in_place: bool
) -> None:
    payloads = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    stream = b"".join(HEADER.pack(len(body), RUN, 0, number) + body for number, body in enumerate(payloads))
    reader, found, start, step = FrameReader(), [], 0, 0
    while start < len(stream):
        piece = stream[start : start + cuts[step % len(cuts)]]
        found += put(reader, piece) if in_place else [(frame[2], bytes(frame[3])) for frame in reader.feed(piece)]
        start, step = start + len(piece), step + 1
        if step > 1000:
            cuts = [SCRATCH_BYTES]
    assert found == list(enumerate(payloads))


def test_rows_of_several_requests_are_joined_in_order() -> None:
    one, two = np.ones((1, 2), "f4"), np.zeros((3, 2), "f4")
    [(_, count, _, payload)] = FrameReader().feed(b"".join(encode_run(1, [[one, two]], deadline=7.5)))
    deadline, [[tensor]] = decode_run(payload, count)
    assert deadline == 7.5 and tensor.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]


def test_an_array_that_is_not_contiguous_is_sent_as_it_reads() -> None:
    array = np.arange(6, dtype="i8").reshape(2, 3).T
    [(_, count, _, payload)] = FrameReader().feed(b"".join(encode_run(1, [[array]])))
    assert decode_run(payload, count)[1][0][0].tolist() == array.tolist()


@given(
    st.sampled_from(["FP32", "INT64", "BOOL", "BYTES"]).flatmap(tensors),
    st.dictionaries(st.integers(0, 70), st.integers(0, 255), max_size=2),
    st.integers(-9, 9),
)
def test_what_is_read_at_one_go_is_what_would_be_read_step_by_step(
    tensor: np.ndarray[Any, Any], changes: dict[int, int], longer: int
) -> None:
    frame = bytearray(b"".join(encode_run(5, [[tensor]], deadline=2.5)))
    for place, value in changes.items():
        frame[place % len(frame)] = value
    stream = bytes(frame[:longer] if longer < 0 else frame + bytes(longer))
    at_one_go = decode_run_of_one(stream)
    if at_one_go is not None:
        [(kind, count, frame_id, payload)] = FrameReader().feed(stream)
        deadline, [[array]] = decode_run(payload, count)
        assert (kind, count, frame_id) == (RUN, 1, at_one_go[0])
        assert np.array_equal(deadline, at_one_go[1], equal_nan=True) and same(array, at_one_go[2])
    elif not changes and not longer:
        assert tensor.dtype.kind == "O"


def test_a_tensor_that_does_not_fill_its_bytes_is_not_read_at_one_go() -> None:
    frame = bytearray(b"".join(encode_run(5, [[np.zeros((4, 2), "f4")]])))
    assert decode_run_of_one(bytes(frame)) is not None
    frame[32] = 3  # rows
    assert decode_run_of_one(bytes(frame)) is None
    with pytest.raises(WireError):
        decode_run(memoryview(frame)[HEADER.size :], 1)


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


def in_arena(arena: Arena, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    place = arena.lend(array.nbytes)
    assert place is not None
    lent = place.view(array.dtype).reshape(array.shape)
    lent[...] = array
    return lent


def memory_of(arena: Arena) -> memoryview:
    return memoryview(arena._memory)


DATATYPES = [name for name in NUMPY_OF if name != "BYTES"]
LARGE = st.tuples(st.sampled_from(DATATYPES), st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1))


@given(st.lists(LARGE, min_size=1, max_size=3))
def test_tensors_are_the_same_whether_they_lie_in_shared_memory_or_are_sent(given: list[Any]) -> None:
    arena, draw = Arena(2**26), np.random.default_rng(1)
    parts = []
    for datatype, arrays in given:
        dtype = NUMPY_OF[datatype]
        width = LARGE_BYTES // dtype.itemsize
        made = [np.frombuffer(draw.bytes(rows * LARGE_BYTES), dtype).reshape(rows, width) for rows, _ in arrays]
        if datatype == "BOOL":
            made = [(array.view("u1") % 2).view(dtype) for array in made]
        parts.append(
            [in_arena(arena, array) if shared else array for array, (_, shared) in zip(made, arrays, strict=True)]
        )
    pieces = encode_run(1, parts, deadline=3.5, arena=arena)
    in_places = [all(shared for _, shared in arrays) for _, arrays in given]
    sent = sum(map(len, pieces))
    assert sent < LARGE_BYTES if all(in_places) else sent > LARGE_BYTES
    [(_, count, _, payload)] = FrameReader().feed(b"".join(pieces))
    deadline, decoded = decode_run(payload, count, memory_of(arena))
    assert deadline == 3.5
    for found, arrays in zip(decoded, parts, strict=True):
        assert same(join_parts(found), np.concatenate(arrays))


def test_a_tensor_in_one_place_is_read_where_it_lies() -> None:
    arena = Arena(2**20)
    array = in_arena(arena, np.arange(2**15, dtype="<f4").reshape(2, -1))
    [(_, count, _, payload)] = FrameReader().feed(b"".join(encode_run(1, [[array]], arena=arena)))
    [[decoded]] = decode_run(payload, count, memory_of(arena))[1]
    array[1, 7] = -1
    assert decoded[1, 7] == -1


def test_what_is_small_or_lies_askew_is_sent() -> None:
    arena = Arena(2**22)
    array = in_arena(arena, np.arange(2**17, dtype="<f4").reshape(2, -1))
    askew = array.reshape(-1).view("u1")[2:-2].view("<f4")
    for other in (array[:, :100], array[:, ::2], askew, array.astype("<f8")[:, :10]):
        pieces = encode_run(1, [[other]], arena=arena)
        assert sum(map(len, pieces)) > other.nbytes
        [(_, count, _, payload)] = FrameReader().feed(b"".join(pieces))
        assert same(decode_run(payload, count, memory_of(arena))[1][0][0], np.ascontiguousarray(other))


def test_places_that_cannot_be_are_no_tensor() -> None:
    arena = Arena(2**20)
    array = in_arena(arena, np.arange(2**15, dtype="<f4"))
    frame = b"".join(encode_run(1, [[array]], arena=arena))
    [(_, count, _, payload)] = FrameReader().feed(frame)
    memory = memory_of(arena)
    for shared in (None, memory[:100], memory[: array.nbytes - 1]):
        with pytest.raises(WireError):
            decode_run(payload, count, shared)
    for cut in range(8, len(payload)):
        with pytest.raises(WireError):
            decode_run(payload[:cut], count, memory)
    for at in range(8, len(payload)):
        broken = bytearray(payload)
        broken[at] ^= 0x3F
        try:
            decode_run(memoryview(broken), count, memory)
        except WireError:
            pass  # whatever it is, nothing else is raised


def test_the_size_of_an_arena_is_a_number_of_64_bits() -> None:
    [(_, _, _, payload)] = FrameReader().feed(encode_arena(2**40))
    assert decode_arena(payload) == 2**40
    with pytest.raises(WireError):
        decode_arena(payload[:7])
