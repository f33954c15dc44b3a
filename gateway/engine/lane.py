"""A front's way to one engine: queue, batches, deadlines.

What arrived in one pass of the loop goes as one frame; while `frames_in_flight` frames are out, what arrives waits and
forms the next one. No timer adds delay. Order is first come, first served.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from gateway.engine.address import short_address
from gateway.engine.errors import WireError
from gateway.engine.wire import FAILURE, HELLO, RESULT, STOPPED, FrameReader, Hello, decode_result, encode_run
from gateway.protocol.errors import DeadlineExceeded, EngineUnavailable, GatewayError, ModelFailed, Overloaded

__all__ = ("Job", "Lane")

Array = np.ndarray[Any, np.dtype[Any]]


class Job:
    """One request on its way through an engine.

    Attributes
    ----------
    inputs : list of arrays
        In the signature's order.
    rows : int
    deadline : float
        `time.perf_counter()` after which no answer is wanted.
    results : list of arrays
        What the run gave, in the signature's order, once the job is done and `failure` is None.
    row : int
        Where the job's rows begin in them.
    queued_at, sent_at : float
        `time.perf_counter()`.
    inference_ns : int
        Of the run the job was part of.
    batch_rows : int
        Rows of that run.
    abandoned : bool
        The caller has gone; a job that still waits is dropped.
    """

    __slots__ = (
        "abandoned",
        "batch_rows",
        "deadline",
        "failure",
        "inference_ns",
        "inputs",
        "queued_at",
        "results",
        "row",
        "rows",
        "sent_at",
    )

    def __init__(self) -> None:
        self.inputs: list[Array] = []
        self.rows = 1
        self.deadline = 0.0
        self.results: list[Array] = []
        self.row = 0
        self.failure: GatewayError | None = None
        self.queued_at = 0.0
        self.sent_at = 0.0
        self.inference_ns = 0
        self.batch_rows = 0
        self.abandoned = False

    @property
    def outputs(self) -> list[Array]:
        """The job's own part of `results`."""
        if self.rows == self.batch_rows:
            return self.results
        return [result[self.row : self.row + self.rows] for result in self.results]


class Lane:
    """Requests of one model version, from one front, to its engine.

    Parameters
    ----------
    model, version
        What is served.
    socket_path : Path
        The engine's socket; it may come and go.
    done : callable
        Called with the jobs of a finished frame, answered or failed, in order.
    greeted : callable
        Called with the engine's greeting each time one is reached, before anything is sent to it; an engine that is
        not the one asked for (False) is left alone.
    max_queue : int
        Jobs that may wait.
    frames_in_flight : int
    """

    def __init__(
        self,
        model: str,
        version: int,
        *,
        socket_path: Path,
        done: Callable[[list[Any]], None],
        greeted: Callable[[Hello], bool],
        max_queue: int,
        frames_in_flight: int,
    ) -> None:
        self.model = model
        self.version = version
        self.hello: Hello | None = None
        self.refusing: str | None = None
        self._socket_path = socket_path
        self._done = done
        self._greeted = greeted
        self._max_queue = max_queue
        self._frames_in_flight = frames_in_flight
        self._waiting: deque[Job] = deque()
        self._in_flight: dict[int, list[Job]] = {}
        self._next_id = 0
        self._link: _Link | None = None
        self._greeting: _Link | None = None
        self._flush_due = False
        self._free_axes = False
        self._loop = asyncio.get_running_loop()
        self._closing = False

    def __repr__(self) -> str:
        state = "up" if self._link else "down"
        return (
            f"<Lane {self.model}/{self.version} {state} | waiting {len(self._waiting)} | frames {len(self._in_flight)}>"
        )

    @property
    def ready(self) -> bool:
        """Whether an engine is connected."""
        return self._link is not None

    @property
    def idle(self) -> bool:
        """Whether no job waits or runs."""
        return not self._waiting and not self._in_flight

    def submit(self, job: Job) -> None:
        """Queue a job; `done` is called with it later, never from here.

        Raises
        ------
        Overloaded
            The queue is full.
        EngineUnavailable
            The engine will not come back by itself.
        """
        if len(self._waiting) >= self._max_queue:
            raise Overloaded(f"the queue of model '{self.model}' version {self.version} is full")
        if self.refusing is not None and self._link is None:
            raise EngineUnavailable(f"model '{self.model}' version {self.version} is not available: {self.refusing}")
        job.queued_at = time.perf_counter()
        self._waiting.append(job)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    async def connect(self) -> bool:
        """Try once to reach the engine; True when it is connected, or connecting and about to greet."""
        if self._link is not None or self._greeting:
            return self._link is not None
        link = self._greeting = _Link(self)
        try:
            with short_address(self._socket_path) as address:
                await self._loop.create_unix_connection(lambda: link, address)
        except OSError:
            self._greeting = None
            return False
        return True

    def expire(self, now: float) -> None:
        """Fail every job whose deadline is past; drop what waits for callers that have gone."""
        if self._waiting and (self._link is None or min(job.deadline for job in self._waiting) < now):
            kept: deque[Job] = deque()
            expired: list[Job] = []
            for job in self._waiting:
                if job.abandoned:
                    continue
                (expired if job.deadline < now else kept).append(job)
            self._waiting = kept
            self._fail(expired, DeadlineExceeded(f"model '{self.model}' version {self.version} did not answer in time"))
        for jobs in self._in_flight.values():
            # A late job keeps its place in the frame, so that the rows of the others still line up.
            late = [job for job in jobs if job.failure is None and job.deadline < now]
            self._fail(late, DeadlineExceeded(f"model '{self.model}' version {self.version} did not answer in time"))

    def refuse_waiting(self, text: str) -> None:
        """Fail everything that waits: the engine will not come back by itself."""
        self.refusing = text
        waiting, self._waiting = list(self._waiting), deque()
        self._fail(waiting, EngineUnavailable(f"model '{self.model}' version {self.version} is not available: {text}"))

    def close(self) -> None:
        """Disconnect; jobs that are left fail."""
        self._closing = True
        for link in (self._link, self._greeting):
            if link is not None:
                link.close()
        self.refuse_waiting("it is being unloaded")

    def _fail(self, jobs: list[Job], failure: GatewayError) -> None:
        if jobs:
            for job in jobs:
                job.failure = failure
            self._done(jobs)

    def _flush(self) -> None:
        self._flush_due = False
        while self._waiting and self._link is not None and len(self._in_flight) < self._frames_in_flight:
            jobs = self._next_batch()
            if jobs:
                self._send(jobs, self._link)

    def _next_batch(self) -> list[Job]:
        waiting = self._waiting
        head = waiting.popleft()
        jobs = [] if head.abandoned else [head]
        rows = head.rows
        batchable, max_rows = (self.hello.batchable, self.hello.max_rows) if self.hello else (False, 1)
        while batchable and waiting and rows + waiting[0].rows <= max_rows:
            if self._free_axes and _axes(waiting[0]) != _axes(head):
                break
            job = waiting.popleft()
            if not job.abandoned:
                jobs.append(job)
                rows += job.rows
        return jobs

    def _send(self, jobs: list[Job], link: _Link) -> None:
        self._next_id += 1
        now = time.perf_counter()
        rows, latest = 0, 0.0
        for job in jobs:
            job.sent_at = now
            rows += job.rows
            if job.deadline > latest:
                latest = job.deadline
        for job in jobs:
            job.batch_rows = rows
        parts = [list(arrays) for arrays in zip(*[job.inputs for job in jobs], strict=True)]
        try:
            frame = b"".join(encode_run(self._next_id, parts, deadline=latest))
        except (ValueError, TypeError) as error:
            # Inputs are checked long before; whatever slips through fails its own batch and takes no place in flight.
            self._fail(jobs, ModelFailed(f"model '{self.model}' version {self.version} cannot be asked: {error}"))
            return
        self._in_flight[self._next_id] = jobs
        link.send(frame)

    def _connected(self, link: _Link, hello: Hello) -> None:
        self._greeting = None
        if not self._greeted(hello):
            link.close()
            return
        self._link = link
        self.hello = hello
        self.refusing = None
        self._free_axes = any(-1 in spec.shape[1:] for spec in hello.signature.inputs)
        self._flush()

    def _result(self, frame_id: int, nanoseconds: int, outputs: list[Array]) -> None:
        jobs = self._in_flight.pop(frame_id)
        rows = jobs[0].batch_rows
        if len(jobs) > 1 and any(output.ndim == 0 or len(output) != rows for output in outputs):
            self._retry_singly(jobs)
        else:
            start = 0
            for job in jobs:
                if job.failure is None:
                    job.results = outputs
                    job.row = start
                    job.inference_ns = nanoseconds
                start += job.rows
            self._deliver(jobs)
        self._flush()

    def _failed(self, frame_id: int) -> None:
        jobs = self._in_flight.pop(frame_id)
        if len(jobs) > 1:
            self._retry_singly(jobs)
        else:
            failure = ModelFailed(f"model '{self.model}' version {self.version} failed on this request")
            self._fail([job for job in jobs if job.failure is None], failure)
        self._flush()

    def _stopped(self, frame_id: int) -> None:
        jobs = self._in_flight.pop(frame_id)
        late = [job for job in jobs if job.failure is None]
        self._fail(late, DeadlineExceeded(f"model '{self.model}' version {self.version} did not answer in time"))
        self._flush()

    def _retry_singly(self, jobs: list[Job]) -> None:
        # Only the guilty one shall fail: each is run by itself, once.
        for job in jobs:
            if job.failure is None and self._link is not None:
                self._send([job], self._link)

    def _deliver(self, jobs: list[Job]) -> None:
        answered = [job for job in jobs if job.failure is None]
        if answered:
            self._done(answered)

    def _lost(self, link: _Link) -> None:
        if link is not self._link:
            self._greeting = None
            return
        self._link = None
        lost = [job for jobs in self._in_flight.values() for job in jobs if job.failure is None]
        self._in_flight.clear()
        self._fail(
            lost,
            ModelFailed(f"the engine of model '{self.model}' version {self.version} ended while running this request"),
        )


class _Link(asyncio.Protocol):
    """One connection to the engine."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._reader = FrameReader()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        lane = self._lane
        try:
            for kind, count, frame_id, payload in self._reader.feed(data):
                if kind == RESULT:
                    lane._result(frame_id, *decode_result(payload, count))  # noqa: SLF001
                elif kind == FAILURE:
                    lane._failed(frame_id)  # noqa: SLF001
                elif kind == STOPPED:
                    lane._stopped(frame_id)  # noqa: SLF001
                elif kind == HELLO:
                    lane._connected(self, msgspec.json.decode(payload, type=Hello))  # noqa: SLF001
        except (WireError, msgspec.MsgspecError):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lane._lost(self)  # noqa: SLF001

    def send(self, frame: bytes) -> None:
        self._transport.write(frame)

    def close(self) -> None:
        self._transport.close()


def _axes(job: Job) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape[1:] for array in job.inputs)
