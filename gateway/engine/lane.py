"""A front's way to one engine: what waits goes out in frames, what comes back is handed to its requests.

What arrived in one pass of the loop goes as one frame, where runs are short together with what the next passes bring;
while `frames_in_flight` frames are out, what arrives waits and forms the next one. No timer adds delay, unless the
model asks for one. Order is first come, first served within a rank. `docs/batching.md` tells the rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from gateway.engine.address import short_address
from gateway.engine.arena import Arena
from gateway.engine.errors import WireError
from gateway.engine.job import Job, Run, each_apart
from gateway.engine.pace import SHORT_SECONDS
from gateway.engine.waiting import QueueLimits, WaitingLine
from gateway.engine.wire import (
    FAILURE,
    HELLO,
    LARGE_BYTES,
    RESULT,
    STOPPED,
    Frame,
    FrameReader,
    Hello,
    decode_result,
    decode_result_of_one,
    encode_arena,
    encode_run,
    encode_run_of_one,
    write_frame,
)
from gateway.protocol.datatypes import FREE
from gateway.protocol.errors import DeadlineExceeded, EngineUnavailable, GatewayError, ModelFailed, Overloaded

__all__ = ("Lane", "QueueLimits")

Array = np.ndarray[Any, np.dtype[Any]]

GATHER_PASSES = 4
"""Passes of the loop at most that a batch waits for others."""
GATHER_SECONDS = 0.001
"""No further pass begins after so long: one may have something larger to do."""

RELEASE_SECONDS = 0.0005
"""A batch that is held back goes so much later than it should at most."""
SILENT_SECONDS = 10.0
"""Between two failures of a model that are told in the log."""

_log = logging.getLogger(__name__)


def _nothing_to_read(jobs: list[Any]) -> tuple[list[Any], None, list[Any]]:
    return jobs, None, []


class Lane:
    """Requests of one model version, from one front, to its engine.

    Parameters
    ----------
    model, version
        What is served.
    socket_paths : sequence of Path
        Where the engine is looked for, in this order; its sockets may come and go, the last of these comes last.
    done : callable
        Called with the jobs of a finished frame, answered or failed, in order.
    read : callable
        Called with the jobs of a batch before it goes, to make ready what is not in their `inputs` yet. It returns
        those that can go; the inputs of all of them, in the signature's order, where it has them joined, or None; and
        those that cannot be made ready, with their `failure`.
    greeted : callable
        Called with the engine's greeting each time one is reached, before anything is sent to it; an engine that is
        not the one asked for (False) is left alone.
    limits : QueueLimits
        What may wait, and what may go together.
    frames_in_flight : int
    arena : Arena, optional
        Shared with the engine: inputs that lie in it are read there.
    linger_seconds : float
        How long an engine may go on reading inputs after its connection is lost.
    """

    def __init__(
        self,
        model: str,
        version: int,
        *,
        socket_paths: Sequence[Path],
        done: Callable[[list[Any]], None],
        read: Callable[[list[Any]], tuple[list[Any], list[Array] | None, list[Any]]] = _nothing_to_read,
        greeted: Callable[[Hello], bool],
        limits: QueueLimits,
        frames_in_flight: int,
        arena: Arena | None = None,
        linger_seconds: float = 0.0,
    ) -> None:
        self.model = model
        self.version = version
        self.hello: Hello | None = None
        self.refusing: str | None = None
        self.line = WaitingLine(f"model '{model}' version {version}", limits=limits)
        self._socket_paths = socket_paths
        self._done = done
        self._read = read
        self._greeted = greeted
        self._frames_in_flight = frames_in_flight
        self._arena = arena
        self._linger_seconds = linger_seconds
        self._in_flight: dict[int, Run] = {}
        self._pressed: set[int] = set()  # frames that were formed while others had to wait
        self._again: deque[list[Job]] = deque()  # parts of batches that failed, each to be run by itself
        self._next_id = 0
        self._answered_at = 0.0
        self._link: _Link | None = None
        self._greeting: _Link | None = None
        self._flush_due = False
        self._gathered_rows = self._gathering = 0
        self._gather_until = 0.0
        self._delay_seconds = 0.0
        self._release: asyncio.TimerHandle | None = None
        self._silent_until = 0.0
        self._unsaid = 0  # failures since the last that was told
        self._loop = asyncio.get_running_loop()
        self._closing = False

    def __repr__(self) -> str:
        state = "up" if self._link else "down"
        frames = len(self._in_flight)
        return f"<Lane {self.model}/{self.version} {state} | waiting {len(self.line)} | frames {frames}>"

    @property
    def ready(self) -> bool:
        """Whether an engine is connected."""
        return self._link is not None

    @property
    def idle(self) -> bool:
        """Whether no job waits or runs."""
        return not (self.line.rows or self._in_flight or self._again)

    def submit(self, job: Job) -> None:
        """Queue a job, whose `queued_at` is now; `done` is called with it later, never from here.

        Raises
        ------
        Overloaded
            There is no room, or no time left for it.
        EngineUnavailable
            The engine will not come back by itself.
        """
        if self.refusing is not None and self._link is None:
            raise self._unavailable(self.refusing)
        self.line.put(job)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    async def connect(self) -> bool:
        """Try once to reach the engine; True when it is connected, or connecting and about to greet."""
        if self._link is not None or self._greeting or self._closing:
            return self._link is not None
        if not self._socket_paths[-1].exists():
            # It is the last to appear: were another looked for before, it might come in between, and be passed over.
            return False
        link = self._greeting = _Link(self)
        for path in self._socket_paths:
            with contextlib.suppress(OSError), short_address(path) as address:
                await self._loop.create_unix_connection(lambda: link, address)
                return True
        self._greeting = None
        return False

    def expire(self, now: float) -> None:
        """Fail every job whose deadline is past; drop what waits for callers that have gone."""
        if self.line.rows:
            self._fail(self.line.expire(now), self._too_late())
        for run in self._in_flight.values():
            # A late job keeps its place in the frame, so that the rows of the others still line up.
            late = [job for job in run.jobs if job.failure is None and job.deadline < now]
            if late:
                run.late = True
                self._fail(late, self._too_late())
        for jobs in self._again:
            self._fail([job for job in jobs if job.failure is None and job.deadline < now], self._too_late())

    def refuse_waiting(self, text: str) -> None:
        """Fail everything that waits: the engine will not come back by itself."""
        self.refusing = text
        self._fail(self.line.clear(), self._unavailable(text))

    def close(self) -> None:
        """Disconnect; jobs that are left fail."""
        self._closing = True
        for link in (self._link, self._greeting):
            if link is not None:
                link.close()
        # At once: when the loop tells of the end of a connection, the log may be closed.
        self._let_go(self._unavailable("it is being unloaded"))
        self.refuse_waiting("it is being unloaded")

    def _fail(self, jobs: list[Job], failure: GatewayError) -> None:
        if jobs:
            for job in jobs:
                job.failure = failure
            self._done(jobs)

    def _too_late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"model '{self.model}' version {self.version} did not answer in time")

    def _unavailable(self, why: str) -> EngineUnavailable:
        return EngineUnavailable(f"model '{self.model}' version {self.version} is not available: {why}")

    def _flush(self) -> None:
        self._flush_due = False
        line = self.line
        if line.displaced:
            displaced, line.displaced = line.displaced, []
            self._fail(displaced, Overloaded(f"the queue of {line.name} is full: a request of a higher priority came"))
        most = self._frames_in_flight
        if line.pace.run_seconds < SHORT_SECONDS:
            # Two at a time would only be two small batches where one could go.
            most = 1
            if len(line) > 1 and not self._in_flight and self._gathers():
                self._flush_due = True
                self._loop.call_soon(self._flush)
                return
        while (line.rows or self._again) and self._link is not None and len(self._in_flight) < most:
            now = time.perf_counter()
            if self._again:
                jobs = [job for job in self._again.popleft() if job.failure is None and not job.abandoned]
            elif self._delay_seconds and self._held_back(now):
                break
            else:
                # With nothing in flight the next run is tried, however slow the last ones were: it may have changed.
                ahead = len(self._in_flight)
                jobs, late = line.take(horizon=now + (ahead + 1) * line.pace.frame_seconds if ahead else now)
                if late:
                    self._fail(late, self._too_late())
            if jobs:
                self._ask(jobs, self._link, now=now)

    def _gathers(self) -> bool:
        # Whether another pass of the loop is worth it. Where some came together, others are about to come: to read
        # them too takes less than a run and its answers for each few. It ends with the pass that brings nobody.
        line, now = self.line, time.perf_counter()
        if not self._gathering:
            self._gather_until = now + GATHER_SECONDS
        if (
            self._gathered_rows < line.rows < line.pace.rows
            and self._gathering < GATHER_PASSES
            and now < self._gather_until
            and line.size_bytes < LARGE_BYTES * len(line)
            and not self._again
        ):
            self._gathered_rows = line.rows
            self._gathering += 1
            return True
        self._gathered_rows = self._gathering = 0
        return False

    def _held_back(self, now: float) -> bool:
        # Whether the next batch may still be filled; it is looked at again when it may not.
        left = self.line.release_at(self._delay_seconds) - now
        if left <= 0:
            return False
        if self._release is not None and self._release.when() > self._loop.time() + left + RELEASE_SECONDS:
            self._release.cancel()  # one came since who has less time
            self._release = None
        if self._release is None:
            self._release = self._loop.call_later(left, self._release_batch)
        return True

    def _release_batch(self) -> None:
        self._release = None
        self._flush()

    def _ask(self, jobs: list[Job], link: _Link, *, now: float) -> None:
        try:
            jobs, whole, refused = self._read(jobs)
        except Exception:
            # They are in no queue any more: without this nobody would ever answer them.
            _log.exception("a batch for model '%s' version %d could not be read", self.model, self.version)
            failure = ModelFailed(f"model '{self.model}' version {self.version} cannot be asked")
            for job in jobs:
                job.failure = job.failure or failure
            self._done(jobs)
            return
        if refused:
            self._done(refused)
        if jobs:
            self._send(jobs, link, now=now, whole=whole)

    def _send(self, jobs: list[Job], link: _Link, *, now: float, whole: list[Array] | None) -> None:
        self._next_id += 1
        run = Run(jobs, 0, sent_at=now, inputs=whole)
        rows, latest = 0, 0.0
        for job in jobs:
            job.run = run
            job.row = rows
            rows += job.rows
            if job.deadline > latest:
                latest = job.deadline
        run.rows = rows
        try:
            frame = self._frame_of(run, link, deadline=latest)
        except Exception as error:
            # Inputs are checked long before; whatever slips through fails its own batch and takes no place in flight.
            run.end()
            self._fail(jobs, ModelFailed(f"model '{self.model}' version {self.version} cannot be asked: {error}"))
            return
        self._in_flight[self._next_id] = run
        if self.line.rows:
            self._pressed.add(self._next_id)
        link.send(frame)

    def _frame_of(self, run: Run, link: _Link, *, deadline: float) -> bytes | list[Any]:
        jobs, whole = run.jobs, run.inputs
        parts: Sequence[Sequence[Array]]
        if whole is None and len(jobs) > 1:
            parts = [list(arrays) for arrays in zip(*[job.inputs for job in jobs], strict=True)]
        else:
            inputs = jobs[0].inputs if whole is None else whole
            if len(inputs) == 1 and (frame := encode_run_of_one(self._next_id, inputs[0], deadline=deadline)):
                return frame
            parts = [[array] for array in inputs]
        arena = self._arena if link.shares and max([job.size for job in jobs]) >= LARGE_BYTES else None
        if arena is not None:
            run.lent = parts
        return encode_run(self._next_id, parts, deadline=deadline, arena=arena)

    def _connected(self, link: _Link, hello: Hello) -> None:
        self._greeting = None
        if not self._greeted(hello):
            link.close()
            return
        if self._arena is not None and hello.shared_memory:
            link.share(self._arena)
        self._link = link
        self.hello = hello
        self.refusing = None
        self._delay_seconds = hello.max_delay_us / 1e6 if hello.batchable else 0.0
        self.line.join_up_to(
            hello.max_rows if hello.batchable else 0,
            free_axes=any(FREE in spec.shape[1:] for spec in hello.signature.inputs),
        )
        self._flush()

    def _result(self, frame_id: int, nanoseconds: int, outputs: list[Array]) -> None:
        run = self._in_flight.pop(frame_id)
        run.results = outputs
        run.inference_ns = nanoseconds
        jobs, rows, now = run.end(), run.rows, time.perf_counter()
        shared = len(jobs) > 1 or jobs[0].requests > 1
        mixed = shared and any([output.ndim == 0 or len(output) != rows for output in outputs])
        if run.late or mixed:
            jobs = [job for job in jobs if job.failure is None]
        if jobs and not mixed:
            self._done(jobs)
        # Callers have their answers before anything is done for later ones.
        self._learn(frame_id, rows, sent_at=run.sent_at, run_seconds=nanoseconds / 1e9, now=now)
        if mixed:
            self._stop_joining(each_apart(jobs))
        self._flush()

    def _failed(self, frame_id: int, text: str) -> None:
        jobs = each_apart(self._in_flight.pop(frame_id).end())
        self._pressed.discard(frame_id)
        if len(jobs) > 1:
            self._halve(jobs)
        else:
            self._note_failure(text)
            failure = ModelFailed(f"model '{self.model}' version {self.version} failed on this request")
            self._fail([job for job in jobs if job.failure is None], failure)
        self._flush()

    def _stopped(self, frame_id: int) -> None:
        jobs, now = each_apart(self._in_flight.pop(frame_id).end()), time.perf_counter()
        self._pressed.discard(frame_id)
        left = [job for job in jobs if job.failure is None]
        in_time = [job for job in left if job.deadline > now]
        if len(jobs) > 1 and in_time:
            # It was the longest run an engine may have that stopped it, for which perhaps one of them is to blame.
            self._fail([job for job in left if job.deadline <= now], self._too_late())
            self._halve(in_time)
        else:
            self._fail(left, self._too_late())
        self._flush()

    def _halve(self, jobs: list[Job]) -> None:
        # Only the guilty one shall fail. Halves find it in few runs: a job is run again at most as often as its batch
        # can be halved.
        middle = len(jobs) // 2
        self._again.extendleft(half for half in (jobs[middle:], jobs[:middle]) if half)

    def _note_failure(self, text: str) -> None:
        # What a model says of a failure may hold what a caller sent: it is for the log, where no caller can say much.
        now = self._loop.time()
        if now < self._silent_until:
            self._unsaid += 1
            return
        others = f" ({self._unsaid} other failures since the one that was told before)" if self._unsaid else ""
        _log.warning("model '%s' version %d failed on a request%s: %s", self.model, self.version, others, text)
        self._silent_until, self._unsaid = now + SILENT_SECONDS, 0

    def _stop_joining(self, jobs: list[Job]) -> None:
        # The manifest was wrong about the rows: whose they are cannot be told, so none are answered with these.
        _log.warning("model '%s' version %d mixes the rows of a batch: it is run one by one", self.model, self.version)
        self.line.join_up_to(0, free_axes=False)
        self._again.extendleft([job] for job in reversed(jobs))

    def _learn(self, frame_id: int, rows: int, *, sent_at: float, run_seconds: float, now: float) -> None:
        since = self._answered_at if self._answered_at > sent_at else sent_at
        self._answered_at = now
        pressed = frame_id in self._pressed
        if pressed:
            self._pressed.discard(frame_id)
        self.line.pace.add(rows=rows, run_seconds=run_seconds, seconds=now - since, pressed=pressed)

    def _lost(self, link: _Link) -> None:
        if link is self._greeting:
            self._greeting = None
        if link is self._link:
            self._let_go(
                ModelFailed(
                    f"the engine of model '{self.model}' version {self.version} ended while running this request"
                )
            )

    def _let_go(self, failure: GatewayError) -> None:
        """Fail what is in flight on the connection there was."""
        self._link = None
        lent = [run.lent for run in self._in_flight.values() if run.lent is not None]
        if lent:
            # It may still be in the middle of a run.
            self._loop.call_later(self._linger_seconds, lent.clear)
        asked = [*(run.end() for run in self._in_flight.values()), *self._again]
        self._in_flight.clear()
        self._pressed.clear()
        self._again.clear()
        self._fail([job for jobs in asked for job in jobs if job.failure is None], failure)


class _Link(asyncio.BufferedProtocol):
    """One connection to the engine."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._reader = FrameReader()
        self._transport: asyncio.Transport
        self._is_made = False
        self.shares = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_made = True
        if self._lane._closing:  # noqa: SLF001
            self.close()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        lane, reader = self._lane, self._reader
        frames: Iterable[Frame]
        try:
            received = reader.beginning(nbytes)
            if received is not None:
                one = decode_result_of_one(received)
                if one is not None:
                    lane._result(*one)  # noqa: SLF001
                    return
                frames = reader.feed(received)
            else:
                frames = reader.received(nbytes)
            for kind, count, frame_id, payload in frames:
                if kind == RESULT:
                    lane._result(frame_id, *decode_result(payload, count, largest_texts=LARGE_BYTES))  # noqa: SLF001
                elif kind == FAILURE:
                    lane._failed(frame_id, str(payload, "utf-8", "replace"))  # noqa: SLF001
                elif kind == STOPPED:
                    lane._stopped(frame_id)  # noqa: SLF001
                elif kind == HELLO:
                    lane._connected(self, msgspec.json.decode(payload, type=Hello))  # noqa: SLF001
        except (WireError, msgspec.MsgspecError):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lane._lost(self)  # noqa: SLF001

    def send(self, frame: bytes | Sequence[bytes | memoryview]) -> None:
        if isinstance(frame, bytes):
            self._transport.write(frame)
        else:
            write_frame(self._transport, frame)

    def share(self, arena: Arena) -> None:
        """Give the engine the front's memory; nothing has been sent before."""
        # A transport sends no descriptors. Where this one does not either, tensors are sent as before.
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as end,
        ):
            frame = encode_arena(arena.size_bytes)
            self.shares = socket.send_fds(end, [frame], [arena.descriptor]) == len(frame)

    def close(self) -> None:
        if self._is_made:
            self._transport.close()
