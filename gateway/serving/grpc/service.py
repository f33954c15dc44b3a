"""`inference.GRPCInferenceService`: inference here, one call or a stream of them; the other calls from `calls`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from gateway.protocol.errors import CallerError, DeadlineExceeded, EngineUnavailable, GatewayError, Overloaded
from gateway.serving.front import Front
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.calls import OtherCalls
from gateway.serving.grpc.inference import GrpcInference
from gateway.serving.grpc.methods import Context, absent, answered, parse, serialize, unary, unread
from gateway.serving.inference import Inference
from gateway.serving.room import LARGE_BODY_BYTES

__all__ = ("SERVICE", "InferenceService")

SERVICE = "inference.GRPCInferenceService"
CLOSING = "the gateway is shutting down"

_NO_SHARED_MEMORY = "shared memory is not offered: send tensors in the request"
_ABSENT = {
    "TraceSetting": "tracing is not offered",
    **{
        f"{kind}SharedMemory{verb}": _NO_SHARED_MEMORY
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
}


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
        self._closing = False
        self._reading: set[asyncio.Timeout] = set()

    def __repr__(self) -> str:
        return f"<InferenceService {self._front!r}>"

    def handler(self) -> grpc.GenericRpcHandler:
        """What a `grpc.aio` server takes."""
        seconds = self._limits.body_timeout_seconds
        table: dict[str, grpc.RpcMethodHandler] = {
            name: unary(request, call, seconds=seconds) for name, (request, call) in self._calls.table().items()
        }
        table |= {name: absent(text) for name, text in _ABSENT.items()}
        table["ModelInfer"] = unread(self._infer, seconds=seconds)
        table["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._infer_stream, response_serializer=serialize
        )
        return grpc.method_handlers_generic_handler(SERVICE, table)

    def close(self) -> None:
        """Refuse what comes from now on, and read no further from streams."""
        self._closing = True
        now = asyncio.get_running_loop().time()
        for patience in self._reading:
            if not patience.expired():
                patience.reschedule(now)

    def _accept(self, content: bytes, context: Context) -> _Pending:
        message, waiter, size = parse(messages.ModelInferRequest, content), _Waiter(), len(content)
        inference = GrpcInference(waiter, message, size=size)
        inference.read_head(context.invocation_metadata() or (), context.time_remaining())
        if size > LARGE_BODY_BYTES:
            inference.held_body = self._front.bodies.open()
            if not inference.held_body.grow(size) and inference.refused is None:
                inference.refused = Overloaded(self._front.bodies.full)
        self._front.accept(inference)
        return inference, waiter

    async def _infer(self, content: bytes, context: Context) -> Any:
        if self._closing:
            raise EngineUnavailable(CLOSING)
        inference = await _answered(self._accept(content, context))
        if inference.trailers:
            context.set_trailing_metadata(inference.trailers)
        response, refusal = inference.response, inference.refusal
        # The frame is held by what is raised from it, and what was asked would be by the frame.
        del inference
        if refusal is not None:
            raise refusal
        return response

    async def _infer_stream(self, arriving: AsyncIterator[bytes], context: Context) -> None:
        await answered(self._answer_stream(arriving, context), context)

    async def _answer_stream(self, arriving: AsyncIterator[bytes], context: Context) -> None:
        """Answers leave in the order of the requests; an error ends its request, not the stream."""
        under_way: asyncio.Queue[_Pending | None] = asyncio.Queue(self._limits.max_pipelined)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_write_stream(under_way, context, seconds=self._limits.write_timeout_seconds))
                ending = await self._read_stream(arriving, context, under_way)
                await under_way.put(None)
        finally:
            while not under_way.empty():
                pending = under_way.get_nowait()
                if pending is not None:
                    pending[0].abandoned = True
        if ending is not None:
            raise ending

    async def _read_stream(
        self, arriving: AsyncIterator[bytes], context: Context, under_way: asyncio.Queue[_Pending | None]
    ) -> GatewayError | None:
        while not self._closing:
            try:
                content = await self._next(arriving)
                if content is None:
                    return None
                pending = self._accept(content, context)
            except TimeoutError:
                break
            except CallerError as error:
                return error
            await under_way.put(pending)
        return EngineUnavailable(CLOSING) if self._closing else DeadlineExceeded("no request came for too long")

    async def _next(self, arriving: AsyncIterator[bytes]) -> bytes | None:
        async with asyncio.timeout(self._limits.keep_alive_seconds) as patience:
            self._reading.add(patience)
            try:
                return await anext(arriving, None)
            finally:
                self._reading.discard(patience)


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


async def _write_stream(under_way: asyncio.Queue[_Pending | None], context: Context, *, seconds: float) -> None:
    while (pending := await under_way.get()) is not None:
        inference = await _answered(pending)
        if inference.response is not None:
            answer = messages.ModelStreamInferResponse(infer_response=inference.response)
        else:
            answer = messages.ModelStreamInferResponse(error_message=str(inference.refusal))
            # Clients tell by the id which of their requests failed.
            answer.infer_response.id = inference.given_id
        async with asyncio.timeout(seconds):  # a client that does not read its answers
            await context.write(answer)
