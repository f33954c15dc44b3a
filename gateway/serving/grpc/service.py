"""`inference.GRPCInferenceService`: inference here, one call or a stream of them; the other calls from `calls`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from gateway.protocol.errors import CallerError, DeadlineExceeded, EngineUnavailable, ModelFailed
from gateway.serving.front import Front
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.call import Call, OtherCall, Refusal, inflated, status_of_error
from gateway.serving.grpc.calls import OtherCalls
from gateway.serving.grpc.errors import StatusCode
from gateway.serving.grpc.fields import Fields
from gateway.serving.grpc.framing import framed
from gateway.serving.grpc.head import OK_HEAD, OK_TAIL, CallHead, failed_head, failed_tail
from gateway.serving.grpc.inference import GrpcInference, UsualMessages
from gateway.serving.grpc.stream import Exchange, Stream
from gateway.serving.inference import Inference
from gateway.serving.room import LARGE_BODY_BYTES, Held

__all__ = ("SERVICE", "InferenceService")

SERVICE = "inference.GRPCInferenceService"
CLOSING = "the gateway is shutting down"
STEPS_AT_ONCE = 32
"""Requests and answers of a stream in one pass of the loop."""

Opening = Callable[[Stream, CallHead], Exchange]

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
        self.front = front
        self.closing = False
        self.streams: set[StreamCall] = set()
        self._calls = calls
        self.usual = UsualMessages()

    def __repr__(self) -> str:
        return f"<InferenceService {self.front!r} | streams {len(self.streams)}>"

    def methods(self) -> dict[str, Opening]:
        """Name of each method to what opens a call of it."""
        table: dict[str, Opening] = {}
        for name, (kind, handler) in self._calls.table().items():
            table[name] = partial(OtherCall, kind=kind, handler=handler, front=self.front)
        for name, text in _ABSENT.items():
            table[name] = partial(_absent, text=text)
        table["ModelInfer"] = partial(InferCall, service=self)
        table["ModelStreamInfer"] = partial(StreamCall, service=self)
        return table

    def close(self) -> None:
        """Refuse what comes from now on, and read no further from streams."""
        self.closing = True
        for stream in list(self.streams):
            stream.stop(EngineUnavailable(CLOSING))

    def accept(self, inference: GrpcInference, head: CallHead, *, opened: float) -> None:
        """Give a request to the front."""
        left = None if head.seconds is None else head.seconds - (asyncio.get_running_loop().time() - opened)
        inference.read_head(head.gateway, left)
        self.front.accept(inference)


class InferCall(Call):
    """One prediction."""

    def __init__(self, stream: Stream, head: CallHead, *, service: InferenceService) -> None:
        super().__init__(stream, head, front=service.front)
        self._service = service
        self._inference: GrpcInference | None = None

    def take(self, content: bytes) -> None:
        if self._service.closing:
            raise EngineUnavailable(CLOSING)
        inference = GrpcInference(self, content, usual=self._service.usual)
        inference.held_body, self.held = self.held, None
        self._inference = inference
        self._service.accept(inference, self.head, opened=self.opened)

    def answered(self, inference: Inference) -> None:
        """Write what has become of it."""
        given, self._inference = self._inference, None
        if given is None:
            return
        if given.response is not None:
            self.succeed(given.response, given.tail)
        elif given.refusal is not None:
            self.fail(given.refusal, given.trailers)

    def gone(self) -> None:
        super().gone()
        if self._inference is not None:
            self._inference.abandoned = True
            self._inference = None


class StreamCall(Call):
    """Predictions of one stream, answered in the order of their requests; an error ends its request, not the stream.

    No more than `limits.max_pipelined` are under way; what comes meanwhile waits as it came, and so does the client.
    """

    def __init__(self, stream: Stream, head: CallHead, *, service: InferenceService) -> None:
        super().__init__(stream, head, front=service.front)
        self._service = service
        self._under_way: deque[GrpcInference] = deque()
        self._heard_at = self.opened
        self._begun = False
        self._inflating = False
        self._going = False
        self._ending: tuple[StatusCode, str] | None = None
        service.streams.add(self)
        if service.closing:
            self.stop(EngineUnavailable(CLOSING))

    def stop(self, error: Exception) -> None:
        """Take nothing more, and end with an error when what is under way has been answered."""
        if self._ending is None:
            self._ending = status_of_error(error)  # the error itself would keep the call, and the call it
            self._deframer.clear()
            self.held = None
        self._go_on()

    def answered(self, inference: Inference) -> None:
        """Write what may leave."""
        self._go_on()

    def drained(self) -> None:
        self._go_on()

    def gone(self) -> None:
        super().gone()
        for inference in self._under_way:
            inference.abandoned = True
        self._under_way.clear()
        self._deframer.clear()
        self._service.streams.discard(self)

    def check(self, now: float) -> None:
        if self._under_way or self._deframer.is_ready:
            self._heard_at = now
        elif not self.stream.ended and now - self._heard_at > self._limits.keep_alive_seconds:
            self.stop(DeadlineExceeded("no request came for too long"))

    def fail(self, error: Exception, trailers: Fields = ()) -> None:
        self.stop(error)

    def _receive(self, content: bytes, *, ended: bool) -> None:
        if self._ending is not None:
            return
        self._deframer.feed(content)
        self._hold_rest()
        self._go_on()

    def _hold_rest(self) -> None:
        size = self._deframer.size
        self.held = self.hold(self.held, size) if size > LARGE_BODY_BYTES else None

    def _go_on(self) -> None:
        if self._going:
            return  # a request that is refused at once comes back here: the loop below goes on with the next
        self._going = True
        busy = False
        try:
            busy = all(self._move() for _ in range(STEPS_AT_ONCE))
        finally:
            self._going = busy
        if busy:  # others want the loop too
            asyncio.get_running_loop().call_soon(self._go_on_again)
        elif not self.stream.finished:
            self._steer()

    def _go_on_again(self) -> None:
        self._going = False
        self._go_on()

    def _move(self) -> bool:
        # Whether there was something to be done.
        if self.stream.finished:
            return False
        if self._under_way and self._under_way[0].is_answered:
            self._write(self._under_way.popleft())
        else:
            return self._has_room and self._take_next()
        return True

    def _steer(self) -> None:
        stream = self.stream
        if self._deframer.is_ready:
            stream.pause()
        else:
            stream.go_on()
        if not (self._under_way or self._deframer.is_ready or self._inflating) and (
            stream.ended or self._ending is not None
        ):
            self._end()

    @property
    def _has_room(self) -> bool:
        return not self._inflating and len(self._under_way) < self._limits.max_pipelined and not self.stream.waiting

    def _take_next(self) -> bool:
        held = None
        try:
            message = self._deframer.take()
            if message is None:
                return False
            self._hold_rest()
            if len(message.content) > LARGE_BODY_BYTES:
                held = self.hold(None, len(message.content))
        except Exception as error:
            self.stop(error)
            return True
        if message.compressed:
            self._inflating = True
            self.run(self._inflate_next, message.content, held)
        else:
            self._take_one(message.content, held)
        return True

    async def _inflate_next(self, content: bytes, held: Held | None) -> None:
        try:
            content = await inflated(content, self.head.encoding, max_bytes=self._limits.max_body_bytes)
            if len(content) > LARGE_BODY_BYTES:
                held = self.hold(held, len(content))
        finally:
            self._inflating = False
        self._take_one(content, held)
        self._go_on()

    def _take_one(self, content: bytes, held: Held | None) -> None:
        try:
            inference = GrpcInference(self, content, usual=self._service.usual)
        except CallerError as error:
            self.stop(error)
            return
        self._heard_at = asyncio.get_running_loop().time()
        inference.held_body = held
        self._under_way.append(inference)
        try:
            self._service.accept(inference, self.head, opened=self.opened)
        except Exception as fault:
            inference.refusal = ModelFailed(status_of_error(fault)[1])

    def _write(self, inference: GrpcInference) -> None:
        if not self._begun:
            self._begun = True
            self.stream.begin(OK_HEAD)
        if inference.response is not None:
            response = messages.ModelInferResponse.FromString(inference.response)
            answer = messages.ModelStreamInferResponse(infer_response=response)
        else:
            answer = messages.ModelStreamInferResponse(error_message=str(inference.refusal))
            # Clients tell by the id which of their requests failed.
            answer.infer_response.id = inference.given_id
        self.stream.send(framed(answer.SerializeToString()))

    def _end(self) -> None:
        self._service.streams.discard(self)
        if self._ending is None and self._deframer.size:
            self._ending = status_of_error(CallerError("the last message is not whole"))
        if self._ending is not None:
            write = failed_tail if self._begun else failed_head
            self.stream.end(write(*self._ending))
        else:
            self.stream.end(OK_TAIL if self._begun else OK_HEAD + OK_TAIL)


def _absent(stream: Stream, head: CallHead, *, text: str) -> Refusal:
    return Refusal(stream, failed_head(StatusCode.UNIMPLEMENTED, text))
