"""The engine process: one model, one socket, one run at a time in order of arrival."""

from __future__ import annotations

import asyncio
import contextlib
import math
import mmap
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import uvloop

from gateway.engine.address import short_address
from gateway.engine.errors import RunFailed, RunStopped, WireError
from gateway.engine.memory import Floor
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
    write_frame,
)

__all__ = ("run_engine",)

BEAT_SECONDS = 0.2
FLOOR_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.02
QUIET_SECONDS = 2.0
"""An engine that is told to end waits so long for another question of those that are still connected."""


def run_engine(
    session: ModelSession,
    socket_path: Path,
    *,
    hello: Hello,
    floor: Floor | None = None,
    max_run_seconds: float = math.inf,
    drain_seconds: float = 0.0,
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
    floor : Floor, optional
        Kept once a second.
    max_run_seconds : float
        A run is stopped at the deadline that came with it, and after this time at the latest.
    drain_seconds : float
        How long the engine goes on after SIGTERM for those that are connected and still ask.
    beat_path : Path, optional
        Where the engine leaves its pulse for the supervisor (see `BEAT`).
    """
    engine = _Engine(session, encode_hello(hello), max_run_seconds, _Pulse(beat_path))
    uvloop.run(_serve(engine, socket_path, floor, drain_seconds))


async def _serve(engine: _Engine, socket_path: Path, floor: Floor | None, drain_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    engine.pulse.keep(loop)
    if floor is not None:
        _keep(floor, loop)
    # Bound under another name and then renamed, so that whoever sees the socket can connect to it.
    hidden = socket_path.with_name(f".{socket_path.name}.{os.getpid()}")
    hidden.unlink(missing_ok=True)
    with short_address(hidden) as address:
        server = await loop.create_unix_server(lambda: _Connection(engine), path=address)
    hidden.replace(socket_path)
    try:
        await stop.wait()
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)
        server.close()
    end = time.monotonic() + drain_seconds
    while engine.is_wanted(now := time.monotonic()) and now < end:  # noqa: ASYNC110
        await asyncio.sleep(DRAIN_LOOK_SECONDS)


def _keep(floor: Floor, loop: asyncio.AbstractEventLoop) -> None:
    floor.keep()
    loop.call_later(FLOOR_SECONDS, _keep, floor, loop)


class _Engine:
    """What the connections of one engine share."""

    def __init__(self, session: ModelSession, greeting: bytes, max_run_seconds: float, pulse: _Pulse) -> None:
        self.session = session
        self.input_names = [spec.name for spec in session.signature.inputs]
        self.greeting = greeting
        self.max_run_seconds = max_run_seconds
        self.pulse = pulse
        self.connections: set[_Connection] = set()
        self.asked_at = time.monotonic()

    def is_wanted(self, now: float) -> bool:
        """Whether someone may still ask, or has not got all of an answer."""
        if any(connection.is_writing for connection in self.connections):
            return True
        return bool(self.connections) and now - self.asked_at < QUIET_SECONDS


class _Connection(asyncio.BufferedProtocol):
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._reader = FrameReader()
        self._transport: asyncio.Transport

    @property
    def is_writing(self) -> bool:
        return self._transport.get_write_buffer_size() > 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._engine.connections.add(self)
        self._transport.write(self._engine.greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.connections.discard(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for kind, count, frame_id, payload in self._reader.received(nbytes):
                if kind == RUN:
                    write_frame(self._transport, self._answer(frame_id, count, payload))
        except WireError:
            self._transport.abort()
        self._engine.asked_at = time.monotonic()

    def _answer(self, frame_id: int, count: int, payload: memoryview) -> Sequence[bytes | memoryview]:
        engine = self._engine
        deadline, arrays = decode_run(payload, count)
        started = time.monotonic()
        if deadline <= started:
            return (encode_stopped(frame_id),)
        try:
            outputs = engine.session.run(
                dict(zip(engine.input_names, arrays, strict=True)),
                until=min(deadline, started + engine.max_run_seconds),
            )
            seconds = time.monotonic() - started
            if seconds > BEAT_SECONDS:
                # Several long runs may follow one another before the loop is back.
                engine.pulse.beat()
            return encode_result(frame_id, int(seconds * 1e9), outputs)
        except RunStopped:
            engine.pulse.beat()
            return (encode_stopped(frame_id),)
        except (RunFailed, ValueError, MemoryError) as error:
            return (encode_failure(frame_id, str(error)),)


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
