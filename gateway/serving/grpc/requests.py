"""A `ModelInferRequest` as a validated request: the rules are those of JSON and binary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gateway.protocol.binary import tensor_from_bytes
from gateway.protocol.checks import SignatureChecks
from gateway.protocol.datatypes import Signature
from gateway.protocol.errors import CallerError
from gateway.protocol.parameters import checked_parameters, set_parameters
from gateway.protocol.request import InferRequest
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.framing import MAX_FIELDS, fields_of
from gateway.serving.grpc.tensors import typed_tensor

__all__ = ("Outline", "is_finite", "outline_of", "read_request")

Array = np.ndarray[Any, np.dtype[Any]]

_SHARED_MEMORY = "shared_memory_region"
_MODEL_NAME, _MODEL_VERSION, _ID, _INPUT, _OUTPUT, _RAW = [
    messages.ModelInferRequest.DESCRIPTOR.fields_by_name[name].number << 3 | 2
    for name in ("model_name", "model_version", "id", "inputs", "outputs", "raw_input_contents")
]


class Outline(NamedTuple):
    """What of a `ModelInferRequest` is known before it is parsed."""

    model_name: str
    model_version: str
    id: str
    is_raw: bool


def outline_of(content: bytes) -> Outline:
    """The outline of a large message, which may be parsed at all then.

    Raises
    ------
    CallerError
    """
    texts = {_MODEL_NAME: b"", _MODEL_VERSION: b"", _ID: b""}
    is_raw = False
    kind, left = messages.ModelInferRequest, iter(range(MAX_FIELDS))
    for tag, start, end in fields_of(content, 0, len(content), left=left, kind=kind):
        if tag in texts:
            texts[tag] = content[start:end]
        elif tag in (_INPUT, _OUTPUT):
            for _ in fields_of(content, start, end, left=left, kind=kind):
                pass
        is_raw = is_raw or tag == _RAW
    try:
        name, version, given_id = [text.decode() for text in texts.values()]
    except UnicodeDecodeError:
        raise CallerError("the message is no ModelInferRequest") from None
    return Outline(name, version, given_id, is_raw)


def read_request(
    message: messages.ModelInferRequest, *, model: str, signature: Signature, checks: SignatureChecks
) -> tuple[InferRequest, bool]:
    """Validate a request.

    Returns
    -------
    InferRequest
    bool
        Whether the answer's tensors are to be raw: as the request's were, or as `binary_data_output` says.

    Raises
    ------
    CallerError
        Whatever is wrong with it, naming the input, what came and what is expected.
    """
    request = InferRequest()
    if message.id:
        request.id = checks.identifier(message.id)
    raw = set_parameters(request, _values(message.parameters)) or bool(message.raw_input_contents)
    arrays = _arrays(message, model, signature, checks)
    request.inputs, request.rows = checks.complete(arrays)
    request.fragments = [None] * len(arrays)
    request.outputs = checks.outputs(_asked(message), rows=request.rows, binary=True)
    request.plain = _is_plain(message, request)
    return request, raw


def _is_plain(message: messages.ModelInferRequest, request: InferRequest) -> bool:
    """Whether a request is one raw tensor of finite numbers and nothing else."""
    if len(message.raw_input_contents) != 1 or message.id or message.parameters or message.outputs:
        return False
    return is_finite(request.inputs[0])


def is_finite(array: Array) -> bool:
    """Whether all elements are finite numbers."""
    return array.dtype.kind in "iu" or (array.dtype.kind == "f" and bool(np.isfinite(array).all()))


def _arrays(
    message: messages.ModelInferRequest, model: str, signature: Signature, checks: SignatureChecks
) -> list[Array | None]:
    specs = signature.inputs
    count = len(message.inputs)
    checks.input_count(count)
    raw = message.raw_input_contents
    if raw and len(raw) != count:
        raise CallerError(f"raw_input_contents has {len(raw)} tensors, but the request has {count} inputs")
    arrays: list[Array | None] = [None] * len(specs)
    for ordinal, tensor in enumerate(message.inputs):
        position = checks.input_position(tensor.name)
        spec = specs[position]
        if arrays[position] is not None:
            raise CallerError(f"input '{spec.name}' is given twice")
        checks.datatype(spec, tensor.datatype)
        shape = checks.shape(spec, list(tensor.shape))
        if _SHARED_MEMORY in _values(tensor.parameters):
            raise CallerError(f"input '{spec.name}' asks for shared memory, which is not supported")
        if not raw:
            arrays[position] = typed_tensor(tensor.contents, spec, shape)
        elif tensor.HasField("contents"):
            raise CallerError(f"input '{spec.name}' must set only one of contents and raw_input_contents")
        else:
            arrays[position] = tensor_from_bytes(memoryview(raw[ordinal]), spec, shape, model=model)
    return arrays


def _asked(message: messages.ModelInferRequest) -> Iterator[tuple[str, bool, int]]:
    for output in message.outputs:
        parameters = _values(output.parameters)
        if _SHARED_MEMORY in parameters:
            raise CallerError(f"output '{output.name[:64]}' asks for shared memory, which is not supported")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise CallerError("parameter 'classification' of an output must be a whole number of classes")
        # Whether raw or typed, every datatype can be answered.
        yield output.name, True, classes


def _values(parameters: Mapping[str, messages.InferParameter]) -> dict[str, Any]:
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, choice) if choice else None
    return checked_parameters(values)
