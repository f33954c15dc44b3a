"""Large bodies are received where they stay, without a copy on the way.

A connection that brings one gets a receiver in place of its protocol. What is read outside of large bodies is handed on
to the protocol, some kilobytes at a time, so that little of the next body comes with its head.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import numpy as np

from gateway.engine.arena import ALIGNMENT, Arena
from gateway.protocol.binary import Octets

__all__ = ("Receiver", "Reading")

SCRATCH_BYTES = 16 * 1024
FIRST_BYTES = 2 * 2**20
"""A longer body gets the rest of its place when so much has come: who only speaks of many bytes holds few."""
FIRST_JSON_BYTES = 2**18
JSON_GROWTH = 4
"""Places of JSON are cleared, and so in memory, before anything comes: they begin smaller, and grow so many times."""


class Reading(Protocol):
    """The protocol behind a receiver."""

    def data_received(self, data: bytes) -> None:
        """Bytes outside of large bodies."""

    def begin_again(self, length: int) -> bool:
        """Whether a request with the head that is expected may begin; its body of `length` bytes is received then."""

    def body_grew(self, size: int) -> None:
        """So many bytes more of a body have been received."""

    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Receiver(asyncio.BufferedProtocol):
    """Receives for another protocol.

    Parameters
    ----------
    reading : Reading
    arena : Arena, optional
        Where engines read tensors in binary.
    """

    def __init__(self, reading: Reading, *, arena: Arena | None = None) -> None:
        self._reading = reading
        self._arena = arena
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._length = 0  # of the body that is being received
        self._skipped = 0
        self._body: Octets = b""
        self._rest: memoryview | None = None
        self._expected: tuple[bytes, int, int] | None = None  # head, length, and where its tensors begin

    def __repr__(self) -> str:
        return f"<Receiver {len(self._body)} of {self._length} bytes>"

    @property
    def is_receiving(self) -> bool:
        """Whether a body has been begun and not finished."""
        return self._length > 0

    @property
    def cleared_bytes(self) -> int:
        """What is in memory for the body, whether it has come or not."""
        return len(self._body) if isinstance(self._body, bytearray) else 0

    def begin(self, length: int, *, json_length: int | None, pieces: list[Octets]) -> None:
        """Receive a body.

        Parameters
        ----------
        length : int
            Of all of it, in bytes.
        json_length : int, optional
            Where its tensors begin; None for one that is JSON as a whole.
        pieces : list of buffers
            What has come of it.
        """
        self._length = length
        self._skipped = -(json_length or 0) % ALIGNMENT
        in_json = json_length is None
        first = max(FIRST_JSON_BYTES, sum(map(len, pieces))) if in_json else FIRST_BYTES
        self._make_place(min(length, first), in_json=in_json, pieces=pieces)

    def expect(self, head: bytes, length: int, *, json_length: int) -> None:
        """Receive the body where it stays, without a word of its protocol, wherever a read begins with this head again.

        Parameters
        ----------
        head : bytes
            All of it.
        length, json_length : int
            Of the body, as for `begin`; it holds tensors in binary.
        """
        self._expected = (head, length, json_length)

    def finish(self) -> Octets:
        """The body, all of which has come: a bytearray where it is JSON, else a memoryview."""
        body = self._body
        self.drop()
        return body

    def drop(self) -> None:
        """Forget the body."""
        self._length = 0
        self._body, self._rest = b"", None

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch if self._rest is None else self._rest

    def buffer_updated(self, nbytes: int) -> None:
        rest = self._rest
        if rest is None:
            if self._expected is None or not self._begin_expected(nbytes):
                self._reading.data_received(bytes(self._scratch[:nbytes]))
            return
        self._rest = rest = rest[nbytes:]
        size = len(self._body)
        if not rest and size < self._length:
            in_json = isinstance(self._body, bytearray)
            wanted = min(self._length, size * JSON_GROWTH) if in_json else self._length
            self._make_place(wanted, in_json=in_json, pieces=[self._body])
        self._reading.body_grew(nbytes)

    def eof_received(self) -> bool | None:
        return self._reading.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop()
        self._reading.connection_lost(exc)

    def pause_writing(self) -> None:
        self._reading.pause_writing()

    def resume_writing(self) -> None:
        self._reading.resume_writing()

    def _begin_expected(self, nbytes: int) -> bool:
        head, length, json_length = self._expected or (b"", 0, 0)
        start = len(head)
        if not start <= nbytes < start + length or self._scratch[:start] != head:
            return False
        if not self._reading.begin_again(length):
            return False
        self.begin(length, json_length=json_length, pieces=[self._scratch[start:nbytes]])
        self._reading.body_grew(nbytes - start)
        return True

    def _make_place(self, size: int, *, in_json: bool, pieces: list[Octets]) -> None:
        # JSON is looked through with the methods of bytes.
        body: Octets = bytearray(size) if in_json else self._memory(size + self._skipped)[self._skipped :]
        rest = memoryview(body)
        for piece in pieces:
            rest[: len(piece)] = piece
            rest = rest[len(piece) :]
        self._body, self._rest = body, rest

    def _memory(self, size: int) -> memoryview:
        # Not cleared: all of it is written to before it is read.
        place = self._arena.lend(size) if self._arena is not None else None
        return (np.empty(size, np.uint8) if place is None else place).data
