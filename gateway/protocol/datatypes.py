"""The datatypes of the Open Inference Protocol and the signature of a model.

Source: Open Inference Protocol V2, "Tensor Data Types".
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

__all__ = (
    "FREE",
    "NOT_IN_JSON",
    "NUMPY_OF",
    "ONNX_OF",
    "Signature",
    "TensorSpec",
    "bfloat16_of",
    "datatype_of",
    "numbers_of",
)

FREE = -1
"""A free axis in a shape."""

NUMPY_OF: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
    "BF16": np.dtype("V2"),
}
"""V2 datatype to the little-endian numpy dtype that carries it.

BYTES is an object array of ``str``. numpy has no bfloat16, so BF16 is two raw bytes an element, which nothing takes
for a number by mistake; `numbers_of` tells their values.
"""

NOT_IN_JSON = frozenset({"FP16", "BF16"})
"""Datatypes that travel in binary only, as with Triton."""

ONNX_OF: dict[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
"""onnxruntime's type text to the V2 datatype."""

_DATATYPE_OF_KIND = {(dtype.kind, dtype.itemsize): name for name, dtype in NUMPY_OF.items() if name != "BYTES"}


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, V2 datatype and shape of one input or output.

    Parameters
    ----------
    name : str
    datatype : str
        One of ``NUMPY_OF``.
    shape : tuple of int
        ``FREE`` (-1) stands for an axis of any length.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(msgspec.Struct, frozen=True):
    """What a model version takes and gives, in the model's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def sides_unlike(self, other: Signature) -> list[str]:
        """Which of `inputs` and `outputs` are other ones there, in whatever order they stand."""
        sides = ("inputs", "outputs")
        return [
            side for side in sides if sorted(getattr(self, side), key=repr) != sorted(getattr(other, side), key=repr)
        ]


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The V2 datatype of a numpy dtype.

    >>> datatype_of(np.dtype("f4")), datatype_of(np.dtype("O"))
    ('FP32', 'BYTES')

    Raises
    ------
    ValueError
        The dtype has no V2 datatype.
    """
    if dtype.kind in "OUT":
        return "BYTES"
    try:
        return _DATATYPE_OF_KIND[dtype.kind, dtype.itemsize]
    except KeyError:
        raise ValueError(f"numpy dtype {dtype} has no datatype in the Open Inference Protocol") from None


def numbers_of(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """A tensor whose elements numpy can count with: BF16 widened to float32 exactly, every other as it is.

    >>> numbers_of(np.array([0x3FC0, 0xC000], "<u2").view("V2")).tolist()
    [1.5, -2.0]
    """
    if array.dtype.kind != "V":
        return array
    return (array.view("<u2").astype("<u4") << 16).view("<f4")


def bfloat16_of(values: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Numbers as BF16, rounded to the nearest, ties to even.

    >>> numbers_of(bfloat16_of([1.5, 1.00390625, 1.01171875, float("-inf")])).tolist()
    [1.5, 1.0, 1.015625, -inf]
    """
    with np.errstate(over="ignore"):
        singles = np.asarray(values, "<f4")
    bits = singles.view("<u4").astype("<u8")
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(singles), (bits >> 16) | 0x40, rounded).astype("<u2").view("V2")
