"""An inference request in JSON: bytes in, arrays out.

Numbers are checked for type and range before they become a tensor: `null`, `true`, `"1"` and 1e39 are no FP32. A
body with the tokens NaN, Infinity or -Infinity (which clients of Triton send) takes a slower way with the same rules.
Source: Open Inference Protocol V2, "Inference Request JSON Object".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import simdjson

from gateway.protocol.datatypes import FREE, NUMPY_OF, Signature, TensorSpec
from gateway.protocol.errors import CallerError

__all__ = ("InferRequest", "RequestDecoder")

MAX_TENSORS = 64
MAX_RANK = 8
MAX_DIMENSION = 2**31 - 1
MAX_ID_LENGTH = 128
MAX_PARAMETERS = 64

Array = np.ndarray[Any, np.dtype[Any]]

_BUFFER_OF_KIND = {"f": ("d", np.dtype("<f8")), "i": ("i", np.dtype("<i8")), "u": ("u", np.dtype("<u8"))}
_FLOAT_LIMIT = {dtype: float(np.finfo(dtype).max) for dtype in (np.dtype("<f2"), np.dtype("<f4"))}
_INTEGER_LIMIT = {
    dtype: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    for dtype in NUMPY_OF.values()
    if dtype.kind in "iu" and dtype.itemsize < 8
}


class InferRequest:
    """A validated request.

    Attributes
    ----------
    id : str or None
    inputs : list of arrays
        In the order of the signature, with its dtypes.
    rows : int
        Length of the first axis of the first input; 1 for a scalar.
    outputs : tuple of int or None
        Positions of the outputs asked for, in the order asked; None asks for all.
    parameters : dict
    fragments : list of bytes or None
        The JSON text of each input's `data` where it could be told apart in the body: the log takes it as it is.
    """

    __slots__ = ("fragments", "id", "inputs", "outputs", "parameters", "rows")

    def __init__(self) -> None:
        self.id: str | None = None
        self.inputs: list[Array] = []
        self.rows = 1
        self.outputs: tuple[int, ...] | None = None
        self.parameters: dict[str, Any] = {}
        self.fragments: list[bytes | None] = []


class RequestDecoder:
    """Decodes requests for one model.

    Parameters
    ----------
    model : str
        For error texts.
    signature : Signature
    """

    def __init__(self, model: str, signature: Signature) -> None:
        self._model = model
        self._signature = signature
        self._position = {spec.name: position for position, spec in enumerate(signature.inputs)}
        self._output_position = {spec.name: position for position, spec in enumerate(signature.outputs)}
        self._parser = simdjson.Parser()
        self._usual_spec = signature.inputs[0] if len(signature.inputs) == 1 else None
        if self._usual_spec is not None and NUMPY_OF[self._usual_spec.datatype].kind not in "fiu":
            self._usual_spec = None

    def decode(self, body: bytes) -> InferRequest:
        """Decode one body.

        Raises
        ------
        CallerError
            Whatever is wrong with it, naming the input, what came and what is expected.
        """
        try:
            document = self._parser.parse(body)
        except (ValueError, RuntimeError) as error:
            return self._decode_with_tokens(body, error)
        try:
            if not isinstance(document, simdjson.Object):
                raise CallerError("the request body must be a JSON object")
            return self._usual(document, body) or self._read(document, body)
        except CallerError as error:
            # The parser cannot be used again while anything of its document lives, and a traceback's frames would.
            raise error.with_traceback(None) from None
        finally:
            del document

    def _usual(self, document: Any, body: bytes) -> InferRequest | None:
        """The usual request in few steps: one flat input of numbers and nothing else. None: take the thorough way."""
        spec = self._usual_spec
        if spec is None or len(document) != 1 or body.count(b'"data"') != 1:
            return None
        try:
            (tensor,) = document["inputs"]
            if len(tensor) != 4 or tensor["name"] != spec.name or tensor["datatype"] != spec.datatype:
                return None
            shape = tensor["shape"].as_list()
            fragment = _fragment(body)
            if fragment is None or b"[" in fragment[1:]:
                return None
            array = _numbers(tensor["data"], NUMPY_OF[spec.datatype], spec)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        size = 1
        for axis, expected in zip(shape, spec.shape, strict=False):
            if type(axis) is not int or axis < 0 or (axis != expected and expected != FREE):
                return None
            size *= axis
        if len(shape) != len(spec.shape) or size != array.size or not shape:
            return None
        request = InferRequest()
        request.inputs = [array.reshape(shape)]
        request.rows = shape[0]
        request.fragments = [fragment]
        return request

    def _decode_with_tokens(self, body: bytes, error: Exception) -> InferRequest:
        if b"NaN" not in body and b"Infinity" not in body:
            raise CallerError(_parse_fault(body, error)) from None
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as fault:
            raise CallerError(_parse_fault(body, fault)) from None
        if not isinstance(document, dict):
            raise CallerError("the request body must be a JSON object")
        return self._read(document, b"")

    def _read(self, document: Any, body: bytes) -> InferRequest:
        request = InferRequest()
        keys = list(document.keys())
        if len(set(keys)) != len(keys):
            raise CallerError("the request body has a key twice")
        if "id" in keys:
            request.id = _request_id(document["id"])
        if "parameters" in keys:
            request.parameters = _parameters(document["parameters"])
        if "inputs" not in keys:
            raise CallerError(f"the request for model '{self._model}' has no 'inputs'")
        inputs = document["inputs"]
        if not isinstance(inputs, (simdjson.Array, list)):
            raise CallerError("'inputs' must be an array")
        self._read_inputs(inputs, request, body)
        if "outputs" in keys:
            request.outputs = self._requested(document["outputs"])
        return request

    def _read_inputs(self, inputs: Any, request: InferRequest, body: bytes) -> None:
        specs = self._signature.inputs
        count = len(inputs)
        if count > MAX_TENSORS:
            raise CallerError(f"the request has {count} inputs, more than {MAX_TENSORS}")
        arrays: list[Array | None] = [None] * len(specs)
        fragments: list[bytes | None] = [None] * len(specs)
        splittable = count == 1 and body.count(b'"data"') == 1
        for tensor in inputs:
            if not isinstance(tensor, (simdjson.Object, dict)):
                raise CallerError("every element of 'inputs' must be an object")
            position = self._position_of(tensor)
            if arrays[position] is not None:
                raise CallerError(f"input '{specs[position].name}' is given twice")
            arrays[position], flat = self._tensor(tensor, specs[position])
            if flat and splittable:
                fragments[position] = _fragment(body)
        missing = [spec.name for spec, array in zip(specs, arrays, strict=True) if array is None]
        if missing:
            raise CallerError(
                f"expected {len(specs)} inputs but got {count} inputs for model '{self._model}', missing {missing}"
            )
        request.inputs = [array for array in arrays if array is not None]
        request.fragments = fragments
        first = request.inputs[0]
        request.rows = first.shape[0] if first.ndim else 1

    def _position_of(self, tensor: Any) -> int:
        name: Any = tensor.get("name")
        if not isinstance(name, str):
            raise CallerError("every input needs a 'name'")
        position = self._position.get(name)
        if position is None:
            expected = ", ".join(f"'{spec.name}'" for spec in self._signature.inputs)
            raise CallerError(
                f"unexpected inference input '{name[:64]}' for model '{self._model}', expected {expected}"
            )
        return position

    def _tensor(self, tensor: Any, spec: TensorSpec) -> tuple[Array, bool]:
        keys = list(tensor.keys())
        if len(set(keys)) != len(keys):
            raise CallerError(f"input '{spec.name}' has a key twice")
        datatype = tensor.get("datatype")
        if datatype != spec.datatype:
            raise CallerError(
                f"inference input '{spec.name}' data-type is '{str(datatype)[:32]}', "
                f"but model '{self._model}' expects '{spec.datatype}'"
            )
        shape = self._shape(tensor, spec)
        if "data" not in keys:
            raise CallerError(f"input '{spec.name}' has no 'data'; tensors in binary are not supported")
        if "parameters" in keys and "binary_data_size" in _parameters(tensor["parameters"]):
            raise CallerError(f"input '{spec.name}' must set only one of 'data' and 'parameters.binary_data_size'")
        values = tensor["data"]
        if not isinstance(values, (simdjson.Array, list)):
            raise CallerError(f"'data' of input '{spec.name}' must be an array")
        dtype = NUMPY_OF[spec.datatype]
        nested = len(values) > 0 and isinstance(values[0], (simdjson.Array, list))
        if isinstance(values, simdjson.Array) and dtype.kind in "fiu":
            if nested:
                _check_nesting(values, shape, 0, spec.name)
            array = _numbers(values, dtype, spec)
        else:
            array = _elements(values if isinstance(values, list) else values.as_list(), shape, dtype, spec)
        if array.size != math.prod(shape):
            raise CallerError(
                f"input '{spec.name}' has {array.size} elements, but its shape {list(shape)} has {math.prod(shape)}"
            )
        return array.reshape(shape), not nested

    def _shape(self, tensor: Any, spec: TensorSpec) -> tuple[int, ...]:
        shape = tensor.get("shape")
        if isinstance(shape, simdjson.Array):
            shape = shape.as_list()
        if not isinstance(shape, list) or len(shape) > MAX_RANK:
            raise CallerError(f"'shape' of input '{spec.name}' must be an array of at most {MAX_RANK} integers")
        for axis in shape:
            if type(axis) is not int or not 0 <= axis <= MAX_DIMENSION:
                raise CallerError(
                    f"'shape' of input '{spec.name}' must hold integers from 0 to {MAX_DIMENSION}, got {str(axis)[:32]}"
                )
        expected = spec.shape
        if len(shape) != len(expected) or any(
            axis != fixed and fixed != FREE for axis, fixed in zip(shape, expected, strict=True)
        ):
            raise CallerError(
                f"unexpected shape for input '{spec.name}' for model '{self._model}'. "
                f"Expected {list(expected)}, got {shape}"
            )
        return tuple(shape)

    def _requested(self, outputs: Any) -> tuple[int, ...] | None:
        if not isinstance(outputs, (simdjson.Array, list)) or len(outputs) > MAX_TENSORS:
            raise CallerError(f"'outputs' must be an array of at most {MAX_TENSORS} objects")
        positions = []
        for output in outputs:
            name: Any = output.get("name") if isinstance(output, (simdjson.Object, dict)) else None
            if not isinstance(name, str):
                raise CallerError("every element of 'outputs' must be an object with a 'name'")
            position = self._output_position.get(name)
            if position is None:
                raise CallerError(
                    f"unexpected inference output '{name[:64]}' for model '{self._model}', "
                    f"expected {', '.join(repr(spec.name) for spec in self._signature.outputs)}"
                )
            if position in positions:
                raise CallerError(f"output '{name}' is asked for twice")
            positions.append(position)
        return tuple(positions) or None


def _parse_fault(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "the request body is empty, expected a JSON object"
    if isinstance(error, RecursionError) or "DEPTH" in str(error):
        return "the request body nests too deeply"
    if "NUMBER" in str(error) or "BIGINT" in str(error):
        return "the request body has a number that no datatype holds"
    return "the request body is not valid JSON"


def _request_id(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_ID_LENGTH or not (value.isascii() and value.isprintable()):
        raise CallerError(f"'id' must be a string of at most {MAX_ID_LENGTH} printable ASCII characters")
    return value


def _parameters(value: Any) -> dict[str, Any]:
    if isinstance(value, simdjson.Object):
        value = value.as_dict()
    if not isinstance(value, dict) or len(value) > MAX_PARAMETERS:
        raise CallerError(f"'parameters' must be an object of at most {MAX_PARAMETERS} members")
    for name, content in value.items():
        if not isinstance(content, (str, int, float)) or (isinstance(content, float) and not math.isfinite(content)):
            raise CallerError(f"parameter '{name[:64]}' must be a string, a number or a boolean")
    return value


def _fragment(body: bytes) -> bytes | None:
    # The word stands once in the body and its array is flat and of numbers, so the brackets cannot mislead.
    start = body.index(b"[", body.index(b'"data"'))
    fragment = body[start : body.index(b"]", start) + 1]
    return None if b"\n" in fragment or b"\r" in fragment else fragment


def _check_nesting(values: Any, shape: tuple[int, ...], axis: int, name: str) -> None:
    if len(values) != shape[axis]:
        raise CallerError(f"'data' of input '{name}' is nested otherwise than its shape {list(shape)} says")
    for element in values:
        inner = isinstance(element, (simdjson.Array, list))
        if inner != (axis + 1 < len(shape)):
            raise CallerError(f"'data' of input '{name}' is nested otherwise than its shape {list(shape)} says")
        if inner:
            _check_nesting(element, shape, axis + 1, name)


def _numbers(values: Any, dtype: np.dtype[Any], spec: TensorSpec) -> Array:
    code, wide = _BUFFER_OF_KIND[dtype.kind]
    try:
        array: Array = np.frombuffer(values.as_buffer(of_type=code), wide)
    except (TypeError, ValueError):
        raise CallerError(f"'data' of input '{spec.name}' has an element that is no {spec.datatype}") from None
    if dtype == wide:
        return array
    # One product is cheaper than two comparisons: no element is beyond the limit when the sum of squares is not.
    if array.size and not (dtype.kind == "f" and array.dot(array) < _FLOAT_LIMIT[dtype] ** 2):
        low, high = _INTEGER_LIMIT.get(dtype) or (-_FLOAT_LIMIT[dtype], _FLOAT_LIMIT[dtype])
        if array.max() > high or array.min() < low:
            raise CallerError(f"'data' of input '{spec.name}' has a number out of range for {spec.datatype}")
    return array.astype(dtype)


def _elements(values: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any], spec: TensorSpec) -> Array:
    if values and isinstance(values[0], list):
        _check_nesting(values, shape, 0, spec.name)
        for _ in range(len(shape) - 1):
            values = [element for inner in values for element in inner]
    allowed = _ALLOWED[dtype.kind]
    if any(type(element) not in allowed for element in values):
        raise CallerError(f"'data' of input '{spec.name}' has an element that is no {spec.datatype}")
    if dtype.kind in "iu":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if any(not low <= element <= high for element in values):
            raise CallerError(f"'data' of input '{spec.name}' has a number out of range for {spec.datatype}")
    if dtype.kind == "f" and dtype in _FLOAT_LIMIT:
        limit = _FLOAT_LIMIT[dtype]
        if any(math.isfinite(element) and abs(element) > limit for element in values):
            raise CallerError(f"'data' of input '{spec.name}' has a number out of range for {spec.datatype}")
    return np.array(values, dtype=dtype)


_ALLOWED: Mapping[str, frozenset[type]] = {
    "f": frozenset({int, float}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "b": frozenset({bool}),
    "O": frozenset({str}),
}
