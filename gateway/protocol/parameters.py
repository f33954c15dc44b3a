"""Parameters of a request: which are taken, which mean something here, which are refused."""

from __future__ import annotations

import math
from typing import Any

import orjson

from gateway.protocol.errors import CallerError
from gateway.protocol.request import MAX_PARAMETERS, MAX_PARAMETERS_BYTES, InferRequest

__all__ = ("checked_parameters", "set_parameters")

_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")


def checked_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a request, an input or an output: strings, numbers and booleans, not too many of them.

    Raises
    ------
    CallerError
    """
    if len(parameters) > MAX_PARAMETERS:
        raise CallerError(f"'parameters' must be an object of at most {MAX_PARAMETERS} members")
    for name, content in parameters.items():
        if not isinstance(content, (str, int, float)) or (isinstance(content, float) and not math.isfinite(content)):
            raise CallerError(f"parameter '{name[:64]}' must be a string, a number or a boolean")
    return parameters


def set_parameters(request: InferRequest, parameters: dict[str, Any]) -> bool:
    """Give a request its parameters; returns `binary_data_output`.

    `timeout` (microseconds) and `priority` become the request's.

    Raises
    ------
    CallerError
        One is reserved, or has a value that it cannot have.
    """
    for name in parameters:
        if name.startswith("triton_"):
            raise CallerError(
                f"parameter keys starting with 'triton_' are reserved for Triton usage and should not be "
                f"specified, got '{name[:64]}'"
            )
    for name in _SEQUENCE:
        if parameters.get(name):
            raise CallerError(f"parameter '{name}' is not supported: no model here keeps state between requests")
    request.timeout_us = _whole(parameters, "timeout")
    request.priority = _whole(parameters, "priority")
    binary = parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise CallerError("parameter 'binary_data_output' must be a boolean")
    kept = {name: value for name, value in parameters.items() if name != "binary_data_output"}
    try:
        size = len(orjson.dumps(kept))
    except TypeError:
        raise CallerError("'parameters' has text that is not Unicode") from None
    if size > MAX_PARAMETERS_BYTES:
        raise CallerError(f"'parameters' takes {size} bytes, more than {MAX_PARAMETERS_BYTES}")
    request.parameters = kept
    return binary


def _whole(parameters: dict[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0:
        raise CallerError(f"parameter '{name}' must be a whole number, 0 or more, got {str(value)[:32]!r}")
    return value
