"""Large bodies that wait to be read, one after another.

Nobody reads for a caller who has gone or whose time is up, and who would have to wait too long is told so at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Any, NamedTuple

from gateway.protocol.errors import Overloaded
from gateway.serving.inference import Inference

__all__ = ("Unread", "UnreadLine")

FIRST_SECONDS = 0.01
"""What reading a body is taken to last before one has been read."""
SHARE = 0.25
"""Of a new measurement in the mean time of a body."""


class Unread(NamedTuple):
    """A request whose body waits: what reads it, and what is told of that on the loop."""

    inference: Inference
    work: Any
    then: Callable[[Future[Any]], None]
    since: float

    @property
    def is_late(self) -> bool:
        """Whether its deadline is past."""
        return self.inference.deadline < time.perf_counter()


class UnreadLine:
    """First come, first read. A thread may take from it while the loop puts in.

    Parameters
    ----------
    max_wait_seconds : float
        A request is refused when what waits before it takes longer.

    Attributes
    ----------
    seconds : float
        From one body to the next while some waited: the mean, of which recent ones are the most.
    """

    def __init__(self, *, max_wait_seconds: float) -> None:
        self.seconds = FIRST_SECONDS
        self._max_wait_seconds = max_wait_seconds
        self._waiting: deque[Unread] = deque()
        self._lock = Lock()
        self._read_at = 0.0

    def __repr__(self) -> str:
        return f"<UnreadLine {len(self)} bodies, {len(self) * self.seconds:.3g} s>"

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, inference: Inference, work: Any, then: Callable[[Future[Any]], None]) -> None:
        """Let a request wait; its deadline is known.

        Raises
        ------
        Overloaded
        """
        if self._is_long():
            self._drop_abandoned()
            if self._is_long():
                raise Overloaded(
                    f"{len(self)} large requests that wait to be read take longer than "
                    f"{self._max_wait_seconds:g} seconds (limits.max_queue_wait_ms)"
                )
        with self._lock:
            self._waiting.append(Unread(inference, work, then, time.perf_counter()))

    def take(self) -> Unread | None:
        """The next, or None where nobody waits any more."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def expire(self, now: float) -> list[Inference]:
        """Take out the requests whose deadline is past, and drop those whose callers have gone."""
        self._drop_abandoned()
        with self._lock:
            late = [unread.inference for unread in self._waiting if unread.inference.deadline < now]
            if late:
                self._waiting = deque([unread for unread in self._waiting if unread.inference.deadline >= now])
        return late

    def learn(self, unread: Unread) -> None:
        """It has been read, all of it, just now."""
        now = time.perf_counter()
        self.seconds += (now - max(unread.since, self._read_at) - self.seconds) * SHARE
        self._read_at = now

    def _is_long(self) -> bool:
        return len(self._waiting) * self.seconds > self._max_wait_seconds

    def _drop_abandoned(self) -> None:
        with self._lock:
            if any(unread.inference.abandoned for unread in self._waiting):
                self._waiting = deque([unread for unread in self._waiting if not unread.inference.abandoned])
