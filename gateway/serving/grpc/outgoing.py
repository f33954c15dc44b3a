"""What a connection of HTTP/2 sends: answers within the client's windows, resets, its own end.

Source: RFC 9113, sections 5.2, 6.4, 6.8 and 6.9.
"""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.serving.grpc.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    ConnectionFault,
    ErrorCode,
    frame,
    window_update,
)
from gateway.serving.grpc.stream import Stream
from gateway.serving.room import Held, Room
from gateway.settings import LimitSettings

__all__ = ("LARGEST_WINDOW", "MAX_FRAME_BYTES", "MAX_STREAMS", "MAX_STRIKES", "Outgoing")

MAX_STREAMS = 100  # calls at a time on one connection; RFC 9113, section 6.5.2: no fewer than 100
MAX_FRAME_BYTES = 64 * 1024
LARGEST_WINDOW = 2**31 - 1
KEPT_RESETS = 2 * MAX_STREAMS
LINGER_SECONDS = 1.0
MAX_STRIKES = 1000
"""Frames that carry nothing and streams that end without an answer, beyond the answers, and frames of them, given."""

_DEFAULT_WINDOW = 65_535
_LEAST_FRAME_BYTES = 2**14


class _Nowhere(asyncio.Transport):
    """Where a connection goes that was accepted and is not made yet."""

    def is_closing(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...


class Outgoing(asyncio.Protocol):
    """Writes for the streams of one connection, and knows which are open.

    Parameters
    ----------
    limits : LimitSettings
    answers : Room
        For answers that the client does not take.
    """

    def __init__(self, *, limits: LimitSettings, answers: Room) -> None:
        self._limits = limits
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = _Nowhere()
        self._streams: dict[int, Stream] = {}
        self._last = 0  # the newest stream
        self._resets: deque[int] = deque(maxlen=KEPT_RESETS)
        self._window = self._stream_window = _DEFAULT_WINDOW
        self._frame_bytes = _LEAST_FRAME_BYTES
        self._resize = b""  # what the next block of fields begins with
        self._waiting: dict[int, Stream] = {}  # for a window
        self._waiting_bytes = 0
        self._untaken: Held | None = None
        self._write_paused = False
        self._strikes = 0
        self._leaving = False
        self._shut = False
        self._quiet_since = self._loop.time()
        self._sent = self._taken_then = 0
        self._stalled_since = 0.0

    def connection_lost(self, error: Exception | None) -> None:
        streams = list(self._streams.values())
        self._streams.clear()
        self._untaken = None
        for stream in streams:
            self._forget(stream)

    def pause_writing(self) -> None:
        # A client that does not take its answers is not read from either.
        self._write_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._transport.resume_reading()
        self._push_all()

    def give_notice(self) -> None:
        """Ask the client to open no more streams here; those that are on their way are still taken."""
        if not self._leaving:
            self._say_goodbye(LARGEST_WINDOW)

    def leave(self) -> None:
        """Take no stream that is not open yet, so that it may be opened elsewhere; close when all are answered."""
        if not self._leaving:
            self._leaving = True
            self._say_goodbye(self._last)
            self._close_when_idle()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._transport.abort()

    def answer(self, stream: Stream, head: bytes, content: bytes, tail: bytes) -> None:
        """Write a whole answer, at once where the windows take it."""
        if stream.finished:
            return
        number, size = stream.number, len(content)
        if size <= self._window and size <= stream.window and size <= self._frame_bytes:
            self._window -= size
            self._sent += size
            parts = (
                self.fields(number, head),
                frame(DATA, 0, number, content),
                self.fields(number, tail, END_STREAM),
            )
            self.write(b"".join(parts))
            self._finish(stream)
        else:
            stream.begin(head)
            stream.tail = tail
            self.send(stream, content)

    def write(self, frames: bytes) -> None:
        """Write frames that need no window."""
        if self._shut or self._transport.is_closing():
            return
        self._transport.write(frames)
        if self._write_paused:
            self._hold_untaken()

    def fields(self, number: int, block: bytes, flags: int = 0) -> bytes:
        """The frame of a block of fields, to be written next."""
        if self._resize:
            block, self._resize = self._resize + block, b""
        return frame(HEADERS, END_HEADERS | flags, number, block)

    def send(self, stream: Stream, content: bytes) -> None:
        """Write content of an answer, now or when there is a window for it."""
        stream.waiting.append(memoryview(content))
        self._waiting_bytes += len(content)
        self.push(stream)

    def push(self, stream: Stream) -> None:
        """Write what waits of an answer, as much of it as both windows take."""
        waiting = stream.waiting
        while waiting and not self._write_paused:
            content = waiting[0]
            size = min(len(content), self._window, stream.window, self._frame_bytes)
            if size <= 0 < len(content):
                break
            self._window -= size
            stream.window -= size
            stream.stalled_since = 0.0
            self._sent += size
            self._waiting_bytes -= size
            self.write(frame(DATA, 0, stream.number, bytes(content[:size])))
            if size in (len(content), self._frame_bytes):  # else the client may have asked for it byte by byte
                self._make_up()
            if size == len(content):
                waiting.popleft()
            else:
                waiting[0] = content[size:]
        if waiting:
            self._waiting[stream.number] = stream
            self._hold_untaken()
            return
        waited = self._stop_waiting(stream)
        if stream.tail is None:
            if waited:
                stream.exchange.drained()
        else:
            self.write(self.fields(stream.number, stream.tail, END_STREAM))
            self._finish(stream)

    def give_back(self, stream: Stream) -> None:
        """Let as much more of a request come as has come."""
        if stream.owed and not (stream.ended or stream.finished):
            self.write(window_update(stream.number, stream.owed))
            stream.room += stream.owed
            stream.owed = 0

    def _push_all(self) -> None:
        for stream in list(self._waiting.values()):
            if self._write_paused or self._window <= 0:
                return
            if stream.window > 0 and not stream.finished:
                self.push(stream)
        self._let_go()

    def _stop_waiting(self, stream: Stream) -> bool:
        # Whether it did wait.
        waited = self._waiting.pop(stream.number, None) is not None
        self._let_go()
        return waited

    def _let_go(self) -> None:
        if self._untaken is not None and not self._waiting and not self._write_paused:
            self._untaken = None

    def _finish(self, stream: Stream) -> None:
        # The answer is whole. What still comes of its request is thrown away.
        del self._streams[stream.number]
        stream.close()
        self._make_up()
        if not stream.ended:
            self._reset(stream.number, ErrorCode.NO_ERROR)
        if not self._streams:
            self._quiet_since = self._loop.time()
            self._close_when_idle()

    def _drop(self, stream: Stream, code: ErrorCode) -> None:
        # For what its client did, which ends this stream and no other.
        self._cut(stream, code)
        self._strike()

    def _cut(self, stream: Stream, code: ErrorCode) -> None:
        del self._streams[stream.number]
        self._reset(stream.number, code)
        self._forget(stream)
        self._close_when_idle()

    def _forget(self, stream: Stream) -> None:
        exchange = stream.exchange
        self._waiting_bytes -= sum(map(len, stream.waiting))
        self._stop_waiting(stream)
        stream.close()
        exchange.gone()
        if not self._streams:
            self._quiet_since = self._loop.time()

    def _reset(self, number: int, code: ErrorCode) -> None:
        self._resets.append(number)
        self.write(frame(RST_STREAM, 0, number, code.to_bytes(4, "big")))

    def _strike(self) -> None:
        self._strikes += 1
        if self._strikes > MAX_STRIKES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _make_up(self) -> None:
        # Clients that measure a connection ping with what they are sent, as grpc-go does.
        self._strikes = max(0, self._strikes - 1)

    def _hold_untaken(self) -> None:
        # Of answers that the client does not take, all of which are bounded together.
        if self._untaken is None:
            self._untaken = self._answers.open()
        if not self._untaken.grow(self._waiting_bytes + self._transport.get_write_buffer_size()):
            self._transport.abort()

    def _cut_stalled(self, now: float) -> None:
        # What had no room for too long ends alone: others on the connection may be of other callers, behind a proxy.
        for stream in list(self._waiting.values()):
            if stream.window > 0:
                stream.stalled_since = 0.0
            elif not stream.stalled_since:
                stream.stalled_since = now
            elif now - stream.stalled_since > self._limits.write_timeout_seconds:
                self._cut(stream, ErrorCode.CANCEL)

    def _is_stalled(self, now: float) -> bool:
        # Whether the client has not taken its answers for too long.
        left = self._transport.get_write_buffer_size()
        if not (left or self._waiting):
            self._stalled_since = 0.0
            return False
        taken, seconds = self._sent - left, self._limits.write_timeout_seconds
        if not self._stalled_since:
            self._stalled_since, self._taken_then = now, taken
        elif now - self._stalled_since > seconds:
            if taken - self._taken_then < max(1, seconds * self._limits.min_bytes_per_second):
                return True
            self._stalled_since, self._taken_then = now, taken
        return False

    def _close_when_idle(self) -> None:
        if self._leaving and not self._streams:
            self._shut_down()

    def _shut_down(self) -> None:
        # Closing with unread bytes would reset the connection, and the client might not see its answers.
        if self._shut or self._transport.is_closing():
            return
        self._shut = True
        try:
            self._transport.write_eof()
        except OSError:  # the client was quicker
            self._transport.close()
        else:
            self._loop.call_later(LINGER_SECONDS, self._transport.close)

    def _say_goodbye(self, last: int, code: ErrorCode = ErrorCode.NO_ERROR, text: str = "") -> None:
        self.write(frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big") + text.encode()))
