"""What every request must keep to, whether it came as JSON, in binary or over gRPC."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gateway.protocol.datatypes import FREE, NOT_IN_JSON, Signature, TensorSpec
from gateway.protocol.errors import CallerError
from gateway.protocol.limits import Limits
from gateway.protocol.request import MAX_CLASSES, MAX_EMPTY_ROWS, RequestedOutput

__all__ = ("SignatureChecks",)

Array = np.ndarray[Any, np.dtype[Any]]


class SignatureChecks:
    """Holds requests against the signature of one model. Every method raises `CallerError`.

    Parameters
    ----------
    model : str
        For error texts.
    signature : Signature
    batchable : bool
        Requests may share a run, so the inputs of one must have equally many rows.
    limits : Limits
    """

    def __init__(
        self, model: str, signature: Signature, *, batchable: bool = False, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._model = model
        self._signature = signature
        self._batchable = batchable
        self._inputs = {spec.name: position for position, spec in enumerate(signature.inputs)}
        self._outputs = {spec.name: position for position, spec in enumerate(signature.outputs)}
        self._unsayable = next((spec for spec in signature.outputs if spec.datatype in NOT_IN_JSON), None)

    def identifier(self, value: object) -> str:
        """A request's id must break no log line."""
        longest = self.limits.max_id_length
        if not isinstance(value, str) or len(value) > longest or not (value.isascii() and value.isprintable()):
            raise CallerError(f"'id' must be a string of at most {longest} printable ASCII characters")
        return value

    def input_count(self, count: int) -> None:
        """A request must not have too many inputs."""
        if count > self.limits.max_tensors:
            raise CallerError(f"the request has {count} inputs, more than {self.limits.max_tensors}")

    def input_position(self, name: object) -> int:
        """Where the input stands in the signature."""
        if not isinstance(name, str):
            raise CallerError("every input needs a 'name'")
        position = self._inputs.get(name)
        if position is None:
            expected = ", ".join(f"'{spec.name}'" for spec in self._signature.inputs)
            raise CallerError(
                f"unexpected inference input '{name[:64]}' for model '{self._model}', expected {expected}"
            )
        return position

    def datatype(self, spec: TensorSpec, datatype: object) -> None:
        """The datatype must be the signature's."""
        if datatype != spec.datatype:
            raise CallerError(
                f"inference input '{spec.name}' data-type is '{_shown(datatype)}', "
                f"but model '{self._model}' expects '{spec.datatype}'"
            )

    def shape(self, spec: TensorSpec, shape: object) -> tuple[int, ...]:
        """The shape must be one the signature allows, and of a size that can be held."""
        limits = self.limits
        if not isinstance(shape, list) or len(shape) > limits.max_rank:
            raise CallerError(f"'shape' of input '{spec.name}' must be an array of at most {limits.max_rank} integers")
        for axis in shape:
            if type(axis) is not int or not 0 <= axis <= limits.max_dimension:
                raise CallerError(
                    f"'shape' of input '{spec.name}' must hold integers from 0 to {limits.max_dimension}, "
                    f"got {_shown(axis)}"
                )
        expected = spec.shape
        if len(shape) != len(expected) or any(
            axis != fixed and fixed != FREE for axis, fixed in zip(shape, expected, strict=True)
        ):
            raise CallerError(
                f"unexpected shape for input '{spec.name}' for model '{self._model}'. "
                f"Expected {list(expected)}, got {shape}"
            )
        # An empty tensor must not claim two thousand million rows either: outputs may be as long.
        if math.prod(axis or 1 for axis in shape) > limits.max_elements:
            raise CallerError(
                f"shape {shape} of input '{spec.name}' has too many elements, more than {limits.max_elements}"
            )
        return tuple(shape)

    def complete(self, arrays: Sequence[Array | None]) -> tuple[list[Array], int]:
        """The arrays, none missing, and their rows; many rows must have elements in some input."""
        specs = self._signature.inputs
        inputs = [array for array in arrays if array is not None]
        if len(inputs) != len(specs):
            names = [spec.name for spec, array in zip(specs, arrays, strict=True) if array is not None]
            missing = [spec.name for spec, array in zip(specs, arrays, strict=True) if array is None]
            raise CallerError(
                f"expected {len(specs)} inputs but got {len(inputs)} inputs for model '{self._model}'. Got input(s) "
                f"{names}, but missing required input(s) {missing}. Please provide all required input(s)."
            )
        rows = inputs[0].shape[0] if inputs and inputs[0].ndim else 1
        if self._batchable:
            for spec, array in zip(specs, inputs, strict=True):
                if array.shape[0] != rows:
                    raise CallerError(
                        f"input '{spec.name}' batch size does not match other inputs for '{self._model}': "
                        f"expected {rows}, got {array.shape[0]}"
                    )
        # Rows are counted, weighed and timed: whoever claims many must have sent something for each.
        if rows > MAX_EMPTY_ROWS and all(array.size < rows for array in inputs):
            raise CallerError(
                f"input '{specs[0].name}' has {rows} rows without elements in them, more than {MAX_EMPTY_ROWS}"
            )
        return inputs, rows

    def outputs(
        self, asked: Iterable[tuple[object, bool, int]], *, rows: int, binary: bool
    ) -> tuple[RequestedOutput, ...] | None:
        """What to answer with.

        Parameters
        ----------
        asked : iterable of (name, binary, classes)
            Nothing asks for every output.
        rows : int
            Of the request.
        binary : bool
            How outputs that are not asked for by name are answered.

        Returns
        -------
        tuple of RequestedOutput or None
            None: all outputs in JSON.
        """
        chosen: dict[int, RequestedOutput] = {}
        for name, as_bytes, classes in asked:
            position = self._output_position(name)
            if position in chosen:
                raise CallerError(f"output '{name}' is asked for twice")
            if len(chosen) >= self.limits.max_tensors:
                raise CallerError(f"more than {self.limits.max_tensors} outputs are asked for")
            self._check_output(self._signature.outputs[position], as_bytes, classes, rows)
            chosen[position] = RequestedOutput(position, as_bytes, classes)
        if chosen:
            return tuple(chosen.values())
        if binary:
            return tuple(RequestedOutput(position, True) for position in range(len(self._signature.outputs)))
        if self._unsayable is not None:
            self._check_output(self._unsayable, False, 0, rows)
        return None

    @property
    def sayable(self) -> bool:
        """Whether every output can be answered in JSON."""
        return self._unsayable is None

    def _output_position(self, name: object) -> int:
        if not isinstance(name, str):
            raise CallerError("every element of 'outputs' must be an object with a 'name'")
        position = self._outputs.get(name)
        if position is None:
            raise CallerError(
                f"unexpected inference output '{name[:64]}' for model '{self._model}', "
                f"expected {', '.join(repr(spec.name) for spec in self._signature.outputs)}"
            )
        return position

    def _check_output(self, spec: TensorSpec, binary: bool, classes: int, rows: int) -> None:
        if classes:
            if spec.datatype in ("BYTES", "BOOL"):
                raise CallerError(
                    f"class result not available for output '{spec.name}' due to unsupported type '{spec.datatype}'"
                )
            if classes * max(rows, 1) > MAX_CLASSES:
                raise CallerError(
                    f"{classes} classes of {rows} rows are asked of output '{spec.name}', more than {MAX_CLASSES}"
                )
        elif not binary and spec.datatype in NOT_IN_JSON:
            raise CallerError(
                f"sending {spec.datatype} data via JSON is not supported. "
                f"Please use the binary data format for output '{spec.name}'"
            )


def _shown(value: object) -> str:
    # Not all of what may be large.
    return str(value)[:32] if isinstance(value, (str, int, float)) or value is None else "an array or an object"
