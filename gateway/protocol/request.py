"""A validated inference request, whichever encoding it came in, and limits that are no settings."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

__all__ = (
    "MAX_CLASSES",
    "MAX_EMPTY_ROWS",
    "MAX_KEYS",
    "MAX_PARAMETERS",
    "MAX_PARAMETERS_BYTES",
    "InferRequest",
    "RequestedOutput",
)

MAX_KEYS = 1000
MAX_PARAMETERS = 64
MAX_PARAMETERS_BYTES = 16 * 1024
MAX_CLASSES = 65_536
MAX_EMPTY_ROWS = 1024
"""Of a request whose tensors have fewer elements than it has rows: nothing in its body pays for them."""

Array = np.ndarray[Any, np.dtype[Any]]


class RequestedOutput(msgspec.Struct, frozen=True):
    """One output as the caller wants it.

    Parameters
    ----------
    position : int
        In the signature.
    binary : bool
        As raw bytes behind the JSON.
    classes : int
        Not 0: the so many largest elements as `"<value>:<index>[:<label>]"` in their place.
    """

    position: int
    binary: bool = False
    classes: int = 0


class InferRequest(msgspec.Struct, eq=False):
    """A validated request.

    Attributes
    ----------
    id : str or None
    inputs : list of arrays
        In the order of the signature, with its dtypes.
    rows : int
        Length of the first axis of the first input; 1 for a scalar.
    outputs : tuple of RequestedOutput or None
        In the order asked; None asks for all of them in JSON.
    parameters : dict
        As they came, but for `binary_data_output`, which says nothing about the prediction.
    timeout_us : int
        The deadline the caller asked for, in microseconds; 0 for none.
    priority : int
        1 is the highest; 0 for none in particular.
    fragments : list of bytes or None
        The JSON text of each input's `data` where it could be told apart in the body: the log takes it as it is.
    plain : bool
        One input in JSON whose text is known, every output in JSON, and nothing else.
    """

    id: str | None = None
    inputs: list[Array] = []
    rows: int = 1
    outputs: tuple[RequestedOutput, ...] | None = None
    parameters: dict[str, Any] = {}
    timeout_us: int = 0
    priority: int = 0
    fragments: list[bytes | None] = []
    plain: bool = False
