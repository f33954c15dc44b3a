"""Requests on their way through an engine, and the runs that they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gateway.protocol.binary import Packed
from gateway.protocol.errors import GatewayError

__all__ = ("DEFAULT_PRIORITY", "HIGH", "LOW", "LOWEST_PRIORITY", "NORMAL", "Job", "Run", "each_apart", "rank_of")

HIGH, NORMAL, LOW = -1, 0, 1
DEFAULT_PRIORITY, LOWEST_PRIORITY = 2, 3
"""Priorities as Triton counts them: 1 is the highest."""

Array = np.ndarray[Any, np.dtype[Any]]


class Run:
    """One run of a model, for one job or for several that share it.

    Attributes
    ----------
    jobs : list of Job
        Whose rows follow one another in it.
    rows : int
    sent_at : float
        `time.perf_counter()`.
    inputs : list of arrays or None
        Of all jobs together, in the signature's order, where they were read together.
    results : list of arrays
        What the run gave, in the signature's order; strings that are many are `Packed` until `read_results`.
    inference_ns : int
    late : bool
        Some of the jobs have failed while it ran.
    lent : object
        What the engine reads where it lies, or None: it must stay until the engine has done with it.
    """

    __slots__ = ("inference_ns", "inputs", "jobs", "late", "lent", "results", "rows", "sent_at")

    def __init__(self, jobs: list[Any], rows: int, *, sent_at: float, inputs: list[Array] | None = None) -> None:
        self.jobs = jobs
        self.rows = rows
        self.sent_at = sent_at
        self.inputs = inputs
        self.results: list[Any] = []
        self.inference_ns = 0
        self.late = False
        self.lent: object = None

    def __repr__(self) -> str:
        return f"<Run of {len(self.jobs)} jobs, {self.rows} rows>"

    @property
    def nbytes(self) -> int:
        """Of its results."""
        size = 0
        for result in self.results:
            size += result.nbytes
        return size

    def nbytes_of(self, job: Job) -> int:
        """Of the results, those of one job's rows."""
        if job.rows == self.rows:
            return self.nbytes  # also of a run without rows, which may give much all the same
        return self.nbytes * job.rows // self.rows

    @property
    def is_unread(self) -> bool:
        """Whether strings are among the results that have still to be read."""
        return any([isinstance(result, Packed) for result in self.results])

    def read_results(self) -> None:
        """Read the strings among the results that nobody has read."""
        self.results = [result.read() if isinstance(result, Packed) else result for result in self.results]

    def end(self) -> list[Any]:
        """Let go of the jobs, each of which holds this run, so that none waits for the collector of cycles."""
        jobs, self.jobs = self.jobs, []
        self.lent = None
        return jobs


class Job:
    """One request on its way through an engine, or several as one.

    A plain object with slots: thousands a second are made, and each attribute of theirs is set once.

    Attributes
    ----------
    inputs : sequence of arrays
        In the signature's order.
    rows : int
    size : int
        Bytes it takes while it waits; its body is a good measure.
    requests : int
        How many it is.
    is_joint : bool
        Whether it has to be taken apart before any of its requests can be told from the others.
    rank : int
        `HIGH`, `NORMAL` or `LOW`.
    queued_at : float
        `time.perf_counter()`.
    deadline : float
        `time.perf_counter()` after which no answer is wanted.
    run : Run or None
        The run it was last part of.
    row : int
        Where the job's rows begin in it.
    failure : GatewayError or None
    abandoned : bool
        The caller has gone; a job that still waits is dropped.
    """

    __slots__ = ("abandoned", "deadline", "failure", "inputs", "queued_at", "rank", "row", "rows", "run", "size")

    requests: int = 1
    is_joint: bool = False

    def __init__(self) -> None:
        self.inputs: Sequence[Array] = ()
        self.rows = 1
        self.size = 0
        self.rank = NORMAL
        self.queued_at = self.deadline = 0.0
        self.run: Run | None = None
        self.row = 0
        self.failure: GatewayError | None = None
        self.abandoned = False

    @property
    def is_deserted(self) -> bool:
        """Whether the caller, or one of several, has gone."""
        return self.abandoned

    def apart(self) -> Sequence[Job]:
        """Each of its requests as a job of its own, with what has become of it so far."""
        return (self,)

    @property
    def outputs(self) -> list[Array]:
        """The job's own part of its run's results."""
        run = self.run
        if run is None:
            return []
        if self.rows == run.rows:
            return run.results
        return [result[self.row : self.row + self.rows] for result in run.results]


def each_apart(jobs: Iterable[Any]) -> list[Any]:
    """The requests of jobs, in order, each as a job of its own."""
    return [each for job in jobs for each in job.apart()]


def rank_of(priority: int) -> int:
    """The rank of a priority as Triton counts it: 1 is the highest, 0 none in particular, here as good as 2.

    >>> [rank_of(priority) for priority in (1, 0, 2, 3, 100)] == [HIGH, NORMAL, NORMAL, LOW, LOW]
    True
    """
    return (NORMAL, HIGH, NORMAL)[priority] if priority <= 2 else LOW
