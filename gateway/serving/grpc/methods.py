"""How one call is taken and answered, whichever it is: its message, its errors, its bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from gateway.protocol.errors import CallerError, GatewayError
from gateway.serving.grpc.errors import CODE_OF_STATUS, code_of, details_of
from gateway.serving.repository_calls import CallRefused

__all__ = ("Call", "Context", "absent", "answered", "parse", "serialize", "unary", "unread")

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
    return unread(partial(_call, request, call), seconds=seconds)


def unread(call: Call, *, seconds: float) -> grpc.RpcMethodHandler:
    """As `unary`, where the call is given the bytes of the message."""

    # Taken as a stream of one message, which is the same on the wire, so that the wait for it can be bounded.
    async def method(arriving: AsyncIterator[bytes], context: Context) -> Any:
        try:
            async with asyncio.timeout(seconds):
                content = await anext(arriving, None)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's message did not arrive in time")
        return await answered(_called(call, content, context), context)

    return grpc.stream_unary_rpc_method_handler(method, response_serializer=serialize)


def absent(text: str) -> grpc.RpcMethodHandler:
    """A method that clients know and that is not offered here; `text` says so, whatever it is sent."""

    async def method(arriving: AsyncIterator[bytes], context: Context) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)

    return grpc.stream_unary_rpc_method_handler(method)


async def answered(answer: Awaitable[Any], context: Context) -> Any:
    """An answer, or the status that its error is; the text of what was not foreseen goes to the log only."""
    try:
        return await answer
    except grpc.aio.AbortError:
        raise
    except GatewayError as error:
        code, details = code_of(error), details_of(error)
    except CallRefused as refused:
        code, details = CODE_OF_STATUS[refused.status], details_of(refused)
    except Exception as error:
        asyncio.get_running_loop().call_exception_handler({"message": "a call over gRPC failed", "exception": error})
        code, details = grpc.StatusCode.INTERNAL, "the gateway failed on this request"
    await context.abort(code, details)


def parse(request: Any, content: bytes) -> Any:
    """The message of a class that bytes are.

    Raises
    ------
    CallerError
    """
    try:
        return request.FromString(content)
    except DecodeError:
        raise CallerError(f"the message is no {request.DESCRIPTOR.name}") from None


def serialize(message: Any) -> bytes:
    """A message's bytes."""
    content: bytes = message.SerializeToString()
    return content


async def _called(call: Call, content: bytes | None, context: Context) -> Any:
    if content is None:
        raise CallerError("the call has no message")
    return await call(content, context)


async def _call(request: Any, call: Call, content: bytes, context: Context) -> Any:
    return await call(parse(request, content), context)
