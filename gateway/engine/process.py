"""The engine process: one model, one socket, one run at a time in order of arrival."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import time
from pathlib import Path
from typing import cast

import uvloop

from gateway.engine.address import short_address
from gateway.engine.errors import RunFailed, WireError
from gateway.engine.session import ModelSession
from gateway.engine.wire import (
    BEAT,
    RUN,
    FrameReader,
    Hello,
    decode_tensors,
    encode_failure,
    encode_hello,
    encode_result,
)

__all__ = ("run_engine",)

BEAT_SECONDS = 0.2


class _Connection(asyncio.Protocol):
    def __init__(self, session: ModelSession, greeting: bytes) -> None:
        self._session = session
        self._names = [spec.name for spec in session.signature.inputs]
        self._greeting = greeting
        self._reader = FrameReader()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._greeting)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, count, frame_id, payload in self._reader.feed(data):
                if kind == RUN:
                    self._transport.write(self._answer(frame_id, count, payload))
        except WireError:
            self._transport.abort()

    def _answer(self, frame_id: int, count: int, payload: memoryview) -> bytes:
        arrays = decode_tensors(payload, count)
        started = time.perf_counter_ns()
        try:
            outputs = self._session.run(dict(zip(self._names, arrays, strict=True)))
        except (RunFailed, ValueError) as error:
            return encode_failure(frame_id, str(error))
        return b"".join(encode_result(frame_id, time.perf_counter_ns() - started, outputs))


def run_engine(session: ModelSession, socket_path: Path, *, hello: Hello, beat_path: Path | None = None) -> None:
    """Serve `session` on `socket_path` until SIGTERM; the socket appears only once everything is ready.

    Parameters
    ----------
    session : ModelSession
        Loaded and warm.
    socket_path : Path
        A Unix socket; a stale one is replaced.
    hello : Hello
        The greeting of every connection.
    beat_path : Path, optional
        Where the engine leaves its pulse for the supervisor (see `BEAT`).
    """
    uvloop.run(_serve(session, socket_path, encode_hello(hello), beat_path))


async def _serve(session: ModelSession, socket_path: Path, greeting: bytes, beat_path: Path | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    pulse = _Pulse(beat_path) if beat_path else None
    if pulse:
        pulse.beat(loop)
    # Bound under another name and then renamed, so that whoever sees the socket can connect to it.
    hidden = socket_path.with_name(f".{socket_path.name}.{os.getpid()}")
    hidden.unlink(missing_ok=True)
    with short_address(hidden) as address:
        server = await loop.create_unix_server(lambda: _Connection(session, greeting), path=address)
    hidden.replace(socket_path)
    try:
        await stop.wait()
    finally:
        os.unlink(socket_path)
        server.close()


class _Pulse:
    def __init__(self, path: Path) -> None:
        path.write_bytes(BEAT.pack(time.monotonic()))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), BEAT.size)

    def beat(self, loop: asyncio.AbstractEventLoop) -> None:
        BEAT.pack_into(self._map, 0, time.monotonic())
        loop.call_later(BEAT_SECONDS, self.beat, loop)
