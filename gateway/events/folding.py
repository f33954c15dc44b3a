"""Single predictions put together again as the blocks that they came of: `predictions_of`, read backwards.

Kafka holds single records, and each by itself costs who reads them all ten times its share of a block. Nothing is
taken on trust from whoever wrote them: a block is given only where it renders to the very bytes that were read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import simdjson

from gateway.events.blocks import DTYPES, MAX_BLOCK, NO_KEY, BlockError, PredictionBlock, encode_block, predictions_of
from gateway.protocol.json_tensor import READING, Reading, numbers_in

__all__ = ("FEWEST", "fold")

FEWEST = 4
"""Fewer predictions are taken one by one in the time that it takes to fold them."""

Array = np.ndarray[Any, np.dtype[Any]]

_BEGINS = b',"id":"'
_TIMINGS = re.compile(
    rb'.{25}","time":"([^"]*)","seq":[0-9]+,"status":200,"rows":([0-9]{1,9}),'
    rb'"timings":\{"queue_us":([0-9]{1,10}),"inference_us":([0-9]{1,19}),"total_us":([0-9]{1,10})\},'
)
_INPUTS, _DATA, _OUTPUTS, _ENDS = b'"inputs":[', b'],"data":[', b']}],"outputs":[', b']}],"parameters":{}'
_TENSOR = re.compile(rb"(.*\[)([0-9]{1,9})((?:,[0-9]{1,9}){0,63})")
_KEY = re.compile(rb',"key":"([0-9a-f]{16})"\}')
_NULL = b"null"
_MAX_TENSOR_BYTES = 4096
"""Of a tensor's JSON up to its shape; what is longer is no more remembered than folded."""
_DATATYPE = re.compile(rb'"datatype":"([A-Z0-9]{1,8})"')
_U32 = np.dtype("<u4")


class _Alike(NamedTuple):
    """What the predictions of one block have in common; heads and axes as they stand in the record."""

    head: bytes
    time: bytes
    inference_us: bytes
    input_head: bytes
    input_axes: bytes
    output_head: bytes
    output_axes: bytes


class _Own(NamedTuple):
    rows: bytes
    queue_us: bytes
    total_us: bytes
    inputs: bytes
    outputs: bytes
    key: bytes | None


def fold(payloads: list[bytes], *, boot: str, sequence: int) -> Iterator[tuple[int, bytes | None]]:
    """Give so many predictions at a time, in order, as the payload of a block; None where they are to stay single.

    Parameters
    ----------
    payloads : list of bytes
        JSON records whose numbers follow one another.
    boot : str
    sequence : int
        The number of the first.
    """
    parts = [_parts_of(payload) for payload in payloads]
    parser = simdjson.Parser()
    begin = 0
    while begin < len(parts):
        end, first = begin + 1, parts[begin]
        block = None
        if first is not None:
            while end < min(len(parts), begin + MAX_BLOCK):
                following = parts[end]
                if following is None or following[0] != first[0]:
                    break
                end += 1
            if end - begin >= FEWEST:
                own = [each[1] for each in parts[begin:end] if each is not None]
                block = _block_of(first[0], own, parser)
                if block is not None and not _gives(block, payloads[begin:end], boot=boot, sequence=sequence + begin):
                    block = None
        yield end - begin, block
        begin = end


def _parts_of(payload: bytes) -> tuple[_Alike, _Own] | None:
    """What may be a prediction of a block, cut at what they all have. Strings are not told from the rest."""
    try:
        asked, between, answered = payload.split(_DATA)
        given, output = between.split(_OUTPUTS)
        answered, rest = answered.split(_ENDS)
        told, _, input_ = asked.rpartition(_INPUTS)
        head, _, told = told.partition(_BEGINS)
    except ValueError:
        return None
    if max(len(input_), len(output)) > _MAX_TENSOR_BYTES or _NULL in given or _NULL in answered:
        return None
    timings, inputs, outputs = _TIMINGS.fullmatch(told), _tensor(input_), _tensor(output)
    if timings is None or inputs is None or outputs is None:
        return None
    key = None
    if rest != b"}":
        found = _KEY.fullmatch(rest)
        if found is None:
            return None
        key = found[1]
    time, rows, queue, inference, total = timings.groups()
    return (
        _Alike(head, time, inference, inputs[0], inputs[1], outputs[0], outputs[1]),
        _Own(rows, queue, total, given, answered, key),
    )


@lru_cache(maxsize=256)
def _tensor(text: bytes) -> tuple[bytes, bytes] | None:
    """The head of a tensor of numbers, and its axes behind the first."""
    found = _TENSOR.fullmatch(text)
    return None if found is None or _reading_of(found[1]) is None else (found[1], found[3])


def _block_of(alike: _Alike, own: Sequence[_Own], parser: simdjson.Parser) -> bytes | None:
    rows = [int(each.rows) for each in own]
    inputs = _elements([each.inputs for each in own], alike.input_head, alike.input_axes, rows=sum(rows), parser=parser)
    outputs = _elements(
        [each.outputs for each in own], alike.output_head, alike.output_axes, rows=sum(rows), parser=parser
    )
    if inputs is None or outputs is None:
        return None
    try:
        block = PredictionBlock(
            head=alike.head,
            input_head=alike.input_head,
            output_head=alike.output_head,
            input_dtype=inputs.dtype.str,
            output_dtype=outputs.dtype.str,
            input_axes=_axes(alike.input_axes),
            output_axes=_axes(alike.output_axes),
            time=alike.time,
            inference_us=int(alike.inference_us),
            rows=b"" if rows.count(1) == len(rows) else np.array(rows, _U32).tobytes(),
            queue_us=np.array([int(each.queue_us) for each in own], _U32).tobytes(),
            total_us=np.array([int(each.total_us) for each in own], _U32).tobytes(),
            keys=b"".join([each.key or NO_KEY for each in own]) if any([each.key for each in own]) else b"",
            inputs=inputs.tobytes(),
            outputs=outputs.tobytes(),
        )
        return encode_block(block, len(own))
    except (BlockError, OverflowError):
        return None


def _gives(block: bytes, payloads: list[bytes], *, boot: str, sequence: int) -> bool:
    try:
        return predictions_of(block, boot=boot, sequence=sequence) == payloads
    except BlockError:
        return False


def _elements(texts: Sequence[bytes], head: bytes, axes: bytes, *, rows: int, parser: simdjson.Parser) -> Array | None:
    """The numbers of all predictions, of the tensor's dtype; None where there are none, or anything else."""
    reading = _reading_of(head)
    if reading is None:
        return None
    numbers = numbers_in(b"[%b]" % b",".join(texts), reading, parser=parser)
    if numbers is None or numbers.size != rows * math.prod(_axes(axes)):
        return None
    with np.errstate(over="ignore"):
        narrow: Array = numbers.astype(reading.dtype)
    return narrow


@lru_cache(maxsize=256)
def _reading_of(head: bytes) -> Reading | None:
    found = _DATATYPE.search(head)
    reading = None if found is None else READING.get(found[1].decode())
    return reading if reading is not None and reading.dtype in DTYPES.values() else None


@lru_cache(maxsize=256)
def _axes(text: bytes) -> tuple[int, ...]:
    """The axes behind the first, as `,3,4` tells them."""
    return tuple(int(axis) for axis in text.split(b",")[1:])
