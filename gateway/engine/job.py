"""One request on its way through an engine."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from gateway.protocol.errors import GatewayError

__all__ = ("DEFAULT_PRIORITY", "HIGH", "LOW", "LOWEST_PRIORITY", "NORMAL", "Job", "rank_of")

HIGH, NORMAL, LOW = -1, 0, 1
DEFAULT_PRIORITY, LOWEST_PRIORITY = 2, 3
"""Priorities as Triton counts them: 1 is the highest."""

Array = np.ndarray[Any, np.dtype[Any]]


class Job(msgspec.Struct, eq=False, kw_only=True):
    """One request on its way through an engine.

    Attributes
    ----------
    inputs : list of arrays
        In the signature's order.
    rows : int
    size : int
        Bytes it takes while it waits; its body is a good measure.
    rank : int
        `HIGH`, `NORMAL` or `LOW`.
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

    inputs: list[Array] = []
    rows: int = 1
    size: int = 0
    rank: int = NORMAL
    deadline: float = 0.0
    results: list[Array] = []
    row: int = 0
    failure: GatewayError | None = None
    queued_at: float = 0.0
    sent_at: float = 0.0
    inference_ns: int = 0
    batch_rows: int = 0
    abandoned: bool = False

    @property
    def outputs(self) -> list[Array]:
        """The job's own part of `results`."""
        if self.rows == self.batch_rows:
            return self.results
        return [result[self.row : self.row + self.rows] for result in self.results]


def rank_of(priority: int) -> int:
    """The rank of a priority as Triton counts it: 1 is the highest, 0 none in particular, here as good as 2.

    >>> [rank_of(priority) for priority in (1, 0, 2, 3, 100)] == [HIGH, NORMAL, NORMAL, LOW, LOW]
    True
    """
    return (NORMAL, HIGH, NORMAL)[priority] if priority <= 2 else LOW
