from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine import connection as module
from gateway.engine.arena import Arena
from gateway.engine.connection import Connection
from gateway.engine.readiness import READABLE, WRITABLE, open_readiness
from gateway.engine.wire import (
    HEADER,
    HELLO,
    RESULT,
    RUN,
    FrameReader,
    decode_result,
    encode_arena,
    encode_result,
    encode_run,
    join_parts,
)
from tests.tensors import same

Array = np.ndarray[Any, np.dtype[Any]]
HELLO_FRAME = HEADER.pack(0, HELLO, 0, 0)


class World:
    """A connection that answers each run with its own inputs, and the front's end of its socket."""

    def __init__(self) -> None:
        self.front, engine = socket.socketpair()
        self.readiness = open_readiness()
        self.over = False
        self.deadlines: list[float] = []
        self.connection = Connection(
            engine, greeting=HELLO_FRAME, readiness=self.readiness, answer=self.answer, over=self.end
        )

    def answer(self, frame_id: int, deadline: float, inputs: list[list[Array]]) -> list[bytes | memoryview]:
        self.deadlines.append(deadline)
        return encode_result(frame_id, 0, [join_parts(parts) for parts in inputs])

    def end(self, connection: Connection) -> None:
        self.over = True
        connection.close()

    def turn(self) -> bool:
        """Whether there was something to do."""
        came = [] if self.over else self.readiness.poll(0, 1)
        for _, events in came:
            self.connection.go_on(events)
        return bool(came)

    def read(self, count: int) -> list[tuple[int, list[Array]]]:
        """The next frames but HELLO: id and tensors."""
        reader, found = FrameReader(), []
        self.front.setblocking(False)
        while len(found) < count:
            self.turn()
            try:
                received = self.front.recv(2**16)
            except BlockingIOError:
                continue
            for kind, tensors, frame_id, payload in reader.feed(received):
                if kind == RESULT:
                    found.append((frame_id, decode_result(payload, tensors)[1]))
        self.front.setblocking(True)
        return found


@contextmanager
def world() -> Iterator[World]:
    made = World()
    with made.front:
        yield made
        if not made.over:
            made.connection.close()


def frame(frame_id: int, *arrays: Array, deadline: float = 7.5) -> bytes:
    return b"".join(encode_run(frame_id, [[array] for array in arrays], deadline=deadline))


SMALL = np.arange(30, dtype="f4").reshape(1, 30)
TENSORS = {
    "one small tensor": [SMALL],
    "several": [SMALL, np.array([["a", "ü"]], object), np.array(3, "i8")],
    "strings alone": [np.array(["", "x" * 1000], object)],
    "bfloat16 alone": [np.array([1, 2, 3], "<u2").view("V2")],
    "nothing": [np.zeros((0, 4), "f8")],
    "a large one": [np.arange(2**17, dtype="i8")],
}


@given(
    st.lists(st.sampled_from(list(TENSORS)), min_size=1, max_size=6),
    st.lists(st.sampled_from([1, 7, 16, 100, 4096, 2**17, 2**20]), min_size=1, max_size=4),
)
def test_every_frame_is_answered_in_order_however_the_stream_is_cut(kinds: list[str], cuts: list[int]) -> None:
    stream = b"".join(frame(number, *TENSORS[kind]) for number, kind in enumerate(kinds))
    with world() as w:
        w.front.setblocking(False)
        reader, found = FrameReader(), []
        start = step = 0
        while len(found) < len(kinds):
            if start < len(stream):
                # Not byte by byte for ever.
                size = cuts[step % len(cuts)] if step < 200 else 2**16
                try:
                    start += w.front.send(stream[start : start + size])
                except BlockingIOError:
                    pass
                step += 1
            w.turn()
            try:
                received = w.front.recv(2**20)
            except BlockingIOError:
                continue
            found += [
                (frame_id, decode_result(payload, tensors)[1])
                for kind, tensors, frame_id, payload in reader.feed(received)
                if kind == RESULT
            ]
        assert [frame_id for frame_id, _ in found] == list(range(len(kinds)))
        for kind, (_, arrays) in zip(kinds, found, strict=True):
            assert all(same(sent, got) for sent, got in zip(TENSORS[kind], arrays, strict=True))
        assert w.deadlines == [7.5] * len(kinds)
        assert not w.connection.is_writing


def test_the_first_frame_is_the_greeting() -> None:
    with world() as w:
        assert w.connection.is_writing
        w.turn()
        assert not w.connection.is_writing
        assert w.front.recv(100) == HELLO_FRAME
        assert not w.turn(), "nothing is waited for but a question"


def test_a_front_that_does_not_read_is_read_from_no_more_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNSENT_BYTES", 2**20)
    large = np.arange(2**17, dtype="f8")  # 1 MiB
    asked = 0
    with world() as w:
        w.front.setblocking(False)
        left = b""
        for _ in range(1000):
            left = left or frame(asked, large)
            try:
                left = left[w.front.send(left) :]
                asked += not left
            except BlockingIOError:
                if not w.turn():
                    break
            w.turn()
        else:
            raise AssertionError("it was read from without an end")
        assert w.connection.is_writing and len(w.deadlines) <= 3
        answered = w.read(len(w.deadlines))
        assert [frame_id for frame_id, _ in answered] == list(range(len(answered)))
        assert all(same(large, arrays[0]) for _, arrays in answered)


def test_bytes_that_are_no_frame_end_the_connection() -> None:
    for stream in (
        HEADER.pack(2**32 - 1, RUN, 0, 1),
        HEADER.pack(4, RUN, 0, 1) + b"none",
        HEADER.pack(48, RUN, 1, 1) + b"\xff" * 48,
        frame(1, SMALL)[:24] + b"\xff" + frame(1, SMALL)[25:],
    ):
        with world() as w:
            w.front.sendall(stream)
            while w.turn():
                pass
            assert w.over and not w.deadlines


def test_a_frame_of_a_kind_that_is_not_asked_of_an_engine_is_passed_over() -> None:
    with world() as w:
        w.front.sendall(HEADER.pack(8, RESULT, 0, 1) + bytes(8) + frame(2, SMALL))
        assert [frame_id for frame_id, _ in w.read(1)] == [2]


def test_an_answer_of_more_pieces_than_the_system_takes_at_once_is_sent_whole() -> None:
    arrays = [np.full(3, number, "u2") for number in range(1500)]
    with world() as w:
        w.front.sendall(frame(1, *arrays))
        [(_, answered)] = w.read(1)
        assert all(same(sent, got) for sent, got in zip(arrays, answered, strict=True))


def test_a_frame_inside_a_frame_is_content_even_where_it_is_received_by_itself() -> None:
    inner = frame(666, SMALL)
    outer = frame(1, np.frombuffer(inner, "u1"))
    before, after = outer.split(inner)
    with world() as w:
        w.turn()
        for piece in (before, inner, after):
            w.front.sendall(piece)
            w.turn()
        [(frame_id, [content])] = w.read(1)
        assert frame_id == 1 and content.tobytes() == inner
        assert len(w.deadlines) == 1


@pytest.mark.parametrize("unread", [0, 1])
def test_a_front_that_has_gone_is_let_go_of_whether_or_not_it_had_read_its_answers(unread: int) -> None:
    with world() as w:
        w.turn()
        assert w.front.recv(100) == HELLO_FRAME
        for number in range(unread):
            w.front.sendall(frame(number, np.zeros(20_000)))
            w.turn()
        w.front.close()
        for _ in range(10):
            w.turn()
        assert w.over


def test_a_front_that_is_waited_for_costs_no_turns() -> None:
    with world() as w:
        w.front.setblocking(False)
        left = frame(1, np.zeros(2**17))
        while left:
            left = left[w.front.send(left) :]
            w.turn()
        while w.turn():
            pass
        assert w.connection.is_writing
        assert not w.turn(), "there is nothing to do until the front reads"


@pytest.mark.parametrize("epoll", [True, False])
def test_sockets_are_waited_for_with_and_without_epoll(epoll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not epoll:
        monkeypatch.delattr(select, "epoll")
    readiness = open_readiness()
    here, there = socket.socketpair()
    with here, there:
        readiness.register(here.fileno(), READABLE)
        assert readiness.poll(0.001, 8) == []
        there.send(b"x")
        assert readiness.poll(10, 8) == [(here.fileno(), READABLE)]
        readiness.modify(here.fileno(), READABLE | WRITABLE)
        assert readiness.poll(10, 8) == [(here.fileno(), READABLE | WRITABLE)]
        readiness.modify(here.fileno(), 0)
        assert readiness.poll(0.001, 8) == []
        there.close()
        [(descriptor, events)] = readiness.poll(10, 8)
        assert descriptor == here.fileno() and events & select.POLLHUP, "an end is told unasked"
        readiness.unregister(here.fileno())
        assert readiness.poll(0.001, 8) == []


def mapped() -> int:
    """How often this process has mapped shared memory of a front."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:gateway-tensors" in line for line in maps)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def in_arena(arena: Arena) -> Array:
    place = arena.lend(2**18)
    assert place is not None
    array: Array = place.view("<f4").reshape(2, -1)
    array[...] = np.arange(2**16).reshape(2, -1)
    return array


def test_tensors_are_read_in_the_memory_that_a_front_shares() -> None:
    arena = Arena(2**20)
    array = in_arena(arena)
    with world() as w:
        before = descriptors()
        socket.send_fds(w.front, [encode_arena(arena.size_bytes)], [arena.descriptor])
        for frame_id in (1, 2):
            asked = b"".join(encode_run(frame_id, [[array]], arena=arena))
            assert len(asked) < 1000
            w.front.sendall(asked)
            [(answered, [answer])] = w.read(1)
            assert answered == frame_id and same(answer, array)
            array[...] += 1
        # An unshared one, and strings, go as before.
        w.front.sendall(frame(3, *TENSORS["several"]))
        assert w.read(1)[0][0] == 3
        assert descriptors() == before + 1 and not w.over  # the mapping's own


def test_memory_is_let_go_of_with_its_front() -> None:
    arena, before = Arena(2**20), mapped()
    with world() as w:
        socket.send_fds(w.front, [encode_arena(arena.size_bytes)], [arena.descriptor])
        w.front.sendall(b"".join(encode_run(1, [[in_arena(arena)]], arena=arena)))
        assert w.read(1) and mapped() == before + 1
        w.front.close()
        while w.turn():
            pass
        assert w.over and mapped() == before


@pytest.mark.parametrize("wrong", ["no descriptor", "too large", "no memory", "not sealed", "no size"])
def test_memory_that_cannot_be_read_ends_its_connection_alone(wrong: str) -> None:
    arena = Arena(2**20)
    loose = os.memfd_create("loose")
    os.ftruncate(loose, 2**20)
    with world() as w, open(loose, "rb"), socket.socket() as other:
        before = descriptors()
        given = {"no descriptor": [], "no memory": [other.fileno()], "not sealed": [loose]}.get(
            wrong, [arena.descriptor, other.fileno()]
        )
        sent = encode_arena(2**21 if wrong == "too large" else 2**20)
        if wrong == "no size":
            sent = HEADER.pack(3, sent[4], 0, 0) + b"abc"
        socket.send_fds(w.front, [sent], given)
        while w.turn():
            pass
        assert w.over and descriptors() == before - 1  # but for the connection's own


def test_memory_that_comes_late_is_not_taken() -> None:
    arena = Arena(2**20)
    with world() as w:
        before, maps = descriptors(), mapped()
        w.front.sendall(frame(1, SMALL))
        assert w.read(1)
        socket.send_fds(w.front, [encode_arena(arena.size_bytes)], [arena.descriptor])
        while w.turn():
            pass
        assert not w.over and (descriptors(), mapped()) == (before, maps)
        w.front.sendall(b"".join(encode_run(2, [[in_arena(arena)]], arena=arena)))
        while w.turn():
            pass
        assert w.over


def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    with world() as w, open(__file__) as file:
        before = descriptors()
        socket.send_fds(w.front, [frame(1, SMALL)], [file.fileno()] * 20)
        assert w.read(1) and descriptors() == before
