"""Typed contents as arrays, and an answer's tensors, typed or raw.

Source: Open Inference Protocol V2, "GRPC", `InferTensorContents` and "Raw Tensor Contents".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gateway.protocol.binary import Texts, tensor_to_bytes, texts_of
from gateway.protocol.datatypes import NUMPY_OF, TensorSpec
from gateway.protocol.errors import CallerError
from gateway.serving.grpc import inference_pb2 as messages

__all__ = ("FIELD_OF", "put_outputs", "typed_tensor")

Array = np.ndarray[Any, np.dtype[Any]]

FIELD_OF = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype to the field of `InferTensorContents` that carries its elements; FP16 and BF16 have none."""

SLICE_ELEMENTS = 64 * 1024
"""Of the elements that are read or written in one step of the interpreter: others run between."""


def typed_tensor(contents: messages.InferTensorContents, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The tensor that typed contents are.

    Parameters
    ----------
    shape : tuple of int
        Checked against `spec`.

    Raises
    ------
    CallerError
        They stand in another datatype's field, or are not as many as the shape says, or an element is none of the
        datatype.
    """
    expected = FIELD_OF.get(spec.datatype)
    if expected is None:
        raise CallerError(f"input '{spec.name}' is {spec.datatype}, which must be sent in raw_input_contents")
    for field, _ in contents.ListFields():
        if field.name != expected:
            raise CallerError(f"input '{spec.name}' is {spec.datatype} and takes {expected}, got {field.name}")
    elements = getattr(contents, expected)
    if len(elements) != math.prod(shape):
        raise CallerError(
            f"input '{spec.name}' has {len(elements)} elements, but its shape {list(shape)} has {math.prod(shape)}"
        )
    if spec.datatype == "BYTES":
        return _texts(elements, spec).reshape(shape)
    dtype = NUMPY_OF[spec.datatype]
    wide = np.dtype(f"<{dtype.kind}{max(4, dtype.itemsize)}") if dtype.kind in "iu" else dtype
    array: Array = np.empty(len(elements), wide)
    for start in range(0, array.size, SLICE_ELEMENTS):
        array[start : start + SLICE_ELEMENTS] = elements[start : start + SLICE_ELEMENTS]
    if wide != dtype and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise CallerError(f"{expected} of input '{spec.name}' has a number out of range for {spec.datatype}")
    return array.astype(dtype, copy=False).reshape(shape)


def put_outputs(
    response: messages.ModelInferResponse, outputs: Iterable[tuple[TensorSpec, Array]], *, raw: bool
) -> None:
    """Put tensors into an answer.

    Parameters
    ----------
    raw : bool
        In `raw_output_contents`, all of them; so they also go where a datatype has no field of its own.
    """
    tensors = list(outputs)
    raw = raw or any(spec.datatype not in FIELD_OF for spec, _ in tensors)
    for spec, array in tensors:
        tensor = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(bytes(tensor_to_bytes(array)))
            continue
        room, flat = getattr(tensor.contents, FIELD_OF[spec.datatype]), array.ravel()
        for start in range(0, flat.size, SLICE_ELEMENTS):
            elements = flat[start : start + SLICE_ELEMENTS].tolist()
            room.extend([text.encode() for text in elements] if spec.datatype == "BYTES" else elements)


def _texts(elements: Sequence[bytes], spec: TensorSpec) -> Texts:
    try:
        return texts_of([element.decode() for element in elements])
    except UnicodeDecodeError:
        raise CallerError(
            f"input '{spec.name}' has an element that is not UTF-8; strings of a model are text"
        ) from None
