"""Requests and answers of gRPC as arrays: the same rules as for JSON.

Source: Open Inference Protocol V2, "GRPC", `InferTensorContents` and "Raw Tensor Contents".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gateway.protocol.datatypes import NUMPY_OF, TensorSpec
from gateway.protocol.errors import CallerError
from gateway.serving.grpc import inference_pb2 as messages

__all__ = ("FIELD_OF", "put_outputs", "raw_array", "typed_array")

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


def typed_array(spec: TensorSpec, contents: messages.InferTensorContents, shape: tuple[int, ...]) -> Array:
    """The tensor that typed contents are.

    Raises
    ------
    CallerError
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
        return _texts(spec, elements).reshape(shape)
    dtype = NUMPY_OF[spec.datatype]
    wide = np.dtype(f"<{dtype.kind}{max(4, dtype.itemsize)}") if dtype.kind in "iu" else dtype
    array: Array = np.fromiter(elements, wide, len(elements))
    if wide != dtype and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise CallerError(f"{expected} of input '{spec.name}' has a number out of range for {spec.datatype}")
    return array.astype(dtype, copy=False).reshape(shape)


def raw_array(spec: TensorSpec, content: bytes, shape: tuple[int, ...]) -> Array:
    """The tensor that raw contents are, without a copy where the bytes allow.

    Raises
    ------
    CallerError
    """
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _texts(spec, _cut(spec, content, count)).reshape(shape)
    dtype = NUMPY_OF[spec.datatype]
    if len(content) != count * dtype.itemsize:
        raise CallerError(
            f"input '{spec.name}' has {len(content)} bytes, "
            f"but {spec.datatype} of shape {list(shape)} has {count * dtype.itemsize}"
        )
    array: Array = np.frombuffer(content, dtype)
    if dtype.kind == "b" and array.size and array.view("u1").max() > 1:
        raise CallerError(f"input '{spec.name}' has a byte that is no {spec.datatype}")
    return array.reshape(shape)


def put_outputs(response: messages.ModelInferResponse, outputs: list[tuple[TensorSpec, Array]], *, raw: bool) -> None:
    """Put tensors into an answer: raw where that was asked, or where a datatype has no field of its own."""
    raw = raw or any(spec.datatype not in FIELD_OF for spec, _ in outputs)
    for spec, array in outputs:
        tensor = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(_packed(array))
        elif spec.datatype == "BYTES":
            tensor.contents.bytes_contents.extend([text.encode() for text in array.ravel()])
        else:
            getattr(tensor.contents, FIELD_OF[spec.datatype]).extend(array.ravel().tolist())


def _cut(spec: TensorSpec, content: bytes, count: int) -> list[bytes]:
    elements: list[bytes] = []
    offset = 0
    while offset < len(content):
        stop = offset + 4 + int.from_bytes(content[offset : offset + 4], "little")
        if stop > len(content) or len(elements) == count:
            break
        elements.append(content[offset + 4 : stop])
        offset = stop
    if offset != len(content) or len(elements) != count:
        raise CallerError(
            f"input '{spec.name}' has {len(content)} bytes that are not {count} elements of BYTES, "
            "each its length as uint32 and its content"
        )
    return elements


def _texts(spec: TensorSpec, elements: Any) -> Array:
    array = np.empty(len(elements), object)
    try:
        for position, element in enumerate(elements):
            array[position] = element.decode()
    except UnicodeDecodeError:
        raise CallerError(f"input '{spec.name}' has an element that is not UTF-8") from None
    return array


def _packed(array: Array) -> bytes:
    if array.dtype.kind != "O":
        return array.tobytes()
    pieces: list[bytes] = []
    for text in array.ravel():
        encoded = text.encode()
        pieces += (len(encoded).to_bytes(4, "little"), encoded)
    return b"".join(pieces)
