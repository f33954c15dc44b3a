"""Requests that wait for one engine: who is let in, who is next, and what goes together."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import msgspec

from gateway.engine.job import HIGH, LOW, NORMAL, Job
from gateway.engine.pace import Pace
from gateway.protocol.errors import Overloaded

__all__ = ("QueueLimits", "WaitingLine")

HEAD_START_SECONDS = 0.5  # what one rank is worth: a request that came so much earlier goes before one ranked higher
LOOK_AHEAD = 64  # requests of other axes that a batch may pass over
OPEN = LOW + 1  # no rank is refused


class QueueLimits(msgspec.Struct, frozen=True):
    """What may wait for one version in one front, and what may go together.

    `max_requests` and `max_bytes` (of their bodies) wait at most, and nothing that would wait longer than
    `max_wait_seconds`. A batch holds at most `batch_bytes`, and a run is expected to take at most `batch_seconds`.
    """

    max_requests: int = 4096
    max_bytes: int = 2**26
    max_wait_seconds: float = 2.0
    batch_bytes: int = 2**22
    batch_seconds: float = 0.1


class WaitingLine:
    """A bounded queue of jobs, in order of arrival within a rank.

    Parameters
    ----------
    name : str
        Whose line it is, for refusals: "model 'm' version 1".
    limits : QueueLimits

    Attributes
    ----------
    rows : int
        That wait; 0 only when nothing waits (a request without rows counts as one).
    newest : Job or None
        The job that was put last, as long as nothing has left the line since.
    closed_for : int
        Requests of this rank and below it are refused until something leaves the line.
    displaced : list of Job
        Left the line, and are still to be refused, to make room for a job of a higher rank.
    """

    def __init__(self, name: str, *, limits: QueueLimits) -> None:
        self.rows = 0
        self._requests = 0
        self.newest: Job | None = None
        self.closed_for = OPEN
        self.displaced: list[Job] = []
        self.pace = Pace(max_rows=1, batch_seconds=limits.batch_seconds, few=limits.max_requests)
        self.name = name
        self._limits = limits
        self._max_bytes = limits.max_bytes
        self._few_bytes = min(limits.max_bytes, limits.batch_bytes)
        self.size_bytes = 0
        self._refusal = ""
        self._normal: deque[Job] = deque()
        self._ranked: dict[int, deque[Job]] = {HIGH: deque(), NORMAL: self._normal, LOW: deque()}
        self._others = 0  # that wait with another rank than the normal one
        self._joins = False
        self._free_axes = False

    def __repr__(self) -> str:
        return f"<WaitingLine {len(self)} requests, {self.rows} rows, {self.size_bytes} bytes | {self.pace!r}>"

    def __len__(self) -> int:
        return self._requests

    def __iter__(self) -> Iterator[Job]:
        for queue in self._ranked.values():
            yield from queue

    def join_up_to(self, max_rows: int, *, free_axes: bool) -> None:
        """Put requests together, up to so many rows; 0 lets each go alone.

        Parameters
        ----------
        free_axes : bool
            Requests may differ in other axes than the first; only equal ones go together.
        """
        self._joins = max_rows > 0
        self._free_axes = free_axes
        limits = self._limits
        self.pace = Pace(max_rows=max_rows or 1, batch_seconds=limits.batch_seconds, few=limits.max_requests)

    def put(self, job: Job) -> None:
        """Let a job in.

        Raises
        ------
        Overloaded
        """
        rows = self.rows + (job.rows or 1)
        size = self.size_bytes + job.size
        if rows > self.pace.few_rows or size > self._max_bytes or job.rank:
            self._make_room(job)
            rows = self.rows + (job.rows or 1)
            size = self.size_bytes + job.size
            if job.rank:
                self._others += 1
                self._ranked[job.rank].append(job)
            else:
                self._normal.append(job)
        else:
            self._normal.append(job)
        self.rows = rows
        self.size_bytes = size
        self._requests += job.requests
        self.newest = job

    def grow(self, rows: int, size: int) -> bool:
        """Let the newest job be one request more, of so many rows and bytes, if all that waits still fits one batch."""
        rows += self.rows
        size += self.size_bytes
        if rows > self.pace.few_rows or size > self._few_bytes:
            return False
        self.rows = rows
        self.size_bytes = size
        self._requests += 1
        return True

    def refusal(self) -> Overloaded:
        """What a request of a rank that the line is closed for is told."""
        return Overloaded(self._refusal)

    def take(self, *, horizon: float) -> tuple[list[Job], list[Job]]:
        """Take the next batch.

        Parameters
        ----------
        horizon : float
            `time.perf_counter()` when its answer is expected.

        Returns
        -------
        list of Job
            What goes together; empty when nobody waits any more.
        list of Job
            Those whose deadline is before the horizon.
        """
        most = self.pace.rows if self._joins else 0
        most_bytes = self._limits.batch_bytes
        if self.rows <= most and self.size_bytes <= most_bytes and not (self._others or self._free_axes):
            wanted = [job for job in self._normal if job.deadline >= horizon and not job.abandoned]
            if len(wanted) == len(self._normal):
                self._normal.clear()
                self._let_go(self.rows, self.size_bytes, self._requests)
                return wanted, []
        batch: list[Job] = []
        late: list[Job] = []
        passed: list[Job] = []
        rows = size = 0  # of the batch
        gone_rows = gone_bytes = gone = 0
        while self._normal or self._others:
            queue = self._leading() if self._others else self._normal
            job = queue[0]
            weight = job.rows or 1
            if job.is_joint and (job.deadline < horizon or (weight > most and job.requests > 1)):
                # It was to fit a batch, and batches have become smaller since; or its first is late.
                queue.popleft()
                queue.extendleft(reversed(job.apart()))
                continue
            if batch and (rows + weight > most or size + job.size > most_bytes):
                break
            queue.popleft()
            if job.rank:
                self._others -= 1
            if job.abandoned:
                pass
            elif job.deadline < horizon:
                late.append(job)
            elif batch and self._free_axes and _axes(job) != _axes(batch[0]):
                passed.append(job)
                if len(passed) > LOOK_AHEAD:
                    break
                continue
            else:
                batch.append(job)
                rows += weight
                size += job.size
            gone_rows += weight
            gone_bytes += job.size
            gone += job.requests
        for job in reversed(passed):
            self._others += job.rank != NORMAL
            self._ranked[job.rank].appendleft(job)
        self._let_go(gone_rows, gone_bytes, gone)
        return batch, late

    def expire(self, now: float) -> list[Job]:
        """Take out the jobs whose deadline is past, and drop those whose callers have gone."""
        if not any(job.is_deserted or job.deadline < now for job in self):
            return []
        jobs: list[Job] = []
        for job in self:
            jobs += job.apart() if job.is_deserted or job.deadline < now else (job,)
        late = [job for job in jobs if job.deadline < now and not job.abandoned]
        kept = [job for job in jobs if job.deadline >= now and not job.abandoned]
        self.clear()
        for job in kept:
            self._ranked[job.rank].append(job)
        self._others = len(kept) - len(self._normal)
        self.rows = sum(job.rows or 1 for job in kept)
        self._requests = sum(job.requests for job in kept)
        self.size_bytes = sum(job.size for job in kept)
        return late

    def clear(self) -> list[Job]:
        """Take out everything."""
        left = list(self)
        for queue in self._ranked.values():
            queue.clear()
        self._others = 0
        self._let_go(self.rows, self.size_bytes, self._requests)
        return left

    def release_at(self, delay: float) -> float:
        """Until when the next batch may wait to be filled, at most `delay` seconds and half of anybody's time.

        The line must not be empty.
        """
        if self.rows >= self.pace.rows:
            return 0.0
        return min(min(job.queued_at + delay, (job.queued_at + job.deadline) / 2) for job in self)

    def _let_go(self, rows: int, size: int, requests: int) -> None:
        self.rows -= rows
        self.size_bytes -= size
        self._requests -= requests
        self.newest = None
        self.closed_for = OPEN

    def _leading(self) -> deque[Job]:
        # First come, first served among virtual arrivals: a rank is a head start, so nobody starves.
        queues = [queue for queue in self._ranked.values() if queue]
        return min(queues, key=lambda queue: queue[0].queued_at + HEAD_START_SECONDS * queue[0].rank)

    def _make_room(self, job: Job) -> None:
        pushed_out: list[Job] = []
        try:
            self._push_out(job, pushed_out)
        except Overloaded:
            for each in reversed(pushed_out):
                self._ranked[each.rank].append(each)
                self._weigh(each, 1)
            raise
        self.displaced += [each for each in pushed_out if not each.abandoned]

    def _push_out(self, job: Job, pushed_out: list[Job]) -> None:
        # Until there is room for the job; it may turn out that there never is, and then all of them stay.
        while (reason := self._lacking(job)) is not None:
            queue = next((self._ranked[rank] for rank in (LOW, NORMAL) if rank > job.rank and self._ranked[rank]), None)
            if queue is None:
                refusal = f"the queue of {self.name} is full: {reason}"
                # One that is too large for what is left says nothing of such as wait here.
                is_large = self.size_bytes + job.size > self._max_bytes
                if not is_large or self.size_bytes + self.size_bytes / len(self) > self._max_bytes:
                    self.closed_for = min(self.closed_for, job.rank)
                    self._refusal = refusal
                raise Overloaded(refusal)
            if queue[-1].is_joint:
                queue.extend(queue.pop().apart())
            pushed_out.append(queue.pop())
            self._weigh(pushed_out[-1], -1)
        if self.rows > self.pace.rows and job.rank != HIGH:
            wait = self._seconds() + self.pace.frame_seconds
            if job.queued_at + wait > job.deadline:
                raise Overloaded(f"{self.name} would not answer in time: about {wait:.3g} s wait before this request")

    def _weigh(self, job: Job, sign: int) -> None:
        # Of one that comes (1) or goes (-1).
        self._others += sign * (job.rank != NORMAL)
        self.rows += sign * (job.rows or 1)
        self.size_bytes += sign * job.size
        self._requests += sign * job.requests
        self.newest = None

    def _lacking(self, job: Job) -> str | None:
        limits = self._limits
        if not self.rows:
            return None
        if len(self) >= limits.max_requests:
            return f"{len(self)} requests wait (limits.max_queue_requests)"
        if self.size_bytes + job.size > limits.max_bytes:
            return f"{self.size_bytes} bytes wait (limits.max_queue_bytes)"
        # What fits one batch goes with the next run, however slow that is; and only a longer line can be timed.
        if self.rows > self.pace.rows and (seconds := self._seconds()) > limits.max_wait_seconds:
            return f"what waits takes {seconds:.3g} s (limits.max_queue_wait_ms)"
        return None

    def _seconds(self) -> float:
        # How long what waits takes.
        frames = float(len(self))
        if self._joins:
            # Where requests of some axes wait for others, only what has been seen tells how many go together.
            fill = self.pace.usual_rows if self._free_axes else self.pace.rows
            fullest = max(self.rows / max(fill, 1.0), self.size_bytes / self._limits.batch_bytes)
            frames = min(frames, math.ceil(fullest))
        return self.pace.seconds_of(self.rows, frames)


def _axes(job: Job) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in job.inputs]
