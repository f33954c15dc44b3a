"""One connection of HTTP/2 as a server has it: frames in, streams opened, answers out, within windows and limits.

Every exchange on a stream is answered through it by plain calls; nothing here waits. What a client may make this end
do or keep is bounded: fields before they are unpacked, streams, frames that carry nothing, answers it does not take.
Source: RFC 9113. Priorities, pushes and upgrades from HTTP/1.1 are left out, as gRPC has no use for them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from gateway.serving.grpc import frames
from gateway.serving.grpc.fields import NO_TABLE, FieldReader, Fields, Malformed, check_field
from gateway.serving.grpc.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEAD_BYTES,
    PADDED,
    PREFACE,
    PRIORITIZED,
    ConnectionFault,
    ErrorCode,
    Setting,
    check_priority,
    frame,
    read_head,
    settings_frame,
    unpadded,
    window_update,
)
from gateway.serving.grpc.outgoing import LARGEST_WINDOW, MAX_FRAME_BYTES, MAX_STREAMS, Outgoing
from gateway.serving.grpc.stream import STREAM_WINDOW, Exchange, RequestHead, Stream
from gateway.serving.room import Room
from gateway.settings import LimitSettings

__all__ = ("Http2Connection",)

CONNECTION_WINDOW = 2**22
PING_SECONDS = 60.0
PING_TIMEOUT_SECONDS = 20.0
FORGIVEN_A_SECOND = 100
"""Of the frames that carry nothing (pings, settings, resets, empty data), for ever."""
MAX_CONTINUATIONS = 32
FRAMES_AT_ONCE = 256
"""Of one client in one pass of the loop."""

_DEFAULT_WINDOW = 65_535
_DEFAULT_TABLE = 4096
_FRAME_BYTES = range(2**14, 2**24)
_HTTP1 = b"""HTTP/1.1 400 Bad Request\r
content-type: application/json\r
content-length: 71\r
connection: close\r
\r
{"error": "this port speaks gRPC (HTTP/2); HTTP/1.1 is on another one"}"""

_log = logging.getLogger(__name__)

Head = TypeVar("Head", bound=RequestHead)


class Http2Connection(Outgoing, Generic[Head]):
    """Reads the requests of one client and writes their answers.

    Parameters
    ----------
    understand : callable
        What the fields of a request mean.
    open_exchange : callable
        Given a stream and what its fields mean, what takes the request.
    limits : LimitSettings
    answers : Room
        For answers that the client does not take.
    closed : callable
        Told when the connection is gone.
    """

    def __init__(
        self,
        understand: Callable[[Fields], Head],
        open_exchange: Callable[[Stream, Head], Exchange],
        *,
        limits: LimitSettings,
        answers: Room,
        closed: Callable[[Http2Connection[Head]], None],
    ) -> None:
        super().__init__(limits=limits, answers=answers)
        self._open_exchange = open_exchange
        self._closed = closed
        self._reader = FieldReader(understand, max_bytes=2 * limits.max_head_bytes)
        self._rest = bytearray()
        self._begun = False
        self._resting = False
        self._settled = False
        self._deaf = False
        self._block = b""  # of fields, whose frames still come
        self._block_of: tuple[int, int] | None = None
        self._block_since = 0.0
        self._continuations = 0
        self._room = CONNECTION_WINDOW
        self._taken = 0
        self._heard_at = self._loop.time()
        self._pinged_at = 0.0

    def __repr__(self) -> str:
        return f"<Http2Connection {len(self._streams)} streams | waiting {self._waiting_bytes} bytes>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self._leaving:
            self._shut_down()

    def connection_lost(self, error: Exception | None) -> None:
        self._deaf = True
        super().connection_lost(error)
        self._closed(self)

    def eof_received(self) -> None:
        # Nobody can tell a client that waits for its answers from one that has gone, whose requests must not be run.
        self._deaf = True

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        if self._deaf or self._shut:
            return
        buffer: bytes | bytearray = data
        if self._rest:
            self._rest += data
            buffer = self._rest
        try:
            at = self._take(buffer)
        except ConnectionFault as fault:
            self._give_up(fault.code, str(fault))
            return
        except Exception:
            _log.exception("a connection over HTTP/2 failed")
            self._give_up(ErrorCode.INTERNAL_ERROR, "the gateway failed")
            return
        if buffer is self._rest:
            del self._rest[:at]
        elif at < len(buffer):
            self._rest = bytearray(memoryview(buffer)[at:])

    def check(self, now: float) -> None:
        """Look at the clocks of the connection and of its exchanges; call it once a second with the loop's time."""
        limits = self._limits
        self._strikes = max(0, self._strikes - FORGIVEN_A_SECOND)
        for stream in list(self._streams.values()):
            stream.exchange.check(now)
        self._cut_stalled(now)
        begun_late = not self._settled and now - self._quiet_since > limits.head_timeout_seconds
        block_late = self._block_of is not None and now - self._block_since > limits.head_timeout_seconds
        if begun_late or block_late or self._is_stalled(now):
            self._transport.abort()
        elif self._transport.is_closing():
            return
        elif not self._streams:
            if now - max(self._quiet_since, self._heard_at) > limits.keep_alive_seconds:
                self.leave()
        elif self._pinged_at > self._heard_at:
            if now - self._pinged_at > PING_TIMEOUT_SECONDS:
                self._transport.abort()
        elif now - self._heard_at > PING_SECONDS:
            self._pinged_at = now
            self.write(frame(frames.PING, 0, 0, bytes(8)))

    def _take(self, buffer: bytes | bytearray) -> int:
        """Take the whole frames of what has come; where the first one begins that is not whole."""
        at, end = 0, len(buffer)
        if not self._begun:
            at = self._take_preface(buffer)
            if not self._begun:
                return at
        for _ in range(FRAMES_AT_ONCE):
            if end - at < HEAD_BYTES or self._deaf:
                return at
            size, kind, flags, number = read_head(buffer, at)
            if size > MAX_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame is longer than {MAX_FRAME_BYTES} bytes")
            start = at + HEAD_BYTES
            if end - start < size:
                return at
            at = start + size
            self._frame(kind, flags, number, bytes(buffer[start:at]))
        if not self._resting:
            self._resting = True
            self._transport.pause_reading()
            self._loop.call_soon(self._take_rest)
        return at

    def _take_rest(self) -> None:
        self._resting = False
        if not self._deaf:
            if not self._write_paused:
                self._transport.resume_reading()
            self.data_received(b"")

    def _take_preface(self, buffer: bytes | bytearray) -> int:
        came = bytes(buffer[: len(PREFACE)])
        if not PREFACE.startswith(came):
            if b" HTTP/1." in bytes(buffer[:4096]):
                self.write(_HTTP1)
            self._deaf = True
            self._shut_down()
            return 0
        if len(came) < len(PREFACE):
            return 0
        self._begun = True
        self._greet()
        return len(came)

    def _greet(self) -> None:
        asked = {
            Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            Setting.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: self._limits.max_head_bytes,
        }
        self.write(settings_frame(asked) + window_update(0, CONNECTION_WINDOW - _DEFAULT_WINDOW))

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block_of is not None and (kind != frames.CONTINUATION or number != self._block_of[0]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame stands between those of one block of fields")
        if not self._settled and kind != frames.SETTINGS:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame must be settings")
        if kind == frames.HEADERS:
            packed = unpadded(kind, flags, number, payload) if flags & (PADDED | PRIORITIZED) else payload
            if flags & END_HEADERS:
                self._fields(number, packed, ended=bool(flags & END_STREAM))
            else:
                self._block, self._block_of, self._continuations = packed, (number, flags), 0
                self._block_since = self._heard_at
        elif kind == frames.DATA:
            self._data(number, flags, payload)
        else:
            self._seldom(kind, flags, number, payload)

    def _seldom(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._widen(number, payload)
        elif kind == frames.SETTINGS:
            self._settings(flags, number, payload)
        elif kind == frames.PING:
            self._ping(flags, number, payload)
        elif kind == frames.RST_STREAM:
            self._reset_by_client(number, payload)
        elif kind == frames.CONTINUATION:
            self._continue(flags, payload)
        elif kind == frames.PRIORITY:
            if not number:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a priority is of a stream")
            check_priority(number, payload)
            self._strike()
        elif kind == frames.GOAWAY:
            if number:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a connection ends, not a stream")
            self.leave()
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client pushes nothing")
        else:
            self._strike()

    def _continue(self, flags: int, payload: bytes) -> None:
        if self._block_of is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame continues nothing")
        self._continuations += 1
        number, first = self._block_of
        self._block += payload
        if self._continuations > MAX_CONTINUATIONS or len(self._block) > 2 * self._limits.max_head_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a block of fields is too long")
        if flags & END_HEADERS:
            packed, self._block, self._block_of = self._block, b"", None
            self._fields(number, packed, ended=bool(first & END_STREAM))

    def _fields(self, number: int, packed: bytes, *, ended: bool) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            self._trailers(stream, packed, ended=ended)
            return
        if not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client opens streams with odd numbers")
        if number <= self._last:
            if number not in self._resets:
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"stream {number} is closed")
            self._reader.unpack(packed)
            return
        self._last = number
        try:
            head = self._reader.read(packed)
        except Malformed:
            self._reset(number, ErrorCode.PROTOCOL_ERROR)
            self._strike()
            return
        if self._leaving or len(self._streams) >= MAX_STREAMS:
            self._reset(number, ErrorCode.REFUSED_STREAM)
            return
        stream = Stream(self, number, window=self._stream_window, declared=head.declared_bytes)
        stream.ended = ended
        self._streams[number] = stream
        exchange = self._open_exchange(stream, head)
        if not stream.finished:
            stream.exchange = exchange
        if ended and not stream.finished:
            self._end_request(stream, b"")

    def _trailers(self, stream: Stream, packed: bytes, *, ended: bool) -> None:
        fields = self._reader.unpack(packed)
        if stream.ended:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"the request on stream {stream.number} has ended")
        try:
            if not ended:
                raise Malformed
            for name, value in fields:
                check_field(name, value)
        except Malformed:
            self._drop(stream, ErrorCode.PROTOCOL_ERROR)
            return
        self._end_request(stream, b"")

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._room -= size
        self._taken += size
        if self._room < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data came than the connection's window takes")
        if self._taken > CONNECTION_WINDOW // 2:
            self.write(window_update(0, self._taken))
            self._room += self._taken
            self._taken = 0
        stream = self._streams.get(number)
        if stream is None or stream.ended:
            if not number or not number & 1 or number > self._last:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "data came for a stream that is not open")
            if stream is not None:
                self._drop(stream, ErrorCode.STREAM_CLOSED)
            elif number not in self._resets:
                self._reset(number, ErrorCode.STREAM_CLOSED)
                self._strike()
            elif flags & END_STREAM:
                self._resets.remove(number)
            elif not payload:
                self._strike()
            return
        content = unpadded(frames.DATA, flags, number, payload) if flags & PADDED else payload
        stream.room -= size
        if stream.room < 0:
            self._drop(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if stream.left is not None:
            stream.left -= len(content)
        if flags & END_STREAM:
            self._end_request(stream, content)
            return
        if not content:
            self._strike()
        stream.owed += size
        if stream.owed > STREAM_WINDOW // 2 and not stream.paused:
            self.give_back(stream)
        if stream.left is not None and stream.left < 0:
            self._drop(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.exchange.received(content, ended=False)

    def _end_request(self, stream: Stream, content: bytes) -> None:
        if stream.left:
            self._drop(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream.ended = True
        stream.exchange.received(content, ended=True)

    def _widen(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a window is widened by four bytes")
        more = int.from_bytes(payload, "big") & LARGEST_WINDOW
        if number == 0:
            if not more:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window is widened by nothing")
            exhausted = not self._window
            self._window += more
            if self._window > LARGEST_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is too wide")
            if exhausted:
                self._push_all()
            return
        stream = self._streams.get(number)
        if stream is None:
            self._check_known(number)
            return
        stream.window += more
        if not more:
            self._drop(stream, ErrorCode.PROTOCOL_ERROR)
        elif stream.window > LARGEST_WINDOW:
            self._drop(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream.waiting:
            self.push(stream)

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "settings are of the connection")
        if len(payload) % 6 or (flags & ACK and payload):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "settings have six bytes each")
        self._strike()
        if flags & ACK:
            return
        for at in range(0, len(payload), 6):
            self._strike()
            self._set(int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big"))
        self._settled = True
        self.write(frame(frames.SETTINGS, ACK, 0))
        self._push_all()

    def _set(self, name: int, value: int) -> None:
        if name == Setting.INITIAL_WINDOW_SIZE:
            if value > LARGEST_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the initial window is too wide")
            for stream in self._streams.values():
                stream.window += value - self._stream_window
                if stream.window > LARGEST_WINDOW:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the window of a stream is too wide")
            self._stream_window = value
        elif name == Setting.MAX_FRAME_SIZE:
            if value not in _FRAME_BYTES:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the size of frames is out of range")
            self._frame_bytes = min(value, MAX_FRAME_BYTES)
        elif name == Setting.HEADER_TABLE_SIZE and value < _DEFAULT_TABLE:
            self._resize = NO_TABLE
        elif name == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "pushing is on or off")

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a ping is of the connection")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a ping has eight bytes")
        if not flags & ACK:
            self._strike()
            self.write(frame(frames.PING, ACK, 0, payload))

    def _reset_by_client(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a reset has four bytes")
        self._check_known(number)
        self._strike()
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._forget(stream)
            self._close_when_idle()

    def _check_known(self, number: int) -> None:
        if not number or not number & 1 or number > self._last:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame is of a stream that was never opened")

    def _give_up(self, code: ErrorCode, text: str) -> None:
        self._deaf = True
        self._say_goodbye(self._last, code, text)
        self._shut_down()
