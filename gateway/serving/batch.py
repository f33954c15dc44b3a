"""What is written of finished requests: their records and their answers, together where they differ in little."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.engine.job import Run
from gateway.events.blocks import MAX_BLOCK, NO_KEY
from gateway.events.records import KIND_BLOCK, KIND_PREDICTION
from gateway.protocol.encode import can_encode_rows, encode_flat, encode_rows, encode_string
from gateway.routing.table import hash_key
from gateway.serving.answers import status_of
from gateway.serving.aside import SLOW_JSON_BYTES
from gateway.serving.bundle import Bundle
from gateway.serving.inference import Inference
from gateway.serving.reading import read_alone
from gateway.serving.records import Kept, prediction_record, sampling_of, tensor_records
from gateway.serving.stencil import Stencil
from gateway.serving.version import ServedVersion

__all__ = ("Answer", "Batch", "BatchWriter")

Answer = tuple[bytes, bytes, int, bool]
"""Event id, body, HTTP status, and whether the body is the whole answer, head and all (its id is not needed then)."""

Array = np.ndarray[Any, np.dtype[Any]]

_log = logging.getLogger(__name__)


class Batch:
    """Finished requests, their records and their answers.

    Attributes
    ----------
    bundle : Bundle or None
        Whose they are, all of them; `inferences` then only stand for them at their connections.
    is_last : bool
        Of the batches that one run has answered: the run is counted with it.
    spans : list of (int, int)
        From and to: of each, all have one version, arm, status and run. None of a bundle.
    texts : dict
        Of the run `texts_of`, once asked for: for answers that are written from a stencil and for others, as
        `_texts_of` has it.
    """

    __slots__ = ("answers", "bundle", "inferences", "is_last", "records", "spans", "texts", "texts_of")

    def __init__(self, inferences: Sequence[Inference], *, bundle: Bundle | None = None) -> None:
        self.inferences = inferences
        self.bundle = bundle
        self.is_last = True
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

    def cut(self, count: int) -> Batch:
        """The first so many requests, each by itself."""
        batch = Batch(self.apart()[:count])
        batch.records, batch.answers = self.records, self.answers[:count]
        spans = self.spans if self.bundle is None else [(0, self.bundle.requests)]
        batch.spans = [(begin, min(end, count)) for begin, end in spans if begin < count]
        return batch


class BatchWriter:
    """Writes down what a front's spool and its callers get of finished requests.

    Parameters
    ----------
    boot : str
        What the ids of this front begin with.
    kept : Kept
        Of tensors, by the log.
    """

    def __init__(self, boot: str, *, kept: Kept) -> None:
        self._boot = boot.encode()
        self._kept = kept
        self._apart: set[tuple[str, int]] = set()

    def __repr__(self) -> str:
        return f"<BatchWriter of {self._boot.decode()}>"

    def write_bundle(self, bundle: Bundle, *, sequence: int, now: float, stamp: bytes) -> Batch | None:
        """The record and the answers of a bundle; None of one that must be taken apart."""
        run = bundle.run
        if run is None or not bundle.inputs or run.nbytes > SLOW_JSON_BYTES or run.is_unread or not bundle.is_usual:
            return None
        rows, count = bundle.usual.shape[0], bundle.requests
        batch = Batch(bundle.likes, bundle=bundle)
        try:
            outputs = _rows_of(run)
            if outputs is None:
                return None
            inputs, outputs = bundle.inputs[0], outputs[bundle.row : bundle.row + bundle.rows]
            texts = encode_rows(outputs)
            stencil = None if texts is None else self._stencil_of(bundle, run, inputs, rows=rows)
            if texts is None or stencil is None:
                return None
            most = stencil.most_in_block(rows)
            for begin in range(0, count, most):
                arrived, own = bundle.arrived[begin : begin + most], slice(begin * rows, (begin + most) * rows)
                block = stencil.block(
                    run, inputs[own], outputs[own], rows=rows, arrived=arrived, queued=arrived, now=now, stamp=stamp
                )
                batch.records.append((KIND_BLOCK, block))
            batch.answers = _fill(stencil, texts, sequence=sequence, row=0, rows=rows, count=count)
        except Exception:
            self._note_apart(bundle)
            return None
        return batch

    def write(self, inferences: Sequence[Inference], *, sequence: int, now: float, stamp: bytes) -> Batch:
        """Records and answers of finished requests: those that differ in little together, the others one by one."""
        batch = Batch(inferences)
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

    def _write_alike(self, batch: Batch, place: int, *, sequence: int, now: float, stamp: bytes) -> int:
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

    def _stencil_of(self, like: Inference | Bundle, run: Run, inputs: Array, *, rows: int) -> Stencil | None:
        return like.served.stencil(
            like.choice, like.route.weight, boot=self._boot, rows=rows, inputs=inputs, outputs=run.results[0]
        )

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


def _texts_of(run: Run, *, written: bool) -> Sequence[bytes] | None:
    """The elements of each row of the run's output, as JSON, or nothing where they are not to be written.

    None where no such rows are, or are no plain numbers.
    """
    outputs = _rows_of(run)
    if outputs is None:
        return None
    if written:
        return encode_rows(outputs)
    return () if can_encode_rows(outputs) else None


def _rows_of(run: Run) -> Array | None:
    """The run's output, if it has one and a row for each row of the run."""
    results = run.results
    return results[0] if len(results) == 1 and results[0].ndim and len(results[0]) == run.rows else None


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
