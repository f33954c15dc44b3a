"""How one call is taken and answered, whichever it is: its message, its errors, its bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from gateway.protocol.errors import GatewayError
from gateway.serving.grpc.errors import CODE_OF_STATUS, code_of, details_of
from gateway.serving.repository_calls import CallRefused

__all__ = ("Call", "Context", "serialize", "unary")

Context = Any
"""A `grpc.aio.ServicerContext`; the library has no types."""

Call = Callable[[Any, Context], Awaitable[Any]]


def unary(request: Any, call: Call, *, seconds: float) -> grpc.RpcMethodHandler:
    """A method of one message and one answer.

    Parameters
    ----------
    request : class
        Of the message.
    call : coroutine function
        (message, context) to the answer; errors of ours become a status.
    seconds : float
        Time for the message to arrive.
    """

    # Taken as a stream of one message, which is the same on the wire, so that the wait for it can be bounded.
    async def answer(arriving: AsyncIterator[Any], context: Context) -> Any:
        try:
            async with asyncio.timeout(seconds):
                message = await anext(arriving, None)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's message did not arrive in time")
        if message is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        try:
            return await call(message, context)
        except GatewayError as error:
            code, details = code_of(error), details_of(error)
        except CallRefused as refused:
            code, details = CODE_OF_STATUS[refused.status], details_of(refused)
        await context.abort(code, details)

    return grpc.stream_unary_rpc_method_handler(
        answer, request_deserializer=request.FromString, response_serializer=serialize
    )


def serialize(message: Any) -> bytes:
    """A message's bytes."""
    content: bytes = message.SerializeToString()
    return content
