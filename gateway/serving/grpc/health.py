"""`grpc.health.v1.Health`: readiness as load balancers and orchestrators ask for it.

Source: gRPC, "Health Checking Protocol".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from gateway.serving.front import Front
from gateway.serving.grpc import health_pb2 as messages
from gateway.serving.grpc.call import Call, OtherCall
from gateway.serving.grpc.errors import CallFailed, StatusCode
from gateway.serving.grpc.framing import framed, parse
from gateway.serving.grpc.head import OK_HEAD, OK_TAIL, CallHead
from gateway.serving.grpc.stream import Exchange, Stream

__all__ = ("HEALTH", "HealthService")

HEALTH = "grpc.health.v1.Health"
WATCH_SECONDS = 0.2
MAX_WATCHERS = 1024
MAX_NAME = 64  # longer ones are no service's


class HealthService:
    """Tells whether the front is ready, for the whole server ("") or a service by name.

    Parameters
    ----------
    front : Front
    services : tuple of str
        Names that are known besides "".
    """

    def __init__(self, front: Front, services: tuple[str, ...]) -> None:
        self.front = front
        self.watchers: set[WatchCall] = set()
        self._services = ("", HEALTH, *services)
        self._watching: asyncio.TimerHandle | None = None
        self._closing = False

    def __repr__(self) -> str:
        return f"<HealthService {self.front.not_ready or 'ready'} | watchers {len(self.watchers)}>"

    def methods(self) -> dict[str, Callable[[Stream, CallHead], Exchange]]:
        """Name of each method to what opens a call of it."""
        kind = messages.HealthCheckRequest
        return {
            "Check": partial(OtherCall, kind=kind, handler=self._check, front=self.front),
            "Watch": partial(WatchCall, service=self),
        }

    def close(self) -> None:
        """End every watch."""
        self._closing = True
        self._tell()

    def watch(self, call: WatchCall) -> None:
        """Tell a call the status of its service, now and whenever it changes.

        Raises
        ------
        CallFailed
        """
        if len(self.watchers) >= MAX_WATCHERS:
            raise CallFailed(StatusCode.RESOURCE_EXHAUSTED, f"more than {MAX_WATCHERS} watch already")
        self.watchers.add(call)
        call.tell(ending=self._closing)
        if self._watching is None:
            self._tell_later()

    def status_of(self, service: str) -> messages.HealthCheckResponse.ServingStatus:
        """Whether a service is ready, if it is known."""
        statuses = messages.HealthCheckResponse.ServingStatus
        if service not in self._services:
            return statuses.SERVICE_UNKNOWN
        return statuses.SERVING if self.front.not_ready is None else statuses.NOT_SERVING

    async def _check(self, message: Any, head: CallHead) -> messages.HealthCheckResponse:
        if message.service not in self._services:
            raise CallFailed(StatusCode.NOT_FOUND, f"there is no service '{message.service[:MAX_NAME]}'")
        return messages.HealthCheckResponse(status=self.status_of(message.service))

    def _tell(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        for call in list(self.watchers):
            call.tell(ending=self._closing)
        if self._closing:
            self.watchers.clear()
        elif self.watchers:
            self._tell_later()

    def _tell_later(self) -> None:
        self._watching = asyncio.get_running_loop().call_later(WATCH_SECONDS, self._tell)


class WatchCall(Call):
    """One who watches a service."""

    def __init__(self, stream: Stream, head: CallHead, *, service: HealthService) -> None:
        super().__init__(stream, head, front=service.front)
        self._service = service
        self._name = ""
        self._told: object = None

    def take(self, content: bytes) -> None:
        self._name = parse(messages.HealthCheckRequest, content).service[:MAX_NAME]
        self.held = None
        self._service.watch(self)

    def tell(self, *, ending: bool) -> None:
        """Send the status if it is another one than the last."""
        stream, status = self.stream, self._service.status_of(self._name)
        if stream.finished:
            return
        if status != self._told and not stream.waiting:
            if self._told is None:
                stream.begin(OK_HEAD)
            self._told = status
            stream.send(framed(messages.HealthCheckResponse(status=status).SerializeToString()))
        if ending:
            stream.end(OK_TAIL)

    def gone(self) -> None:
        super().gone()
        self._service.watchers.discard(self)
