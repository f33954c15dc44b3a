"""What the statistics extension tells of one version, counted run by run in this front's metric file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.engine.job import Run
from gateway.telemetry.catalog import BATCH_ROWS, STAGES
from gateway.telemetry.cells import CellFile, Counter

__all__ = ("RunTally", "batch_label")


class Arrived(Protocol):
    """What is counted of an inference; times in seconds of `time.perf_counter()`."""

    arrived: float
    queued_at: float
    rows: int


class RunTally:
    """Counts runs of one version.

    Parameters
    ----------
    labels : dict
        `model` and `version`.
    cells : CellFile
        This front's metrics.
    """

    def __init__(self, labels: dict[str, str], cells: CellFile) -> None:
        self._labels = labels
        self._cells = cells
        self._rows = cells.counter("gateway_rows_total", labels)
        self._last = cells.gauge("gateway_last_inference_timestamp_seconds", labels)
        self._stages = [cells.counter("gateway_stage_seconds_total", {**labels, "stage": stage}) for stage in STAGES]
        self._batches: dict[int, tuple[Counter, Counter]] = {}

    def __repr__(self) -> str:
        return f"<RunTally {self._labels['model']}/{self._labels['version']} rows {self._rows.value:g}>"

    def add(self, run: Run, jobs: Sequence[Arrived], *, now: float, time: float) -> None:
        """Count one run.

        Parameters
        ----------
        run : Run
        jobs : sequence of inferences
            Those that it answered; not empty.
        now : float
            When they were answered, in seconds of `time.perf_counter()`.
        time : float
            Seconds since 1970.
        """
        count = len(jobs)
        queued = sum([job.queued_at for job in jobs])
        seconds = run.inference_ns / 1e9
        read, waited, ran, written = self._stages
        read.inc(queued - sum([job.arrived for job in jobs]))
        waited.inc(count * run.sent_at - queued)
        ran.inc(count * seconds)
        written.inc(max(0.0, count * (now - run.sent_at - seconds)))
        self._rows.inc(sum([job.rows for job in jobs]))
        self._last.set(time)
        batches = self._batches.get(run.rows)
        if batches is None:
            batches = self._open(run.rows)
        batches[0].inc()
        batches[1].inc(seconds)

    def _open(self, rows: int) -> tuple[Counter, Counter]:
        labels = {**self._labels, "rows": batch_label(rows)}
        counters = (
            self._cells.counter("gateway_batches_total", labels),
            self._cells.counter("gateway_batch_seconds_total", labels),
        )
        if len(self._batches) < 4096:
            self._batches[rows] = counters
        return counters


def batch_label(rows: int) -> str:
    """The label of a run of so many rows: the smallest of the catalog's sizes that holds it.

    >>> batch_label(1), batch_label(33), batch_label(10_000_000)
    ('1', '64', '65536')
    """
    return next((label for label in BATCH_ROWS if rows <= int(label)), BATCH_ROWS[-1])
