"""The engine process: one model, one socket, one run at a time in order of arrival."""

from __future__ import annotations

import asyncio
import math
import mmap
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import uvloop

from gateway.engine.address import short_address
from gateway.engine.errors import RunFailed, RunStopped, WireError
from gateway.engine.session import ModelSession
from gateway.engine.wire import (
    BEAT,
    RUN,
    FrameReader,
    Hello,
    decode_run,
    encode_failure,
    encode_hello,
    encode_result,
    encode_stopped,
)

__all__ = ("run_engine",)

BEAT_SECONDS = 0.2


class _Connection(asyncio.Protocol):
    def __init__(self, session: ModelSession, greeting: bytes, max_run_seconds: float, pulse: _Pulse) -> None:
        self._session = session
        self._max_run_seconds = max_run_seconds
        self._pulse = pulse
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
        deadline, arrays = decode_run(payload, count)
        started = time.monotonic()
        if deadline <= started:
            return encode_stopped(frame_id)
        try:
            outputs = self._session.run(
                dict(zip(self._names, arrays, strict=True)), until=min(deadline, started + self._max_run_seconds)
            )
            seconds = time.monotonic() - started
            if seconds > BEAT_SECONDS:
                # Several long runs may follow one another before the loop is back.
                self._pulse.beat()
            return b"".join(encode_result(frame_id, int(seconds * 1e9), outputs))
        except RunStopped:
            self._pulse.beat()
            return encode_stopped(frame_id)
        except (RunFailed, ValueError, MemoryError) as error:
            return encode_failure(frame_id, str(error))


def run_engine(
    session: ModelSession,
    socket_path: Path,
    *,
    hello: Hello,
    max_run_seconds: float = math.inf,
    beat_path: Path | None = None,
) -> None:
    """Serve `session` on `socket_path` until SIGTERM; the socket appears only once everything is ready.

    Parameters
    ----------
    session : ModelSession
        Loaded and warm.
    socket_path : Path
        A Unix socket; a stale one is replaced.
    hello : Hello
        The greeting of every connection.
    max_run_seconds : float
        A run is stopped at the deadline that came with it, and after this time at the latest.
    beat_path : Path, optional
        Where the engine leaves its pulse for the supervisor (see `BEAT`).
    """
    pulse = _Pulse(beat_path)
    greeting = encode_hello(hello)
    uvloop.run(_serve(lambda: _Connection(session, greeting, max_run_seconds, pulse), socket_path, pulse))


async def _serve(connection: Callable[[], _Connection], socket_path: Path, pulse: _Pulse) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    pulse.keep(loop)
    # Bound under another name and then renamed, so that whoever sees the socket can connect to it.
    hidden = socket_path.with_name(f".{socket_path.name}.{os.getpid()}")
    hidden.unlink(missing_ok=True)
    with short_address(hidden) as address:
        server = await loop.create_unix_server(connection, path=address)
    hidden.replace(socket_path)
    try:
        await stop.wait()
    finally:
        os.unlink(socket_path)
        server.close()


class _Pulse:
    def __init__(self, path: Path | None) -> None:
        if path is None:
            self._map = mmap.mmap(-1, BEAT.size)
            return
        path.write_bytes(BEAT.pack(time.monotonic()))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), BEAT.size)

    def beat(self) -> None:
        BEAT.pack_into(self._map, 0, time.monotonic())

    def keep(self, loop: asyncio.AbstractEventLoop) -> None:
        self.beat()
        loop.call_later(BEAT_SECONDS, self.keep, loop)
