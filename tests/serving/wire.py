"""A server of HTTP/2 whose exchanges echo, and a client that writes its frames by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from hpack import Decoder, Encoder

from gateway.serving.grpc import frames
from gateway.serving.grpc.fields import block
from gateway.serving.grpc.frames import (
    END_HEADERS,
    END_STREAM,
    HEAD_BYTES,
    PREFACE,
    ErrorCode,
    Setting,
    frame,
    read_head,
    settings_frame,
)
from gateway.serving.grpc.head import CallHead, understanding
from gateway.serving.grpc.http2 import Http2Connection
from gateway.serving.grpc.stream import Exchange, Stream
from gateway.serving.room import Room
from gateway.settings import load_settings

HEAD, TAIL = block([(b"content-type", b"application/grpc")], status=200), block([(b"grpc-status", b"0")])
Frame = tuple[int, int, int, bytes]


class Echo:
    """Answers `/echo` with what it sent, `/12` with 12 bytes, both when it is whole, `/early` at once, others never."""

    def __init__(self, stream: Stream, head: CallHead) -> None:
        self.stream, self.head = stream, head
        self.content = bytearray()
        self.left = False
        if head.method == b"/early":
            stream.end(HEAD + TAIL)

    def received(self, content: bytes, *, ended: bool) -> None:
        self.content += content
        if ended and self.head.method == b"/echo":
            self.stream.answer(HEAD, bytes(self.content), TAIL)
        elif ended and self.head.method[1:].isdigit():
            self.stream.answer(HEAD, bytes(int(self.head.method[1:])), TAIL)

    def gone(self) -> None:
        self.left = True

    def drained(self) -> None: ...

    def check(self, now: float) -> None: ...


class EchoServer:
    """Its connections, exchanges and what it holds."""

    def __init__(self, **limits: Any) -> None:
        self.limits = load_settings(overrides={"limits": limits}).limits
        self.answers = Room(self.limits.max_held_answer_bytes, full="full")
        self.connections: set[Http2Connection[CallHead]] = set()
        self.exchanges: list[Echo] = []
        self.port = 0

    def connection(self) -> Http2Connection[CallHead]:
        connection = Http2Connection(
            understanding(max_bytes=self.limits.max_head_bytes),
            self._open,
            limits=self.limits,
            answers=self.answers,
            closed=self.connections.discard,
        )
        self.connections.add(connection)
        return connection

    def _open(self, stream: Stream, head: CallHead) -> Exchange:
        self.exchanges.append(Echo(stream, head))
        return self.exchanges[-1]


class Wire:
    """One connection, as its client has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.encoder, self.decoder = Encoder(), Decoder()
        self.next = 1

    def write(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    def number(self) -> int:
        self.next += 2
        return self.next - 2

    def fields(self, path: str = "/echo", *more: tuple[str, str]) -> bytes:
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "here")]
        return self.encoder.encode([*pseudo, ("content-type", "application/grpc"), ("te", "trailers"), *more])

    def head(self, number: int, path: str = "/echo", *more: tuple[str, str], flags: int = END_HEADERS) -> bytes:
        return frame(frames.HEADERS, flags, number, self.fields(path, *more))

    def request(self, path: str = "/echo", content: bytes = b"", *more: tuple[str, str]) -> bytes:
        """One request, on the next stream."""
        number = self.number()
        return self.head(number, path, *more) + frame(frames.DATA, END_STREAM, number, content)

    async def frame(self) -> Frame:
        """The next frame; an `IncompleteReadError` where the connection has ended."""
        head = await asyncio.wait_for(self.reader.readexactly(HEAD_BYTES), 10)
        size, kind, flags, number = read_head(head, 0)
        payload = await asyncio.wait_for(self.reader.readexactly(size), 10)
        if kind == frames.HEADERS:
            payload = repr(dict(self.decoder.decode(payload))).encode()
        return kind, flags, number, payload

    async def until(self, wanted: Callable[[Frame], object]) -> list[Frame]:
        """What comes up to a frame."""
        came = [await self.frame()]
        while not wanted(came[-1]):
            came.append(await self.frame())
        return came

    async def answer(self, number: int) -> bytes:
        """The content of the answer on a stream, when it is whole."""
        came = await self.until(lambda frame: frame[2] == number and frame[1] & END_STREAM and frame[0] <= 1)
        return b"".join([payload for kind, _, of, payload in came if kind == frames.DATA and of == number])

    async def reset(self, number: int) -> ErrorCode:
        """Why a stream is reset."""
        *_, (_, _, _, payload) = await self.until(lambda frame: frame[0] == frames.RST_STREAM and frame[2] == number)
        return ErrorCode(int.from_bytes(payload, "big"))

    async def settled(self) -> list[Frame]:
        """What comes before the answer to a ping: all that was written so far has been taken then."""
        self.write(frame(frames.PING, 0, 0, b"settled?"))
        return (await self.until(lambda frame: frame[0] == frames.PING and frame[1]))[:-1]

    async def end(self) -> tuple[ErrorCode, str]:
        """Why the connection ends, once it has."""
        reason = (ErrorCode.NO_ERROR, "")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, _, _, payload = await self.frame()
                if kind == frames.GOAWAY:
                    reason = ErrorCode(int.from_bytes(payload[4:8], "big")), payload[8:].decode()
        return reason


@contextlib.asynccontextmanager
async def wire(port: int, *, settings: dict[Setting, int] | None = None, begun: bool = True) -> AsyncIterator[Wire]:
    """A connection, on which the preface and settings were sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        client = Wire(reader, writer)
        if begun:
            client.write(PREFACE, settings_frame(settings or {}))
        yield client
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def echo_server(**limits: Any) -> AsyncIterator[EchoServer]:
    """An echo server, whose limits are as given."""
    echo = EchoServer(**limits)
    server = await asyncio.get_running_loop().create_server(echo.connection, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    try:
        yield echo
    finally:
        server.close()
        for connection in list(echo.connections):
            connection.abort()
        await asyncio.sleep(0)
