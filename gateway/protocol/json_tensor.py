"""The `data` of one tensor in JSON, checked for type and range before it becomes an array.

`null`, `true`, `"1"` and 1e39 are no FP32. Values come as simdjson's proxies, or as plain lists where the body had
the tokens NaN, Infinity or -Infinity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from struct import error as StructError
from struct import pack
from typing import Any, NamedTuple

import numpy as np
import simdjson

from gateway.protocol.binary import SLICE_STRINGS, texts_of
from gateway.protocol.datatypes import NUMPY_OF, TensorSpec
from gateway.protocol.errors import CallerError

__all__ = (
    "MAX_TOKEN_BYTES",
    "NESTING_BLOCK_BYTES",
    "NumberBeyond",
    "READING",
    "SECRET_BITS",
    "Reading",
    "check_flat",
    "check_nesting",
    "few_numbers_in",
    "fragment_of",
    "is_array",
    "is_number_beyond",
    "is_object",
    "is_splittable",
    "loads_with_tokens",
    "longest_text",
    "narrow",
    "nested_otherwise",
    "nesting_of",
    "numbers",
    "numbers_in",
    "numbers_in_each",
    "numbers_with_tokens",
    "tensor_of",
    "wide_numbers",
    "within",
)

Array = np.ndarray[Any, np.dtype[Any]]

_MAX_TEXT = 40
"""Bytes of JSON a logged number may take; spaces and idle digits could make it any length."""

NESTING_BLOCK_BYTES = 64 * 1024
"""Of a text whose nesting is looked at in one go."""

MAX_TOKEN_BYTES = 2 * 2**20
"""Of JSON with NaN or Infinity: Python's parser reads it at a go, as simdjson knows neither."""

SECRET_BITS = 53
"""Of a number that goes between those of callers; a float has it exactly, too."""

_BUFFER_OF_KIND = {"f": ("d", np.dtype("<f8")), "i": ("i", np.dtype("<i8")), "u": ("u", np.dtype("<u8"))}
_ALLOWED: Mapping[str, frozenset[type]] = {
    "f": frozenset({int, float}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "b": frozenset({bool}),
    "O": frozenset({str}),
}
_CONTAINERS = frozenset({list, dict, simdjson.Array, simdjson.Object})
_INFINITIES = (math.inf, -math.inf)


class NumberBeyond(ValueError):
    """Raised when JSON has a number that no datatype holds."""


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The smallest and the largest number in JSON that is one of `dtype`."""
    if dtype.kind != "f":
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    largest = np.finfo(dtype)
    high = float(largest.max)
    if dtype.itemsize < 8:
        # The shortest decimal of the largest float lies above it: what still rounds to it is it.
        high = math.nextafter(high + 2.0 ** (largest.maxexp - largest.nmant - 2), 0)
    return -high, high


_LIMITS = {dtype: _limits(dtype) for dtype in NUMPY_OF.values() if dtype.kind in "fiu"}


class Reading(NamedTuple):
    """How numbers of one datatype are read: simdjson's code, its dtype, ours, and what must be checked on the way."""

    code: str
    wide: np.dtype[Any]
    dtype: np.dtype[Any]
    limits: tuple[float, float] | None


def _reading(dtype: np.dtype[Any]) -> Reading:
    code, wide = _BUFFER_OF_KIND[dtype.kind]
    narrow = dtype.itemsize < 8
    return Reading(code, wide, dtype, _LIMITS[dtype] if narrow else None)


_PACKED = {NUMPY_OF[name]: code for name, code in (("FP32", "f"), ("FP64", "d"), ("INT32", "i"), ("INT64", "q"))}
_IN_NUMBERS = b"0123456789+-.eE, \t\r\n"
READING = {datatype: _reading(dtype) for datatype, dtype in NUMPY_OF.items() if dtype.kind in "fiu"}
_QUOTE = ord('"')
_NO_MARKS = bytes(sorted(set(range(256)) - set(b'"[]{}')))


def is_array(value: object) -> bool:
    """Whether a decoded JSON value is an array."""
    return isinstance(value, (simdjson.Array, list))


def is_object(value: object) -> bool:
    """Whether a decoded JSON value is an object."""
    return isinstance(value, (simdjson.Object, dict))


def nesting_of(text: bytes) -> int:
    """How deep the arrays and objects of a valid JSON text nest.

    It looks at one block of the text after the other: whatever is in them, 16 MiB take at most some 0.1 s, and less
    than 1 MiB of memory beside them.

    >>> nesting_of(b'{"a":[[1],{"b":"[[["}]}')
    3
    """
    deepest = level = in_string = 0
    escape = b""  # its other half is in the next block
    for start in range(0, len(text), NESTING_BLOCK_BYTES):
        block = escape + text[start : start + NESTING_BLOCK_BYTES]
        escape = b""
        if b"\\" in block:
            # From the left, so that a quote behind an escaped backslash stays one.
            block = block.replace(b"\\\\", b"").replace(b'\\"', b"")
            escape = block[-1:] if block.endswith(b"\\") else b""
        marks = np.frombuffer(block.translate(None, _NO_MARKS), "u1")
        if not marks.size:
            continue
        is_quote = marks == _QUOTE
        # Odd from the quote that begins a string to the mark before the one that ends it; it may wrap, as 256 is even.
        quotes = is_quote.cumsum(dtype="u1") + np.uint8(in_string)
        in_string = int(quotes[-1] & 1)
        brackets = marks[~(is_quote | (quotes & 1).view(bool))]
        if brackets.size:
            # An opening bracket has the bit of 2, a closing one has not.
            levels = ((brackets & 2).astype("i4") - 1).cumsum(dtype="i4") + level
            deepest, level = max(deepest, int(levels.max())), int(levels[-1])
    return deepest


def tensor_of(values: Any, shape: tuple[int, ...], spec: TensorSpec) -> tuple[Array, bool]:
    """The array that `data` is, and whether it was flat.

    Raises
    ------
    CallerError
        It is not of the shape, or an element is none of the datatype.
    """
    if not is_array(values):
        raise CallerError(f"'data' of input '{spec.name}' must be an array")
    dtype = NUMPY_OF[spec.datatype]
    nested = len(values) > 0 and is_array(values[0])
    size = math.prod(shape)
    if not nested and len(values) < 0xFFFFFF:  # simdjson counts no further
        _check_size(len(values), shape, size, spec)
    if isinstance(values, simdjson.Array) and dtype.kind in "fiu":
        if nested:
            check_nesting(values, shape, 0, spec.name)
        array = numbers(values, spec)
    else:
        array = _elements(values, shape, dtype, spec)
    _check_size(array.size, shape, size, spec)
    return array.reshape(shape), not nested


def check_flat(values: Any, spec: TensorSpec) -> None:
    """Nothing in `data` that begins flat may be nested: the buffer of numbers would pass over the brackets.

    Raises
    ------
    CallerError
    """
    if _holds_more(values):
        raise CallerError(f"'data' of input '{spec.name}' begins flat and then nests")


def numbers(values: Any, spec: TensorSpec) -> Array:
    """The elements of a simdjson array of numbers, flat, of the dtype of `spec`.

    Raises
    ------
    CallerError
    """
    array = wide_numbers(values, spec)
    reading = READING[spec.datatype]
    if reading.limits is None:
        return array
    if not within(array, reading):
        raise CallerError(_out_of_range(spec))
    return array.astype(reading.dtype)


def wide_numbers(values: Any, spec: TensorSpec) -> Array:
    """The elements of a simdjson array of numbers, flat, of the wide dtype that those of `spec` are read as.

    Raises
    ------
    CallerError
    """
    reading = READING[spec.datatype]
    try:
        return np.frombuffer(values.as_buffer(of_type=reading.code), reading.wide)
    except (TypeError, ValueError):
        raise CallerError(f"'data' of input '{spec.name}' has an element that is no {spec.datatype}") from None


def narrow(wide: Array, room: Array, spec: TensorSpec) -> None:
    """Put finite numbers of the wide dtype into `room`, as many of the dtype of `spec`.

    Raises
    ------
    CallerError
        Some are out of its range.
    """
    if room.dtype.kind == "f":
        # What is beyond the limit becomes infinite, and only that.
        with np.errstate(over="ignore"):
            room[:] = wide
        fits = bool(np.isfinite(room).all())
    else:
        fits = within(wide, READING[spec.datatype])
        room[:] = wide if fits else 0
    if not fits:
        raise CallerError(_out_of_range(spec))


def numbers_in(text: bytes, reading: Reading, *, parser: simdjson.Parser) -> Array | None:
    """The numbers of a JSON array, flat, of the wide dtype of `reading`; None when there is anything else in it.

    Arrays in it are passed over: its numbers are those of all of them.
    """
    try:
        values: Any = parser.parse(text)
        array: Array = np.frombuffer(values.as_buffer(of_type=reading.code), reading.wide)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None
    return array


def numbers_in_each(
    texts: Sequence[bytes], size: int, reading: Reading, *, secret: int, parser: simdjson.Parser
) -> Array | None:
    """The numbers of flat JSON arrays without their brackets, behind one another, of the wide dtype of `reading`.

    None when some text has anything else than `size` numbers.

    Parameters
    ----------
    secret : int
        Of `SECRET_BITS`, which nobody can know who wrote a text. Counting commas would cost more than reading: it
        goes behind each text, and stands where it must only if each has as many numbers as it should.

    >>> parser = simdjson.Parser()
    >>> numbers_in_each([b"1,2", b"3,4.5"], 2, READING["FP64"], secret=8731, parser=parser).tolist()
    [1.0, 2.0, 3.0, 4.5]
    >>> numbers_in_each([b"1,2,3", b"4"], 2, READING["FP64"], secret=8731, parser=parser) is None
    True
    """
    text = b"[%b,%d]" % ((b",%d," % secret).join(texts), secret)
    if text.rfind(b"["):
        return None
    array = numbers_in(text, reading, parser=parser)
    if array is None or array.size != len(texts) * (size + 1):
        return None
    table = array.reshape(-1, size + 1)
    if np.count_nonzero(table[:, size] == secret) != len(texts):
        return None
    return table[:, :size].reshape(-1)


def few_numbers_in(text: bytes, size: int, reading: Reading, *, parser: simdjson.Parser) -> Array | None:
    """As `numbers_in_each` of one text, and of the dtype of `reading`, by steps that are shorter for a few numbers.

    None too where a number is beyond the dtype, or the dtype is none of those that most models have.
    """
    code = _PACKED.get(reading.dtype)
    if code is None or text.translate(None, _IN_NUMBERS):
        return None
    try:
        values: Any = parser.parse(b"[%b]" % text)
        values = values.as_list()
        # It rounds as numpy does, and refuses what numpy would make infinite or wrap, and another number of them.
        return np.frombuffer(pack(f"<{size}{code}", *values), reading.dtype)
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError, StructError):
        return None


def within(array: Array, reading: Reading) -> bool:
    """Whether every number of a flat array is one of a datatype that has limits."""
    if not array.size:
        return True
    low, high = reading.limits or (-math.inf, math.inf)
    # For a few numbers, looking for the place is a third of the price of max() and min().
    return bool(array.item(array.argmax()) <= high and array.item(array.argmin()) >= low)


def numbers_with_tokens(text: bytes, inner: tuple[int, ...], spec: TensorSpec) -> Array:
    """The elements of a JSON array that may have the tokens NaN, Infinity and -Infinity among them; flat.

    Parameters
    ----------
    inner : tuple of int
        Shape of each element of the array.

    Raises
    ------
    CallerError
    ValueError
        It is not valid JSON.
    """
    values = loads_with_tokens(text)
    return _elements(values, (len(values), *inner), NUMPY_OF[spec.datatype], spec)


def loads_with_tokens(text: str | bytes, **hooks: Any) -> Any:
    """What `json.loads` makes of JSON in which NaN, Infinity and -Infinity may stand; other numbers as simdjson takes
    them, which reads all that is without these.

    Raises
    ------
    NumberBeyond
        A number is beyond every datatype, or a whole one beyond 64 bits.
    ValueError
        It is not valid JSON.

    >>> loads_with_tokens("[NaN, 18446744073709551615]")
    [nan, 18446744073709551615]
    """
    return json.loads(text, parse_float=_finite_number, parse_int=_whole_number, **hooks)


def is_number_beyond(text: bytes, error: Exception) -> bool:
    """Whether a parser refused a text, of no more than `MAX_TOKEN_BYTES`, for a number that no datatype holds.

    simdjson's word is not taken for it: where a text is not closed, it reads on in what the text before, of somebody
    else, has left in its memory.

    >>> [is_number_beyond(text, ValueError("NUMBER_ERROR")) for text in (b"[1e400]", b"[{}")]
    [True, False]
    """
    if isinstance(error, NumberBeyond):
        return True
    if not any([word in str(error) for word in ("NUMBER", "BIGINT")]):
        return False
    try:
        loads_with_tokens(text.decode())
    except NumberBeyond:
        return True
    except (ValueError, RecursionError):
        return False
    return True


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NumberBeyond(f"{text[:32]} is beyond every datatype")
    return number


def _whole_number(text: str) -> int:
    if len(text) <= 20 and -(2**63) <= (number := int(text)) < 2**64:
        return number
    raise NumberBeyond(f"{text[:32]} is beyond every datatype")


def is_splittable(body: bytes) -> bool:
    """Whether the text of a tensor's `data` can be told apart: the word stands once, so it is the key, and nothing is
    escaped, so no key is spelled otherwise.

    >>> is_splittable(b'{"data":[1]}'), is_splittable(b'{"x":"data","data":[1]}')
    (True, False)
    """
    return body.count(b'"data"') == 1 and b"\\" not in body


def fragment_of(body: bytes, size: int) -> bytes | None:
    """The text of the only, flat `data` of `size` numbers in a body, if it is fit for the log."""
    # The key stands once in the body (`is_splittable`) and its array is flat and of numbers: no bracket misleads.
    start = body.index(b"[", body.index(b'"data"'))
    fragment = body[start : body.index(b"]", start) + 1]
    return fragment if _is_loggable(fragment, size) else None


def longest_text(size: int) -> int:
    """Bytes that the JSON of `size` numbers may take in a record."""
    return _MAX_TEXT * (size + 1)


def _is_loggable(fragment: bytes, size: int) -> bool:
    """Whether the text of `size` numbers may stand in a record, which is one line and no longer than it need be."""
    return len(fragment) <= longest_text(size) and b"\n" not in fragment and b"\r" not in fragment


def _out_of_range(spec: TensorSpec) -> str:
    return f"'data' of input '{spec.name}' has a number out of range for {spec.datatype}"


def _check_size(elements: int, shape: tuple[int, ...], size: int, spec: TensorSpec) -> None:
    if elements != size:
        raise CallerError(f"input '{spec.name}' has {elements} elements, but its shape {list(shape)} has {size}")


def check_nesting(values: Any, shape: tuple[int, ...], axis: int, name: str) -> None:
    """Arrays must nest as the axes of a shape from `axis` on say.

    Raises
    ------
    CallerError
    """
    last = axis + 1 == len(shape)
    if axis >= len(shape) or len(values) != shape[axis] or (last and _holds_more(values)):
        raise CallerError(nested_otherwise(shape, name))
    if not last:
        for element in values:
            if not is_array(element):
                raise CallerError(nested_otherwise(shape, name))
            check_nesting(element, shape, axis + 1, name)


def nested_otherwise(shape: tuple[int, ...], name: str) -> str:
    """What a caller is told whose arrays do not nest as the axes of a shape."""
    return f"'data' of input '{name}' is nested otherwise than its shape {list(shape)} says"


def _holds_more(values: Any) -> bool:
    # A row is walked through once for each row of a tensor, so in few steps of Python; and not what its elements hold.
    return not _CONTAINERS.isdisjoint(map(type, values))


def _elements(nested: Any, shape: tuple[int, ...], dtype: np.dtype[Any], spec: TensorSpec) -> Array:
    if len(nested) and is_array(nested[0]):
        check_nesting(nested, shape, 0, spec.name)
        for _ in range(len(shape) - 1):
            nested = chain.from_iterable(nested)
    # A slice at a time, here and below: other threads run between.
    values = _listed(nested)
    allowed = _ALLOWED[dtype.kind]
    if not all(allowed.issuperset(map(type, part)) for part in _slices_of(values)):
        raise CallerError(f"'data' of input '{spec.name}' has an element that is no {spec.datatype}")
    if dtype in _LIMITS:
        low, high = _LIMITS[dtype]
        # An integer may be larger than every double; comparing does not convert it.
        if any((element < low or element > high) and element not in _INFINITIES for element in values):
            raise CallerError(_out_of_range(spec))
    if dtype.kind == "O":
        try:
            return texts_of(values)
        except UnicodeEncodeError:
            raise CallerError(f"'data' of input '{spec.name}' has text that is not Unicode") from None
    array: Array = np.empty(len(values), dtype)
    for start, part in zip(range(0, len(values), SLICE_STRINGS), _slices_of(values), strict=True):
        array[start : start + len(part)] = np.array(part, dtype=dtype)
    return array


def _listed(elements: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    left = iter(elements)
    while part := list(islice(left, SLICE_STRINGS)):
        found += part
    return found


def _slices_of(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), SLICE_STRINGS):
        yield values[start : start + SLICE_STRINGS]
