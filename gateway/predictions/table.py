"""Predictions as a table: a line for each row, a column for each scalar of the inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gateway.events.encoding import RecordError, decode
from gateway.events.records import FeedbackRecord, PredictionRecord, TensorRecord
from gateway.predictions.segments import LogRecord

__all__ = ("ENVELOPE", "ColumnNames", "Labels", "TableLine", "labels_by_prediction", "table_lines")

ENVELOPE = {
    "prediction_id": "text",
    "row": "integer",
    "time": "time",
    "event_time": "text",
    "model": "text",
    "version": "integer",
    "arm": "text",
    "weight": "number",
    "status": "integer",
    "error": "text",
    "key": "text",
    "request_id": "text",
    "gateway": "text",
    "inference_us": "integer",
    "total_us": "integer",
    "sampled": "truth",
    "sample": "number",
    "label": "number",
    "label_time": "time",
}
"""The columns that every line has, and what they hold."""

_MAX_COLUMNS = 256

ColumnNames = Callable[[str, int], Mapping[str, Sequence[str]]]
"""Model and version to the names of each tensor's scalar columns, where the version's profile has them."""

Labels = Mapping[tuple[str, str, int], tuple[float, str]]
"""(model, prediction id, row) to its newest label and when that came."""


class TableLine(NamedTuple):
    """One line: values by column, and the V2 datatype of those that come from tensors ("FP32[]" for a list)."""

    values: dict[str, Any]
    datatypes: Mapping[str, str]


def labels_by_prediction(
    records: Iterable[LogRecord], model: str | None
) -> dict[tuple[str, str, int], tuple[float, str]]:
    """Collect labels; the last one of a row counts, by its time, as fronts write side by side."""
    found: dict[tuple[str, str, int], tuple[float, str]] = {}
    for record in records:
        try:
            label = decode(record.kind, record.payload)
        except RecordError:
            continue
        if isinstance(label, FeedbackRecord) and model in (None, label.model):
            row = label.model, label.prediction_id, label.row
            if row not in found or found[row][1] <= label.time:
                found[row] = (label.label, label.time)
    return found


def table_lines(record: PredictionRecord, names: ColumnNames, labels: Labels) -> Iterator[TableLine]:
    """The lines of a prediction, one for each row; one line for a prediction that has none.

    A tensor of shape [rows, k] has k columns: by the names of the profile, else `name[0]` to `name[k-1]`. One that is
    wider than 256, or has more axes, is one column of lists. A name that is taken gets `input.` or `output.` before
    it. What was not logged is null.
    """
    layout = _layout(record, names)
    datatypes = {column: part.datatype for part in layout for column in part.columns}
    common = _envelope(record)
    for row in range(max(1, record.rows)):
        values = dict.fromkeys(ENVELOPE) | common | {"row": row}
        if (label := labels.get((record.model, record.id, row))) is not None:
            values["label"], values["label_time"] = label
        for part in layout:
            part.fill(values, row)
        yield TableLine(values, datatypes)


class _Part(NamedTuple):
    """The columns of one tensor; `width` is 0 where its first axis is not the row."""

    tensor: TensorRecord
    columns: Sequence[str]
    datatype: str
    width: int

    def fill(self, values: dict[str, Any], row: int) -> None:
        flat = self.tensor.data
        if flat is None:
            values.update(dict.fromkeys(self.columns))
        elif self.datatype.endswith("[]"):
            values[self.columns[0]] = flat[row * self.width : (row + 1) * self.width] if self.width else flat
        else:
            values.update(zip(self.columns, flat[row * self.width : (row + 1) * self.width], strict=False))


def _envelope(record: PredictionRecord) -> dict[str, Any]:
    return {
        "prediction_id": record.id,
        "time": record.time,
        "event_time": record.parameters.get("event_time"),
        "model": record.model,
        "version": record.version,
        "arm": record.arm,
        "weight": record.weight,
        "status": record.status,
        "error": record.error,
        "key": record.key,
        "request_id": record.request_id,
        "gateway": record.gateway,
        "inference_us": record.timings.inference_us,
        "total_us": record.timings.total_us,
        "sampled": record.sampled,
        "sample": record.sample,
    }


def _layout(record: PredictionRecord, names: ColumnNames) -> list[_Part]:
    given = names(record.model, record.version) if record.inputs or record.outputs else {}
    taken = set(ENVELOPE)
    parts = []
    for side, tensors in (("input", record.inputs), ("output", record.outputs)):
        for tensor in tensors:
            columns, datatype, width = _columns(tensor, record.rows, given.get(tensor.name, ()))
            columns = [f"{side}.{column}" if column in taken else column for column in columns]
            taken.update(columns)
            parts.append(_Part(tensor, columns, datatype, width))
    return parts


def _columns(tensor: TensorRecord, rows: int, given: Sequence[str]) -> tuple[list[str], str, int]:
    shape = tensor.shape
    width = 1
    for axis in shape[1:]:
        width *= axis
    if not shape or shape[0] != rows:
        return [tensor.name], f"{tensor.datatype}[]", 0
    if len(shape) > 2 or width > _MAX_COLUMNS:
        return [tensor.name], f"{tensor.datatype}[]", width
    if len(given) == width:
        return list(given), tensor.datatype, width
    if width == 1:
        return [tensor.name], tensor.datatype, width
    return [f"{tensor.name}[{place}]" for place in range(width)], tensor.datatype, width
