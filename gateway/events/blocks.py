"""Many predictions in one frame of the spool: what they have in common once, and what differs in columns.

A front writes what it has, the bytes of the tensors a model was given and gave back, and spends no time on JSON.
Whoever reads the spool sees single JSON records, rendered here: the bytes are those that
`gateway/serving/records.py` makes of one prediction; a test holds the two against each other. The shipper
renders whole blocks; the monitor takes them as they are, and renders the predictions that somebody asks for.
"""

from __future__ import annotations

import math
import struct
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
import orjson

__all__ = (
    "KEY_BYTES",
    "COUNT_BYTES",
    "DTYPES",
    "MAX_BLOCK",
    "MAX_BLOCK_BYTES",
    "MAX_HEAD_BYTES",
    "NO_KEY",
    "BlockError",
    "PredictionBlock",
    "count_of",
    "encode_block",
    "prediction_of",
    "predictions_of",
    "read_block",
)

MAX_BLOCK = 256
"""Predictions in one block; what a reader who asks for one record may be given."""
MAX_BLOCK_BYTES = 4 * 2**20
"""Bytes of one block; each becomes at most 6 of JSON."""
MAX_HEAD_BYTES = 64 * 1024
"""Bytes of the three heads of a block together, which every one of its records repeats."""

COUNT_BYTES = 2
"""Where a block tells how many predictions it holds; the rest is msgpack."""

KEY_BYTES = 16
_KEY_CHARACTERS = b"0123456789abcdef "
NO_KEY = b" " * KEY_BYTES
_MAX_AXES = 63  # numpy has 64
DTYPES = {
    np.dtype(name).newbyteorder("<").str: np.dtype(name)
    for name in ("f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
}
"""Of the tensors of a block, by name."""

if TYPE_CHECKING:
    Column = bytes | bytearray | memoryview
else:
    Column = bytes  # as it is decoded: a copy, and so aligned
_Axes = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=_MAX_AXES)]


class BlockError(ValueError):
    """Raised when bytes are no block, or a block is larger than one may be."""


class PredictionBlock(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Predictions of one version on one arm of one route, all answered with status 200 out of one batch.

    Each has one input tensor and one output tensor, of numbers or booleans, and no parameters.

    Parameters
    ----------
    head : bytes
        What the records begin with, from `prediction_head`.
    input_head, output_head : bytes
        From `tensor_head`.
    input_dtype, output_dtype : str
        As numpy writes them: "<f4", "<f8", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8" or "|b1".
    input_axes, output_axes : tuple of int
        The axes behind the first, which counts rows.
    time : bytes
        When they were answered, from `record_time`.
    inference_us : int
        Microseconds in the model.
    rows : bytes
        Rows of each prediction, u32 little endian; empty when each has one.
    queue_us, total_us : bytes
        Microseconds of each prediction, u32 little endian.
    keys : bytes
        The hashed routing key of each prediction, 16 characters, blanks where it had none; empty when none had one.
    inputs, outputs : bytes
        The elements of all rows, little endian and row-major, one prediction after the other.
    """

    head: Annotated[bytes, msgspec.Meta(max_length=MAX_HEAD_BYTES)]
    input_head: Annotated[bytes, msgspec.Meta(max_length=MAX_HEAD_BYTES)]
    output_head: Annotated[bytes, msgspec.Meta(max_length=MAX_HEAD_BYTES)]
    input_dtype: str
    output_dtype: str
    input_axes: _Axes
    output_axes: _Axes
    time: Annotated[bytes, msgspec.Meta(max_length=40)]
    inference_us: Annotated[int, msgspec.Meta(ge=0)]
    rows: Column
    queue_us: Column
    total_us: Column
    keys: Column
    inputs: Column
    outputs: Column


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(PredictionBlock).decode


def encode_block(block: PredictionBlock, count: int) -> bytes:
    """Return the payload of a frame: `count` (u16, little endian), then the block as msgpack.

    The columns may be any bytes-like. Whether they fit each other is not looked at here.

    Raises
    ------
    BlockError
        There are no predictions or more than `MAX_BLOCK`, or more bytes than `MAX_BLOCK_BYTES` or `MAX_HEAD_BYTES`.
    """
    if not 0 < count <= MAX_BLOCK:
        raise BlockError(f"a block of {count} predictions; expected 1 to {MAX_BLOCK}")
    if len(block.head) + len(block.input_head) + len(block.output_head) > MAX_HEAD_BYTES:
        raise BlockError(f"the heads of a block have more than {MAX_HEAD_BYTES} bytes")
    payload = count.to_bytes(COUNT_BYTES, "little") + _encode(block)
    if len(payload) > MAX_BLOCK_BYTES:
        raise BlockError(f"a block of {len(payload)} bytes; expected at most {MAX_BLOCK_BYTES}")
    return payload


def count_of(payload: bytes) -> int:
    """Return how many predictions a block holds, and so how many numbers of the log it takes.

    >>> count_of(bytes([32, 0]) + b"...")
    32

    Raises
    ------
    BlockError
        The payload is no block.
    """
    count = int.from_bytes(payload[:COUNT_BYTES], "little")
    if not 0 < count <= MAX_BLOCK or len(payload) < COUNT_BYTES:
        raise BlockError(
            f"{payload[:COUNT_BYTES]!r} counts no predictions; expected 1 to {MAX_BLOCK}, u16 little endian"
        )
    return count


def read_block(payload: bytes) -> tuple[PredictionBlock, list[int]]:
    """Return a block whose columns fit each other, and the rows of each of its predictions.

    What its heads hold is not looked at: `predictions_of` splices whatever they are.

    Raises
    ------
    BlockError
        The payload is no block, or its parts do not fit each other.
    """
    count = count_of(payload)
    if len(payload) > MAX_BLOCK_BYTES:
        raise BlockError(f"a block of {len(payload)} bytes; expected at most {MAX_BLOCK_BYTES}")
    try:
        block = _decode(memoryview(payload)[COUNT_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BlockError(f"no block: {error}") from None
    if len(block.head) + len(block.input_head) + len(block.output_head) > MAX_HEAD_BYTES:
        raise BlockError(f"the heads of a block have more than {MAX_HEAD_BYTES} bytes")
    rows = _numbers("rows", block.rows, count) if block.rows else [1] * count
    for name, column in (("queue_us", block.queue_us), ("total_us", block.total_us)):
        _check_numbers(name, column, count)
    _check_keys(block.keys, count)
    total = sum(rows)
    _check_elements("inputs", block.inputs, block.input_dtype, block.input_axes, total)
    _check_elements("outputs", block.outputs, block.output_dtype, block.output_axes, total)
    return block, rows


def predictions_of(payload: bytes, *, boot: str, sequence: int) -> list[bytes]:
    """Return the JSON record of each prediction of a block, numbered from `sequence`.

    Raises
    ------
    BlockError
        The payload is no block, or its parts do not fit each other.
    """
    block, rows = read_block(payload)
    return _records_of(block, rows, boot, sequence)


def prediction_of(block: PredictionBlock, rows: list[int], place: int, *, boot: str, sequence: int) -> bytes:
    """Return the JSON record of one prediction of what `read_block` gave, as `predictions_of` gives it.

    Parameters
    ----------
    place : int
        Which one, from 0.
    sequence : int
        The number of the block's first prediction.
    """
    own, before = rows[place], sum(rows[:place])
    alone = msgspec.structs.replace(
        block,
        rows=b"",
        queue_us=block.queue_us[4 * place : 4 * place + 4],
        total_us=block.total_us[4 * place : 4 * place + 4],
        keys=block.keys[KEY_BYTES * place : KEY_BYTES * (place + 1)],
        inputs=_rows_between(block.inputs, block.input_dtype, block.input_axes, before, before + own),
        outputs=_rows_between(block.outputs, block.output_dtype, block.output_axes, before, before + own),
    )
    return _records_of(alone, [own], boot, sequence + place)[0]


def _records_of(block: PredictionBlock, rows: list[int], boot: str, sequence: int) -> list[bytes]:
    count = len(rows)
    queue_us, total_us = _numbers("queue_us", block.queue_us, count), _numbers("total_us", block.total_us, count)
    inputs = _texts(block.inputs, block.input_dtype, block.input_axes, rows)
    outputs = _texts(block.outputs, block.output_dtype, block.output_axes, rows)
    formats = {number: _format_of(block, boot, number) for number in set(rows)}
    return [
        formats[row] % (number, number, queue, total, given, answered, key)
        for row, number, queue, total, given, answered, key in zip(
            rows,
            range(sequence, sequence + count),
            queue_us,
            total_us,
            inputs,
            outputs,
            _key_members(bytes(block.keys), count),
            strict=True,
        )
    ]


def _rows_between(column: Column, dtype: str, axes: tuple[int, ...], start: int, end: int) -> Column:
    each = math.prod(axes) * DTYPES[dtype].itemsize
    return column[start * each : end * each]


def _numbers(name: str, column: Column, count: int) -> list[int]:
    _check_numbers(name, column, count)
    return list(struct.unpack(f"<{count}I", column))


def _check_numbers(name: str, column: Column, count: int) -> None:
    if len(column) != 4 * count:
        raise BlockError(f"{name} of a block of {count} predictions has {len(column)} bytes; expected {4 * count}")


def _check_keys(keys: Column, count: int) -> None:
    if keys and (len(keys) != KEY_BYTES * count or bytes(keys).translate(None, _KEY_CHARACTERS)):
        raise BlockError(f"keys of a block of {count} predictions are not {KEY_BYTES} hex digits or blanks each")


def _check_elements(name: str, raw: Column, dtype_name: str, axes: tuple[int, ...], rows: int) -> None:
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise BlockError(f"{name} of a block are {dtype_name[:16]!r}; expected one of {', '.join(DTYPES)}")
    if rows * math.prod(axes) * dtype.itemsize != len(raw):
        raise BlockError(f"{name} of a block have {len(raw)} bytes, which its rows and axes do not take")
    if dtype.kind == "b" and bytes(raw).translate(None, b"\0\1"):
        raise BlockError(f"{name} of a block are no booleans")


def _key_members(keys: bytes, count: int) -> list[bytes]:
    if not keys:
        return [b""] * count
    members = [b',"key":"%b"' % keys[place : place + KEY_BYTES] for place in range(0, len(keys), KEY_BYTES)]
    return [b"" if NO_KEY in member else member for member in members]


def _texts(raw: Column, dtype_name: str, axes: tuple[int, ...], rows: list[int]) -> list[bytes]:
    """The elements of each prediction as JSON, without brackets."""
    elements = math.prod(axes)
    array = np.frombuffer(raw, DTYPES[dtype_name])
    if rows.count(rows[0]) == len(rows):
        text = orjson.dumps(array.reshape(len(rows), rows[0] * elements), option=orjson.OPT_SERIALIZE_NUMPY)
        return text[2:-2].split(b"],[")
    return [
        orjson.dumps(array[(end - row) * elements : end * elements], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        for row, end in zip(rows, accumulate(rows), strict=True)
    ]


def _format_of(block: PredictionBlock, boot: str, rows: int) -> bytes:
    """What takes two numbers, queue and total, input and output, and a key."""
    input_shape, output_shape = (
        b",".join([b"%d" % axis for axis in (rows, *axes)]) for axes in (block.input_axes, block.output_axes)
    )
    constant = (block.head, boot.encode(), block.time, block.input_head, block.output_head)
    head, life, time, input_head, output_head = (part.replace(b"%", b"%%") for part in constant)
    return (
        b'%b,"id":"%b-%%010x","time":"%b","seq":%%d,"status":200,"rows":%d,'
        b'"timings":{"queue_us":%%d,"inference_us":%d,"total_us":%%d},'
        b'"inputs":[%b%b],"data":[%%b]}],"outputs":[%b%b],"data":[%%b]}],"parameters":{}%%b}'
        % (head, life, time, rows, block.inference_us, input_head, input_shape, output_head, output_shape)
    )
