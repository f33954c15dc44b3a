"""The gRPC server of one front."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from gateway.serving.front import Front
from gateway.serving.grpc.calls import OtherCalls
from gateway.serving.grpc.health import HealthService
from gateway.serving.grpc.service import SERVICE, InferenceService
from gateway.serving.repository_calls import RepositoryCalls, VersionStore
from gateway.settings import LimitSettings

__all__ = ("GrpcServer",)

MAX_STREAMS = 100  # calls at a time on one connection; RFC 9113, section 6.5.2: no fewer than 100
PING_SECONDS = 60.0
PING_TIMEOUT_SECONDS = 20.0
MIN_CLIENT_PING_SECONDS = 10.0
MAX_STRIKES = 2
CLOSING_SECONDS = 0.2


class GrpcServer:
    """gRPC on a port of its own, for one front; other fronts may listen on the same port.

    Parameters
    ----------
    front : Front
    store : VersionStore
        For the repository calls only; asked from a thread.
    """

    def __init__(self, front: Front, store: VersionStore) -> None:
        limits = front.settings.limits
        self.port = 0
        self._front = front
        self._service = InferenceService(front, OtherCalls(front, RepositoryCalls(front, store)))
        self._health = HealthService(front, (SERVICE,))
        self._server = grpc.aio.server(
            handlers=[self._service.handler(), self._health.handler()],
            options=_options(limits),
            # The queue of a version refuses by itself; what it takes must not keep out questions about health.
            maximum_concurrent_rpcs=limits.max_queue_requests + MAX_STREAMS,
        )

    def __repr__(self) -> str:
        return f"<GrpcServer port {self.port} | {self._service!r}>"

    async def start(self, port: int) -> None:
        """Listen; `port` 0 picks a free one.

        Raises
        ------
        OSError
            The port cannot be listened on.
        """
        host = self._front.settings.server.host
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}: {error}") from None
        await self._server.start()

    async def drain(self, seconds: float) -> None:
        """Answer what is under way and nothing else, then close; what is left after `seconds` is cancelled."""
        self._service.close()
        self._health.close()
        # The library cancels calls that it has read and not handed out yet; so those in a hurry are answered first.
        await asyncio.sleep(min(CLOSING_SECONDS, seconds))
        await self._server.stop(seconds)


def _options(limits: LimitSettings) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", limits.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_metadata_size", limits.max_head_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_head_bytes),
        ("grpc.server_handshake_timeout_ms", int(limits.head_timeout_seconds * 1000)),
        ("grpc.max_connection_idle_ms", int(limits.keep_alive_seconds * 1000)),
        ("grpc.keepalive_time_ms", int(PING_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", int(PING_TIMEOUT_SECONDS * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_CLIENT_PING_SECONDS * 1000)),
        ("grpc.http2.max_ping_strikes", MAX_STRIKES),
    ]
