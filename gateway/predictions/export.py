"""Writing a window of the log for other programs: JSON lines, or Parquet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import orjson

from gateway.events.encoding import RecordError, decode, seconds_of
from gateway.events.records import PredictionRecord
from gateway.predictions.arrow import parquet, pyarrow
from gateway.predictions.segments import LogRecord
from gateway.predictions.table import ENVELOPE, ColumnNames, Labels, TableLine, table_lines
from gateway.protocol.datatypes import NUMPY_OF, datatype_of

__all__ = ("chosen", "export_jsonl", "export_parquet", "lines_of")

_BLOCK_LINES = 10_000
_TIME = "time"
_ARROW = {
    "FP16": "float32", "BF16": "float32", "FP32": "float32", "FP64": "float64", "BOOL": "bool_", "BYTES": "string",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "text": "string", "integer": "int64", "number": "float64", "truth": "bool_",
}  # fmt: skip

Chosen = Callable[[], Iterator[PredictionRecord]]
"""Reads the same predictions again each time it is called."""


def chosen(
    records: Iterable[LogRecord], *, model: str | None, version: int | None, arm: str | None, failed: bool
) -> Iterator[PredictionRecord]:
    """Decode the predictions that are wanted; what cannot be read is passed over."""
    for record in records:
        try:
            found = decode(record.kind, record.payload)
        except RecordError:
            continue
        if (
            isinstance(found, PredictionRecord)
            and model in (None, found.model)
            and version in (None, found.version)
            and arm in (None, found.arm)
            and (failed or found.status == 200)
        ):
            yield found


def lines_of(predictions: Iterable[PredictionRecord], names: ColumnNames, labels: Labels) -> Iterator[TableLine]:
    """The table's lines of all of them."""
    for record in predictions:
        yield from table_lines(record, names, labels)


def export_jsonl(lines: Iterable[TableLine], file: IO[bytes], progress: Callable[[], None]) -> None:
    """Write one JSON object a line."""
    for line in lines:
        file.write(orjson.dumps(line.values, option=orjson.OPT_APPEND_NEWLINE))
        progress()


def export_parquet(lines: Callable[[], Iterable[TableLine]], target: Path, progress: Callable[[], None]) -> None:
    """Write a Parquet file, whole or not at all; `lines` is read twice, first for the columns.

    Raises
    ------
    NeedsArchiveExtra
        pyarrow is not installed.
    OSError
    """
    arrow = pyarrow()
    schema = _schema(arrow, lines())
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with parquet().ParquetWriter(partial, schema, compression="zstd") as writer:
            block: list[TableLine] = []
            for line in lines():
                block.append(line)
                progress()
                if len(block) == _BLOCK_LINES:
                    writer.write_table(_table(arrow, schema, block))
                    block = []
            if block:
                writer.write_table(_table(arrow, schema, block))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _schema(arrow: Any, lines: Iterable[TableLine]) -> Any:
    held: dict[str, str] = dict(ENVELOPE)
    seen = None
    for line in lines:
        if line.datatypes is not seen:
            seen = line.datatypes
            for column, datatype in line.datatypes.items():
                held[column] = _wider(held.get(column, datatype), datatype)
    return arrow.schema([(column, _type(arrow, datatype)) for column, datatype in held.items()])


def _wider(one: str, other: str) -> str:
    """What holds both: versions of a model may have a column of one name and different datatypes."""
    if one == other:
        return one
    lists: Literal["[]", ""] = "[]" if one.endswith("[]") or other.endswith("[]") else ""
    names = one.removesuffix("[]"), other.removesuffix("[]")
    if "BYTES" in names:
        return f"BYTES{lists}"
    return datatype_of(np.promote_types(*[NUMPY_OF["FP32" if name == "BF16" else name] for name in names])) + lists


def _type(arrow: Any, held: str) -> Any:
    if held == _TIME:
        return arrow.timestamp("us", tz="UTC")
    if held.endswith("[]"):
        return arrow.list_(_type(arrow, held.removesuffix("[]")))
    return getattr(arrow, _ARROW[held])()


def _table(arrow: Any, schema: Any, block: list[TableLine]) -> Any:
    columns = []
    for field in schema:
        values = _fitted(arrow, field.type, [line.values.get(field.name) for line in block])
        columns.append(arrow.array(values, type=field.type))
    return arrow.Table.from_arrays(columns, schema=schema)


def _fitted(arrow: Any, kind: Any, values: list[Any]) -> list[Any]:
    """Values as a column of this type takes them; callers write 1 for 1.0, and the log keeps what they wrote."""
    if arrow.types.is_list(kind):
        lists = [value if value is None or isinstance(value, list) else [value] for value in values]
        return [value if value is None else _fitted(arrow, kind.value_type, value) for value in lists]
    if arrow.types.is_timestamp(kind):
        return [None if value is None else round(seconds_of(value) * 1e6) for value in values]
    if arrow.types.is_string(kind):
        return [value if value is None or isinstance(value, str) else str(value) for value in values]
    if arrow.types.is_floating(kind):
        return [float(value) if isinstance(value, int) else value for value in values]
    if arrow.types.is_integer(kind):
        return [int(value) if isinstance(value, bool) else value for value in values]
    return values
