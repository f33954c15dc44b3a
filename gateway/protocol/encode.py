"""Answers and logged tensors as JSON, and the outputs of an answer in binary.

NaN and infinities are written as the bare tokens that clients of Triton read; the log writes null for them, since a
record must be JSON for everybody.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import orjson

from gateway.protocol.binary import tensor_to_bytes
from gateway.protocol.datatypes import TensorSpec, numbers_of

__all__ = (
    "can_encode_rows",
    "encode_flat",
    "encode_flat_with_tokens",
    "encode_rows",
    "encode_string",
    "encode_tensor",
    "encode_tensor_in_binary",
    "tensor_head",
)

Array = np.ndarray[Any, np.dtype[Any]]

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def encode_flat(array: Array) -> bytes:
    """The elements of a tensor as a flat, row-major JSON array; NaN and infinities become null.

    >>> encode_flat(np.array([[0.1, 2.0]], "f4"))
    b'[0.1,2.0]'
    """
    flat = numbers_of(array).ravel()
    if flat.dtype.kind in "OUT" or flat.dtype.itemsize == 2 and flat.dtype.kind == "f":
        return orjson.dumps(flat.tolist())
    return orjson.dumps(flat, option=_OPTIONS)


def encode_rows(array: Array) -> list[bytes] | None:
    """The elements of each row (along the first axis) as JSON, without brackets.

    None where they are not all finite numbers or booleans of a kind that can be written at once.

    >>> encode_rows(np.array([[0.1, 2.0], [3.0, 4.0]], "f4"))
    [b'0.1,2.0', b'3.0,4.0']
    """
    if not _is_written_at_once(array):
        return None
    # Where each row is one number, a flat array takes half the time of nested ones.
    is_flat = array.size == len(array)
    text = orjson.dumps(array.reshape(-1) if is_flat else array.reshape(len(array), -1), option=_OPTIONS)
    if b"null" in text:
        return None
    return text[1:-1].split(b",") if is_flat else text[2:-2].split(b"],[")


def can_encode_rows(array: Array) -> bool:
    """Whether `encode_rows` gives something, without writing it."""
    return _is_written_at_once(array) and (array.dtype.kind != "f" or bool(np.isfinite(array).all()))


def encode_flat_with_tokens(array: Array) -> bytes:
    """As `encode_flat`, but NaN and infinities as `NaN`, `Infinity` and `-Infinity`.

    >>> encode_flat_with_tokens(np.array([float("nan"), float("-inf"), 0.1], "f4"))
    b'[NaN,-Infinity,0.1]'
    """
    numbers = array.ravel()
    odd = numbers[~np.isfinite(numbers)]
    tokens = np.where(np.isnan(odd), b"NaN", np.where(odd > 0, b"Infinity", b"-Infinity")).tolist()
    first, *others = encode_flat(array).split(b"null")
    return b"".join([first, *chain.from_iterable(zip(tokens, others, strict=True))])


def encode_tensor(head: bytes, array: Array, flat: bytes | None = None) -> bytes:
    """An output in JSON, NaN and infinities as tokens.

    Parameters
    ----------
    head : bytes
        From `tensor_head`.
    flat : bytes, optional
        Its elements from `encode_flat`, where they are known.
    """
    if flat is None:
        flat = encode_flat(array)
    if b"null" in flat and array.dtype.kind == "f":
        flat = encode_flat_with_tokens(array)
    return b'%b%b],"data":%b}' % (head, b",".join([b"%d" % axis for axis in array.shape]), flat)


def encode_tensor_in_binary(head: bytes, array: Array) -> tuple[bytes, bytes | memoryview]:
    """An output in binary: its JSON, and its bytes, which go behind the JSON of the whole answer."""
    block = tensor_to_bytes(array)
    shape = b",".join([b"%d" % axis for axis in array.shape])
    return b'%b%b],"parameters":{"binary_data_size":%d}}' % (head, shape, len(block)), block


def encode_string(text: str) -> bytes:
    """A string as JSON."""
    return orjson.dumps(text)


def tensor_head(spec: TensorSpec) -> bytes:
    """The beginning of a tensor object, up to where its shape's numbers go."""
    return b'{"name":%b,"datatype":"%b","shape":[' % (orjson.dumps(spec.name), spec.datatype.encode())


def _is_written_at_once(array: Array) -> bool:
    dtype = array.dtype
    return dtype.kind in "fiub" and not (dtype.kind == "f" and dtype.itemsize == 2) and array.size > 0
