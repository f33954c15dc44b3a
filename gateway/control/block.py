"""A block of predictions as the monitor takes it: arrays, and single predictions only where somebody asks for one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from gateway.control.logged import LoggedPrediction, read_prediction
from gateway.events.addresses import format_id
from gateway.events.blocks import KEY_BYTES, BlockError, PredictionBlock, prediction_of, read_block
from gateway.events.encoding import RecordError
from gateway.events.records import Arm
from gateway.predictions.segments import LogRecord
from gateway.protocol.datatypes import NUMPY_OF

__all__ = ("BlockHead", "BlockReader", "LoggedBlock", "LoggedColumn", "keys_of")

Array = np.ndarray[Any, Any]

_HEADS = 256
"""Heads that are remembered: one for each model, version, arm, weight and front in turn."""
_TIME = re.compile(rb"[0-9TZ:.+-]+")


class BlockHead(msgspec.Struct, frozen=True):
    """What the predictions of a block have in common beside their time."""

    model: str
    version: int
    arm: Arm
    weight: float
    schema: int
    input_name: str
    output_name: str


class LoggedColumn(msgspec.Struct, frozen=True):
    """One tensor of all predictions of a block: `values` has one line a row, of shape [rows, *axes]."""

    name: str
    values: Array

    def first(self, rows: Sequence[int], counted: Sequence[int]) -> Array:
        """The first rows of each prediction, `counted` of its `rows`; infinities are NaN, as they are in JSON.

        JSON, which single records are, has neither: both are null there, and missing.
        """
        values = self.values if rows == counted else self.values[_first(rows, counted)]
        finite = np.isfinite(values)
        return values if finite.all() else np.where(finite, values, np.nan)


class LoggedBlock:
    """Predictions of one version on one arm, answered with status 200 at one time, all of one input and one output.

    Attributes
    ----------
    head : BlockHead
    time : str
        ISO 8601.
    boot, first, count
        The address of the first prediction; those behind it follow in number.
    rows : list of int
        Rows of each prediction, none of them 0.
    keys : list of str or None
        Hashed routing keys, None for those without; None when nobody had one.
    inputs, outputs : LoggedColumn
    columns : PredictionBlock
        As it was written.
    """

    __slots__ = ("boot", "columns", "count", "first", "head", "inputs", "keys", "outputs", "rows", "time")

    def __init__(
        self, head: BlockHead, columns: PredictionBlock, rows: list[int], *, boot: str, first: int, time: str
    ) -> None:
        self.head = head
        self.columns = columns
        self.rows = rows
        self.boot = boot
        self.first = first
        self.count = len(rows)
        self.time = time
        self.keys = keys_of(bytes(columns.keys)) if columns.keys else None
        total = sum(rows)
        self.inputs = LoggedColumn(
            head.input_name,
            np.frombuffer(columns.inputs, columns.input_dtype).reshape(total, *columns.input_axes),
        )
        self.outputs = LoggedColumn(
            head.output_name,
            np.frombuffer(columns.outputs, columns.output_dtype).reshape(total, *columns.output_axes),
        )

    def __repr__(self) -> str:
        head = self.head
        return f"<LoggedBlock {self.boot}-{self.first:010x} count={self.count} {head.model}/{head.version} {head.arm}>"

    def payload(self, place: int) -> bytes:
        """The JSON record of one prediction, as a reader of single records is given it."""
        return prediction_of(self.columns, self.rows, place, boot=self.boot, sequence=self.first)

    @property
    def ids(self) -> tuple[str, str]:
        """The ids of the first and the last prediction."""
        return format_id(self.boot, self.first), format_id(self.boot, self.first + self.count - 1)

    def prediction(self, place: int) -> LoggedPrediction:
        """One prediction as it is read from its JSON record."""
        return read_prediction(self.payload(place))


class BlockReader:
    """Reads blocks, and each distinct head of theirs once.

    A block whose records would say anything else than its columns is given as None: who reads on takes its
    predictions one by one. No front writes such a block.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[Any, ...], BlockHead | None] = {}

    def __repr__(self) -> str:
        return f"<BlockReader heads={len(self._heads)}>"

    def read(self, record: LogRecord) -> LoggedBlock | None:
        """A block of the log.

        Raises
        ------
        RecordError
            The payload is none.
        """
        try:
            columns, rows = read_block(record.payload)
        except BlockError as error:
            raise RecordError(str(error)) from None
        if 0 in rows or not columns.inputs or not columns.outputs or not _TIME.fullmatch(columns.time):
            return None
        head = self._head_of(columns)
        if head is None:
            return None
        return LoggedBlock(
            head, columns, rows, boot=record.boot, first=record.sequence, time=str(columns.time, "ascii")
        )

    def _head_of(self, columns: PredictionBlock) -> BlockHead | None:
        key = (
            columns.head,
            columns.input_head,
            columns.output_head,
            columns.input_dtype,
            columns.output_dtype,
            columns.input_axes,
            columns.output_axes,
        )
        if key not in self._heads:
            if len(self._heads) == _HEADS:
                self._heads.clear()
            self._heads[key] = _head_of(columns)
        return self._heads[key]


def keys_of(column: bytes) -> list[str | None]:
    """The hashed routing keys of a column of 16 characters each, None for blanks."""
    text = str(column, "ascii")
    keys = [text[place : place + KEY_BYTES] for place in range(0, len(text), KEY_BYTES)]
    return [None if " " in key else key for key in keys]


def _first(rows: Sequence[int], counted: Sequence[int]) -> Array:
    places = np.arange(sum(rows)) - np.repeat(np.cumsum(rows) - rows, rows)
    first: Array = places < np.repeat(counted, rows)
    return first


def _head_of(columns: PredictionBlock) -> BlockHead | None:
    """What a record says that is made with these heads; None unless it says what its columns do."""
    head = _told_with(columns, None)
    return head if head == _told_with(columns, "fedcba9876543210") else None


def _told_with(columns: PredictionBlock, key: str | None) -> BlockHead | None:
    boot, first, time = "0123456789abcd", 0x123456789A, b"2026-01-02T03:04:05.678901Z"
    probe = msgspec.structs.replace(
        columns,
        time=time,
        inference_us=3,
        rows=b"",
        queue_us=(5).to_bytes(4, "little"),
        total_us=(7).to_bytes(4, "little"),
        keys=(key or "").encode(),
        inputs=np.zeros((1, *columns.input_axes), columns.input_dtype).tobytes(),
        outputs=np.zeros((1, *columns.output_axes), columns.output_dtype).tobytes(),
    )
    try:
        record = read_prediction(prediction_of(probe, [1], 0, boot=boot, sequence=first))
    except RecordError:
        return None
    timings = record.timings
    told = (record.id, record.time, record.seq, record.status, record.rows, record.key, record.parameters)
    if told != (format_id(boot, first), str(time, "ascii"), first, 200, 1, key, {}):
        return None
    if (timings.queue_us, timings.inference_us, timings.total_us) != (5, 3, 7):
        return None
    if record.error is not None or record.request_id is not None or not record.sampled:
        return None
    if len(record.inputs) != 1 or len(record.outputs) != 1:
        return None
    given, answered = record.inputs[0], record.outputs[0]
    for tensor, axes, dtype in (
        (given, columns.input_axes, columns.input_dtype),
        (answered, columns.output_axes, columns.output_dtype),
    ):
        known = NUMPY_OF.get(tensor.datatype)
        if tensor.shape != (1, *axes) or known is None or known.str != dtype or tensor.data is None:
            return None
    return BlockHead(record.model, record.version, record.arm, record.weight, record.schema, given.name, answered.name)
