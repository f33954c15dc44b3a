"""The requests of one connection, answered in their order (RFC 9112, section 9.3.2) whichever way each is answered.

* `_due` holds inferences that the front has, in order; their answers leave from its left end.
* uvicorn's `cycle` and `pipeline` hold ASGI requests; one starts only when nothing is due before it.
* `_behind` holds, in order, what came after an ASGI request that is still being answered, or while the client does not
  take its answers.

So either inferences are due, or an ASGI request runs, never both; the pipeline follows that, and `_behind` follows the
pipeline.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.serving.answers import error_answer
from gateway.serving.front import Front
from gateway.serving.inference import Inference
from gateway.serving.room import Held

__all__ = ("FAULT", "Pipeline")

FAULT = "the gateway failed on this request"
LINGER_SECONDS = 1.0

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_log = logging.getLogger(__name__)

Behind = Inference | tuple[RequestResponseCycle, ASGI3Application]


class Flow(FlowControl):
    """Reads nothing from a client that does not take its answers, though uvicorn asks for it after each answer."""

    def resume_reading(self) -> None:
        if not self.write_paused:
            super().resume_reading()


class Pipeline(HttpToolsProtocol):
    """Takes whole requests of one connection, and writes their answers."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        front: Front,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._front = front
        self._limits = front.settings.limits
        self._inference: Inference | None = None  # whose body comes
        self._body_since = 0.0
        self._due: deque[Inference] = deque()
        self._behind: deque[Behind] = deque()
        self._running: RequestResponseCycle | None = None
        self._continuing = False
        self._comes_behind = False
        self._unusual = 0  # inferences whose large bodies are held, and a 100 (Continue) that is owed
        self._owes_continue = False
        self._is_last = False  # nothing more is taken on this connection (RFC 9112, section 9.6)
        self._discarding = False
        self._deaf = False
        self._stopping = False
        self._written = 0
        self._taken = 0
        self._taken_at = 0.0
        self._untaken: Held | None = None
        self._quiet_since = 0.0  # 0: since the sweep before the next

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.client} | due {len(self._due)} | behind {len(self._behind)}>"

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
        self.flow = Flow(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for inference in self._due:
            inference.abandoned = True
        self._due.clear()
        self._behind.clear()
        self._untaken = None
        if self._running is not None:
            # uvicorn tells the last request that came, which may be behind the one that runs.
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def answered(self, inference: Inference) -> None:
        """Write what may leave: answers in the order of their requests."""
        due = self._due
        if len(due) == 1 and due[0] is inference and inference.keep_alive and not self._unusual:
            # One request at a time is the usual case.
            due.clear()
            transport = self.transport
            if not transport.is_closing():
                self._written += len(inference.answer)
                transport.write(inference.answer)
            self._quiet_since = 0.0
            if self._behind or self.pipeline or self._stopping or self.flow.read_paused:
                self._hold_untaken(inference)
                self._caught_up()
            return
        while due and due[0].answer:
            first = due.popleft()
            if self._unusual:
                self._let_go(first)
            if self.transport.is_closing():
                continue
            self._written += len(first.answer)
            self.transport.write(first.answer)
            self._hold_untaken(first)
            if not first.keep_alive:
                self._finish()
                return
        if not due:
            self._caught_up()

    def replace(self, inference: Inference, another: Inference) -> None:
        """Another one is answered in the place of one that is due."""
        due = self._due
        if inference in due:
            due[due.index(inference)] = another

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._running is not None:
            vars(self._running).pop("held_body", None)
        self._quiet_since = self.loop.time()
        self._taken_at = 0.0  # nobody has counted its bytes: what the client takes is measured anew
        self._continue_behind()
        if self.busy or self._inference is not None:
            self._unset_keepalive_if_required()
        elif self._stopping:
            self.transport.close()
        if self._owes_continue and not self.busy:
            self._send_continue()

    def shutdown(self) -> None:
        """Finish what has been read, then close."""
        self._stopping = True
        if self._inference is not None:
            self._inference.keep_alive = False
            self._is_last = True
        elif self._behind or self._body_since:
            return
        elif self._asgi_pending:
            self.cycle.keep_alive = False
        elif self._due:
            self._due[-1].keep_alive = False
            self._is_last = True
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        # A client that does not take its answers is not read from either, and no more is run for it.
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._untaken = None
        self.flow.resume_reading()
        self._continue_behind()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self._due or self._comes_behind:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

    def _enqueue(self, inference: Inference) -> None:
        cycle = self.cycle
        if (
            self._behind
            or self.pipeline
            or self.flow.write_paused
            or (cycle is not None and not cycle.response_complete)
        ):
            self._behind.append(inference)
        else:
            self._submit(inference)

    def _enqueue_asgi(
        self, url: bytes, headers: list[tuple[bytes, bytes]], content: bytes, *, held_body: Held | None
    ) -> None:
        """Take a whole request for the app, so that no app ever waits for a client.

        Raises
        ------
        httptools.HttpParserError, UnicodeDecodeError
            The target is not valid.
        """
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        waiting = len(self.pipeline)
        self._comes_behind = bool(self._behind)
        try:
            super().on_headers_complete()
        finally:
            self._comes_behind = False
        super().on_body(content)
        super().on_message_complete()
        if held_body is not None:
            vars(self.cycle)["held_body"] = held_body
        if self._stopping:
            self.cycle.keep_alive = False
        if self._behind and len(self.pipeline) > waiting:
            self._behind.append(self.pipeline.popleft())

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
        elif self.flow.read_paused:
            self.flow.resume_reading()
        if self._owes_continue and not self.busy:
            self._send_continue()

    def _continue_behind(self) -> None:
        if self._continuing:
            return  # one that is answered at once comes back here: the loop below goes on with the next
        self._continuing = True
        try:
            while self._behind and not (self.pipeline or self._asgi_running or self.flow.write_paused):
                following = self._behind.popleft()
                if isinstance(following, Inference):
                    self._submit(following)
                else:
                    self._start_asgi_task(*following)
        finally:
            self._continuing = False

    def _owe_continue(self) -> None:
        """Let the client send its body: now, or when what it asked before has been answered."""
        if not self.busy:
            self.transport.write(_CONTINUE)
        elif not self._owes_continue:
            self._owes_continue = True
            self._unusual += 1

    def _send_continue(self) -> None:
        self._forget_continue()
        if not self.transport.is_closing():
            self.transport.write(_CONTINUE)

    def _forget_continue(self) -> None:
        if self._owes_continue:
            self._owes_continue = False
            self._unusual -= 1

    def _finish(self) -> None:
        self._forget_continue()  # nothing is written behind the last answer
        if not (self._discarding or self._deaf) or not self.transport.can_write_eof():
            self.transport.close()
            return
        # Closing with unread bytes would reset the connection, and the client would not see the answer.
        self._deaf = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _let_go(self, inference: Inference) -> None:
        if inference.held_body is not None:
            inference.held_body.close()
            self._unusual -= 1

    def _hold_untaken(self, inference: Inference) -> None:
        # Of answers that the client does not take, all of which are bounded together.
        if not self.flow.write_paused:
            return
        inference.held_answer = None
        if self._untaken is None:
            self._untaken = self._front.answers.open()
        if not self._untaken.grow(self.transport.get_write_buffer_size()):
            self.transport.abort()

    def _stalled(self, now: float) -> bool:
        # Whether the client has not taken its answers for too long; the connection is gone then.
        left = self.transport.get_write_buffer_size()
        if self._untaken is not None:
            self._untaken.grow(left)
        limits, taken = self._limits, self._written - left
        if not left or not self._taken_at:
            self._taken, self._taken_at = taken, now if left else 0.0
        elif now - self._taken_at > limits.write_timeout_seconds:
            if taken - self._taken < max(1, limits.write_timeout_seconds * limits.min_bytes_per_second):
                self.transport.abort()
                return True
            self._taken, self._taken_at = taken, now
        return False
