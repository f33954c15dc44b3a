"""An inference request over HTTP: bytes in, arrays out.

A body is JSON, or JSON followed by raw tensors, or one raw tensor alone. A body with the tokens NaN, Infinity or
-Infinity (which clients of Triton send) takes a slower way with the same rules.
Source: Open Inference Protocol V2, "Inference Request JSON Object"; Triton, "Binary Tensor Data Extension".
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import simdjson

from gateway.protocol.binary import Octets, Tail, raw_tensor, tensor_from_bytes
from gateway.protocol.checks import SignatureChecks
from gateway.protocol.datatypes import FREE, NOT_IN_JSON, NUMPY_OF, Signature, TensorSpec
from gateway.protocol.errors import CallerError
from gateway.protocol.json_tensor import (
    MAX_TOKEN_BYTES,
    READING,
    Reading,
    check_flat,
    few_numbers_in,
    fragment_of,
    is_array,
    is_number_beyond,
    is_object,
    is_splittable,
    loads_with_tokens,
    longest_text,
    nesting_of,
    numbers,
    numbers_in_each,
    tensor_of,
    within,
)
from gateway.protocol.limits import Limits
from gateway.protocol.parameters import checked_parameters, set_parameters
from gateway.protocol.request import MAX_KEYS, MAX_PARAMETERS_BYTES, InferRequest, RequestedOutput
from gateway.protocol.slices import SLICE_BYTES, Cut, CutTensor, Lend, cut_numbers

__all__ = ("InferRequest", "RequestDecoder", "Usual")

Array = np.ndarray[Any, np.dtype[Any]]

_BYTE_ORDER_MARK = 0xEF
_CLOSING = ord("]")
FEW_BYTES = 512
"""Of the text of numbers that are read by themselves; for more, what reads many at once is faster."""
_MAX_HEAD = 4096
"""Of the JSON before a tensor that is kept to be recognised."""
_WAYS = "'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in 'parameters'"


class Usual(msgspec.Struct, frozen=True, gc=False):
    """What stood before and behind the numbers of a usual request, their shape and count, and how they are read.

    The brackets of their array belong to `before` and `after`; `most` is how many bytes their text may have.
    """

    before: bytes
    after: bytes
    shape: tuple[int, ...]
    size: int
    most: int
    reading: Reading
    secret: int


class UsualHead(NamedTuple):
    """The JSON before one raw tensor of numbers and nothing else, the size of the whole body, and what they say."""

    text: bytes
    size: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: int
    outputs: tuple[RequestedOutput, ...] | None

    def request(self, body: Octets) -> InferRequest:
        """The request of another body with the same JSON and of the same size."""
        array = np.frombuffer(body, self.dtype, offset=len(self.text)).reshape(self.shape)
        return InferRequest(inputs=[array], rows=self.rows, outputs=self.outputs, fragments=[None])


class RequestDecoder:
    """Decodes requests for one model.

    Parameters
    ----------
    model : str
        For error texts.
    signature : Signature
    batchable : bool
        Requests may share a run.
    limits : Limits
    secret : int, optional
        A number of `json_tensor.SECRET_BITS` that no caller can know. None: no request is recognised.
    """

    def __init__(
        self,
        model: str,
        signature: Signature,
        *,
        batchable: bool = False,
        limits: Limits | None = None,
        secret: int | None = None,
    ) -> None:
        self._secret = secret
        self._batchable = batchable
        self._cut: Cut | None = None
        self._cut_tensors: list[CutTensor] = []
        self._lend: Lend | None = None
        self.checks = SignatureChecks(model, signature, batchable=batchable, limits=limits)
        self._limits = self.checks.limits
        self._max_json_elements = self._limits.max_json_elements
        # What is no larger keeps every limit of elements and of axes.
        self._usual_elements = min(self._max_json_elements, self._limits.max_elements, self._limits.max_dimension)
        self._model = model
        self._signature = signature
        self._parser = simdjson.Parser()
        self._slice_parser = simdjson.Parser()
        self._last_usual: Usual | None = None
        self._usual_head: UsualHead | None = None
        self._usual_spec = signature.inputs[0] if len(signature.inputs) == 1 and self.checks.sayable else None
        if self._usual_spec is not None and (
            NUMPY_OF[self._usual_spec.datatype].kind not in "fiu" or self._usual_spec.datatype in NOT_IN_JSON
        ):
            self._usual_spec = None
        if self._usual_spec is not None and len(self._usual_spec.shape) > self._limits.max_rank:
            self._usual_spec = None

    def decode(self, body: Octets, json_length: int | None = None) -> InferRequest:
        """Decode one body.

        Parameters
        ----------
        body : buffer
            Arrays of raw tensors are views of it.
        json_length : int, optional
            `Inference-Header-Content-Length`; 0 says that all of the body is one raw tensor.

        Raises
        ------
        CallerError
            Whatever is wrong with it, naming the input, what came and what is expected.
        """
        if json_length is None:
            return self._decode(bytes(body), None)
        if json_length > len(body):
            raise CallerError(f"inference header size should be in range (0, {len(body)}), got: {json_length}")
        if json_length == 0:
            return self._decode_raw(body)
        text, usual = bytes(body[:json_length]), self._usual_head
        if usual is not None and usual.text == text and usual.size == len(body):
            return usual.request(body)
        request = self._decode(text, Tail(body, json_length, self._model))
        self._learn_head(text, len(body), request)
        return request

    def recognise(self, read: bytes, start: int = 0) -> tuple[Usual, bytes] | None:
        """Whether a body is the last usual one with other numbers in it, byte for byte; and the text of these numbers.

        The text is all that stands between the brackets of their array. It has still to be read (`numbers_of`): it may
        be no numbers, or too few or too many.

        Parameters
        ----------
        read : bytes
            The body begins at `start` and goes to the end.
        """
        usual = self._last_usual
        if usual is None:
            return None
        before, after = usual.before, usual.after
        begin, end = start + len(before), len(read) - len(after)
        # With another bracket the text might leave its array and say whatever a body can.
        if (
            end - begin > usual.most
            or read.find(_CLOSING, begin) != end
            or not (read.startswith(before, start) and read.endswith(after, start))
        ):
            return None
        return usual, read[begin:end]

    def numbers_of(self, texts: list[bytes], usual: Usual) -> Array | None:
        """The numbers of texts that `recognise` gave with `usual`, behind one another.

        Returns
        -------
        array or None
            Flat, of the input's dtype; None when some text has anything else than the numbers it should.
        """
        reading = usual.reading
        if len(texts) == 1 and len(texts[0]) <= FEW_BYTES:
            few = few_numbers_in(texts[0], usual.size, reading, parser=self._parser)
            if few is not None:
                return few
        wide = numbers_in_each(texts, usual.size, reading, secret=usual.secret, parser=self._parser)
        if wide is None or (reading.limits is not None and not within(wide, reading)):
            return None
        return wide.astype(reading.dtype, copy=False)

    def again(self) -> RequestDecoder:
        """Another decoder of the same requests."""
        return RequestDecoder(self._model, self._signature, batchable=self._batchable, limits=self._limits)

    def in_slices(
        self,
        body: Octets,
        json_length: int | None = None,
        *,
        max_rest_bytes: int = SLICE_BYTES,
        lend: Lend | None = None,
    ) -> Generator[None, None, InferRequest] | None:
        """As `decode`, but of the large arrays of numbers in a body only a slice at a time.

        Parameters
        ----------
        body : buffer
            A bytearray that is JSON as a whole is written to, and as it was between two slices; other JSON is copied.
        max_rest_bytes : int
            Of the JSON without these arrays, which is read at once.
        lend : callable, optional
            Gives memory for such an array: so many bytes, or None.

        Returns
        -------
        generator or None
            Of the request; between its steps others may use this decoder. It raises as `decode` does. None where a body
            has no such arrays, or they cannot be told.
        """
        if json_length == 0 or (json_length or 0) > len(body):
            return None
        text = body if isinstance(body, bytearray) and json_length is None else bytearray(body[:json_length])
        cut = cut_numbers(text)
        if cut is None or len(cut.text) > max_rest_bytes:
            return None
        return self._read_cut(cut, text, None if json_length is None else body, lend)

    def decode_in_slices(self, body: Octets, json_length: int | None = None) -> InferRequest:
        """As `decode`, for a large body: other threads run meanwhile.

        Raises
        ------
        CallerError
        """
        slices = self.in_slices(body, json_length, max_rest_bytes=len(body))
        while slices is not None:
            try:
                next(slices)
            except StopIteration as done:
                request: InferRequest = done.value
                return request
        return self.decode(body, json_length)

    def _read_cut(
        self, cut: Cut, text: bytearray, body: Octets | None, lend: Lend | None
    ) -> Generator[None, None, InferRequest]:
        self._cut, self._cut_tensors, self._lend = cut, [], lend
        try:
            request = self._decode(cut.text, None if body is None else Tail(body, len(text), self._model))
        finally:
            tensors, self._cut, self._cut_tensors, self._lend = self._cut_tensors, None, [], None
        try:
            for tensor in tensors:
                yield from tensor.read(text, parser=self._slice_parser)
        except CallerError as error:
            raise _without_frames(error) from None
        if cut.unread:
            # What stands where no tensor is read must be JSON all the same.
            return self.again().decode(text if body is None else body, None if body is None else len(text))
        return request

    def _decode(self, text: bytes, tail: Tail | None) -> InferRequest:
        try:
            document = self._parser.parse(text)
        except (ValueError, RuntimeError) as error:
            return self._decode_with_tokens(text, tail, error)
        try:
            if not isinstance(document, simdjson.Object):
                raise CallerError("the request body must be a JSON object")
            usual = self._usual(document, text) if tail is None and self._cut is None else None
            return usual or self._read(document, text, tail)
        except CallerError as error:
            raise _without_frames(error) from None
        finally:
            del document

    def _usual(self, document: Any, body: bytes) -> InferRequest | None:
        """The usual request in few steps: one flat input of numbers and nothing else. None: take the thorough way."""
        spec = self._usual_spec
        if spec is None or len(document) != 1 or not is_splittable(body) or body[0] == _BYTE_ORDER_MARK:
            return None
        try:
            (tensor,) = document["inputs"]
            if len(tensor) != 4 or tensor["name"] != spec.name or tensor["datatype"] != spec.datatype:
                return None
            shape = tensor["shape"]
            if len(shape) != len(spec.shape):
                return None
            shape = list(shape)
            array = numbers(tensor["data"], spec)
            fragment = fragment_of(body, array.size)
            if fragment is None or fragment.rfind(b"[") > 0:
                return None
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        size = 1
        for axis, expected in zip(shape, spec.shape, strict=True):
            if type(axis) is not int or axis < 1 or (axis != expected and expected != FREE):
                return None
            size *= axis
        if size != array.size or not shape or size > self._usual_elements:
            return None
        if FREE not in spec.shape[1:] and self._secret is not None:
            start = body.index(b"[", body.index(b'"data"'))
            before, after = body[: start + 1], body[start + len(fragment) - 1 :]
            reading = READING[spec.datatype]
            self._last_usual = Usual(before, after, tuple(shape), size, longest_text(size), reading, self._secret)
        return InferRequest(inputs=[array.reshape(shape)], rows=shape[0], fragments=[fragment], plain=True)

    def _decode_with_tokens(self, text: bytes, tail: Tail | None, error: Exception) -> InferRequest:
        if b"NaN" not in text and b"Infinity" not in text:
            raise CallerError(_parse_fault(text, error)) from None
        if len(text) > MAX_TOKEN_BYTES:
            raise CallerError(
                f"the request body is not valid JSON; NaN and Infinity are read in up to {MAX_TOKEN_BYTES} bytes of it "
                "beside large arrays 'data' of numbers, flat or in rows: send so many numbers like that, or in binary"
            ) from None
        try:
            document = loads_with_tokens(text.decode(), object_pairs_hook=_object)
        except (ValueError, RecursionError) as fault:
            raise CallerError(_parse_fault(text, fault)) from None
        if not isinstance(document, dict):
            raise CallerError("the request body must be a JSON object")
        return self._read(document, text, tail, tokens=True)

    def _learn_head(self, text: bytes, size: int, request: InferRequest) -> None:
        if request.id is not None or request.parameters or request.timeout_us or request.priority:
            return
        array, length = request.inputs[0], len(text)
        if len(request.inputs) == 1 and array.dtype.kind in "fiuV" and length < _MAX_HEAD and array.nbytes > 0:
            if size == length + array.nbytes:
                self._usual_head = UsualHead(text, size, array.dtype, array.shape, request.rows, request.outputs)

    def _decode_raw(self, body: Octets) -> InferRequest:
        specs = self._signature.inputs
        if len(specs) != 1:
            raise CallerError(
                f"Raw request must only have 1 input (found 1) to be deduced but got {len(specs)} inputs in "
                f"model '{self._model}'"
            )
        request = InferRequest()
        tensor = raw_tensor(body, specs[0], model=self._model)
        request.inputs, request.rows = self.checks.complete([tensor])
        request.outputs = self.checks.outputs((), rows=request.rows, binary=True)
        request.fragments = [None]
        return request

    def _read(self, document: Any, text: bytes, tail: Tail | None, *, tokens: bool = False) -> InferRequest:
        brackets = text.count(b"[")
        _check_text(text, brackets, self._limits.max_json_depth)
        request = InferRequest()
        keys = _keys(document, "the request body")
        if "id" in keys:
            request.id = self.checks.identifier(document["id"])
        binary = "parameters" in keys and set_parameters(request, _parameters(document["parameters"]))
        if "inputs" not in keys:
            raise CallerError(f"the request for model '{self._model}' has no 'inputs'")
        inputs = document["inputs"]
        if not is_array(inputs):
            raise CallerError("'inputs' must be an array")
        count = len(inputs)
        self.checks.input_count(count)
        splittable = not tokens and count == 1 and is_splittable(text)
        flats = self._read_inputs(inputs, request, text if splittable else None, tail or Tail(b"", 0, self._model))
        # Where no array is left beside `inputs`, `outputs`, the shapes and these, none of these holds another.
        if brackets > 1 + ("outputs" in keys) + count + len(flats):
            for values, spec in flats:
                check_flat(values, spec)
        asked = _requested(document["outputs"], binary, self._limits.max_tensors) if "outputs" in keys else ()
        request.outputs = self.checks.outputs(asked, rows=request.rows, binary=binary)
        return request

    def _read_inputs(
        self, inputs: Any, request: InferRequest, text: bytes | None, tail: Tail
    ) -> list[tuple[Any, TensorSpec]]:
        """Read them into the request; returns the `data` of those that begin flat."""
        flats = []
        specs = self._signature.inputs
        arrays: list[Array | None] = [None] * len(specs)
        request.fragments = [None] * len(specs)
        for tensor in inputs:
            if not is_object(tensor):
                raise CallerError("every element of 'inputs' must be an object")
            position = self.checks.input_position(tensor.get("name"))
            spec = specs[position]
            if arrays[position] is not None:
                raise CallerError(f"input '{spec.name}' is given twice")
            array, flat = self._tensor(tensor, spec, tail)
            arrays[position] = array
            if flat:
                flats.append((tensor["data"], spec))
                if text is not None and array.dtype.kind in "fiu":
                    request.fragments[position] = fragment_of(text, array.size)
        tail.finish()
        request.inputs, request.rows = self.checks.complete(arrays)
        return flats

    def _tensor(self, tensor: Any, spec: TensorSpec, tail: Tail) -> tuple[Array, bool]:
        """The array, and whether it is a flat one in JSON."""
        keys = _keys(tensor, f"input '{spec.name}'")
        self.checks.datatype(spec, tensor.get("datatype"))
        shape = tensor.get("shape")
        if isinstance(shape, simdjson.Array) and len(shape) <= self._limits.max_rank:
            shape = list(shape)
        shape = self.checks.shape(spec, shape)
        parameters = _parameters(tensor["parameters"]) if "parameters" in keys else {}
        ways = ("data" in keys, "binary_data_size" in parameters, "shared_memory_region" in parameters)
        if sum(ways) != 1:
            raise CallerError(
                f"Input must set only one of the following fields: {_WAYS}; input '{spec.name}' sets {sum(ways)}"
            )
        if ways[2]:
            raise CallerError(f"shared memory is not supported, as input '{spec.name}' asks for")
        if ways[1]:
            block = tail.take(parameters["binary_data_size"], spec.name)
            return tensor_from_bytes(block, spec, shape, model=self._model), False
        if spec.datatype in NOT_IN_JSON:
            raise CallerError(
                f"receiving {spec.datatype} data via JSON is not supported. "
                f"Please use the binary data format for input '{spec.name}'"
            )
        if math.prod(shape) > self._max_json_elements:
            raise CallerError(
                f"input '{spec.name}' has more than {self._max_json_elements} elements in JSON; send it in binary"
            )
        data = tensor["data"]
        place = self._cut.place_of(data) if self._cut is not None else None
        if place is not None:
            cut = CutTensor(place, shape, spec, lend=self._lend)
            self._cut_tensors.append(cut)
            return cut.array, False
        return tensor_of(data, shape, spec)


def _without_frames(error: CallerError) -> CallerError:
    # A parser cannot be used again while anything of its document lives, and the frames would that the traceback of
    # this error holds, or of the one that it came from.
    error.__context__ = None
    return error.with_traceback(None)


def _check_text(text: bytes, brackets: int, max_depth: int) -> None:
    if text[0] == _BYTE_ORDER_MARK:
        raise CallerError("the request body is not valid JSON: it starts with a byte order mark")
    if brackets + text.count(b"{") > max_depth and nesting_of(text) > max_depth:
        raise CallerError(f"the request body nests too deeply, more than {max_depth} levels")


def _keys(document: Any, whose: str) -> set[str]:
    count = len(document)
    if count > MAX_KEYS:
        raise CallerError(f"{whose} has {count} keys, more than {MAX_KEYS}")
    keys = set(document.keys())
    if len(keys) != count:
        raise CallerError(f"{whose} has a key twice")
    return keys


def _parameters(value: Any) -> dict[str, Any]:
    if not is_object(value):
        raise CallerError("'parameters' must be an object")
    _keys(value, "'parameters'")
    if isinstance(value, dict):
        return checked_parameters(value)
    # What is no more than twice as long is measured as the log has it; more shall not become objects of Python.
    if (size := len(value.mini)) > 2 * MAX_PARAMETERS_BYTES:
        raise CallerError(f"'parameters' takes {size} bytes, more than {MAX_PARAMETERS_BYTES}")
    return checked_parameters(value.as_dict())


def _requested(outputs: Any, binary: bool, most: int) -> list[tuple[object, bool, int]]:
    if not is_array(outputs) or len(outputs) > most:
        raise CallerError(f"'outputs' must be an array of at most {most} objects")
    asked: list[tuple[object, bool, int]] = []
    for output in outputs:
        if not is_object(output):
            raise CallerError("every element of 'outputs' must be an object with a 'name'")
        keys = _keys(output, "an element of 'outputs'")
        parameters = _parameters(output["parameters"]) if "parameters" in keys else {}
        if "shared_memory_region" in parameters:
            raise CallerError("shared memory is not supported, as an element of 'outputs' asks for")
        as_bytes = parameters.get("binary_data", binary)
        classes = parameters.get("classification", 0)
        if not isinstance(as_bytes, bool):
            raise CallerError("parameter 'binary_data' of an output must be a boolean")
        if type(classes) is not int or classes < 0:
            raise CallerError("parameter 'classification' of an output must be a whole number of classes")
        asked.append((output.get("name"), as_bytes, classes))
    return asked


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _parse_fault(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "the request body is empty, expected a JSON object"
    if isinstance(error, RecursionError) or "DEPTH" in str(error):
        return "the request body nests too deeply"
    if len(body) > MAX_TOKEN_BYTES:
        return "the request body is not valid JSON, or has a number that no datatype holds"
    if is_number_beyond(body, error):
        return "the request body has a number that no datatype holds"
    return "the request body is not valid JSON"
