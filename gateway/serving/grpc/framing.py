"""Messages, and how they stand in the body of a call: a byte for whether it is compressed, its length, itself.

Source: gRPC over HTTP/2, "Length-Prefixed-Message"; Protocol Buffers, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from gateway.protocol.errors import BodyTooLarge, CallerError
from gateway.serving.room import LARGE_BODY_BYTES

__all__ = ("MAX_FIELDS", "Deframer", "Framed", "fields_of", "framed", "parse")

MAX_FIELDS = 10_000
"""Of a large message and of its tensors: one of two bytes may take a hundred once it is parsed."""

_PREFIX_BYTES = 5
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}
_MOST_VARINT = 10


class Framed(NamedTuple):
    """One message as it came."""

    compressed: bool
    content: bytes


class Deframer:
    """Finds the messages in a body that comes in pieces.

    Parameters
    ----------
    max_bytes : int
        Of one message.

    >>> found = Deframer(max_bytes=99)
    >>> found.feed(bytes(4) + b"\2a")
    >>> found.take(), found.size
    (None, 6)
    >>> found.feed(b"b" + bytes(5))
    >>> found.take(), found.take(), found.take()
    (Framed(compressed=False, content=b'ab'), Framed(compressed=False, content=b''), None)
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._came: bytes | bytearray = b""
        self._at = 0

    def __repr__(self) -> str:
        return f"<Deframer {self.size} bytes>"

    @property
    def size(self) -> int:
        """Bytes of what was not taken yet."""
        return len(self._came) - self._at

    @property
    def is_ready(self) -> bool:
        """Whether there is something to take, or that cannot be."""
        whole = self.size - _PREFIX_BYTES
        return whole >= 0 and (self._came[self._at] > 1 or self._next > self._max_bytes or whole >= self._next)

    def feed(self, content: bytes) -> None:
        """Add a piece."""
        if not self.size:
            self._came, self._at = content, 0
            return
        if not isinstance(self._came, bytearray):
            self._came = bytearray(self._came)
        del self._came[: self._at]
        self._at = 0
        self._came += content

    def take(self) -> Framed | None:
        """The next message, once it is whole.

        Raises
        ------
        BodyTooLarge, CallerError
            After which there is nothing more to be found.
        """
        at, came = self._at, self._came
        if len(came) - at < _PREFIX_BYTES:
            return None
        if came[at] > 1:
            raise CallerError("a message begins with 0, or with 1 where it is compressed")
        size = self._next
        if size > self._max_bytes:
            raise BodyTooLarge(f"the message is larger than {self._max_bytes} bytes (limits.max_body_bytes)")
        start = at + _PREFIX_BYTES
        end = start + size
        if end > len(came):
            return None
        self._at = end
        return Framed(came[at] == 1, bytes(memoryview(came)[start:end]))

    def clear(self) -> None:
        """Forget what has come."""
        self._came, self._at = b"", 0

    @property
    def _next(self) -> int:
        return int.from_bytes(self._came[self._at + 1 : self._at + _PREFIX_BYTES], "big")


def parse(kind: Any, content: bytes) -> Any:
    """The message of a class that bytes are.

    Raises
    ------
    CallerError
    """
    if len(content) > LARGE_BODY_BYTES:
        for _ in fields_of(content, 0, len(content), left=iter(range(MAX_FIELDS)), kind=kind):
            pass
    try:
        return kind.FromString(content)
    except DecodeError:
        raise _no_message(kind) from None


def fields_of(
    content: bytes, start: int, end: int, *, left: Iterator[int], kind: Any
) -> Iterator[tuple[int, int, int]]:
    """Tag of each field of a message, and from where to where its value goes, without parsing any.

    Parameters
    ----------
    left : iterator
        Gives something for each field that there may still be.
    kind : class
        Of the message, for error texts.

    >>> list(fields_of(bytes((0x0A, 2, 7, 7, 0x10, 1)), 0, 6, left=iter(range(9)), kind=None))
    [(10, 2, 4), (16, 5, 6)]

    Raises
    ------
    CallerError
    """
    while start < end:
        if next(left, None) is None:
            raise CallerError(f"the message has more than {MAX_FIELDS} fields")
        tag, start = _varint(content, start, kind)
        if tag & 7 == _LENGTH:
            size, start = _varint(content, start, kind)
            after = start + size
        elif tag & 7 == _VARINT:
            _, after = _varint(content, start, kind)
        else:
            after = start + _FIXED.get(tag & 7, len(content))
        if after > end:
            raise _no_message(kind)
        yield tag, start, after
        start = after


def framed(message: bytes) -> bytes:
    """A message as it stands in a body, not compressed.

    >>> framed(b"ab")
    b'\\x00\\x00\\x00\\x00\\x02ab'
    """
    return b"\0" + len(message).to_bytes(4, "big") + message


def _varint(content: bytes, at: int, kind: Any) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(content[at : at + _MOST_VARINT]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise _no_message(kind)


def _no_message(kind: Any) -> CallerError:
    return CallerError(f"the message is no {kind.DESCRIPTOR.name}")
