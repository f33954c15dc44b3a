"""A TCP proxy on loopback that does to connections what networks do: delay, silence, cuts, lost answers, damage."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ("ChaosProxy",)

_CHUNK_BYTES = 64 * 1024
_LOOK_SECONDS = 0.02
# Length (4 bytes) and number (2 bytes) begin each request of Kafka's protocol; 0 is Produce.
_PRODUCE = b"\0\0"


class ChaosProxy:
    """Passes connections on to a port of this machine, and faults on them as told; `heal` ends every fault.

    Faults hold for connections that are open and for new ones.
    """

    def __init__(self, target: Callable[[], int]) -> None:
        self.lost_answers = 0
        self._target = target
        self._delay_seconds = 0.0
        self._bytes_per_second = 0.0
        self._silent = self._cut = self._damages = False
        self._answers_to_lose = 0
        self._connections: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._run, name=f"proxy {self.port}")

    def __enter__(self) -> ChaosProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def __repr__(self) -> str:
        return f"<ChaosProxy {self.port} connections={len(self._connections)} lost_answers={self.lost_answers}>"

    def heal(self) -> None:
        """Pass everything on again; what was held back arrives late."""
        self._delay_seconds = self._bytes_per_second = 0.0
        self._silent = self._cut = self._damages = False
        self._answers_to_lose = 0

    def delay(self, seconds: float) -> None:
        """Hold every chunk back, in each direction."""
        self._delay_seconds = seconds

    def slow(self, bytes_per_second: float) -> None:
        """Pass on no more than this on each connection, in each direction."""
        self._bytes_per_second = bytes_per_second

    def black_hole(self) -> None:
        """Take everything and pass nothing on."""
        self._silent = True

    def cut(self) -> None:
        """Reset every connection, and new ones as soon as they come."""
        self._cut = True
        self._loop.call_soon_threadsafe(self._reset_all)

    def damage(self) -> None:
        """Flip a bit in every chunk that comes back."""
        self._damages = True

    def lose_answers(self, count: int) -> None:
        """Reset this many connections on which a Produce request was passed on, in place of its answer."""
        self._answers_to_lose = count

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._socket))
        self._loop.run_forever()
        server.close()
        self._reset_all()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _reset_all(self) -> None:
        for writer in list(self._connections):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            _reset(writer)
            return
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            _reset(writer)
            return
        ends = {writer, target_writer}
        self._connections |= ends
        doomed: list[bool] = []
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await asyncio.gather(
                    self._pump(reader, target_writer, doomed, answers=False),
                    self._pump(target_reader, writer, doomed, answers=True),
                )
        finally:
            self._connections -= ends
            for end in ends:
                _reset(end)

    async def _pump(self, reader: Any, writer: Any, doomed: list[bool], *, answers: bool) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if answers and doomed:
                self.lost_answers += 1
                raise ConnectionResetError
            if not answers and self._answers_to_lose and chunk[4:6] == _PRODUCE:
                self._answers_to_lose -= 1
                doomed.append(True)
            held_until = time.monotonic() + self._delay_seconds
            if self._bytes_per_second:
                held_until += len(chunk) / self._bytes_per_second
            while self._silent or time.monotonic() < held_until:
                await asyncio.sleep(_LOOK_SECONDS)
            if answers and self._damages:
                chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, with a reset in place of a farewell."""
    with contextlib.suppress(OSError):
        connection = writer.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
