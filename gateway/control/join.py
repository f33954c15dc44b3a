"""Labels meet predictions: by prediction id and row, late, repeated and out of order, in bounded memory.

Nothing here reads a clock or a file: the caller passes the time in and looks up what `overdue` names.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from gateway.control.block import LoggedBlock
from gateway.control.kept import Kept, KeptBlock, KeptPredictions, kept_block
from gateway.control.logged import in_single
from gateway.events.addresses import format_id
from gateway.events.encoding import RecordError, seconds_of
from gateway.events.records import Arm, FeedbackRecord, PredictionRecord, TensorRecord

__all__ = ("FEEDBACK_STATES", "JoinState", "LabelJoin", "LabelledRow", "event_time_of", "seconds_between")

FEEDBACK_STATES = ("joined", "repeated", "corrected", "orphan", "invalid")
"""What became of a label; `waiting` ones are in none of these yet."""

_PAYLOAD_BYTES_PER_PREDICTION = 1024
_LOOKUPS_AT_ONCE = 256
_CHECKPOINT_PREDICTIONS = 20_000


class LabelledRow(msgspec.Struct, frozen=True, gc=False):
    """One row of one prediction with the label that came for it.

    `outputs` holds the row's values of the quality output, `payload` the prediction as it was logged (None when it
    no longer fitted the memory); `event_time` is the time the request speaks of, in ISO 8601.
    """

    model: str
    version: int
    arm: Arm
    weight: float
    key: str | None
    prediction_id: str
    row: int
    outputs: tuple[float, ...]
    label: float
    time: str
    event_time: str
    delay_seconds: float
    payload: bytes | None = None


class _Waiting(msgspec.Struct):
    since: float
    labels: list[FeedbackRecord]


class JoinState(msgspec.Struct):
    """What a checkpoint keeps; the time that labels have waited starts anew.

    `blocks` stand among `kept`, each behind as many of them as its number says.
    """

    kept: list[tuple[str, Kept]]
    labelled: list[tuple[str, dict[int, float]]]
    waiting: list[list[FeedbackRecord]]
    counts: dict[str, dict[str, int]]
    blocks: list[tuple[int, KeptBlock]] = []


class LabelJoin:
    """Joins labels to predictions.

    A label that comes again with the same value is ignored; with another value it is counted as corrected, and the
    first one stays the evidence: who may send labels cannot take evidence back. A label whose prediction is unknown
    waits `wait_seconds`, then `overdue` asks for its prediction, then it is an orphan.

    Parameters
    ----------
    output_name : callable
        From a model's name to the output its labels speak of; "" stands for the first output.
    max_predictions : int
        Predictions kept, and labels remembered, `monitor.join_predictions`; their payloads are kept
        within 1 KiB times this number.
    wait_seconds : float
        How long a label waits for its prediction to be read.
    """

    def __init__(
        self, output_name: Callable[[str], str], *, max_predictions: int = 200_000, wait_seconds: float = 5.0
    ) -> None:
        self._output_name = output_name
        self._max_predictions = max_predictions
        self._wait_seconds = wait_seconds
        self._kept = KeptPredictions(max_predictions, payload_bytes=max_predictions * _PAYLOAD_BYTES_PER_PREDICTION)
        # Ordered, as it loses its oldest again and again: a plain dict walks over all its dead entries there.
        self._labelled: OrderedDict[str, dict[int, float]] = OrderedDict()
        self._labelled_rows = 0
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._waiting_labels = 0
        self.counts: dict[str, dict[str, int]] = {}

    def __repr__(self) -> str:
        return f"<LabelJoin kept={len(self._kept)} waiting={self._waiting_labels} {self.counts}>"

    @property
    def waiting(self) -> int:
        """Labels that wait for their prediction."""
        return self._waiting_labels

    def add_prediction(self, record: PredictionRecord, payload: bytes | None = None) -> list[LabelledRow]:
        """Keep a prediction; returns the rows whose labels had come before it."""
        kept = self._keep(record, payload)
        return self._settle(record.id, kept) if self._kept.add(record.id, kept) else []

    def add_block(self, block: LoggedBlock) -> list[LabelledRow]:
        """Keep the predictions of a block; returns the rows whose labels had come before them."""
        name = self._output_name(block.head.model)
        kept = kept_block(block, with_outputs=name in ("", block.head.output_name))
        if not self._kept.add_block(kept):
            return []
        rows: list[LabelledRow] = []
        if self._waiting:
            for place in range(block.count):
                prediction_id = format_id(block.boot, block.first + place)
                if prediction_id in self._waiting:
                    rows += self._settle(prediction_id, kept.kept(place))
        return rows

    def add_feedback(self, feedback: FeedbackRecord, now: float) -> LabelledRow | None:
        """Join one label, or let it wait; `now` is any clock in seconds that never goes back."""
        kept = self._kept.find(feedback.prediction_id)
        if kept is not None:
            return self._join(feedback, kept)
        earlier = self._labelled.get(feedback.prediction_id)
        if earlier is not None and feedback.row in earlier:
            self._count(feedback.model, "repeated" if feedback.label == earlier[feedback.row] else "corrected")
            return None
        waiting = self._waiting.get(feedback.prediction_id)
        if waiting is None:
            waiting = self._waiting[feedback.prediction_id] = _Waiting(now, [])
        waiting.labels.append(feedback)
        self._waiting_labels += 1
        while self._waiting_labels > self._max_predictions:
            self._give_up(next(iter(self._waiting)))
        return None

    def overdue(self, now: float) -> list[str]:
        """Prediction ids that labels have waited for long enough, oldest first, at most 256 at once."""
        ids: list[str] = []
        for prediction_id, waiting in self._waiting.items():
            if now - waiting.since < self._wait_seconds or len(ids) == _LOOKUPS_AT_ONCE:
                break
            ids.append(prediction_id)
        return ids

    def resolve(self, prediction_id: str, record: PredictionRecord | None) -> list[LabelledRow]:
        """Hand in what a look-up found for an overdue id; None makes its labels orphans."""
        if record is None or record.id != prediction_id:
            self._give_up(prediction_id)
            return []
        return self._settle(prediction_id, self._keep(record, msgspec.json.encode(record)))

    def state(self) -> JoinState:
        """What a checkpoint keeps: the newest predictions without their payloads, and every label's memory."""
        kept, blocks = self._kept.newest(_CHECKPOINT_PREDICTIONS)
        labelled = list(self._labelled.items())
        return JoinState(
            kept,
            labelled,
            [waiting.labels for waiting in self._waiting.values()],
            {model: dict(counts) for model, counts in self.counts.items()},
            blocks,
        )

    def restore(self, state: JoinState, now: float) -> None:
        """Take over the state of a checkpoint."""
        self._kept.restore(state.kept, state.blocks)
        self._labelled = OrderedDict(state.labelled)
        self._labelled_rows = sum(len(rows) for rows in self._labelled.values())
        self._waiting = OrderedDict((labels[0].prediction_id, _Waiting(now, labels)) for labels in state.waiting)
        self._waiting_labels = sum(len(labels) for labels in state.waiting)
        self.counts = state.counts

    def _keep(self, record: PredictionRecord, payload: bytes | None) -> Kept:
        return Kept(
            record.model,
            record.version,
            record.arm,
            record.weight,
            record.key,
            record.time,
            event_time_of(record),
            record.rows,
            _values_of(record.outputs, self._output_name(record.model)) if record.status == 200 else b"",
            payload,
        )

    def _settle(self, prediction_id: str, kept: Kept) -> list[LabelledRow]:
        waiting = self._waiting.pop(prediction_id, None)
        if waiting is None:
            return []
        self._waiting_labels -= len(waiting.labels)
        rows = [self._join(feedback, kept) for feedback in waiting.labels]
        return [row for row in rows if row is not None]

    def _join(self, feedback: FeedbackRecord, kept: Kept) -> LabelledRow | None:
        if feedback.model != kept.model:
            self._count(feedback.model, "invalid")
            return None
        earlier = self._labelled.get(feedback.prediction_id)
        if earlier is not None and feedback.row in earlier:
            self._count(feedback.model, "repeated" if feedback.label == earlier[feedback.row] else "corrected")
            return None
        outputs = _row_of(kept, feedback.row)
        if not outputs or not _is_finite(feedback.label):
            self._count(feedback.model, "invalid")
            return None
        if earlier is None:
            earlier = self._labelled[feedback.prediction_id] = {}
        earlier[feedback.row] = feedback.label
        self._labelled_rows += 1
        while self._labelled_rows > self._max_predictions and len(self._labelled) > 1:
            self._labelled_rows -= len(self._labelled.popitem(last=False)[1])
        self._count(feedback.model, "joined")
        return LabelledRow(
            kept.model,
            kept.version,
            kept.arm,
            kept.weight,
            kept.key,
            feedback.prediction_id,
            feedback.row,
            outputs,
            feedback.label,
            kept.time,
            kept.event_time,
            max(0.0, seconds_between(kept.time, feedback.time)),
            kept.payload,
        )

    def _count(self, model: str, state: str) -> None:
        counts = self.counts.get(model)
        if counts is None:
            counts = self.counts[model] = dict.fromkeys(FEEDBACK_STATES, 0)
        counts[state] += 1

    def _give_up(self, prediction_id: str) -> None:
        waiting = self._waiting.pop(prediction_id, None)
        if waiting is not None:
            self._waiting_labels -= len(waiting.labels)
            for feedback in waiting.labels:
                self._count(feedback.model, "orphan")


def event_time_of(record: PredictionRecord) -> str:
    """The time a prediction speaks of: `parameters.event_time` when it is ISO 8601, else when it was answered.

    It is written anew: between date and time Python reads any character, and what a caller gave may hold one that no
    decision can carry.
    """
    given = record.parameters.get("event_time")
    if isinstance(given, str) and len(given) <= 40:
        try:
            told = datetime.fromisoformat(given).isoformat()
        except ValueError:
            return record.time
        return told.removesuffix("+00:00") + "Z" if told.endswith("+00:00") else told
    return record.time


def seconds_between(earlier: str, later: str) -> float:
    """Seconds from one ISO 8601 time to another; 0 when one of them cannot be read.

    >>> seconds_between("2012-01-01T00:00:00Z", "2012-01-01T01:00:00+00:00")
    3600.0
    """
    try:
        return seconds_of(later) - seconds_of(earlier)
    except RecordError:
        return 0.0


def _values_of(outputs: list[TensorRecord], name: str) -> bytes:
    for tensor in outputs:
        if tensor.name == name or not name:
            return _doubles(tensor.data, tensor.datatype)
    return b""


def _doubles(values: list[Any] | None, datatype: str) -> bytes:
    if values is None:
        return b""
    try:
        doubles = array("d", values)
    except TypeError:
        doubles = array("d", (value if isinstance(value, int | float) else math.nan for value in values))
    except OverflowError:
        return b""
    if datatype in ("FP32", "BF16"):
        return array("d", array("f", doubles)).tobytes()
    return in_single(np.array(doubles), datatype).tobytes() if datatype == "FP16" else doubles.tobytes()


def _row_of(kept: Kept, row: int) -> tuple[float, ...]:
    values = array("d", kept.outputs)
    width, rest = divmod(len(values), max(kept.rows, 1))
    if rest or not 0 <= row < kept.rows:
        return ()
    outputs = tuple(values[row * width : (row + 1) * width])
    return outputs if all(_is_finite(value) for value in outputs) else ()


def _is_finite(value: float) -> bool:
    return value - value == 0.0
