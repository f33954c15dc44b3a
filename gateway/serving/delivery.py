"""What becomes of finished requests: a record in the log, counts, an answer, in this order.

The records of a batch are one write, and no answer leaves before it. Requests that differ in little are written from a
stencil; what would hold the loop for long is prepared beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from gateway.events.records import KIND_PREDICTION, Arm
from gateway.predictions.commit import GroupCommit
from gateway.predictions.spool import SpoolError, SpoolWriter
from gateway.protocol.encode import encode_flat, encode_rows, encode_string
from gateway.protocol.errors import LogUnavailable, ModelFailed
from gateway.routing.table import hash_key
from gateway.serving.answers import status_of
from gateway.serving.aside import SideThread, is_slow_to_answer, prepare_answers
from gateway.serving.inference import Inference
from gateway.serving.reading import read_alone
from gateway.serving.records import is_sampled_out, prediction_record, record_time, sampling_of, tensor_records
from gateway.serving.stencil import Stencil
from gateway.serving.version import ServedVersion
from gateway.telemetry.cells import CellFile

__all__ = ("Answer", "Delivery", "rows_of", "stencil_of")

Answer = tuple[bytes, bytes, int, bool]
"""Event id, body, HTTP status, and whether the body is the whole answer, head and all."""


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
    commit : GroupCommit or None
        Of the spool, where an answer leaves only when its record would survive a power loss.
    blocks : bool
        Without a record there is no answer (`spool.full = "block"`).
    max_tensor_bytes : int
        Larger tensors are logged as digest and summary.
    """

    def __init__(
        self,
        spool: SpoolWriter,
        cells: CellFile,
        *,
        side: SideThread,
        commit: GroupCommit | None,
        blocks: bool,
        max_tensor_bytes: int,
    ) -> None:
        self._spool = spool
        self._cells = cells
        self._side = side
        self._commit = commit
        self._blocks = blocks
        self._max_tensor_bytes = max_tensor_bytes
        self._spooled = cells.counter("gateway_log_events_total", {"state": "spooled"})
        self._dropped = cells.counter("gateway_log_events_total", {"state": "dropped"})
        self._refused = cells.counter("gateway_log_events_total", {"state": "refused"})
        self._sampled_out = cells.counter("gateway_log_events_total", {"state": "sampled_out"})
        self._unsynced = cells.counter("gateway_log_events_total", {"state": "unsynced"})

    def __repr__(self) -> str:
        return f"<Delivery to {self._spool!r}>"

    def deliver(self, inferences: Sequence[Inference]) -> None:
        """Log finished requests of one version in one write, then release their answers."""
        if inferences and inferences[0].failure is None and is_slow_to_answer(inferences[0]):
            prepare = partial(prepare_answers, inferences, max_tensor_bytes=self._max_tensor_bytes)
            self._side.run(prepare, partial(self._prepared, inferences))
            return
        now = time.perf_counter()
        stamp = record_time(time.time())
        spool = self._spool
        boot = spool.boot.encode()
        sequence = spool.next_sequence
        records: list[tuple[int, bytes]] = []
        answers: list[Answer] = []
        results: object = None
        rows: Sequence[bytes] | None = None
        stencil: Stencil | None = None
        choice = route = shape = None
        for inference in inferences:
            event_id = b"%b-%010x" % (boot, sequence)
            if inference.plain and inference.failure is None and inference.keep_alive:
                if inference.results is not results:
                    results, choice = inference.results, None
                    rows = rows_of(inference)
                if rows is not None and (
                    inference.choice is not choice or inference.route is not route or inference.inputs[0].shape != shape
                ):
                    choice, route, shape = inference.choice, inference.route, inference.inputs[0].shape
                    stencil = stencil_of(inference)
                if rows is not None and stencil is not None:
                    record, answer = _fill(stencil, inference, rows, event_id, now, stamp, sequence)
                    records.append((KIND_PREDICTION, record))
                    answers.append((event_id, answer, 200, True))
                    sequence += 1
                    continue
            try:
                record, body, status = self._finish(inference, event_id, now=now, stamp=stamp, sequence=sequence)
            except Exception as fault:
                # Whatever slips through every check fails its own request, and nobody else's.
                inference.give_up(fault)
                record, body, status = self._finish(inference, event_id, now=now, stamp=stamp, sequence=sequence)
            records.append((KIND_PREDICTION, record))
            answers.append((event_id, body, status, False))
            sequence += 1
        dropped = spool.dropped
        try:
            spool.append(records)
        except SpoolError as error:
            # Nothing that is not in the log is answered as a prediction; what was written of the batch is.
            written = error.written
            self.refuse(inferences[written:])
            inferences, records, answers = inferences[:written], records[:written], answers[:written]
            if not written:
                return
        dropped = spool.dropped - dropped
        self._count_spooled(inferences[0].served, records[: len(records) - dropped])
        self._dropped.inc(dropped)
        if self._commit is None:
            self._release(inferences, answers, now)
        else:
            self._commit.after(partial(self._committed, inferences, answers), records=len(inferences))

    def _prepared(self, inferences: Sequence[Inference], written: Future[None]) -> None:
        fault = written.exception()
        if isinstance(fault, Exception):
            for inference in inferences:
                inference.give_up(fault)
        self.deliver(inferences)

    def _count_spooled(self, served: ServedVersion, records: Sequence[tuple[int, bytes]]) -> None:
        self._spooled.inc(len(records))
        if served.sample < 1:
            self._sampled_out.inc(sum(is_sampled_out(record) for _, record in records))

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
        served, choice = inference.served, inference.choice
        failure, prepared = inference.failure, inference.prepared
        if inference.usual is not None:
            # It has not come as far as a batch; the log shall have what it asked all the same.
            read_alone(inference)
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
                said = inference.said()
                flats = [
                    encode_flat(output) if said is None or position in said else None
                    for position, output in enumerate(inference.outputs)
                ]
                body = inference.body_of(event_id, inference.outputs_of(flats))
                if sampled:
                    outputs = tensor_records(
                        served.output_heads, inference.outputs, flats, max_bytes=self._max_tensor_bytes
                    )
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
                max_bytes=self._max_tensor_bytes,
                redacted=served.redacted,
                redacted_columns=served.redacted_columns,
            )
        queue = inference.sent_at - inference.queued_at if inference.sent_at else 0.0
        record = prediction_record(
            served.record_head(choice.arm, inference.route.weight, choice.reason),
            event_id=event_id,
            time=stamp,
            sequence=sequence,
            status=status,
            rows=inference.rows,
            timings=(
                int(queue * 1e6),
                inference.inference_ns // 1000,
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

    def _count(self, inferences: Sequence[Inference], answers: Sequence[Answer], *, now: float) -> None:
        groups: dict[tuple[Arm, int], list[float]] = {}
        ran: list[Inference] = []
        choice = ended = None
        for inference, (_, _, status, _) in zip(inferences, answers, strict=True):
            if inference.choice is not choice or status != ended:
                choice, ended = inference.choice, status
                seconds = groups.setdefault((choice.arm, status), [])
            seconds.append(now - inference.arrived)
            if inference.inference_ns:
                ran.append(inference)
        if not inferences:
            return
        served = inferences[0].served
        for (arm, status), seconds in groups.items():
            served.requests(arm, status).inc(len(seconds))
            served.durations(arm).observe_many(seconds)
        served.queue_seconds.observe_many([each.sent_at - each.queued_at for each in inferences if each.sent_at])
        if ran:
            served.inference_seconds.observe(ran[-1].inference_ns / 1e9)
            served.batch_rows.observe(ran[-1].batch_rows)
            served.tally.add(ran, now=now, time=time.time())

    def _committed(self, inferences: Sequence[Inference], answers: Sequence[Answer], error: SpoolError | None) -> None:
        if error is not None and self.count_unsynced(len(inferences)):
            for inference in inferences:
                inference.served.requests(inference.choice.arm, 503).inc()
                inference.refuse(LogUnavailable("the prediction may not survive in the log, so it is not answered"))
        else:
            self._release(inferences, answers, time.perf_counter())

    def refuse(
        self,
        inferences: Sequence[Inference],
        why: str = "the prediction could not be logged, so it is not answered",
    ) -> None:
        self._refused.inc(len(inferences))
        for inference in inferences:
            inference.served.requests(inference.choice.arm, 503).inc()
            inference.refuse(LogUnavailable(why))

    def _release(self, inferences: Sequence[Inference], answers: Sequence[Answer], now: float) -> None:
        self._count(inferences, answers, now=now)
        for inference, (event_id, body, status, whole) in zip(inferences, answers, strict=True):
            if whole:
                inference.answer = body
                inference.connection.answered(inference)
            elif inference.accepts is not None and inference.prepared is not None and status == 200:
                write = partial(inference.write, body, event_id=event_id, status=status)
                self._side.run(write, partial(_written, inference))
            else:
                inference.release(body, event_id=event_id, status=status)


def _written(inference: Inference, done: Future[None]) -> None:
    if done.exception() is not None:
        inference.refuse(ModelFailed("the answer could not be written"))
    else:
        inference.connection.answered(inference)


def rows_of(inference: Inference) -> Sequence[bytes] | None:
    """The elements of each row of the run's output, as JSON; None where no such rows are, or are no plain numbers."""
    results = inference.results
    if len(results) != 1 or not results[0].ndim or len(results[0]) != inference.batch_rows:
        return None
    return encode_rows(results[0])


def stencil_of(inference: Inference) -> Stencil | None:
    choice, result = inference.choice, inference.results[0]
    shape = inference.inputs[0].shape
    return inference.served.stencil(choice, inference.route.weight, shape, (inference.rows, *result.shape[1:]))


def _fill(
    stencil: Stencil,
    inference: Inference,
    rows: Sequence[bytes],
    event_id: bytes,
    now: float,
    stamp: bytes,
    sequence: int,
) -> tuple[bytes, bytes]:
    """Record and answer of a plain request; `rows` are the elements of each row of its run's output."""
    first, count = inference.row, inference.rows
    flat = rows[first] if count == 1 else b",".join(rows[first : first + count])
    key = inference.key
    record = stencil.record % (
        event_id,
        stamp,
        sequence,
        (inference.sent_at - inference.queued_at) * 1e6,
        inference.inference_ns // 1000,
        (now - inference.arrived) * 1e6,
        inference.fragments[0],
        flat,
        b"" if key is None else b',"key":"%b"' % hash_key(key).encode(),
    )
    return record, stencil.answer % (event_id, stencil.answer_bytes + len(flat), event_id, flat)
