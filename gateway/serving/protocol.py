"""HTTP/1.1 on one connection: inference is answered here, by callbacks; everything else goes to the ASGI app.

A subclass of uvicorn's httptools protocol. `POST /v2/models/.../infer` never becomes a scope, a task or a future: its
body is collected, the front takes it, and the answer is one write. Answers leave in the order of their requests
(RFC 9112, section 9.3.2) whichever way each was answered:

* `_due` holds inferences that the front has, in order; their answers leave from its left end.
* uvicorn's `cycle` and `pipeline` hold ASGI requests; one starts only when nothing is due before it.
* `_behind` holds, in order, what came after an ASGI request that is still being answered.

So either inferences are due, or an ASGI request runs, never both; the pipeline follows that, and `_behind` follows the
pipeline.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.protocol.compression import accepted_encoding, content_encoding
from gateway.protocol.errors import BodyTooLarge, CallerError, EncodingNotSupported, GatewayError
from gateway.serving.answers import error_answer
from gateway.serving.front import Front, Inference, parse_pin, path_pin

__all__ = ("MAX_HEAD_BYTES", "MAX_HEAD_FIELDS", "MAX_PIPELINED", "GatewayProtocol", "read_gateway_header")

MAX_HEAD_BYTES = 16 * 1024  # h11 and node: 16 KiB
MAX_HEAD_FIELDS = 100  # Apache: 100
MAX_PIPELINED = 64
MAX_KEY_BYTES = 1024
MAX_TARGETS = 1024
LINGER_SECONDS = 1.0

_TARGET = re.compile(rb"/v2/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:/versions/([^/?]{1,32}))?/infer(?:\?.*)?")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

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
        self._max_body = front.settings.limits.max_body_bytes
        self._inference: Inference | None = None
        self._due: deque[Inference] = deque()
        self._behind: deque[Behind] = deque()
        self._running: RequestResponseCycle | None = None
        self._unread = 0
        self._head_done = False
        self._discarding = False
        self._deaf = False
        self._stopping = False
        self._reading_since = 0.0
        self._quiet_since = 0.0

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
        if len(self.connections) > self._front.settings.limits.max_connections:
            transport.write(error_answer(503, "too many connections", keep_alive=False))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for inference in self._due:
            inference.abandoned = True
        if self._inference is not None:
            self._inference.abandoned = True
        self._due.clear()
        self._behind.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        self._unread += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(400, "protocol upgrades are not supported")
        except httptools.HttpParserError:
            self.refuse(400, "the request is not valid HTTP/1.1")
        if self._head_done:
            self._unread = 0
        elif self._unread > MAX_HEAD_BYTES:
            self.refuse(431, f"the request head is larger than {MAX_HEAD_BYTES} bytes")
        if len(self._due) + len(self._behind) > MAX_PIPELINED:
            self.flow.pause_reading()

    def refuse(self, status: int, text: str) -> None:
        """Answer bytes that cannot be understood, after what was asked before them, and close."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = True
        refusal = Inference(self, "", pinned=None)
        refusal.keep_alive = False
        refusal.answer = error_answer(status, text, keep_alive=False)
        if self._asgi_running and self.cycle.more_body:
            # The app waits for a body that will not come.
            self.transport.write(refusal.answer)
            self.transport.close()
        else:
            self._enqueue(refusal)

    def sweep(self, now: float) -> None:
        """Close the connection when its client is too slow or has been idle too long; `now` is the loop's time."""
        limits = self._front.settings.limits
        if self._deaf or self.transport is None or self.transport.is_closing():
            return
        if self._reading_since:
            waited = now - self._reading_since
            if not self._head_done and waited > limits.head_timeout_seconds:
                self.refuse(408, "the request head did not arrive in time")
            elif self._head_done and waited > limits.body_timeout_seconds:
                self.refuse(408, "the request body did not arrive in time")
        elif not self.busy and now - self._quiet_since > limits.keep_alive_seconds:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._inference = None
        self._head_done = False
        self._discarding = False
        self._reading_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer: never a header (RFC 9110, section 6.5.1)
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._head_done = True
        if self._deaf or self.transport.is_closing() or self._head_too_large():
            return
        target = self._targets.get(self.url) or self._target()
        if target is not None and self.parser.get_method() == b"POST":
            self._begin_inference(*target)
        else:
            self._begin_asgi()

    def on_body(self, body: bytes) -> None:
        if self._discarding or self._deaf:
            return
        inference = self._inference
        if inference is None:
            super().on_body(body)
            return
        inference.expected_bytes += len(body)
        if inference.expected_bytes > self._max_body:
            self._refuse_body(inference, self._too_large())
        else:
            inference.body.append(body)

    def on_message_complete(self) -> None:
        self._reading_since = 0.0
        if self._discarding or self._deaf:
            return
        inference = self._inference
        if inference is None:
            super().on_message_complete()
        else:
            self._inference = None
            self._enqueue(inference)

    def answered(self, inference: Inference) -> None:
        """Write what may leave: answers in the order of their requests."""
        due = self._due
        while due and due[0].answer:
            first = due.popleft()
            if self.transport.is_closing():
                continue
            self.transport.write(first.answer)
            if not first.keep_alive:
                self._finish()
                return
        if not due:
            self._caught_up()

    def on_response_complete(self) -> None:
        super().on_response_complete()
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
        elif self._behind:
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

    def _target(self) -> tuple[str, bytes | None] | None:
        match = _TARGET.fullmatch(self.url)
        if match is None:
            return None
        target = (match[1].decode(), match[2])
        if len(self._targets) < MAX_TARGETS:
            self._targets[self.url] = target
        return target

    def _begin_inference(self, model: str, version: bytes | None) -> None:
        inference = Inference(self, model, pinned=None)
        self._inference = inference
        inference.keep_alive = self.parser.should_keep_alive() and not self._stopping
        try:
            if version is not None:
                inference.pinned = path_pin(model, version)
            self._read_headers(inference)
        except BodyTooLarge as error:
            self._refuse_body(inference, error)
        except GatewayError as error:
            inference.refused = error
        if self.expect_100_continue and inference.refused is None and not self.busy:
            self.transport.write(_CONTINUE)

    def _read_headers(self, inference: Inference) -> None:
        chunked = False
        for name, value in self.headers:
            if name == b"content-length":
                if int(value) > self._max_body:
                    raise self._too_large()
            elif name == b"transfer-encoding":
                chunked = True
            elif name == b"content-encoding":
                if inference.encoding is not None:
                    raise EncodingNotSupported("more than one content-encoding is not supported")
                inference.encoding = content_encoding(value)
            elif name == b"accept-encoding":
                inference.accepts = accepted_encoding(value)
            elif name == b"expect":
                self.expect_100_continue = value.lower() == b"100-continue"
            elif name.startswith(b"gateway-") or name == b"inference-header-content-length":
                read_gateway_header(inference, name, value)
        if chunked and any(name == b"content-length" for name, _ in self.headers):
            inference.keep_alive = False
            raise CallerError("content-length and transfer-encoding exclude each other")

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request body is larger than {self._max_body} bytes (limits.max_body_bytes)")

    def _refuse_body(self, inference: Inference, error: GatewayError) -> None:
        # Answered before the rest of the body is read, which is thrown away: the connection cannot go on.
        inference.refused = error
        inference.keep_alive = False
        inference.body = []
        self._inference = None
        self._discarding = True
        self._enqueue(inference)

    def _begin_asgi(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers)
        waiting = len(self.pipeline)
        try:
            super().on_headers_complete()
        except (httptools.HttpParserError, UnicodeDecodeError):
            self.refuse(400, "the request target is not valid")
            return
        if self._behind and len(self.pipeline) > waiting:
            self._behind.append(self.pipeline.popleft())

    def _enqueue(self, inference: Inference) -> None:
        if self._behind or self.pipeline or self._asgi_pending:
            self._behind.append(inference)
        else:
            self._submit(inference)

    def _submit(self, inference: Inference) -> None:
        self._due.append(inference)
        if inference.answer:
            self.answered(inference)
        else:
            self._front.accept(inference)

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
        elif self.flow.read_paused:
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

    def _head_too_large(self) -> bool:
        if len(self.headers) > MAX_HEAD_FIELDS:
            self.refuse(431, f"the request head has more than {MAX_HEAD_FIELDS} fields")
        elif self._unread > MAX_HEAD_BYTES:
            # The bytes at hand hold more than the head perhaps; only now is it worth counting.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self.refuse(431, f"the request head is larger than {MAX_HEAD_BYTES} bytes")
        return self._deaf


def read_gateway_header(inference: Inference, name: bytes, value: bytes) -> None:
    """Read one `Gateway-*` request header; `name` in lower case. gRPC reads its metadata with it.

    Raises
    ------
    CallerError
    """
    if name == b"gateway-routing-key":
        if len(value) > MAX_KEY_BYTES:
            raise CallerError(f"Gateway-Routing-Key is longer than {MAX_KEY_BYTES} bytes")
        inference.key = value.decode("latin-1")
    elif name == b"gateway-version":
        pinned = parse_pin(value)
        if inference.pinned is not None and inference.pinned != pinned:
            raise CallerError(f"the path asks for version {inference.pinned} and Gateway-Version for {pinned}")
        inference.pinned = pinned
    elif name == b"gateway-timeout-ms":
        if not value.isdigit() or len(value) > 9 or int(value) == 0:
            raise CallerError("Gateway-Timeout-Ms must be a positive whole number of milliseconds")
        inference.timeout_ms = int(value)
    elif name == b"inference-header-content-length":
        if _LENGTH.fullmatch(value) is None or inference.json_length is not None:
            shown = value[:32].decode("latin-1")
            raise CallerError(f"Unable to parse Inference-Header-Content-Length, got: {shown}")
        inference.json_length = int(value)
