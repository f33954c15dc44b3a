"""The gRPC server of one front."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

from gateway.serving.front import Front
from gateway.serving.grpc.call import Refusal
from gateway.serving.grpc.calls import OtherCalls
from gateway.serving.grpc.errors import StatusCode
from gateway.serving.grpc.head import CallHead, failed_head, other_head, understanding
from gateway.serving.grpc.health import HEALTH, HealthService
from gateway.serving.grpc.http2 import Http2Connection
from gateway.serving.grpc.outgoing import MAX_STREAMS
from gateway.serving.grpc.service import SERVICE, InferenceService
from gateway.serving.grpc.stream import Exchange, Stream
from gateway.serving.repository_calls import RepositoryCalls, VersionStore
from gateway.serving.room import Room

__all__ = ("GrpcServer",)

BACKLOG = 2048
SWEEP_SECONDS = 1.0
CLOSING_SECONDS = 0.2
MAX_SHOWN = 128

_log = logging.getLogger(__name__)


class GrpcServer:
    """gRPC on a port of its own, for one front; other fronts may listen on the same port.

    Parameters
    ----------
    front : Front
    store : VersionStore
        For the repository calls only; asked from a thread.
    """

    def __init__(self, front: Front, store: VersionStore) -> None:
        self.port = 0
        self.connections: set[Http2Connection[CallHead]] = set()
        self._front = front
        self._limits = front.settings.limits
        self._service = InferenceService(front, OtherCalls(front, RepositoryCalls(front, store)))
        self._health = HealthService(front, (SERVICE,))
        self._methods = {
            f"/{service}/{name}".encode(): opening
            for service, table in ((SERVICE, self._service.methods()), (HEALTH, self._health.methods()))
            for name, opening in table.items()
        }
        self._understand = understanding(max_bytes=self._limits.max_head_bytes)
        # The queue of a version refuses by itself; what it takes must not keep out questions about health.
        self._calls = Room(self._limits.max_queue_requests + MAX_STREAMS, full="too many calls at a time")
        self._empty = asyncio.Event()
        self._server: asyncio.Server
        self._sweeping: asyncio.Task[None]

    def __repr__(self) -> str:
        return f"<GrpcServer port {self.port} | {len(self.connections)} connections | {self._service!r}>"

    async def start(self, port: int) -> None:
        """Listen; `port` 0 picks a free one.

        Raises
        ------
        OSError
            The port cannot be listened on.
        """
        host = self._front.settings.server.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True)
        except OSError as error:
            raise OSError(error.errno, f"gRPC cannot listen on {host} port {port}: {error.strerror}") from None
        self.port = listener.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connect, sock=listener, backlog=BACKLOG)
        self._sweeping = loop.create_task(self._sweep())

    async def drain(self, seconds: float) -> None:
        """Answer what is under way and nothing else, then close; what is left after `seconds` is cut off."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        self._service.close()
        self._health.close()
        for connection in list(self.connections):
            connection.give_notice()
        # What is on its way here is told that it comes too late.
        await asyncio.sleep(min(CLOSING_SECONDS, seconds))
        self._server.close()
        for connection in list(self.connections):
            connection.leave()
        if self.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), max(0.0, until - loop.time()))
        self._sweeping.cancel()
        for connection in list(self.connections):
            connection.abort()
        with contextlib.suppress(asyncio.CancelledError):
            await self._sweeping

    def _connect(self) -> asyncio.Protocol:
        if len(self.connections) >= self._limits.max_connections:
            return _Turned()
        connection = Http2Connection(
            self._understand,
            self._open,
            limits=self._limits,
            answers=self._front.answers,
            closed=self._lose,
        )
        self.connections.add(connection)
        self._empty.clear()
        return connection

    def _lose(self, connection: Http2Connection[CallHead]) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def _open(self, stream: Stream, head: CallHead) -> Exchange:
        if head.status != 200:
            return Refusal(stream, other_head(head.status))
        if head.failure is not None:
            return Refusal(stream, failed_head(head.failure.code, str(head.failure)))
        stream.place = self._calls.open()
        if not stream.place.grow(1):
            return Refusal(stream, failed_head(StatusCode.RESOURCE_EXHAUSTED, self._calls.full))
        opening = self._methods.get(head.method)
        if opening is None:
            shown = head.method[:MAX_SHOWN].decode("latin-1")
            return Refusal(stream, failed_head(StatusCode.UNIMPLEMENTED, f"there is no method {shown}"))
        return opening(stream, head)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for connection in list(self.connections):
                try:
                    connection.check(loop.time())
                except Exception:  # the others' clocks go on
                    _log.exception("a connection over gRPC failed")
                    connection.abort()


class _Turned(asyncio.Protocol):
    """One connection more than there may be."""

    def connection_made(self, transport: Any) -> None:
        transport.close()
