"""What the statistics extension tells of one version, counted run by run in this front's metric file."""

from __future__ import annotations

from gateway.engine.job import Run
from gateway.telemetry.catalog import BATCH_ROWS, STAGES
from gateway.telemetry.cells import CellFile, Counter, add_all

__all__ = ("RunTally", "batch_label")


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
        stages = [cells.counter("gateway_stage_seconds_total", {**labels, "stage": stage}) for stage in STAGES]
        self._added = (*stages, self._rows)
        self._batches: dict[int, tuple[Counter, Counter]] = {}

    def __repr__(self) -> str:
        return f"<RunTally {self._labels['model']}/{self._labels['version']} rows {self._rows.value:g}>"

    def add(self, run: Run, count: int, rows: int, *, arrived: float, queued: float, now: float) -> None:
        """Count requests that a run has answered.

        Parameters
        ----------
        run : Run
        count, rows : int
            How many they are, and their rows.
        arrived, queued : float
            Sums of when each of them arrived and was queued, in seconds of `time.perf_counter()`.
        now : float
            When they were answered.
        """
        seconds = run.inference_ns / 1e9
        read, waited = max(0.0, queued - arrived), max(0.0, count * run.sent_at - queued)
        written = max(0.0, count * (now - run.sent_at - seconds))
        add_all(self._added, (read, waited, count * seconds, written, rows))

    def count_run(self, run: Run, *, time: float) -> None:
        """Count a run that has answered requests by `time`, in seconds since 1970."""
        self._last.set(time)
        batches = self._batches.get(run.rows)
        if batches is None:
            batches = self._open(run.rows)
        add_all(batches, (1.0, run.inference_ns / 1e9))

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
