"""What becomes of finished requests: a record in the log, an answer, counts, in this order.

The records of a batch are one write, and no answer leaves before it. Requests that differ in little are written from a
stencil; what would hold the loop for long is prepared beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from gateway.engine.job import Run, each_apart
from gateway.events.blocks import MAX_BLOCK, NO_KEY
from gateway.events.records import KIND_BLOCK, KIND_PREDICTION
from gateway.predictions.commit import GroupCommit
from gateway.predictions.spool import SpoolError, SpoolWriter
from gateway.protocol.encode import can_encode_rows, encode_flat, encode_rows, encode_string
from gateway.protocol.errors import GatewayError, LogUnavailable, ModelFailed, Overloaded
from gateway.routing.table import hash_key
from gateway.serving.answers import status_of
from gateway.serving.aside import SLOW_PLAIN_BYTES, SideThread, are_slow_to_answer, prepare_answers
from gateway.serving.bundle import Bundle
from gateway.serving.inference import Inference
from gateway.serving.reading import read_alone
from gateway.serving.records import (
    Kept,
    is_sampled_out,
    prediction_record,
    record_time,
    sampling_of,
    tensor_records,
)
from gateway.serving.room import Room
from gateway.serving.stencil import Stencil
from gateway.serving.version import ServedVersion
from gateway.telemetry.cells import CellFile

__all__ = ("Answer", "Delivery")

Answer = tuple[bytes, bytes, int, bool]
"""Event id, body, HTTP status, and whether the body is the whole answer, head and all (its id is not needed then)."""

Array = np.ndarray[Any, np.dtype[Any]]

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
        self._boot = spool.boot.encode()
        self._apart: set[tuple[str, int]] = set()
        self._spooled = cells.counter("gateway_log_events_total", {"state": "spooled"})
        self._dropped = cells.counter("gateway_log_events_total", {"state": "dropped"})
        self._refused = cells.counter("gateway_log_events_total", {"state": "refused"})
        self._sampled_out = cells.counter("gateway_log_events_total", {"state": "sampled_out"})
        self._unsynced = cells.counter("gateway_log_events_total", {"state": "unsynced"})

    def __repr__(self) -> str:
        return f"<Delivery to {self._spool!r}>"

    def deliver(self, jobs: Sequence[Inference | Bundle]) -> None:
        """Log finished requests of one version in one write, then release their answers."""
        now, stamp = time.perf_counter(), record_time(time.time())
        batch = self._write_bundle(jobs[0], now=now, stamp=stamp) if len(jobs) == 1 else None
        if batch is None:
            inferences: list[Inference] = each_apart(jobs)
            if inferences and are_slow_to_answer(inferences):
                self._hold(inferences)
                prepare = partial(prepare_answers, inferences, kept=self._kept)
                self._side.write(prepare, partial(self._prepared, inferences))
                return
            batch = self._write_down(inferences, now=now, stamp=stamp)
        dropped = self._spool.dropped
        try:
            self._append(batch)
        except SpoolError as error:
            # Nothing that is not in the log is answered as a prediction; what was written of the batch is.
            self.refuse(batch.apart()[error.written :])
            batch = batch.cut(error.written)
            if not batch.inferences:
                return
        dropped = self._spool.dropped - dropped
        if self._commit is None:
            self._release(batch, now)
        else:
            self._commit.after(partial(self._committed, batch), records=len(batch.inferences))
        self._count_spooled(batch, dropped=dropped)

    def _write_bundle(self, bundle: Inference | Bundle, *, now: float, stamp: bytes) -> _Batch | None:
        """The record and the answers of a bundle; None of one that must be taken apart, and of what is none."""
        run = bundle.run
        if not isinstance(bundle, Bundle) or run is None or run.inputs is None or run.nbytes > SLOW_PLAIN_BYTES:
            return None
        rows, count = bundle.usual.shape[0], bundle.requests
        try:
            texts = _texts_of(run, written=True) if bundle.is_usual else None
            stencil = self._stencil_of(bundle, run, run.inputs[0], rows=rows) if texts is not None else None
            if texts is None or stencil is None or count > stencil.most_in_block(rows):
                return None
            arrived = bundle.arrived
            block = stencil.block(
                run, run.inputs[0], run.results[0], rows=rows, arrived=arrived, queued=arrived, now=now, stamp=stamp
            )
            batch = _Batch(bundle.likes, bundle=bundle)
            batch.answers = _fill(stencil, texts, sequence=self._spool.next_sequence, row=0, rows=rows, count=count)
        except Exception:
            self._note_apart(bundle)
            return None
        batch.records.append((KIND_BLOCK, block))
        return batch

    def _write_down(self, inferences: Sequence[Inference], *, now: float, stamp: bytes) -> _Batch:
        """Records and answers of finished requests: those that differ in little together, the others one by one."""
        batch = _Batch(inferences)
        sequence = self._spool.next_sequence
        place = apart = 0  # what is before `apart` is written down one by one
        while place < len(inferences):
            end = place
            if place >= apart:
                try:
                    end = self._write_alike(batch, place, sequence=sequence, now=now, stamp=stamp)
                except Exception:
                    # Whatever it is, it shall not cost more than what it concerns.
                    self._note_apart(inferences[place])
                    apart = min(len(inferences), place + MAX_BLOCK)
            if end == place:
                end += 1
                inference = inferences[place]
                event_id = b"%b-%010x" % (self._boot, sequence)
                try:
                    record, body, status = self._finish(inference, event_id, now=now, stamp=stamp, sequence=sequence)
                except Exception as fault:
                    # Whatever slips through every check fails its own request, and nobody else's.
                    inference.give_up(fault)
                    record, body, status = self._finish(inference, event_id, now=now, stamp=stamp, sequence=sequence)
                batch.records.append((KIND_PREDICTION, record))
                batch.answers.append((event_id, body, status, False))
            batch.add_span(place, end)
            sequence += end - place
            place = end
        return batch

    def _write_alike(self, batch: _Batch, place: int, *, sequence: int, now: float, stamp: bytes) -> int:
        """Write down the request at `place` and those behind it that share its stencil; where they end."""
        first = batch.inferences[place]
        run = first.run
        if run is None or not (first.plain and first.keep_alive) or first.failure is not None:
            return place
        if batch.texts_of is not run:
            batch.texts, batch.texts_of = {}, run
        if first.has_stencil not in batch.texts:
            batch.texts[first.has_stencil] = _texts_of(run, written=first.has_stencil)
        texts = batch.texts[first.has_stencil]
        stencil = None
        if texts is not None:
            inputs = run.inputs if run.inputs is not None else first.inputs
            stencil = self._stencil_of(first, run, inputs[0], rows=first.rows)
        if stencil is None or texts is None:
            return place
        end = place + 1
        if end < len(batch.inferences):  # one that comes alone is spared the look
            end = _end_of_alike(batch.inferences, place, most=stencil.most_in_block(first.rows))
        alike = batch.inferences[place:end]
        block = _block_of(stencil, alike, run=run, now=now, stamp=stamp)
        if first.has_stencil:
            batch.answers += _fill(stencil, texts, sequence=sequence, row=first.row, rows=first.rows, count=len(alike))
        else:
            numbers = range(sequence, sequence + len(alike))
            batch.answers += [(b"%b-%010x" % (self._boot, number), b"", 200, False) for number in numbers]
        batch.records.append((KIND_BLOCK, block))
        return end

    def _note_apart(self, job: Inference | Bundle) -> None:
        # Said once: it may be so with every batch.
        served = job.served
        if (served.model, served.version) not in self._apart:
            self._apart.add((served.model, served.version))
            text = "predictions of model '%s' version %d cannot be written down together, only one by one"
            _log.exception(text, served.model, served.version)

    def _append(self, batch: _Batch) -> None:
        self._spool.append(batch.records)

    def _stencil_of(self, like: Inference | Bundle, run: Run, inputs: Array, *, rows: int) -> Stencil | None:
        return like.served.stencil(
            like.choice, like.route.weight, boot=self._boot, rows=rows, inputs=inputs, outputs=run.results[0]
        )

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

    def _count_spooled(self, batch: _Batch, *, dropped: int) -> None:
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

    def _finish(
        self, inference: Inference, event_id: bytes, *, now: float, stamp: bytes, sequence: int
    ) -> tuple[bytes, bytes, int]:
        if inference.usual is not None:
            # It has not come as far as a batch; the log shall have what it asked all the same.
            read_alone(inference)
        served, choice = inference.served, inference.choice
        failure, prepared = inference.failure, inference.prepared
        inputs = outputs = b"[]"
        error = None
        key = None if inference.key is None else hash_key(inference.key)
        signature = served.signature
        sampled, sampling = True, b""
        if failure is None and signature is not None:
            status = 200
            if served.sample < 1:
                sampled, sampling = sampling_of(served.sample, key or hash_key(event_id.decode()))
            if prepared is not None and prepared.answer is not None and prepared.logged_outputs is not None:
                body = inference.body_of(event_id, prepared.answer)
                outputs = prepared.logged_outputs if sampled else outputs
            else:
                said, results = inference.said(), inference.outputs
                flats = [
                    encode_flat(result) if said is None or position in said else None
                    for position, result in enumerate(results)
                ]
                body = inference.body_of(event_id, inference.outputs_of(flats))
                if sampled:
                    outputs = tensor_records(served.output_heads, results, flats, kept=self._kept)
        else:
            error = str(failure)
            status = status_of(failure) if failure else 500
            body = b'{"error":%b}' % encode_string(error)
        if prepared is not None and prepared.logged_inputs is not None and sampled:
            inputs = prepared.logged_inputs
        elif inference.inputs and signature is not None and sampled:
            inputs = tensor_records(
                served.input_heads,
                inference.inputs,
                inference.fragments,
                kept=self._kept,
                redacted=served.redacted,
                redacted_columns=served.redacted_columns,
            )
        run = inference.run
        record = prediction_record(
            served.record_head(choice.arm, inference.route.weight, choice.reason),
            event_id=event_id,
            time=stamp,
            sequence=sequence,
            status=status,
            rows=inference.rows,
            timings=(
                0 if run is None else int((run.sent_at - inference.queued_at) * 1e6),
                0 if run is None else run.inference_ns // 1000,
                int((now - inference.arrived) * 1e6),
            ),
            inputs=inputs,
            outputs=outputs,
            parameters=inference.parameters,
            request_id=inference.request_id,
            key=key,
            error=error,
            sampling=sampling,
        )
        return record, body, status

    def _count(self, batch: _Batch, *, now: float) -> None:
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
        last = (bundle or inferences[-1]).run if inferences else None
        if last is not None and last.inference_ns:
            served = batch.served
            served.inference_seconds.observe(last.inference_ns / 1e9)
            served.batch_rows.observe(last.rows)
            served.tally.count_run(last, time=time.time())

    def _committed(self, batch: _Batch, error: SpoolError | None) -> None:
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

    def _release(self, batch: _Batch, now: float) -> None:
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


class _Batch:
    """Finished requests, their records and their answers.

    Attributes
    ----------
    bundle : Bundle or None
        Whose they are, all of them; `inferences` then only stand for them at their connections.
    spans : list of (int, int)
        From and to: of each, all have one version, arm, status and run. None of a bundle.
    texts : dict
        Of the run `texts_of`, once asked for: for answers that are written from a stencil and for others, as
        `_texts_of` has it.
    """

    __slots__ = ("answers", "bundle", "inferences", "records", "spans", "texts", "texts_of")

    def __init__(self, inferences: Sequence[Inference], *, bundle: Bundle | None = None) -> None:
        self.inferences = inferences
        self.bundle = bundle
        self.records: list[tuple[int, bytes]] = []
        self.answers: list[Answer] = []
        self.spans: list[tuple[int, int]] = []
        self.texts: dict[bool, Sequence[bytes] | None] = {}
        self.texts_of: Run | None = None

    @property
    def served(self) -> ServedVersion:
        """Whose requests they are."""
        return (self.bundle or self.inferences[0]).served

    def apart(self) -> Sequence[Inference]:
        """The requests, each by itself."""
        return self.inferences if self.bundle is None else self.bundle.apart()

    def add_span(self, begin: int, end: int) -> None:
        """Add those that have been written down now, all alike, to the span before them if they are like that too."""
        if self.spans:
            first, before = self.inferences[begin], self.spans[-1][0]
            like = self.inferences[before]
            if (
                first.run is like.run
                and first.choice.arm == like.choice.arm
                and self.answers[begin][2] == self.answers[before][2]
            ):
                begin = before
                self.spans.pop()
        self.spans.append((begin, end))

    def cut(self, count: int) -> _Batch:
        """The first so many requests."""
        batch = _Batch(self.inferences[:count], bundle=self.bundle)
        batch.records, batch.answers = self.records, self.answers[:count]
        batch.spans = [(begin, min(end, count)) for begin, end in self.spans if begin < count]
        return batch


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


def _texts_of(run: Run, *, written: bool) -> Sequence[bytes] | None:
    """The elements of each row of the run's output, as JSON, or nothing where they are not to be written.

    None where no such rows are, or are no plain numbers.
    """
    results = run.results
    if len(results) != 1 or not results[0].ndim or len(results[0]) != run.rows:
        return None
    if written:
        return encode_rows(results[0])
    return () if can_encode_rows(results[0]) else None


def _end_of_alike(inferences: Sequence[Inference], place: int, *, most: int) -> int:
    """Where those end that share a stencil and a block with the one at `place`, and follow it in their run."""
    first = inferences[place]
    choice, route, run, rows, has_stencil = first.choice, first.route, first.run, first.rows, first.has_stencil
    row = first.row
    for end in range(place, min(len(inferences), place + most)):
        each = inferences[end]
        if (
            each.choice is not choice
            or each.row != row
            or each.rows != rows
            or each.run is not run
            or each.route is not route
            or each.has_stencil is not has_stencil
            or not (each.plain and each.keep_alive)
            or each.failure is not None
        ):
            return end
        row += rows
    return min(len(inferences), place + most)


def _block_of(stencil: Stencil, alike: Sequence[Inference], *, run: Run, now: float, stamp: bytes) -> bytes:
    """The record of requests that share a stencil and follow one another in their run."""
    first, count = alike[0], len(alike)
    begin, end = first.row, first.row + count * first.rows
    if run.inputs is not None:
        inputs = run.inputs[0][begin:end]
    elif count == 1:
        inputs = first.inputs[0]
    else:
        inputs = np.concatenate([inference.inputs[0] for inference in alike])
    keys = b""
    if any([inference.key is not None for inference in alike]):
        keys = b"".join([NO_KEY if each.key is None else hash_key(each.key).encode() for each in alike])
    return stencil.block(
        run,
        inputs,
        run.results[0][begin:end],
        rows=first.rows,
        arrived=[inference.arrived for inference in alike],
        queued=[inference.queued_at for inference in alike],
        keys=keys,
        now=now,
        stamp=stamp,
    )


def _fill(stencil: Stencil, texts: Sequence[bytes], *, sequence: int, row: int, rows: int, count: int) -> list[Answer]:
    """The answers of requests that share a stencil; `texts` are the elements of each row of their run's output."""
    end = row + rows * count
    if rows == 1:
        own = texts[row:end]
    else:
        own = [b",".join(texts[row : row + rows]) for row in range(row, end, rows)]
    return [(b"", answer, 200, True) for answer in stencil.answers(own, sequence)]


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
