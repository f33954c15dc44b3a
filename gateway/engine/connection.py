"""An engine's end of one connection: questions in, answers out, and nobody waits for a front that does not read."""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from gateway.engine.errors import WireError
from gateway.engine.readiness import READABLE, WRITABLE, Readiness
from gateway.engine.wire import ARENA, RUN, FrameReader, decode_arena, decode_run, decode_run_of_one

__all__ = ("Connection",)

MAX_UNSENT_BYTES = 2**24
"""A front that leaves more than this of its answers unread is not read from."""
MAX_GIVEN = 4
"""Descriptors that are taken from a front; one is wanted."""
MAX_PIECES = 64
"""Of one `sendmsg`; systems take up to 1024 (IOV_MAX)."""

Array = np.ndarray[Any, np.dtype[Any]]


class Connection:
    """A front that is connected to an engine.

    Parameters
    ----------
    connected : socket
        A stream; it is closed by `close`.
    greeting : bytes
        The first frame that is sent.
    readiness : Readiness
        Is told what to wait for.
    answer : callable
        Takes the id of a run, its deadline and the parts of its inputs; returns the pieces of the frame that answers
        it, which must not change any more.
    over : callable
        Called when the front has gone, or sends what is no frame; is to call `close`.
    """

    def __init__(
        self,
        connected: socket.socket,
        *,
        greeting: bytes,
        readiness: Readiness,
        answer: Callable[[int, float, list[list[Array]]], Sequence[bytes | memoryview]],
        over: Callable[[Connection], None],
    ) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._readiness = readiness
        self._answer = answer
        self._over = over
        self._reader = FrameReader()
        self._is_asked = False  # before that, memory may come
        self._given: list[int] = []
        self._memory: memoryview | None = None
        self._unsent: deque[bytes | memoryview] = deque((greeting,))
        self._awaited = READABLE | WRITABLE
        self.descriptor = connected.fileno()
        readiness.register(self.descriptor, self._awaited)

    def __repr__(self) -> str:
        return f"<Connection {self.descriptor} unsent {sum(map(len, self._unsent))} bytes>"

    @property
    def is_writing(self) -> bool:
        """Whether the front has not taken all of an answer yet."""
        return bool(self._unsent)

    def go_on(self, events: int) -> None:
        """Do what can be done without waiting; one read at most, so that other connections get their turn."""
        try:
            if events & WRITABLE:
                self._write()
            if events & ~WRITABLE:
                self._read()
        except (WireError, OSError, MemoryError):
            self._over(self)

    def close(self) -> None:
        self._readiness.unregister(self.descriptor)
        self._socket.close()
        self._memory = None
        self._close_given()

    def _read(self) -> None:
        reader = self._reader
        place = reader.buffer()
        try:
            nbytes = self._socket.recv_into(place) if self._is_asked else self._receive_first(place)
        except BlockingIOError:
            return
        if not nbytes:
            self._over(self)
            return
        received = reader.beginning(nbytes)
        if received is None:
            frames = reader.received(nbytes)
        else:
            run = decode_run_of_one(received)
            if run is not None:
                if not self._is_asked:
                    self._expect_no_memory()
                frame_id, deadline, array = run
                self._send(self._answer(frame_id, deadline, [[array]]))
                return
            frames = reader.feed(received)
        for kind, count, frame_id, payload in frames:
            if kind == RUN:
                if not self._is_asked:
                    self._expect_no_memory()
                self._send(self._answer(frame_id, *decode_run(payload, count, self._memory)))
            elif kind == ARENA and not self._is_asked:
                self._share(decode_arena(payload))

    def _receive_first(self, place: memoryview) -> int:
        room = socket.CMSG_LEN(MAX_GIVEN * array.array("i").itemsize)
        nbytes, notes, _, _ = self._socket.recvmsg_into([place], room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in notes:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._given.extend(array.array("i", content[: len(content) // 4 * 4]))
        return nbytes

    def _share(self, size_bytes: int) -> None:
        try:
            given = self._given[0]
            if not fcntl.fcntl(given, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                # To read behind the end of what has shrunk would kill the engine.
                raise ValueError("it could shrink")
            self._memory = memoryview(mmap.mmap(given, size_bytes, prot=mmap.PROT_READ))
        except (IndexError, OSError, OverflowError, ValueError) as error:
            raise WireError(f"the memory of a front cannot be shared: {error}") from None
        finally:
            self._close_given()

    def _expect_no_memory(self) -> None:
        self._is_asked = True
        self._close_given()

    def _close_given(self) -> None:
        while self._given:
            with contextlib.suppress(OSError):
                os.close(self._given.pop())

    def _send(self, pieces: Sequence[bytes | memoryview]) -> None:
        if len(pieces) == 1 and not self._unsent:
            # So most answers go, and nothing is left to be done.
            try:
                sent = self._socket.send(pieces[0])
            except BlockingIOError:
                sent = 0
            if sent == len(pieces[0]):
                return
            pieces = (memoryview(pieces[0])[sent:],)
        self._unsent.extend(pieces)
        self._write()

    def _write(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                sent = self._socket.sendmsg(islice(unsent, MAX_PIECES))
                while unsent and len(unsent[0]) <= sent:
                    sent -= len(unsent.popleft())
                if sent:
                    unsent[0] = memoryview(unsent[0])[sent:]
        except BlockingIOError:
            pass
        awaited = READABLE
        if unsent:
            awaited = WRITABLE if sum(map(len, unsent)) > MAX_UNSENT_BYTES else READABLE | WRITABLE
        if awaited != self._awaited:
            self._awaited = awaited
            self._readiness.modify(self.descriptor, awaited)
