"""The calls of `inference.GRPCInferenceService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from gateway import __version__
from gateway.protocol.errors import CallerError, GatewayError
from gateway.serving.front import Front, Inference, path_pin
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.errors import code_of, details_of
from gateway.serving.grpc.inference import MAX_NAME, GrpcInference

__all__ = ("SERVICE", "InferenceService")

SERVICE = "inference.GRPCInferenceService"

Context = Any  # grpc.aio.ServicerContext
Call = Callable[[Any, Context], Awaitable[Any]]


class InferenceService:
    """Answers calls from one front.

    Parameters
    ----------
    front : Front
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._message_seconds = front.settings.limits.body_timeout_seconds

    def handler(self) -> grpc.GenericRpcHandler:
        """What a `grpc.aio` server takes."""
        calls: dict[str, tuple[Any, Call]] = {
            "ServerLive": (messages.ServerLiveRequest, self._server_live),
            "ServerReady": (messages.ServerReadyRequest, self._server_ready),
            "ModelReady": (messages.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (messages.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (messages.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": (messages.ModelInferRequest, self._infer),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE, {name: self._unary(request, call) for name, (request, call) in calls.items()}
        )

    def _unary(self, request: Any, call: Call) -> grpc.RpcMethodHandler:
        # Taken as a stream of one message, which is the same on the wire: so the wait for it can be bounded.
        async def handle(arriving: AsyncIterator[Any], context: Context) -> Any:
            try:
                async with asyncio.timeout(self._message_seconds):
                    message = await anext(aiter(arriving))
            except (TimeoutError, StopAsyncIteration):
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the request's message did not arrive in time")
            try:
                return await call(message, context)
            except GatewayError as error:
                await context.abort(code_of(error), details_of(error))

        return grpc.stream_unary_rpc_method_handler(
            handle, request_deserializer=request.FromString, response_serializer=_serialize
        )

    async def _infer(self, message: messages.ModelInferRequest, context: Context) -> Any:
        waiter = _Waiter()
        inference = GrpcInference(waiter, message)
        inference.read_head(context.invocation_metadata() or (), context.time_remaining())
        self._front.accept(inference)
        try:
            await waiter.done
        except asyncio.CancelledError:
            inference.abandoned = True  # the client has gone, or its deadline is past
            raise
        if inference.trailers:
            context.set_trailing_metadata(inference.trailers)
        if inference.refusal is not None:
            raise inference.refusal
        return inference.response

    async def _server_live(self, message: Any, context: Context) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def _server_ready(self, message: Any, context: Context) -> Any:
        return messages.ServerReadyResponse(ready=self._front.not_ready is None)

    async def _model_ready(self, message: Any, context: Context) -> Any:
        return messages.ModelReadyResponse(ready=self._version(message).lane.ready)

    async def _server_metadata(self, message: Any, context: Context) -> Any:
        return messages.ServerMetadataResponse(name=self._front.name, version=__version__)

    async def _model_metadata(self, message: Any, context: Context) -> Any:
        served = self._version(message)
        versions = sorted(version for name, version in self._front.versions if name == served.model)
        if served.signature is None:
            raise CallerError(
                f"Request for unknown model: '{served.model}' version {served.version} is not at ready state"
            )
        return messages.ModelMetadataResponse(**served.metadata([str(version) for version in versions]))

    def _version(self, message: Any) -> Any:
        name = message.name[: MAX_NAME + 1]
        return self._front.version(name, path_pin(name, message.version.encode()) if message.version else None)


class _Waiter:
    """`Connection` of one call."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(self, inference: Inference) -> None:
        if not self.done.done():
            self.done.set_result(None)


def _serialize(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content
