"""Frames of HTTP/2: heads, kinds, flags, errors.

Source: RFC 9113, sections 4, 6 and 7.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

__all__ = (
    "ACK",
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "GOAWAY",
    "HEADERS",
    "HEAD_BYTES",
    "PADDED",
    "PING",
    "PREFACE",
    "PRIORITIZED",
    "PRIORITY",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_UPDATE",
    "ConnectionFault",
    "ErrorCode",
    "Setting",
    "check_priority",
    "frame",
    "read_head",
    "settings_frame",
    "unpadded",
    "window_update",
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20

_HEAD = Struct(">BHBBL")
_SETTING = Struct(">HL")
HEAD_BYTES = _HEAD.size
_PRIORITY_BYTES = 5


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class Setting(IntEnum):
    """What the two ends tell one another (RFC 9113, section 6.5.2)."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ConnectionFault(Exception):
    """Raised when a connection cannot go on, for what its client has sent.

    Parameters
    ----------
    code : ErrorCode
    text : str
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame.

    >>> frame(PING, ACK, 0, b"12345678").hex(" ", 1)
    '00 00 08 06 01 00 00 00 00 31 32 33 34 35 36 37 38'
    """
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def read_head(buffer: bytes | bytearray, at: int) -> tuple[int, int, int, int]:
    """Length, kind, flags and stream of the frame that begins at `at`."""
    high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
    return high << 16 | low, kind, flags, stream & 0x7FFFFFFF


def settings_frame(settings: dict[Setting, int]) -> bytes:
    """What this end asks of the other."""
    return frame(SETTINGS, 0, 0, b"".join([_SETTING.pack(name, value) for name, value in settings.items()]))


def window_update(stream: int, size: int) -> bytes:
    """Room for so many bytes more; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def unpadded(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """What a frame of data or fields carries, without its padding and its priority, which nobody heeds any more.

    Raises
    ------
    ConnectionFault
    """
    padding = 0
    start = 0
    if flags & PADDED:
        padding, start = payload[0] if payload else 0, 1
    if kind == HEADERS and flags & PRIORITIZED:
        check_priority(stream, payload[start : start + _PRIORITY_BYTES])
        start += _PRIORITY_BYTES
    end = len(payload) - padding
    if end < start:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the padding of a frame is longer than the frame")
    return payload[start:end]


def check_priority(stream: int, payload: bytes) -> None:
    """A priority is well-formed, though it is not heeded.

    Raises
    ------
    ConnectionFault
    """
    if len(payload) != _PRIORITY_BYTES:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a priority has five bytes")
    if int.from_bytes(payload[:4], "big") & 0x7FFFFFFF == stream:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")
