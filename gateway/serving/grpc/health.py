"""`grpc.health.v1.Health`: readiness as load balancers and orchestrators ask for it.

Source: gRPC, "Health Checking Protocol".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from gateway.serving.front import Front
from gateway.serving.grpc.methods import Context, serialize, unary

__all__ = ("HealthService",)

HEALTH = "grpc.health.v1.Health"
WATCH_SECONDS = 0.2
MAX_WATCHERS = 1024
MESSAGE_SECONDS = 5.0


class HealthService:
    """Tells whether the front is ready, for the whole server ("") or a service by name.

    Parameters
    ----------
    front : Front
    services : tuple of str
        Names that are known besides "".
    """

    def __init__(self, front: Front, services: tuple[str, ...]) -> None:
        self._front = front
        self._services = ("", HEALTH, *services)
        self._watchers = 0
        self._closing = False

    def __repr__(self) -> str:
        return f"<HealthService {self._front.not_ready or 'ready'} | watchers {self._watchers}>"

    def handler(self) -> grpc.GenericRpcHandler:
        """What a `grpc.aio` server takes."""
        return grpc.method_handlers_generic_handler(
            HEALTH,
            {
                "Check": unary(health_pb2.HealthCheckRequest, self._check, seconds=MESSAGE_SECONDS),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self._watch,
                    request_deserializer=health_pb2.HealthCheckRequest.FromString,
                    response_serializer=serialize,
                ),
            },
        )

    def close(self) -> None:
        """End every watch."""
        self._closing = True

    async def _check(self, message: Any, context: Context) -> Any:
        if message.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service '{message.service[:64]}'")
        return health_pb2.HealthCheckResponse(status=self._status(message.service))

    async def _watch(self, message: Any, context: Context) -> AsyncIterator[Any]:
        if self._watchers >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {MAX_WATCHERS} watch already")
        self._watchers += 1
        told = None
        try:
            while not self._closing:
                status = self._status(message.service)
                if status != told:
                    told = status
                    yield health_pb2.HealthCheckResponse(status=status)
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            self._watchers -= 1

    def _status(self, service: str) -> Any:
        statuses = health_pb2.HealthCheckResponse.ServingStatus
        if service not in self._services:
            return statuses.SERVICE_UNKNOWN
        return statuses.SERVING if self._front.not_ready is None else statuses.NOT_SERVING
