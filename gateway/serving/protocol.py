"""HTTP/1.1 on one connection: inference is answered here, by callbacks; everything else goes to the ASGI app.

A subclass of uvicorn's httptools protocol. `POST /v2/models/.../infer` never becomes a scope, a task or a future: its
body is collected (`incoming`), the front takes it, and the answer is one write (`pipeline`). Here heads are read, and
clients watched that are too slow or idle.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.protocol.errors import BodyTooLarge, GatewayError
from gateway.serving.answers import error_answer
from gateway.serving.front import Front
from gateway.serving.head import (
    METHODS,
    READ,
    HeadRefused,
    check_host,
    check_version,
    path_of,
    read_field,
    size_of,
    without_upgrade,
)
from gateway.serving.incoming import IncomingBody
from gateway.serving.inference import Inference, path_pin
from gateway.serving.known_head import KnownHead, known_head
from gateway.serving.pipeline import FAULT
from gateway.serving.room import LARGE_BODY_BYTES

__all__ = ("GatewayProtocol",)

MAX_TARGETS = 1024
LENGTH_DIGITS = 8

_TARGET = re.compile(rb"/v2/models/([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:/versions/([^/?]{1,32}))?/infer(?:\?.*)?")

_log = logging.getLogger(__name__)


class GatewayProtocol(IncomingBody):
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
        super().__init__(config, server_state, app_state, _loop, front=front)
        self._targets = targets
        self._max_head = self._limits.max_head_bytes
        self._max_fields = self._limits.max_head_fields
        self._max_known = min(self._max_body, LARGE_BODY_BYTES)
        self._known: Inference
        self._is_bare = False
        self._known_head: KnownHead | None = None
        self._host = b""
        self._half_head = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._quiet_since = self._reading_since = self.loop.time()
        if len(self.connections) > self._limits.max_connections:
            self._deaf = True
            transport.write(error_answer(503, "too many connections", keep_alive=False))
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        known = self._known_head
        if known is not None and not self._reading_since and self._take_again(data, known):
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

    def sweep(self, now: float) -> None:
        """Close the connection when its client is too slow or has been idle too long; `now` is the loop's time."""
        limits = self._limits
        if self.transport is None or self._stalled(now):
            return
        if self._deaf or self._discarding or self.transport.is_closing():
            return
        if self.flow.read_paused or self._owes_continue:
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
        if self._is_last or self.transport.is_closing():
            self._deaf = True
        if self._deaf or self._discarding:
            return
        try:
            self._begin()
        except HeadRefused as refused:
            self.refuse(refused.status, refused.text)

    def _begin(self) -> None:
        # Of a request whose head is complete.
        most = self._max_head
        if self._read > most or self._unread > most or len(self.headers) > self._max_fields:
            self._check_size()
        asked, method = self.url, self.parser.get_method()
        target = self._targets.get(asked) or self._target()
        self._check_protocol(method, asked)
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
            inference.refused = error.with_traceback(None)
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
        # Only where one read holds this one head and its body is it certain which bytes the parser has read.
        self._known_head = None
        head, end, _ = self._piece.partition(b"\r\n\r\n")
        if self._unread != len(self._piece) or not end or self._max_head < len(head) + 2 * LENGTH_DIGITS:
            return
        self._known, self._known_head = inference.again(), known_head(head + end)
        self._is_bare = self._known.is_bare

    def _take_again(self, data: bytes, known: KnownHead) -> bool:
        """Take a read that is the known head once more and a whole body; all that the head says has been checked."""
        head = known[len(data)]
        if not (head and data.startswith(head)):
            return False
        body = len(head)
        if len(data) - body > self._max_known or self._discarding or self._stopping:
            return False
        like, cycle = self._known, self.cycle
        if (
            self._is_bare
            and not (self._due or self._behind or self.pipeline)
            and (cycle is None or cycle.response_complete)
        ):
            try:
                alone = self._front.take_along(like, data, body)
            except Exception:  # a fault of ours fails this request and no other
                alone = like.again()
                self._due.append(alone)
                self._fail(alone)
                return True
            if alone is None:
                like.answer = b""  # of the request that it stood for before
                self._due.append(like)
            else:
                self._submit(alone)
            return True
        self._enqueue(like.with_body(data[body:]))
        if len(self._due) + len(self._behind) > self._limits.max_pipelined:
            self.flow.pause_reading()
        return True

    def _target(self) -> tuple[str, bytes | None] | None:
        self.url = path_of(self.url, max_bytes=self._limits.max_target_bytes)
        match = _TARGET.fullmatch(self.url)
        if match is None:
            return None
        target = (match[1].decode(), match[2])
        if len(self._targets) < MAX_TARGETS:
            self._targets[self.url] = target
        return target

    def _check_protocol(self, method: bytes, asked: bytes) -> None:
        # The parser takes RTSP/1.1 for HTTP/1.1 and does not say so. What stands behind the target is looked for in the
        # read: at its start, or behind the head before.
        target = b" %b " % asked
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
        path_of(self.url, max_bytes=limits.max_target_bytes)
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
            keep_alive = keep_alive and version == "1.1"  # to a client of 1.0 it would have to be said
        if hosts != 1 and (hosts or version == "1.1"):
            raise HeadRefused(400, f"a request has one Host header, got {hosts}")
        self._chunked = chunked
        self._length = 0 if chunked else length
        self._plain = not (chunked or expects or self._upgrading)
        if not keep_alive:
            self._is_last, self._known_head = not self._upgrading, None
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
        elif expects and version == "1.1":
            # One of the two at once (RFC 9110, section 10.1.1).
            if inference is not None and inference.refused is not None:
                self._refuse_body(inference, inference.refused)
            else:
                self._owe_continue()

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
            self._begin_parsing()
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
        if self._head_done:
            self._body_came_in_part()
            return
        if self._deaf or self._discarding:
            return
        self._half_head = self._piece if self._unread else self._piece[1:]  # not the head before it
        if self._unread > self._max_head:
            most = self._limits.max_target_bytes
            if len(self.url) > most:
                self.refuse(414, f"the request target is longer than {most} bytes")
            else:
                self.refuse(431, self._head_too_large())

    def _head_too_large(self) -> str:
        return f"the request head is larger than {self._max_head} bytes (limits.max_head_bytes)"
