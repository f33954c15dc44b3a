"""What becomes of finished requests: a record in the log, an answer, counts, in this order.

The records of a batch are one write, and no answer leaves before it (`batch.py` has what is written). What would hold
the loop for long is prepared beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from gateway.engine.job import Run
from gateway.predictions.commit import GroupCommit
from gateway.predictions.spool import SpoolError, SpoolWriter
from gateway.protocol.errors import GatewayError, LogUnavailable, ModelFailed, Overloaded
from gateway.serving.aside import SideThread, are_slow_to_answer, prepare_answers
from gateway.serving.batch import Batch, BatchWriter
from gateway.serving.bundle import Bundle
from gateway.serving.inference import Inference
from gateway.serving.records import Kept, is_sampled_out, record_time
from gateway.serving.room import Room
from gateway.telemetry.cells import CellFile

__all__ = ("Delivery",)

_log = logging.getLogger(__name__)
IN_WORDS, IN_BINARY = 4, 2
"""Bytes that an answer takes while it waits, for each of its tensors: these, and in JSON most often two to three."""
UNWRITTEN = "the answer could not be written"


class Delivery:
    """Logs, counts and answers what lanes have finished, and what could not be run.

    Parameters
    ----------
    spool : SpoolWriter
        This front's stream.
    cells : CellFile
        This front's metrics.
    side : SideThread
        For what is slow to write down.
    answers : Room
        For what waits there.
    commit : GroupCommit or None
        Of the spool, where an answer leaves only when its record would survive a power loss.
    blocks : bool
        Without a record there is no answer (`spool.full = "block"`).
    kept : Kept
        Of tensors, by the log.
    """

    def __init__(
        self,
        spool: SpoolWriter,
        cells: CellFile,
        *,
        side: SideThread,
        answers: Room,
        commit: GroupCommit | None,
        blocks: bool,
        kept: Kept,
    ) -> None:
        self._spool = spool
        self._cells = cells
        self._side = side
        self._answers = answers
        self._commit = commit
        self._blocks = blocks
        self._kept = kept
        self._writer = BatchWriter(spool.boot, kept=kept)
        self._spooled = cells.counter("gateway_log_events_total", {"state": "spooled"})
        self._dropped = cells.counter("gateway_log_events_total", {"state": "dropped"})
        self._refused = cells.counter("gateway_log_events_total", {"state": "refused"})
        self._sampled_out = cells.counter("gateway_log_events_total", {"state": "sampled_out"})
        self._unsynced = cells.counter("gateway_log_events_total", {"state": "unsynced"})

    def __repr__(self) -> str:
        return f"<Delivery to {self._spool!r}>"

    def deliver(self, jobs: Sequence[Inference | Bundle]) -> None:
        """Log finished requests of one version, then release their answers.

        Those of a bundle are one write, all others are another.
        """
        now, stamp = time.perf_counter(), record_time(time.time())
        singles: list[Inference] = []
        for job in jobs:
            batch = None
            if isinstance(job, Bundle):
                batch = self._writer.write_bundle(job, sequence=self._spool.next_sequence, now=now, stamp=stamp)
            if batch is None:
                singles += job.apart()
            else:
                self._log(batch, now=now, is_last=job is jobs[-1] and not singles)
        if singles and are_slow_to_answer(singles):
            self._hold(singles)
            prepare = partial(prepare_answers, singles, kept=self._kept)
            self._side.write(prepare, partial(self._prepared, singles))
        elif singles:
            batch = self._writer.write(singles, sequence=self._spool.next_sequence, now=now, stamp=stamp)
            self._log(batch, now=now, is_last=True)

    def _log(self, batch: Batch, *, now: float, is_last: bool) -> None:
        """Log a batch and answer it; `is_last` of those that one run has answered."""
        dropped = self._spool.dropped
        try:
            self._append(batch)
        except SpoolError as error:
            # Nothing that is not in the log is answered as a prediction; what was written of the batch is.
            self.refuse(batch.apart()[error.written :])
            batch = batch.cut(error.written)
            if not batch.inferences:
                return
        batch.is_last = is_last
        dropped = self._spool.dropped - dropped
        if self._commit is None:
            self._release(batch, now)
        else:
            self._commit.after(partial(self._committed, batch), records=len(batch.inferences))
        self._count_spooled(batch, dropped=dropped)

    def _append(self, batch: Batch) -> None:
        self._spool.append(batch.records)

    def _prepared(self, inferences: Sequence[Inference], written: Future[None]) -> None:
        fault = written.exception()
        if isinstance(fault, Exception):
            for inference in inferences:
                inference.give_up(fault)
        self.deliver(inferences)

    def _hold(self, inferences: Sequence[Inference]) -> None:
        # What is written aside waits there, beside the run's results, and its client may take its time.
        for inference in inferences:
            run = inference.run
            if run is not None and inference.failure is None and inference.held_answer is None:
                held = self._answers.open()
                if held.grow(run.nbytes_of(inference) * (IN_WORDS if inference.is_worded else IN_BINARY)):
                    inference.held_answer = held
                else:
                    inference.failure = Overloaded(self._answers.full)

    def _count_spooled(self, batch: Batch, *, dropped: int) -> None:
        count = len(batch.inferences) - dropped
        self._spooled.inc(count)
        if dropped:
            self._dropped.inc(dropped)
        if count and batch.served.sample < 1:
            # Of such a version each prediction is a record by itself.
            self._sampled_out.inc(sum(is_sampled_out(record) for _, record in batch.records[:count]))

    def count_feedback(self, model: str, labels: int) -> None:
        """Count labels that are in the log."""
        self._spooled.inc(labels)
        self._cells.counter("gateway_feedback_total", {"model": model, "state": "received"}).inc(labels)

    def count_dropped_feedback(self, model: str, labels: int) -> None:
        """Count labels that a full log has dropped."""
        self._dropped.inc(labels)
        self._cells.counter("gateway_feedback_total", {"model": model, "state": "dropped"}).inc(labels)

    def count_unsynced(self, events: int) -> bool:
        """Count events in the log that a power loss may take, as the disk refused; whether to refuse their senders."""
        self._unsynced.inc(events)
        return self._blocks

    def _count(self, batch: Batch, *, now: float) -> None:
        bundle, inferences = batch.bundle, batch.inferences
        if bundle is not None:
            arrived = bundle.arrived
            _count_alike(bundle, bundle.run, status=200, rows=bundle.rows, arrived=arrived, queued=arrived, now=now)
        for begin, end in batch.spans:
            alike = inferences[begin:end]
            run = alike[0].run
            _count_alike(
                alike[0],
                run,
                status=batch.answers[begin][2],
                rows=sum([inference.rows for inference in alike]),
                arrived=[inference.arrived for inference in alike],
                queued=() if run is None else [inference.queued_at for inference in alike],
                now=now,
            )
        last = (bundle or inferences[-1]).run
        if last is not None and last.inference_ns and batch.is_last:
            served = batch.served
            served.inference_seconds.observe(last.inference_ns / 1e9)
            served.batch_rows.observe(last.rows)
            served.tally.count_run(last, time=time.time())

    def _committed(self, batch: Batch, error: SpoolError | None) -> None:
        if error is not None and self.count_unsynced(len(batch.inferences)):
            for inference in batch.apart():
                inference.served.requests(inference.choice.arm, 503).inc()
                _refuse(inference, LogUnavailable("the prediction may not survive in the log, so it is not answered"))
        else:
            self._release(batch, time.perf_counter())

    def refuse(
        self,
        inferences: Sequence[Inference],
        why: str = "the prediction could not be logged, so it is not answered",
    ) -> None:
        self._refused.inc(len(inferences))
        for inference in inferences:
            inference.served.requests(inference.choice.arm, 503).inc()
            _refuse(inference, LogUnavailable(why))

    def _release(self, batch: Batch, now: float) -> None:
        for inference, (event_id, body, status, whole) in zip(batch.inferences, batch.answers, strict=True):
            try:
                if whole:
                    inference.answer = body
                    inference.connection.answered(inference)
                elif inference.prepared is not None and status == 200 and inference.is_written_aside:
                    write = partial(inference.write, body, event_id=event_id, status=status)
                    self._side.write(write, partial(_written, inference))
                else:
                    inference.release(body, event_id=event_id, status=status)
            except Exception:
                # Those behind it are in the log as well, and wait for their answers.
                _log.exception("an answer of model '%s' could not be written", inference.model)
                _refuse(inference, ModelFailed(UNWRITTEN))
        self._count(batch, now=now)


def _written(inference: Inference, done: Future[None]) -> None:
    if done.exception() is not None:
        _refuse(inference, ModelFailed(UNWRITTEN))
    else:
        inference.connection.answered(inference)


def _refuse(inference: Inference, error: GatewayError) -> None:
    try:
        inference.refuse(error)
    except Exception:
        _log.exception("a caller of model '%s' could not be told", inference.model)


def _count_alike(
    like: Inference | Bundle,
    run: Run | None,
    *,
    status: int,
    rows: int,
    arrived: Sequence[float],
    queued: Sequence[float],
    now: float,
) -> None:
    """Count requests of one version and arm that ended with one status, of one run if any; else none was queued."""
    served, arm, count = like.served, like.choice.arm, len(arrived)
    served.requests(arm, status).inc(count)
    served.durations(arm).observe_many([now - at for at in arrived])
    if run is not None:
        sent_at = run.sent_at
        served.queue_seconds.observe_many([sent_at - at for at in queued])
        if run.inference_ns:
            served.tally.add(run, count, rows, arrived=sum(arrived), queued=sum(queued), now=now)
