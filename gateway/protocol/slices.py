"""Large tensors in JSON, read and written in slices.

A parser holds whoever else would run for as long as it reads. So the numbers of a large body are cut out of it, what is
left is parsed as any other request, and the numbers are parsed some thousands at a time: others run between.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import simdjson

from gateway.protocol.datatypes import NUMPY_OF, TensorSpec
from gateway.protocol.encode import encode_flat, encode_flat_with_tokens
from gateway.protocol.errors import CallerError
from gateway.protocol.json_tensor import (
    MAX_TOKEN_BYTES,
    is_number_beyond,
    narrow,
    nested_otherwise,
    numbers_with_tokens,
    wide_numbers,
)

__all__ = ("SLICE_BYTES", "Cut", "CutTensor", "Lend", "Place", "cut_numbers", "encode_in_slices")

Array = np.ndarray[Any, np.dtype[Any]]

Lend = Callable[[int], Array | None]

SLICE_BYTES = 256 * 1024
SLOW_BYTES = 16 * 1024
"""Of a slice that Python's own parser reads, as simdjson knows no NaN and no Infinity."""
SLICE_ELEMENTS = 64 * 1024
MOST_KEYS = 1024
"""`data` of so many tensors may stand in a text from which some are cut out."""

_KEY = b'"data"'
# Possessive: spaces that have been passed are not given back, or a long row of them would be looked at again and again.
_ARRAY = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+\[[ \t\r\n]*+(\[?)(?=[ \t\r\n]*+[-0-9NI])")
_MARK = "numbers that were cut out: "
_NEITHER_BRACKET_NOR_COMMA = bytes(sorted(set(range(256)) - set(b"[],")))


class _Slow(Exception):
    """A slice is too long for the way in which it has to be read."""


class Place(NamedTuple):
    """Where the elements of a large array begin and end in a text, and whether they are rows of numbers."""

    start: int
    end: int
    in_rows: bool


class Cut(NamedTuple):
    """A JSON text without its large arrays of numbers, or of rows of numbers.

    Parameters
    ----------
    text : bytes
        With an array of one string, `mark` and a number, in the place of each.
    places : list of Place
        By that number, in the whole text.
    unread : set of int
        Numbers of those that nobody has asked for: whether they are JSON is not known.
    """

    text: bytes
    places: list[Place]
    unread: set[int]

    def place_of(self, values: Any) -> Place | None:
        """Where the elements are that stood in the place of a decoded array; None where nothing was cut out."""
        first = values[0] if isinstance(values, (simdjson.Array, list)) and len(values) == 1 else None
        if not isinstance(first, str) or not first.startswith(_MARK):
            return None
        number = int(first[len(_MARK) :])
        self.unread.discard(number)
        return self.places[number]


def cut_numbers(text: bytes | bytearray) -> Cut | None:
    """Cut out what is the large `data` of a tensor, flat or in rows; None where there is nothing, or it cannot be told.

    No byte is looked at more than a few times, so that the time grows with the text and no faster.

    >>> cut_numbers(b'{"data":[%b]}' % b",".join([b"1"] * 200_000)).places
    [Place(start=9, end=400008, in_rows=False)]
    """
    # Without an escape every quote begins or ends a string, so the key followed by a colon is the key, or the text is
    # no JSON, with or without what is cut out.
    if b"\\" in text:
        return None
    kept: list[bytes | bytearray] = []
    places: list[Place] = []
    begin, at = 0, text.find(_KEY)
    keys = 0
    while at >= 0:
        keys += 1
        if keys > MOST_KEYS:
            return None  # many more than a request has tensors: not worth the look
        array = _ARRAY.match(text, at + len(_KEY))
        at += len(_KEY)
        if array is not None:
            start = array.start(1)
            end = _end_of_rows(text, start) if array[1] else text.find(b"]", start)
            if end < 0:
                break  # no array ends any more
            if end == 0:
                at = text.find(_KEY, start)  # no rows as they are usually written
                continue
            if end - start > SLICE_BYTES:
                kept.append(text[begin:start] + b'"%b%d"' % (_MARK.encode(), len(places)))
                places.append(Place(start, end, bool(array[1])))
                begin = end
            at = end
        at = text.find(_KEY, at)
    if not places:
        return None
    rest = b"".join([*kept, text[begin:]])
    if rest.count(_MARK.encode()) != len(places):
        return None
    return Cut(rest, places, set(range(len(places))))


class CutTensor:
    """A tensor whose elements stand at a place of a text, read a slice at a time.

    Parameters
    ----------
    place : Place
    shape : tuple of int
    spec : TensorSpec
    lend : callable, optional
        Gives the memory of the array: so many bytes, or None.

    Attributes
    ----------
    array : array
        Of the shape; its elements are undefined until all of it has been read.

    Raises
    ------
    CallerError
        So many elements cannot be there, or none of the datatype.
    """

    def __init__(self, place: Place, shape: tuple[int, ...], spec: TensorSpec, *, lend: Lend | None = None) -> None:
        dtype = NUMPY_OF[spec.datatype]
        start, end, in_rows = place
        size = math.prod(shape)
        if in_rows and len(shape) < 2:
            raise CallerError(nested_otherwise(shape, spec.name))
        if dtype.kind not in "fiu":
            raise CallerError(f"'data' of input '{spec.name}' has an element that is no {spec.datatype}")
        if size > (end - start + 1) // 2:
            raise CallerError(f"input '{spec.name}' has fewer elements than its shape, which has {size}")
        room = lend(size * dtype.itemsize) if lend is not None else None
        self.array: Array = np.empty(shape, dtype) if room is None else room.view(dtype).reshape(shape)
        self._place = place
        self._inner = shape[1:] if in_rows else ()
        self._between = b"]," if in_rows else b","
        self._spec = spec

    def read(self, text: bytearray, *, parser: simdjson.Parser) -> Iterator[None]:
        """Read the elements; `text` is as it was between two slices, and in the end.

        Raises
        ------
        CallerError
        """
        spec, flat = self._spec, self.array.reshape(-1)
        size, filled, length = flat.size, 0, SLICE_BYTES
        start, end, _ = self._place
        view = memoryview(text)
        while True:
            last = text.find(self._between, min(start + length, end), end)
            stop = end if last < 0 else last + len(self._between) - 1
            # Before and behind a slice stands a comma, or the bracket of the whole: brackets of its own spare a copy.
            around = text[start - 1], text[stop]
            text[start - 1], text[stop] = b"[]"
            try:
                filled += self._read_slice(
                    view[start - 1 : stop + 1], flat[filled:], parser, slowly=length <= SLOW_BYTES
                )
            except _Slow:
                length = SLOW_BYTES
                continue
            finally:
                text[start - 1], text[stop] = around
            if last < 0:
                break
            start = stop + 1
            yield
        if filled != size:
            raise CallerError(f"input '{spec.name}' has {filled} elements, but its shape has {size}")

    def _read_slice(self, piece: memoryview, room: Array, parser: simdjson.Parser, *, slowly: bool) -> int:
        spec, inner = self._spec, self._inner
        try:
            try:
                read = wide_numbers(parser.parse(piece), spec)
                if inner and not _is_rows(bytes(piece), inner, read.size):
                    raise CallerError(nested_otherwise(self.array.shape, spec.name))
            except (ValueError, RuntimeError):
                text = bytes(piece)
                if b"NaN" not in text and b"Infinity" not in text:
                    raise
                if not slowly:
                    raise _Slow from None
                if inner and len(text) > MAX_TOKEN_BYTES:
                    raise CallerError(
                        f"'data' of input '{spec.name}' has a row of more than {MAX_TOKEN_BYTES} bytes with NaN or "
                        "Infinity: send the numbers flat, or in binary"
                    ) from None
                read = numbers_with_tokens(text, inner, spec)
        except (ValueError, RuntimeError, RecursionError) as error:
            raise CallerError(_fault(bytes(piece), error, spec)) from None
        if not read.size:
            raise CallerError(f"'data' of input '{spec.name}' is not valid JSON")
        if read.size > room.size:
            raise CallerError(f"input '{spec.name}' has more elements than its shape, which has {self.array.size}")
        room = room[: read.size]
        if read.dtype == room.dtype:
            room[:] = read
        else:
            narrow(read, room, spec)
        return read.size


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
            piece = encode_flat_with_tokens(part)
        pieces.append(piece[1:-1])
    return b"[%b]" % b",".join(pieces)


def _end_of_rows(text: bytes | bytearray, start: int) -> int:
    # From behind: among many brackets, two together are found slowly. No number has a quote or a brace, and the next
    # key has a quote: nobody looks again at what is before it.
    stop = len(text)
    for mark in (b'"', b"}"):
        found = text.find(mark, start, stop)
        stop = stop if found < 0 else found
    return text.rfind(b"]]", start, stop) + 1


def _is_rows(piece: bytes, inner: tuple[int, ...], count: int) -> bool:
    """Whether a valid JSON array of `count` numbers is one of rows, each as long as the one axis of `inner`."""
    # There are no strings in it, so that brackets and commas tell it all, and the count whether a row of one is empty.
    if len(inner) != 1:
        return False
    row = b"[%b]" % (b"," * (inner[0] - 1))
    rows = [row] * (count // max(1, inner[0]))
    return piece.translate(None, _NEITHER_BRACKET_NOR_COMMA) == b"[%b]" % b",".join(rows)


def _fault(piece: bytes, error: Exception, spec: TensorSpec) -> str:
    if b"[" in piece[1:].lstrip():
        return f"'data' of input '{spec.name}' begins flat and then nests"
    if len(piece) <= MAX_TOKEN_BYTES and is_number_beyond(piece, error):
        return f"'data' of input '{spec.name}' has a number that no datatype holds"
    return f"'data' of input '{spec.name}' is not valid JSON"
