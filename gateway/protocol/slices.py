"""Large tensors in JSON, read and written in slices.

A parser holds the interpreter's lock for as long as it reads. So the numbers of a large body are cut out of it, what
is left is parsed as any other request, and the numbers are parsed some thousands at a time: other threads run between.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np
import simdjson

from gateway.protocol.datatypes import NUMPY_OF, TensorSpec
from gateway.protocol.encode import encode_flat, encode_flat_with_tokens
from gateway.protocol.errors import CallerError
from gateway.protocol.json_tensor import check_nesting, numbers, numbers_with_tokens

__all__ = ("Cut", "cut_numbers", "encode_in_slices", "numbers_in_slices")

Array = np.ndarray[Any, np.dtype[Any]]

SLICE_BYTES = 256 * 1024
SLICE_ELEMENTS = 64 * 1024

_KEY = b'"data"'
_ARRAY = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*(\[?)(?=[ \t\r\n]*[-0-9NI])")
_MARK = "numbers that were cut out: "


class Cut(NamedTuple):
    """A JSON text without its large arrays of numbers, or of rows of numbers.

    Parameters
    ----------
    text : bytes
        With an array of one string, `mark` and a number, in the place of each.
    places : list of (int, int)
        By that number, where its elements begin and end in the whole text.
    unread : set of int
        Numbers of those that nobody has asked for: whether they are JSON is not known.
    """

    text: bytes
    places: list[tuple[int, int]]
    unread: set[int]

    def place_of(self, values: Any) -> tuple[int, int] | None:
        """Where the elements are that stood in the place of a decoded array; None where nothing was cut out."""
        first = values[0] if isinstance(values, (simdjson.Array, list)) and len(values) == 1 else None
        if not isinstance(first, str) or not first.startswith(_MARK):
            return None
        number = int(first[len(_MARK) :])
        self.unread.discard(number)
        return self.places[number]


def cut_numbers(text: bytes) -> Cut | None:
    """Cut out what is the large `data` of a tensor, flat or in rows; None where there is nothing, or it cannot be told.

    >>> cut_numbers(b'{"data":[%b]}' % b",".join([b"1"] * 200_000)).places
    [(9, 400008)]
    """
    # Without an escape every quote begins or ends a string, so the key followed by a colon is the key, or the text is
    # no JSON, with or without what is cut out.
    if b"\\" in text or _MARK.encode() in text:
        return None
    kept: list[bytes] = []
    places: list[tuple[int, int]] = []
    begin, at = 0, text.find(_KEY)
    while at >= 0:
        array = _ARRAY.match(text, at + len(_KEY))
        at += len(_KEY)
        if array is not None:
            start = array.start(1)
            end = text.find(b"]]", start) + 1 if array[1] else text.find(b"]", start)
            if end <= 0 or (array[1] and text.find(b'"', start, end) >= 0):
                at = text.find(_KEY, start)  # no rows as they are usually written
                continue
            if end - start > SLICE_BYTES:
                kept.append(text[begin:start] + b'"%b%d"' % (_MARK.encode(), len(places)))
                places.append((start, end))
                begin = end
            at = end
        at = text.find(_KEY, at)
    if not places:
        return None
    return Cut(b"".join([*kept, text[begin:]]), places, set(range(len(places))))


def numbers_in_slices(
    text: bytes, place: tuple[int, int], shape: tuple[int, ...], spec: TensorSpec, *, parser: simdjson.Parser
) -> Array:
    """The tensor whose elements stand at a place of a text.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor.

    Raises
    ------
    CallerError
    """
    dtype = NUMPY_OF[spec.datatype]
    start, end = place
    size = math.prod(shape)
    in_rows = text.startswith(b"[", start)
    between = b"]," if in_rows else b","
    inner = shape[1:] if in_rows else ()
    if in_rows and len(shape) < 2:
        raise CallerError(f"'data' of input '{spec.name}' is nested otherwise than its shape {list(shape)} says")
    if dtype.kind not in "fiu":
        raise CallerError(f"'data' of input '{spec.name}' has an element that is no {spec.datatype}")
    if size > (end - start + 1) // 2:
        raise CallerError(f"input '{spec.name}' has fewer elements than its shape, which has {size}")
    array = np.empty(size, dtype)
    filled = 0
    while True:
        last = text.find(between, min(start + SLICE_BYTES, end), end)
        stop = end if last < 0 else last + in_rows
        read = _read(b"[%b]" % text[start:stop], inner, spec, parser)
        if filled + read.size > size:
            raise CallerError(f"input '{spec.name}' has more elements than its shape, which has {size}")
        array[filled : filled + read.size] = read
        filled += read.size
        if last < 0:
            break
        start = stop + 1
    if filled != size:
        raise CallerError(f"input '{spec.name}' has {filled} elements, but its shape has {size}")
    return array.reshape(shape)


def encode_in_slices(array: Array) -> bytes:
    """The elements of a tensor as a flat, row-major JSON array; NaN and infinities as tokens.

    >>> encode_in_slices(np.array([1.0, float("nan")]))
    b'[1.0,NaN]'
    """
    flat = array.reshape(-1)
    pieces = []
    for start in range(0, flat.size, SLICE_ELEMENTS):
        part = flat[start : start + SLICE_ELEMENTS]
        piece = encode_flat(part)
        if flat.dtype.kind == "f" and b"null" in piece:
            piece = encode_flat_with_tokens(part).replace(b" ", b"")
        pieces.append(piece[1:-1])
    return b"[%b]" % b",".join(pieces)


def _read(piece: bytes, inner: tuple[int, ...], spec: TensorSpec, parser: simdjson.Parser) -> Array:
    try:
        try:
            values: Any = parser.parse(piece)
            if inner:
                check_nesting(values, (len(values), *inner), 0, spec.name)
            read = numbers(values, spec)
        except (ValueError, RuntimeError):
            if b"NaN" not in piece and b"Infinity" not in piece:
                raise
            read = numbers_with_tokens(piece, inner, spec)
    except (ValueError, RuntimeError, RecursionError) as error:
        raise CallerError(_fault(piece, error, spec)) from None
    if not read.size:
        raise CallerError(f"'data' of input '{spec.name}' is not valid JSON")
    return read


def _fault(piece: bytes, error: Exception, spec: TensorSpec) -> str:
    if b"[" in piece[1:].lstrip():
        return f"'data' of input '{spec.name}' begins flat and then nests"
    if "NUMBER" in str(error) or "BIGINT" in str(error):
        return f"'data' of input '{spec.name}' has a number that no datatype holds"
    return f"'data' of input '{spec.name}' is not valid JSON"
