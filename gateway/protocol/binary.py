"""Tensors as raw bytes: the binary tensor data extension.

Little endian, row-major, without padding; an element of BYTES is its length as u32 and then its bytes.
Source: Triton, "Binary Tensor Data Extension".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gateway.protocol.datatypes import FREE, NUMPY_OF, TensorSpec
from gateway.protocol.errors import CallerError

__all__ = (
    "SLICE_STRINGS",
    "Octets",
    "Packed",
    "Tail",
    "Texts",
    "pack_strings",
    "raw_tensor",
    "tensor_from_bytes",
    "tensor_to_bytes",
    "texts_of",
)

Array = np.ndarray[Any, np.dtype[Any]]
Octets = bytes | bytearray | memoryview
"""A body, or a piece of one."""

_LENGTH = struct.Struct("<I")

SLICE_STRINGS = 64 * 1024
"""What goes through many strings in one step of the interpreter goes no further: other threads run between."""


class Texts(Array):
    """An object array of ``str`` that has its bytes by it, so that they are packed once.

    >>> texts = texts_of(["a", "bc"])
    >>> texts.packed, texts.reshape(2, 1).packed == texts.packed, texts[:1].packed
    (b'\\x01\\x00\\x00\\x00a\\x02\\x00\\x00\\x00bc', True, None)
    """

    packed: bytes | memoryview | None = None
    """None for a part."""

    def reshape(self, *shape: Any, **options: Any) -> Texts:
        again: Texts = super().reshape(*shape, **options)
        again.packed = self.packed
        return again


class Packed:
    """A tensor of strings that nobody has read yet.

    Parameters
    ----------
    block : memoryview
        As of `pack_strings`, from an engine.
    shape : tuple of int

    >>> packed = Packed(memoryview(pack_strings(np.array(["a", "bc"], object))), (2, 1))
    >>> packed, len(packed), packed.read().tolist()
    (<Packed [2, 1] of 11 bytes>, 2, [['a'], ['bc']])
    """

    __slots__ = ("block", "shape")

    def __init__(self, block: memoryview, shape: tuple[int, ...]) -> None:
        self.block = block
        self.shape = shape

    def __repr__(self) -> str:
        return f"<Packed {list(self.shape)} of {self.nbytes} bytes>"

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return len(self.block)

    def read(self) -> Texts:
        """The strings.

        Raises
        ------
        CallerError
            It is not so many strings in UTF-8.
        """
        return _strings(self.block, math.prod(self.shape), "").reshape(self.shape)


class Tail:
    """The bytes behind the JSON of a request, taken tensor by tensor in the order of its inputs.

    Parameters
    ----------
    body : buffer
        The whole body; nothing of it is copied.
    start : int
        Where the JSON ends.
    model : str
        For error texts.
    """

    def __init__(self, body: Octets, start: int, model: str) -> None:
        self._body = memoryview(body)
        self._start = start
        self._model = model

    def take(self, size: object, name: str) -> memoryview:
        """The next `size` bytes, which are input `name`'s.

        Raises
        ------
        CallerError
        """
        if type(size) is not int or size < 0:
            raise CallerError(
                f"parameter 'binary_data_size' of input '{name}' must be a number of bytes, got {str(size)[:32]!r}"
            )
        left = len(self._body) - self._start
        if size > left:
            raise CallerError(
                f"unexpected size for input '{name}', expecting {size - left} additional bytes "
                f"for model '{self._model}'"
            )
        block = self._body[self._start : self._start + size]
        self._start += size
        return block

    def finish(self) -> None:
        """Nothing may be left.

        Raises
        ------
        CallerError
        """
        left = len(self._body) - self._start
        if left:
            raise CallerError(
                f"unexpected additional input data for model '{self._model}': {left} trailing bytes belong to no input"
            )


def tensor_from_bytes(block: memoryview, spec: TensorSpec, shape: tuple[int, ...], *, model: str) -> Array:
    """The tensor that `block` holds, without copying but for BYTES.

    Parameters
    ----------
    shape : tuple of int
        Checked against `spec`.

    Raises
    ------
    CallerError
        Its size is not that of the shape, or an element is none of the datatype.
    """
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _strings(block, count, spec.name).reshape(shape)
    dtype = NUMPY_OF[spec.datatype]
    if len(block) != count * dtype.itemsize:
        raise CallerError(
            f"input byte size mismatch for input '{spec.name}' for model '{model}'. "
            f"Expected {count * dtype.itemsize}, got {len(block)}"
        )
    if dtype.kind == "b":
        octets = np.frombuffer(block, "u1")
        if count and octets.max() > 1:
            raise CallerError(f"input '{spec.name}' has a byte that is no BOOL; expected 0 or 1")
        return octets.view(dtype).reshape(shape)
    return np.frombuffer(block, dtype).reshape(shape)


def raw_tensor(body: Octets, spec: TensorSpec, *, model: str) -> Array:
    """The one input of a raw binary request: the whole body, its shape deduced.

    One free axis is deduced from the size. Where there are two and the first axis is one of them, that is a batch of
    one. BYTES is one element without a length.

    Raises
    ------
    CallerError
    """
    view = memoryview(body)
    if spec.datatype == "BYTES":
        if any(axis not in (FREE, 1) for axis in spec.shape):
            raise CallerError(f"For BYTE datatype raw input '{spec.name}', the model must have input shape [1]")
        text = np.empty(1, dtype=object)
        text[0] = _text(view, spec.name)
        return text.reshape([1] * len(spec.shape))
    shape = list(spec.shape)
    if shape.count(FREE) > 1 and shape[0] == FREE:
        shape[0] = 1
    if shape.count(FREE) > 1:
        raise CallerError(
            f"The shape of the raw input '{spec.name}' can not be deduced because there are more than one "
            "variable-sized dimension"
        )
    if FREE in shape:
        size = NUMPY_OF[spec.datatype].itemsize * math.prod(axis for axis in shape if axis != FREE)
        if not size or len(view) % size:
            raise CallerError(
                f"The shape of the raw input '{spec.name}' can not be deduced: "
                f"{len(view)} bytes are no multiple of {size}"
            )
        shape[shape.index(FREE)] = len(view) // size
    return tensor_from_bytes(view, spec, tuple(shape), model=model)


def tensor_to_bytes(array: Array) -> bytes | memoryview:
    """A tensor's raw bytes, without copying where it is contiguous and no BYTES."""
    if array.dtype.kind == "O":
        return pack_strings(array)
    if not array.size:
        return b""
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if array.dtype.kind == "V":
        array = array.reshape(-1).view("u1")
    return array.data.cast("B")


def pack_strings(array: Array) -> bytes | memoryview:
    """The elements of an object array of ``str``, each as its length and UTF-8."""
    packed = array.packed if isinstance(array, Texts) else None
    if packed is None:
        flat = array.ravel()
        packed = b"".join([_pack(flat[start : start + SLICE_STRINGS]) for start in range(0, flat.size, SLICE_STRINGS)])
    return packed


def texts_of(elements: Sequence[str]) -> Texts:
    """A flat array of strings, and their bytes.

    Raises
    ------
    UnicodeEncodeError
        One is no Unicode.
    """
    texts, packed = np.empty(len(elements), dtype=object).view(Texts), []
    for start in range(0, len(elements), SLICE_STRINGS):
        part = elements[start : start + SLICE_STRINGS]
        texts[start : start + len(part)] = part
        packed.append(_pack(part))
    texts.packed = b"".join(packed)
    return texts


def _pack(texts: Iterable[str]) -> bytes:
    pieces = []
    for text in texts:
        encoded = text.encode()
        pieces.append(_LENGTH.pack(len(encoded)))
        pieces.append(encoded)
    return b"".join(pieces)


def _strings(block: memoryview, count: int, name: str) -> Texts:
    size = len(block)
    if count * _LENGTH.size > size:
        raise CallerError(f"input '{name}' has {size} bytes, too few for the {count} elements of its shape")
    texts = np.empty(count, dtype=object)
    offset = 0
    for index in range(count):
        if offset + _LENGTH.size > size:
            raise CallerError(f"input '{name}' has {index} elements, but its shape has {count}")
        (length,) = _LENGTH.unpack_from(block, offset)
        offset += _LENGTH.size
        if offset + length > size:
            raise CallerError(
                f"element {index} of input '{name}' has a length of {length} bytes, but {size - offset} are left"
            )
        texts[index] = _text(block[offset : offset + length], name)
        offset += length
    if offset != size:
        raise CallerError(f"input '{name}' has {size - offset} bytes after the {count} elements of its shape")
    known = texts.view(Texts)
    known.packed = block
    return known


def _text(block: memoryview, name: str) -> str:
    try:
        return str(block, "utf-8")
    except UnicodeDecodeError:
        raise CallerError(f"input '{name}' has an element that is not UTF-8; strings of a model are text") from None
