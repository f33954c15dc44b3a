"""A `ModelInferRequest` as a validated request."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gateway.protocol.datatypes import FREE, Signature, TensorSpec
from gateway.protocol.decode import InferRequest
from gateway.protocol.errors import CallerError
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.tensors import raw_array, typed_array

__all__ = ("read_request",)

MAX_TENSORS = 64
MAX_RANK = 8
MAX_DIMENSION = 2**31 - 1
MAX_ID_LENGTH = 128
MAX_PARAMETERS = 64

Array = np.ndarray[Any, np.dtype[Any]]


def read_request(message: messages.ModelInferRequest, *, model: str, signature: Signature) -> InferRequest:
    """Validate a request by the rules that hold for JSON.

    Raises
    ------
    CallerError
        Whatever is wrong with it, naming the input, what came and what is expected.
    """
    request = InferRequest()
    if message.id:
        request.id = _request_id(message.id)
    request.parameters = _parameters(message.parameters)
    request.inputs = _inputs(message, model, signature)
    request.fragments = [None] * len(request.inputs)
    first = request.inputs[0]
    request.rows = first.shape[0] if first.ndim else 1
    request.outputs = _requested(message, model, signature)
    return request


def _inputs(message: messages.ModelInferRequest, model: str, signature: Signature) -> list[Array]:
    specs = signature.inputs
    count = len(message.inputs)
    if count > MAX_TENSORS:
        raise CallerError(f"the request has {count} inputs, more than {MAX_TENSORS}")
    raw = message.raw_input_contents
    if raw and len(raw) != count:
        raise CallerError(f"raw_input_contents has {len(raw)} tensors for {count} inputs")
    found: dict[str, Array] = {}
    for ordinal, tensor in enumerate(message.inputs):
        spec = _spec_of(tensor.name, model, specs)
        if spec.name in found:
            raise CallerError(f"input '{spec.name}' is given twice")
        if tensor.datatype != spec.datatype:
            raise CallerError(
                f"inference input '{spec.name}' data-type is '{tensor.datatype[:32]}', "
                f"but model '{model}' expects '{spec.datatype}'"
            )
        shape = _shape(tensor, spec, model)
        if "shared_memory_region" in tensor.parameters:
            raise CallerError(f"input '{spec.name}' asks for shared memory, which is not supported")
        if not raw:
            found[spec.name] = typed_array(spec, tensor.contents, shape)
        elif tensor.HasField("contents"):
            raise CallerError(f"input '{spec.name}' must set only one of contents and raw_input_contents")
        else:
            found[spec.name] = raw_array(spec, raw[ordinal], shape)
    missing = [spec.name for spec in specs if spec.name not in found]
    if missing:
        raise CallerError(f"expected {len(specs)} inputs but got {count} inputs for model '{model}', missing {missing}")
    return [found[spec.name] for spec in specs]


def _spec_of(name: str, model: str, specs: tuple[TensorSpec, ...]) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    expected = ", ".join(f"'{spec.name}'" for spec in specs)
    raise CallerError(f"unexpected inference input '{name[:64]}' for model '{model}', expected {expected}")


def _shape(tensor: messages.ModelInferRequest.InferInputTensor, spec: TensorSpec, model: str) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    if len(shape) > MAX_RANK:
        raise CallerError(f"'shape' of input '{spec.name}' must be an array of at most {MAX_RANK} integers")
    for axis in shape:
        if not 0 <= axis <= MAX_DIMENSION:
            raise CallerError(
                f"'shape' of input '{spec.name}' must hold integers from 0 to {MAX_DIMENSION}, got {axis}"
            )
    expected = spec.shape
    if len(shape) != len(expected) or any(
        axis != fixed and fixed != FREE for axis, fixed in zip(shape, expected, strict=True)
    ):
        raise CallerError(
            f"unexpected shape for input '{spec.name}' for model '{model}'. "
            f"Expected {list(expected)}, got {list(shape)}"
        )
    return shape


def _requested(message: messages.ModelInferRequest, model: str, signature: Signature) -> tuple[int, ...] | None:
    positions: list[int] = []
    names = [spec.name for spec in signature.outputs]
    for output in message.outputs:
        if output.name not in names:
            raise CallerError(
                f"unexpected inference output '{output.name[:64]}' for model '{model}', "
                f"expected {', '.join(repr(name) for name in names)}"
            )
        position = names.index(output.name)
        if position in positions:
            raise CallerError(f"output '{output.name}' is asked for twice")
        for parameter in output.parameters:
            if parameter in ("classification", "shared_memory_region"):
                raise CallerError(f"output '{output.name}' asks for {parameter}, which is not supported over gRPC")
        positions.append(position)
    return tuple(positions) or None


def _request_id(value: str) -> str:
    if len(value) > MAX_ID_LENGTH or not (value.isascii() and value.isprintable()):
        raise CallerError(f"'id' must be a string of at most {MAX_ID_LENGTH} printable ASCII characters")
    return value


def _parameters(parameters: Any) -> dict[str, Any]:
    if len(parameters) > MAX_PARAMETERS:
        raise CallerError(f"'parameters' must be an object of at most {MAX_PARAMETERS} members")
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        value = getattr(parameter, choice) if choice else None
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            raise CallerError(f"parameter '{name[:64]}' must be a string, a number or a boolean")
        values[name] = value
    return values
