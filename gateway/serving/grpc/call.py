"""Calls of one message: taken when it is whole, answered once, with an answer or with a status.

A kind of call says in `take` what it does with its message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from gateway.protocol.compression import inflate
from gateway.protocol.errors import BodyTooLarge, CallerError, Overloaded
from gateway.serving.front import Front
from gateway.serving.grpc.errors import CallFailed, StatusCode, code_of, details_of
from gateway.serving.grpc.fields import Fields
from gateway.serving.grpc.framing import Deframer, Framed, framed, parse
from gateway.serving.grpc.head import OK_HEAD, OK_TAIL, CallHead, failed_head
from gateway.serving.grpc.stream import Stream
from gateway.serving.room import LARGE_BODY_BYTES, Held

__all__ = ("Call", "Handler", "OtherCall", "Refusal", "inflated", "status_of_error")

Handler = Callable[[Any, CallHead], Awaitable[Any]]
"""The message and the head of a call to what answers it."""

SMALL_BYTES = 64 * 1024
FAULT = "the gateway failed on this request"


def status_of_error(error: Exception) -> tuple[StatusCode, str]:
    """The status of an error, and its text; what was not foreseen is told to the process log, and not to the caller."""
    code = code_of(error)
    if code is not None:
        return code, details_of(error)
    asyncio.get_running_loop().call_exception_handler({"message": "a call over gRPC failed", "exception": error})
    return StatusCode.INTERNAL, FAULT


class Refusal:
    """A call that is answered before its message has come.

    Parameters
    ----------
    stream : Stream
    head : bytes
        The fields that are its answer.
    """

    def __init__(self, stream: Stream, head: bytes) -> None:
        stream.end(head)

    def received(self, content: bytes, *, ended: bool) -> None: ...
    def drained(self) -> None: ...
    def gone(self) -> None: ...
    def check(self, now: float) -> None: ...


class Call:
    """One call while it comes and until it is answered.

    Parameters
    ----------
    stream : Stream
    head : CallHead
    front : Front
        Whose limits hold, and which has room for its message.
    """

    def __init__(self, stream: Stream, head: CallHead, *, front: Front) -> None:
        self.stream = stream
        self.head = head
        self.opened = asyncio.get_running_loop().time()
        self.held: Held | None = None
        self._limits = front.settings.limits
        self._bodies = front.bodies
        self._deframer = Deframer(max_bytes=self._limits.max_body_bytes)
        self._message: Framed | None = None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.head.method!r} | {self.stream!r}>"

    def take(self, content: bytes) -> None:
        """Take the message.

        Raises
        ------
        GatewayError, CallFailed
        """
        raise NotImplementedError

    def received(self, content: bytes, *, ended: bool) -> None:
        try:
            self._receive(content, ended=ended)
        except Exception as error:
            self.fail(error)

    def drained(self) -> None:
        """Nothing waits for it."""

    def gone(self) -> None:
        # What is not run any more refers to it for a while: it shall hold nothing meanwhile.
        task, self._task, self.held = self._task, None, None
        if task is not None:
            task.cancel()

    def check(self, now: float) -> None:
        if not self.stream.ended and now - self.opened > self._limits.body_timeout_seconds:
            self.fail(CallFailed(StatusCode.DEADLINE_EXCEEDED, "the call's message did not arrive in time"))

    def succeed(self, message: bytes, tail: bytes = OK_TAIL) -> None:
        """Answer with a message, and a block of fields behind it."""
        self.stream.answer(OK_HEAD, framed(message), tail)

    def fail(self, error: Exception, trailers: Fields = ()) -> None:
        """Answer with the status that an error is."""
        if not self.stream.finished:
            self.stream.end(failed_head(*status_of_error(error), trailers))

    def run(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Do what takes longer; the call ends with what goes wrong in it."""
        self._task = asyncio.ensure_future(self._guarded(work, arguments))

    def hold(self, held: Held | None, size: int) -> Held:
        """Room for so many bytes.

        Raises
        ------
        Overloaded
        """
        held = held or self._bodies.open()
        if not held.grow(size):
            raise Overloaded(self._bodies.full)
        return held

    async def _guarded(self, work: Callable[..., Awaitable[None]], arguments: tuple[Any, ...]) -> None:
        try:
            await work(*arguments)
        except Exception as error:
            self.fail(error)

    def _receive(self, content: bytes, *, ended: bool) -> None:
        deframer = self._deframer
        deframer.feed(content)
        if self._message is None:
            self._message = deframer.take()
        if self._message is not None and deframer.size:
            raise CallerError("the call takes one message, and more came")
        size = deframer.size if self._message is None else len(self._message.content)
        if size > LARGE_BODY_BYTES:
            self.held = self.hold(self.held, size)
        if not ended:
            return
        if self._message is None:
            raise CallerError("the message is not whole" if deframer.size else "the call has no message")
        message, self._message = self._message, Framed(False, b"")
        if message.compressed:
            self.run(self._inflate, message.content)
        else:
            self.take(message.content)

    async def _inflate(self, content: bytes) -> None:
        content = await inflated(content, self.head.encoding, max_bytes=self._limits.max_body_bytes)
        if len(content) > LARGE_BODY_BYTES:
            self.held = self.hold(self.held, len(content))
        self.take(content)


class OtherCall(Call):
    """A call that a coroutine answers.

    Parameters
    ----------
    kind : class
        Of its message.
    handler : Handler
    """

    def __init__(self, stream: Stream, head: CallHead, *, kind: Any, handler: Handler, front: Front) -> None:
        super().__init__(stream, head, front=front)
        self._kind = kind
        self._handler = handler

    def take(self, content: bytes) -> None:
        self.run(self._answer, parse(self._kind, content))

    async def _answer(self, message: Any) -> None:
        self.succeed((await self._handler(message, self.head)).SerializeToString())


async def inflated(content: bytes, encoding: str | None, *, max_bytes: int) -> bytes:
    """A compressed message as it was; on a thread where that takes long.

    Raises
    ------
    CallerError, BodyTooLarge, CallFailed
    """
    if encoding is None:
        raise CallFailed(StatusCode.INTERNAL, "the message is compressed, and grpc-encoding does not say how")
    try:
        return inflate([content], encoding, max_bytes=min(SMALL_BYTES, max_bytes))
    except BodyTooLarge:
        if max_bytes <= SMALL_BYTES:
            raise
    return await asyncio.to_thread(partial(inflate, [content], encoding, max_bytes=max_bytes))
