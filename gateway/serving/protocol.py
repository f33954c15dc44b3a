"""HTTP/1.1 on one connection: inference is answered here, by callbacks; everything else goes to the ASGI app.

A subclass of uvicorn's httptools protocol. `POST /v2/models/.../infer` never becomes a scope, a task or a future: its
body is collected, the front takes it, and the answer is one write. Answers leave in the order of their requests
(RFC 9112, section 9.3.2) whichever way each was answered:

* `_due` holds inferences that the front has, in order; their answers leave from its left end.
* uvicorn's `cycle` and `pipeline` hold ASGI requests; one starts only when nothing is due before it.
* `_behind` holds, in order, what came after an ASGI request that is still being answered.

So either inferences are due, or an ASGI request runs, never both; the pipeline follows that, and `_behind` follows the
pipeline. An ASGI request starts when its body is complete, so that no app ever waits for a client.

Every limit of section `[limits]` that concerns the transport is kept here, for both kinds of requests alike.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.protocol.errors import BodyTooLarge, GatewayError, Overloaded
from gateway.serving.answers import error_answer, status_of
from gateway.serving.aside import SLOW_JSON_BYTES
from gateway.serving.bodies import LARGE_BODY_BYTES, HeldBody
from gateway.serving.front import Front
from gateway.serving.head import (
    METHODS,
    READ,
    HeadRefused,
    check_host,
    check_target,
    check_version,
    read_field,
    read_gateway_header,
    size_of,
    without_upgrade,
)
from gateway.serving.inference import Inference, path_pin
from gateway.serving.receiver import Receiver

__all__ = ("GatewayProtocol", "read_gateway_header")

MAX_TARGETS = 1024
MAX_LARGE_PIPELINED = 4
CHUNK_LINE_BYTES = 16  # what a chunk may cost beside its content; Go's net/http: 16
LINGER_SECONDS = 1.0
LENGTH_DIGITS = 8
FAULT = "the gateway failed on this request"

_TARGET = re.compile(rb"/v2/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:/versions/([^/?]{1,32}))?/infer(?:\?.*)?")
_LENGTH_FIELD = re.compile(rb"(?i)(\r\ncontent-length: ?)[0-9]{1,8}(?=\r\n|\Z)")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_log = logging.getLogger(__name__)

Behind = Inference | tuple[RequestResponseCycle, ASGI3Application]


class GatewayProtocol(HttpToolsProtocol):
    """One client's connection to a front."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        front: Front,
        targets: dict[bytes, tuple[str, bytes | None]],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._front = front
        self._targets = targets
        self._limits = front.settings.limits
        self._max_body = self._limits.max_body_bytes
        self._max_head = self._limits.max_head_bytes
        self._max_fields = self._limits.max_head_fields
        self._max_known = min(self._max_body, LARGE_BODY_BYTES)
        self._inference: Inference | None = None
        self._known: Inference
        self._known_head: tuple[bytes, bytes] | None = None
        self._plain = False
        self._content: list[bytes] = []
        self._held_body: HeldBody | None = None
        self._receiver: Receiver | None = None
        self._large: Inference
        self._large_head = b""  # the last one that the parser saw
        self._past_parser = False  # the body that comes
        self._waiting_large = 0
        self._due: deque[Inference] = deque()
        self._behind: deque[Behind] = deque()
        self._running: RequestResponseCycle | None = None
        self._host = b""
        self._piece = b""  # the read that is parsed, behind what came of its head in earlier ones
        self._half_head = b""
        self._head_done = False
        self._upgrading = False
        self._chunked = False
        self._discarding = False
        self._deaf = False
        self._stopping = False
        self._read = 0  # bytes of the last read
        self._unread = 0  # bytes since the head began
        self._received = 0  # bytes of the body
        self._length = 0  # of the body, where that is said beforehand
        self._chunks = 0
        self._counted = 0
        self._overhead = 0
        self._written = 0
        self._taken = 0
        self._taken_at = 0.0
        self._reading_since = 0.0
        self._body_since = 0.0
        self._quiet_since = 0.0  # 0: since the sweep before the next

    def __repr__(self) -> str:
        return f"<GatewayProtocol {self.client} | due {len(self._due)} | behind {len(self._behind)}>"

    @property
    def busy(self) -> bool:
        """Whether a request has been read whose answer is not written."""
        return bool(self._due or self._behind or self._asgi_pending)

    @property
    def _asgi_pending(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _asgi_running(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._quiet_since = self._reading_since = self.loop.time()
        if len(self.connections) > self._limits.max_connections:
            self._deaf = True
            transport.write(error_answer(503, "too many connections", keep_alive=False))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for inference in self._due:
            inference.abandoned = True
        if self._inference is not None:
            self._inference.abandoned = True
        self._due.clear()
        self._behind.clear()
        self._inference = self._held_body = self._receiver = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        known = self._known_head
        if known is not None and not self._reading_since and self._take_again(data, *known):
            return
        size = self._read = len(data)
        self._unread += size
        self._piece = data
        if self._half_head:
            self._piece = self._half_head + data
            self._half_head = b""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._refuse_parse(error)
        except httptools.HttpParserUpgrade as upgrade:
            self._feed_past_upgrades(data, upgrade)
        if self._reading_since:
            self._read_in_part()
        self._piece = b""
        if len(self._due) + len(self._behind) > self._limits.max_pipelined:
            self.flow.pause_reading()

    def begin_again(self, length: int) -> bool:
        """Whether another request with the head that the receiver expects may begin; its body is to come."""
        if self._deaf or self._discarding or self._stopping or self._reading_since:
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
            self._read_in_part()
        else:
            inference.body = [receiver.finish()]
            if not self._past_parser:
                # The one before has not read this body; what comes behind it is another request.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._past_parser = False
            self.on_message_complete()
        if self._discarding:
            self._deaf = True
            receiver.drop()

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

    def sweep(self, now: float) -> None:
        """Close the connection when its client is too slow or has been idle too long; `now` is the loop's time."""
        limits = self._limits
        if self.transport is None or self._stalled(now):
            return
        if self._deaf or self._discarding or self.transport.is_closing():
            return
        if self.flow.read_paused:
            # It is not the client who is slow.
            self._reading_since = now if self._reading_since else 0.0
            self._body_since = now if self._body_since else 0.0
        elif self._body_since:
            waited = now - self._body_since
            if waited > limits.body_timeout_seconds:
                self.refuse(408, f"the request body did not arrive within {limits.body_timeout_seconds:g} seconds")
            elif waited > limits.body_grace_seconds and self._received < waited * limits.min_bytes_per_second:
                self.refuse(408, f"the request body is slower than {limits.min_bytes_per_second} bytes a second")
        elif self._reading_since:
            if now - self._reading_since > limits.head_timeout_seconds:
                self.refuse(408, f"the request head did not arrive within {limits.head_timeout_seconds:g} seconds")
        elif not self.busy:
            self._quiet_since = self._quiet_since or now
            if now - self._quiet_since > limits.keep_alive_seconds:
                self.transport.close()

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._inference = None
        self._head_done = False
        self._reading_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer: never a header (RFC 9110, section 6.5.1)
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head_done = True
        if self.transport.is_closing():
            self._deaf = True
        if self._deaf or self._discarding:
            return
        try:
            self._begin()
        except HeadRefused as refused:
            self.refuse(refused.status, refused.text)

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
        if self._discarding or self._deaf or self._upgrading:
            return
        inference = self._inference
        if received > LARGE_BODY_BYTES and not self._hold(received):
            return
        if inference is None:
            self._start_asgi()
            return
        self._inference = None
        if received > LARGE_BODY_BYTES and self._held_body is not None:
            inference.held_body, self._held_body = self._held_body, None
            self._waiting_large += 1
        self._enqueue(inference)
        if received > LARGE_BODY_BYTES and len(self._due) + len(self._behind) >= MAX_LARGE_PIPELINED:
            self.flow.pause_reading()

    def answered(self, inference: Inference) -> None:
        """Write what may leave: answers in the order of their requests."""
        due = self._due
        if len(due) == 1 and due[0] is inference and inference.keep_alive and not self._waiting_large:
            # One request at a time is the usual case.
            due.clear()
            transport = self.transport
            if not transport.is_closing():
                self._written += len(inference.answer)
                transport.write(inference.answer)
            self._quiet_since = 0.0
            if self._behind or self.pipeline or self._stopping or self.flow.read_paused:
                self._caught_up()
            return
        while due and due[0].answer:
            first = due.popleft()
            if self._waiting_large:
                self._let_go(first)
            if self.transport.is_closing():
                continue
            self._written += len(first.answer)
            self.transport.write(first.answer)
            if not first.keep_alive:
                self._finish()
                return
        if not due:
            self._caught_up()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._running is not None:
            vars(self._running).pop("held_body", None)
        self._quiet_since = self.loop.time()
        self._continue_behind()
        if self.busy:
            self._unset_keepalive_if_required()
        elif self._stopping and self._inference is None:
            self.transport.close()

    def shutdown(self) -> None:
        """Finish what has been read, then close."""
        self._stopping = True
        if self._inference is not None:
            self._inference.keep_alive = False
        elif self._behind or self._body_since:
            return
        elif self._asgi_pending:
            self.cycle.keep_alive = False
        elif self._due:
            self._due[-1].keep_alive = False
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        # A client that does not read its answers is not read from either.
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self._due:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

    def _begin(self) -> None:
        # Of a request whose head is complete.
        most = self._max_head
        if self._read > most or self._unread > most or len(self.headers) > self._max_fields:
            self._check_size()
        target = self._targets.get(self.url) or self._target()
        method = self.parser.get_method()
        self._check_protocol(method)
        if target is None or method != b"POST":
            if method not in METHODS:
                raise HeadRefused(405, f"the method {method.decode('latin-1')} is not supported")
            self._content = []
            self._read_fields(None)
            return
        inference = Inference(self, target[0])
        try:
            if target[1] is not None:
                inference.pinned = path_pin(target[0], target[1])
        except GatewayError as error:
            inference.refused = error
        self._inference = inference
        self._read_fields(inference)
        if (
            self._inference is inference
            and inference.keep_alive
            and inference.refused is None
            and self._plain
            and self._length <= self._max_known
        ):
            self._learn(inference)

    def _learn(self, inference: Inference) -> None:
        # Clients send the same head again and again, but for the length: what stands before and behind its digits.
        # Only where one read holds this one head and its body is it certain which bytes the parser has read.
        self._known_head = None
        head, end, _ = self._piece.partition(b"\r\n\r\n")
        if self._unread != len(self._piece) or not end or self._max_head < len(head) + 2 * LENGTH_DIGITS:
            return
        parts = _LENGTH_FIELD.split(head)
        if len(parts) == 3:
            before, length, after = parts
            self._known, self._known_head = inference.again(), (before + length, after + end)

    def _take_again(self, data: bytes, before: bytes, after: bytes) -> bool:
        """Take a read that is the known head once more and a whole body; all that the head says has been checked."""
        start = len(before)
        end = data.find(b"\r", start, start + LENGTH_DIGITS + 1)
        if not (data.startswith(before) and data.startswith(after, end)):
            return False
        body = end + len(after)
        size = len(data) - body
        if data[start:end] != b"%d" % size or size > self._max_known or self._discarding or self._stopping:
            return False
        inference = self._known.again()
        cycle = self.cycle
        if self._behind or self.pipeline or (cycle is not None and not cycle.response_complete):
            inference.body.append(data[body:])
            self._behind.append(inference)
        else:
            self._due.append(inference)
            try:
                self._front.accept_again(inference, data, body)
            except Exception:  # a fault of ours fails this request and no other
                self._fail(inference)
        waiting = len(self._due) + len(self._behind)
        if waiting > 1 and waiting > self._limits.max_pipelined:
            self.flow.pause_reading()
        return True

    def _target(self) -> tuple[str, bytes | None] | None:
        check_target(self.url, max_bytes=self._limits.max_target_bytes)
        match = _TARGET.fullmatch(self.url)
        if match is None:
            return None
        target = (match[1].decode(), match[2])
        if len(self._targets) < MAX_TARGETS:
            self._targets[self.url] = target
        return target

    def _check_protocol(self, method: bytes) -> None:
        # The parser takes RTSP/1.1 for HTTP/1.1 and does not say so. What stands behind the target is looked for in the
        # read: at its start, or behind the head before.
        target = b" %b " % self.url
        line, piece = method + target, self._piece
        if self._unread and piece.startswith(line + b"HTTP/"):
            return
        at = piece.find(line, 0 if self._unread else 1) + len(method)
        self._piece = piece[max(0, at) :].partition(target)[2].lstrip(b" ")
        if self._piece.startswith(b"RTSP/"):
            raise HeadRefused(505, "RTSP is not spoken here; expected HTTP/1.1 or HTTP/1.0")

    def _check_size(self) -> None:
        limits = self._limits
        if len(self.headers) > limits.max_head_fields:
            raise HeadRefused(
                431, f"the request head has more than {limits.max_head_fields} fields (limits.max_head_fields)"
            )
        check_target(self.url, max_bytes=limits.max_target_bytes)
        if size_of(self.parser.get_method(), self.url, self.headers) > self._max_head:
            raise HeadRefused(431, self._head_too_large())

    def _read_fields(self, inference: Inference | None) -> None:
        hosts = length = 0
        connection = chunked = expects = False
        for name, value in self.headers:
            if name not in READ:
                continue
            if name == b"host":
                hosts += 1
                if value != self._host:
                    check_host(value)
                    self._host = value
            elif name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                if chunked or value.lower() != b"chunked":
                    raise HeadRefused(400, "transfer-encoding must be 'chunked', once")
                chunked = True
            elif name == b"connection":
                connection = True
            elif name == b"upgrade":
                self._upgrading = self.parser.should_upgrade()
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    raise HeadRefused(417, f"expected 'Expect: 100-continue', got {value[:32].decode('latin-1')!r}")
                expects = True
            elif inference is not None:
                read_field(inference, name, value)
        keep_alive = self.parser.should_keep_alive()
        version = "1.1"
        if connection or not keep_alive:  # what is neither 1.0 nor 1.1 is only kept alive by a Connection field
            version = self.parser.get_http_version()
            check_version(version)
        if hosts != 1 and (hosts or version == "1.1"):
            raise HeadRefused(400, f"a request has one Host header, got {hosts}")
        self._chunked = chunked
        self._length = 0 if chunked else length
        self._plain = not (chunked or expects or self._upgrading)
        if not keep_alive:
            self._known_head = None  # nothing more is taken on this connection (RFC 9112, section 9.6)
        if chunked:
            self._chunks = self._overhead = 0
            if version == "1.0":
                raise HeadRefused(400, "HTTP/1.0 knows no transfer-encoding")
        if inference is not None:
            inference.keep_alive = keep_alive and not self._stopping
        if self._upgrading:
            return
        if length > self._max_body:
            self._refuse_body(inference, BodyTooLarge(self._body_too_large()))
        elif expects and version == "1.1" and not self.busy and (inference is None or inference.refused is None):
            self.transport.write(_CONTINUE)

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

    def _refuse_parse(self, error: httptools.HttpParserError) -> None:
        if isinstance(error, httptools.HttpParserCallbackError):
            _log.error("a request could not be read", exc_info=error)
            self.refuse(500, FAULT)
        else:
            self.refuse(400, f"the request is not valid HTTP/1.1: {error}")

    def _feed_past_upgrades(self, data: bytes, upgrade: httptools.HttpParserUpgrade | None) -> None:
        # No other protocol is spoken, and an upgrade may be passed over (RFC 9110, section 7.8). The parser reads no
        # body behind one, so a fresh parser reads the same request without it.
        rest = memoryview(data)
        while upgrade is not None and not self._deaf:
            rest = rest[upgrade.args[0] :]
            head = without_upgrade(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
            self._upgrading = False
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            upgrade = None
            try:
                self.parser.feed_data(head)
                self.parser.feed_data(rest)
            except httptools.HttpParserError as error:
                self._refuse_parse(error)
            except httptools.HttpParserUpgrade as another:
                upgrade = another

    def _read_in_part(self) -> None:
        # After each read that left a request incomplete.
        if self._deaf or self._discarding:
            return
        limits = self._limits
        if not self._head_done:
            self._half_head = self._piece if self._unread else self._piece[1:]  # not the head before it
            if self._unread > self._max_head:
                if len(self.url) > limits.max_target_bytes:
                    self.refuse(414, f"the request target is longer than {limits.max_target_bytes} bytes")
                else:
                    self.refuse(431, self._head_too_large())
            return
        if self._received > LARGE_BODY_BYTES and not self._hold(self._received_or_cleared):
            return
        counted = self._received + CHUNK_LINE_BYTES * self._chunks
        if not self._body_since:
            self._body_since = self.loop.time()
        elif self._chunked:
            self._overhead = max(0, self._overhead + self._read - (counted - self._counted))
            if self._overhead > limits.max_chunk_overhead_bytes:
                self.refuse(
                    400,
                    f"the chunks of the request body carry more than {limits.max_chunk_overhead_bytes} bytes beside "
                    "their content (limits.max_chunk_overhead_bytes)",
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
        whole = self._unread == len(piece) and len(_LENGTH_FIELD.split(head)) == 3
        if receiver is None or not whole or not self._plain or inference.refused is not None:
            return
        if head == self._large_head:
            self._large = inference.again()
            receiver.expect(head, self._length, json_length=json_length)
        self._large_head = head

    @property
    def _received_or_cleared(self) -> int:
        return max(self._received, 0 if self._receiver is None else self._receiver.cleared_bytes)

    def _head_too_large(self) -> str:
        return f"the request head is larger than {self._max_head} bytes (limits.max_head_bytes)"

    def _stalled(self, now: float) -> bool:
        # Whether the client has not taken its answers for too long; the connection is gone then.
        left = self.transport.get_write_buffer_size()
        limits, taken = self._limits, self._written - left
        if not left or not self._taken_at:
            self._taken, self._taken_at = taken, now if left else 0.0
        elif now - self._taken_at > limits.write_timeout_seconds:
            if taken - self._taken < max(1, limits.write_timeout_seconds * limits.min_bytes_per_second):
                self.transport.abort()
                return True
            self._taken, self._taken_at = taken, now
        return False

    def _let_go(self, inference: Inference) -> None:
        if inference.held_body is not None:
            inference.held_body.close()
            self._waiting_large -= 1

    def _start_asgi(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        waiting = len(self.pipeline)
        try:
            super().on_headers_complete()
        except (httptools.HttpParserError, UnicodeDecodeError):
            self.refuse(400, "the request target is not valid")
            return
        super().on_body(b"".join(self._content))
        super().on_message_complete()
        self._content = []
        if self._held_body is not None:
            vars(self.cycle)["held_body"], self._held_body = self._held_body, None
        if self._stopping:
            self.cycle.keep_alive = False
        if self._behind and len(self.pipeline) > waiting:
            self._behind.append(self.pipeline.popleft())

    def _enqueue(self, inference: Inference) -> None:
        cycle = self.cycle
        if self._behind or self.pipeline or (cycle is not None and not cycle.response_complete):
            self._behind.append(inference)
        else:
            self._submit(inference)

    def _submit(self, inference: Inference) -> None:
        self._due.append(inference)
        if inference.answer:
            self.answered(inference)
            return
        try:
            self._front.accept(inference)
        except Exception:  # a fault of ours fails this request and no other
            self._fail(inference)

    def _fail(self, inference: Inference) -> None:
        _log.exception("a request could not be taken")
        inference.keep_alive = False
        inference.answer = error_answer(500, FAULT, keep_alive=False)
        self.answered(inference)

    def _caught_up(self) -> None:
        self._quiet_since = self.loop.time()
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._behind:
            self._continue_behind()
        elif self._stopping and self._inference is None:
            self.transport.close()
        elif self.flow.read_paused and not self.flow.write_paused:
            self.flow.resume_reading()

    def _continue_behind(self) -> None:
        while self._behind and not self.pipeline and not self._asgi_running:
            following = self._behind.popleft()
            if isinstance(following, Inference):
                self._submit(following)
            else:
                self._start_asgi_task(*following)

    def _finish(self) -> None:
        if not (self._discarding or self._deaf) or not self.transport.can_write_eof():
            self.transport.close()
            return
        # Closing with unread bytes would reset the connection, and the client would not see the answer.
        self._deaf = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
