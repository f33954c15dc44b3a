"""The body of the request that comes in: counted, timed, held, refused where it is too much.

Every limit of section `[limits]` that concerns bodies in transport is kept here, for inferences and all else alike.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.protocol.errors import BodyTooLarge, GatewayError, Overloaded
from gateway.serving.answers import error_answer, status_of
from gateway.serving.aside import SLOW_JSON_BYTES
from gateway.serving.front import Front
from gateway.serving.inference import Inference
from gateway.serving.known_head import known_head
from gateway.serving.pipeline import Pipeline
from gateway.serving.receiver import Receiver
from gateway.serving.room import LARGE_BODY_BYTES, Held

__all__ = ("IncomingBody",)

MAX_LARGE_PIPELINED = 4
CHUNK_LINE_BYTES = 16  # what a chunk may cost beside its content; Go's net/http: 16


class IncomingBody(Pipeline):
    """Collects the body of a request whose head has been read, by the parser or, where it is large, past it."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        front: Front,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop, front=front)
        self._max_body = self._limits.max_body_bytes
        self._content: list[bytes] = []  # of a request to the app
        self._held_body: Held | None = None
        self._receiver: Receiver | None = None
        self._large: Inference
        self._large_head = b""  # the last one that the parser saw
        self._past_parser = False  # the body that comes
        self._piece = b""  # the read that is parsed, behind what came of its head in earlier ones
        self._head_done = False
        self._plain = False  # neither chunked nor with a wish: what the head says is all there is to know
        self._upgrading = False
        self._chunked = False
        self._read = 0  # bytes of the last read
        self._unread = 0  # bytes since the head began
        self._received = 0  # bytes of the body
        self._length = 0  # of the body, where that is said beforehand
        self._chunks = 0
        self._counted = 0
        self._overhead = 0
        self._reading_since = 0.0

    def connection_lost(self, exc: Exception | None) -> None:
        if self._inference is not None:
            self._inference.abandoned = True
        self._inference = self._held_body = self._receiver = None
        super().connection_lost(exc)

    def refuse(self, status: int, text: str) -> None:
        """Answer bytes that cannot be understood, after what was asked before them, and close."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = True
        if self._receiver is not None:
            self._receiver.drop()
        self._inference = self._held_body = None
        self._content = []
        refusal = Inference(self, "")
        refusal.keep_alive = False
        refusal.answer = error_answer(status, text, keep_alive=False)
        self._enqueue(refusal)

    def begin_again(self, length: int) -> bool:
        """Whether another request with the head that the receiver expects may begin; its body is to come."""
        if self._deaf or self._discarding or self._stopping or self._is_last or self._reading_since:
            return False
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._inference = self._large.again()
        self._past_parser = self._head_done = True
        self._chunked = False
        self._length = length
        self._unread = self._received = self._chunks = self._counted = 0
        self._reading_since = self._body_since = self.loop.time()
        return True

    def body_grew(self, size: int) -> None:
        """So many bytes more of a body lie in the receiver."""
        self._read = size
        self._unread += size
        self._received += size
        receiver, inference = self._receiver, self._inference
        if receiver is None or inference is None:
            return
        if self._received < self._length:
            self._body_came_in_part()
        else:
            inference.body = [receiver.finish()]
            if not self._past_parser:
                # The one before has not read this body; what comes behind it is another request.
                self._begin_parsing()
            self._past_parser = False
            self.on_message_complete()
        if self._discarding:
            self._deaf = True
            receiver.drop()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self._limits.max_chunks + 1:  # the last chunk is empty
            self.refuse(400, f"the request body has more than {self._limits.max_chunks} chunks (limits.max_chunks)")

    def on_body(self, body: bytes) -> None:
        if self._discarding or self._deaf:
            return
        self._received += len(body)
        inference = self._inference
        if self._received > self._max_body:
            self._refuse_body(inference, BodyTooLarge(self._body_too_large()))
        elif inference is None:
            self._content.append(body)
        else:
            inference.body.append(body)

    def on_message_complete(self) -> None:
        received = self._received
        self._reading_since = self._body_since = 0.0
        self._unread = self._received = 0
        self._forget_continue()
        if self._discarding or self._deaf or self._upgrading:
            return
        inference = self._inference
        if received > LARGE_BODY_BYTES and not self._hold(received):
            return
        if inference is None:
            self._end_content()
            return
        self._inference = None
        if received > LARGE_BODY_BYTES and self._held_body is not None:
            inference.held_body, self._held_body = self._held_body, None
            self._unusual += 1
        self._enqueue(inference)
        if received > LARGE_BODY_BYTES and len(self._due) + len(self._behind) >= MAX_LARGE_PIPELINED:
            self.flow.pause_reading()

    def _begin_parsing(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _end_content(self) -> None:
        # Of a request to the app.
        content, self._content = b"".join(self._content), []
        held_body, self._held_body = self._held_body, None
        try:
            self._enqueue_asgi(self.url, self.headers, content, held_body=held_body)
        except (httptools.HttpParserError, UnicodeDecodeError):
            self.refuse(400, "the request target is not valid")

    def _refuse_body(self, inference: Inference | None, error: GatewayError) -> None:
        if inference is None:
            self.refuse(status_of(error), str(error))
            return
        # Answered before the rest of the body is read, which is thrown away: the connection cannot go on.
        inference.refused = error
        inference.keep_alive = False
        inference.body = []
        self._inference = self._held_body = None
        self._discarding = True
        self._enqueue(inference)

    def _body_too_large(self) -> str:
        return f"the request body is larger than {self._max_body} bytes (limits.max_body_bytes)"

    def _hold(self, size: int) -> bool:
        # Of a large body so much has come; it is refused where the front holds too much already.
        room = self._front.bodies
        if self._held_body is None:
            self._held_body = room.open()
        if self._held_body.grow(size):
            return True
        self._refuse_body(self._inference, Overloaded(room.full))
        return False

    def _body_came_in_part(self) -> None:
        # After each read that left a body incomplete.
        if self._deaf or self._discarding:
            return
        if self._received > LARGE_BODY_BYTES and not self._hold(self._received_or_cleared):
            return
        counted = self._received + CHUNK_LINE_BYTES * self._chunks
        if not self._body_since:
            self._body_since = self.loop.time()
        elif self._chunked:
            most = self._limits.max_chunk_overhead_bytes
            self._overhead = max(0, self._overhead + self._read - (counted - self._counted))
            if self._overhead > most:
                self.refuse(
                    400,
                    f"the chunks of the request body carry more than {most} bytes beside their content "
                    "(limits.max_chunk_overhead_bytes)",
                )
        self._counted = counted
        if self._length > LARGE_BODY_BYTES and self._inference is not None:
            self._receive(self._inference)

    def _receive(self, inference: Inference) -> None:
        # The rest of a large body goes where it stays, past the parser, which would hand on copies.
        json_length = inference.json_length
        if inference.encoding is not None or not inference.keep_alive:
            return
        if json_length is None and self._length <= SLOW_JSON_BYTES:
            return
        if self._receiver is None:
            self._receiver = Receiver(self, arena=self._front.arena)
            if not self.flow.read_paused:
                self.transport.pause_reading()
            self.transport.set_protocol(self._receiver)
            if not self.flow.read_paused:
                self.transport.resume_reading()
        if not self._receiver.is_receiving:
            if json_length is not None:
                self._expect_again(inference, json_length)
            self._receiver.begin(self._length, json_length=json_length, pieces=inference.body)
            inference.body = []
            if not self._hold(self._received_or_cleared):
                self._receiver.drop()

    def _expect_again(self, inference: Inference, json_length: int) -> None:
        # Of a head that came twice, in a read that began with it.
        piece, receiver = self._piece, self._receiver
        head = piece[: piece.find(b"\r\n\r\n") + 4]
        whole = self._unread == len(piece) and known_head(head) is not None
        if receiver is None or not whole or not self._plain or inference.refused is not None:
            return
        if head == self._large_head:
            self._large = inference.again()
            receiver.expect(head, self._length, json_length=json_length)
        self._large_head = head

    @property
    def _received_or_cleared(self) -> int:
        return max(self._received, 0 if self._receiver is None else self._receiver.cleared_bytes)
