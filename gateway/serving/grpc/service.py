"""`inference.GRPCInferenceService`: inference here, one call or a stream of them; the other calls from `calls`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from gateway.serving.front import Front, Inference
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.calls import OtherCalls
from gateway.serving.grpc.inference import GrpcInference
from gateway.serving.grpc.methods import Context, serialize, unary

__all__ = ("SERVICE", "InferenceService")

SERVICE = "inference.GRPCInferenceService"
MAX_AHEAD = 64
"""Requests of one stream that may be under way; as many as HTTP pipelines."""


class InferenceService:
    """Answers inference from one front.

    Parameters
    ----------
    front : Front
    calls : OtherCalls
        Everything that is no inference.
    """

    def __init__(self, front: Front, calls: OtherCalls) -> None:
        self._front = front
        self._calls = calls
        self._limits = front.settings.limits

    def __repr__(self) -> str:
        return f"<InferenceService {self._front!r}>"

    def handler(self) -> grpc.GenericRpcHandler:
        """What a `grpc.aio` server takes."""
        seconds = self._limits.body_timeout_seconds
        table: dict[str, grpc.RpcMethodHandler] = {
            name: unary(request, call, seconds=seconds) for name, (request, call) in self._calls.table().items()
        }
        table["ModelInfer"] = unary(messages.ModelInferRequest, self._infer, seconds=seconds)
        table["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._infer_stream,
            request_deserializer=messages.ModelInferRequest.FromString,
            response_serializer=serialize,
        )
        return grpc.method_handlers_generic_handler(SERVICE, table)

    def _accept(self, message: messages.ModelInferRequest, context: Context) -> _Pending:
        waiter = _Waiter()
        inference = GrpcInference(waiter, message)
        inference.read_head(context.invocation_metadata() or (), context.time_remaining())
        self._front.accept(inference)
        return inference, waiter

    async def _infer(self, message: messages.ModelInferRequest, context: Context) -> Any:
        inference = await _answered(self._accept(message, context))
        if inference.trailers:
            context.set_trailing_metadata(inference.trailers)
        if inference.refusal is not None:
            raise inference.refusal
        return inference.response

    async def _infer_stream(self, arriving: AsyncIterator[messages.ModelInferRequest], context: Context) -> None:
        """Answers leave in the order of the requests; an error ends its request, not the stream."""
        under_way: asyncio.Queue[_Pending | None] = asyncio.Queue(MAX_AHEAD)
        idle = False
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_write_stream(under_way, context))
                while not idle:
                    try:
                        async with asyncio.timeout(self._limits.keep_alive_seconds):
                            message = await anext(arriving, None)
                    except TimeoutError:
                        idle = True
                    else:
                        if message is None:
                            break
                        await under_way.put(self._accept(message, context))
                await under_way.put(None)
        finally:
            while not under_way.empty():
                pending = under_way.get_nowait()
                if pending is not None:
                    pending[0].abandoned = True
        if idle:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no request came for too long")


class _Waiter:
    """`Connection` of one request: a future that its answer resolves."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(self, inference: Inference) -> None:
        if not self.done.done():
            self.done.set_result(None)


_Pending = tuple[GrpcInference, _Waiter]


async def _answered(pending: _Pending) -> GrpcInference:
    inference, waiter = pending
    try:
        await waiter.done
    except asyncio.CancelledError:
        inference.abandoned = True  # the client has gone, or its deadline is past
        raise
    return inference


async def _write_stream(under_way: asyncio.Queue[_Pending | None], context: Context) -> None:
    while (pending := await under_way.get()) is not None:
        inference = await _answered(pending)
        if inference.response is not None:
            answer = messages.ModelStreamInferResponse(infer_response=inference.response)
        else:
            answer = messages.ModelStreamInferResponse(error_message=str(inference.refusal))
            # Clients tell by the id which of their requests failed.
            answer.infer_response.id = inference.request_id or ""
        await context.write(answer)
