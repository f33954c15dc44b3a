"""One stream of HTTP/2, to answer on, and what takes its request."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from gateway.serving.room import Held

__all__ = ("STREAM_WINDOW", "Exchange", "RequestHead", "Stream", "Writer")

STREAM_WINDOW = 2**20


class Exchange(Protocol):
    """What is asked and answered on one stream."""

    def received(self, content: bytes, *, ended: bool) -> None:
        """More of the request, whose last part it is where `ended`."""

    def gone(self) -> None:
        """The client does not want an answer any more, or cannot have one."""

    def drained(self) -> None:
        """The client has taken what waited for it."""

    def check(self, now: float) -> None:
        """Asked once a second, with the loop's time."""


class RequestHead(Protocol):
    """What the fields of a request mean, as far as its connection is concerned."""

    @property
    def declared_bytes(self) -> int | None:
        """Of `content-length`."""


class Writer(Protocol):
    """The connection, as its streams know it."""

    def write(self, frames: bytes) -> None: ...
    def fields(self, number: int, block: bytes) -> bytes: ...
    def answer(self, stream: Stream, head: bytes, content: bytes, tail: bytes) -> None: ...
    def send(self, stream: Stream, content: bytes) -> None: ...
    def push(self, stream: Stream) -> None: ...
    def give_back(self, stream: Stream) -> None: ...


class Stream:
    """One stream, to answer on; what is written after its end, or its client's, goes nowhere.

    Attributes
    ----------
    number : int
    ended : bool
        The request is whole.
    """

    def __init__(self, connection: Writer, number: int, *, window: int, declared: int | None) -> None:
        self.number = number
        self.ended = False
        self.exchange: Exchange
        self.finished = False
        self.window = window  # what may still be sent
        self.stalled_since = 0.0  # nothing may, and something waits
        self.room = STREAM_WINDOW  # what may still come
        self.owed = 0  # of that, when it is given back
        self.left = declared  # of the request
        self.paused = False
        self.waiting: deque[memoryview] = deque()
        self.tail: bytes | None = None
        self.place: Held | None = None  # among all that are open
        self._connection = connection

    def __repr__(self) -> str:
        return f"<Stream {self.number} | {'whole' if self.ended else 'coming'} | waiting {len(self.waiting)}>"

    def answer(self, head: bytes, content: bytes, tail: bytes) -> None:
        """Answer as a whole: content, and blocks of fields before and behind it."""
        self._connection.answer(self, head, content, tail)

    def begin(self, head: bytes) -> None:
        """Begin an answer with a block of fields."""
        if not self.finished:
            self._connection.write(self._connection.fields(self.number, head))

    def send(self, content: bytes) -> None:
        """Send content of an answer that was begun, as soon as the client has room for it."""
        if not self.finished:
            self._connection.send(self, content)

    def end(self, tail: bytes) -> None:
        """End an answer, behind all that was sent, with a block of fields, which may be all of it."""
        if not self.finished and self.tail is None:
            self.tail = tail
            self._connection.push(self)

    def close(self) -> None:
        """Nothing is written for it any more. It and what took its request hold on to one another until then."""
        self.finished = True
        self.waiting.clear()
        self.place = None
        if hasattr(self, "exchange"):
            del self.exchange

    def pause(self) -> None:
        """Take no more of the request than its client may send already."""
        self.paused = True

    def go_on(self) -> None:
        """Take more of it again."""
        if self.paused:
            self.paused = False
            self._connection.give_back(self)
