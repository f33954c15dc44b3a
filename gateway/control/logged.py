"""Predictions as the monitor reads them: the numbers of their inputs stay text until they are counted."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import simdjson

from gateway.events.encoding import RecordError
from gateway.events.records import PredictionRecord, TensorRecord
from gateway.protocol.json_tensor import READING, SECRET_BITS, numbers_in_each

__all__ = ("LoggedPrediction", "LoggedTensor", "in_single", "read_numbers", "read_prediction")

Array = np.ndarray[Any, Any]


class LoggedTensor(msgspec.Struct, frozen=True):
    """A tensor of a record whose elements are read when they are asked for."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    text: msgspec.Raw = msgspec.field(name="data", default=msgspec.Raw(b"null"))

    @property
    def data(self) -> list[Any] | None:
        """The elements, flat and row-major; None where they were not logged. Read anew each time."""
        elements: list[Any] | None = _elements.decode(self.text)
        return elements


class LoggedPrediction(PredictionRecord, frozen=True):
    """A prediction record with inputs that are read later."""

    inputs: list[LoggedTensor]  # type: ignore[assignment]


_SHORT: dict[str, np.dtype[Any]] = {"FP32": np.dtype("f4"), "FP16": np.dtype("f2"), "BF16": np.dtype("f4")}
"""BF16 is written as the FP32 that it is the upper half of."""

_elements = msgspec.json.Decoder(list[Any] | None)
_predictions = msgspec.json.Decoder(LoggedPrediction)


def read_prediction(payload: bytes) -> LoggedPrediction:
    """A prediction record of the log.

    Raises
    ------
    RecordError
        The payload is none.
    """
    try:
        return _predictions.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"no record of a prediction: {error}") from None


def in_single(numbers: Array, datatype: str) -> Array:
    """Numbers of a record as the model had them, float64, any shape: those of a short datatype rounded to it.

    A record has as many digits as tell one number of a datatype from the next: 0.1 for what is 0.10000000149 in FP32.
    Reference profiles, and blocks of predictions, hold the latter.

    >>> in_single(np.array([0.1]), "FP32").tolist(), in_single(np.array([0.1]), "FP64").tolist()
    ([0.10000000149011612], [0.1])
    """
    dtype: np.dtype[Any] | None = _SHORT.get(datatype)
    if dtype is None:
        return numbers
    with np.errstate(over="ignore"):
        rounded: Array = numbers.astype(dtype).astype(np.float64)
    return rounded


def read_numbers(tensors: Sequence[TensorRecord | LoggedTensor]) -> Array | None:
    """The elements of many tensors, read all at once.

    Returns
    -------
    array of float64 or None
        Flat, one tensor after another, as their text says; None where not all are numbers, as many as one and the same
        shape says, of one datatype.
    """
    if not tensors:
        return None
    shape, datatype = tensors[0].shape, tensors[0].datatype
    size = math.prod(shape)
    texts: list[bytes] = []
    for tensor in tensors:
        if not isinstance(tensor, LoggedTensor) or (tensor.shape, tensor.datatype) != (shape, datatype) or not shape:
            return None
        text = bytes(tensor.text)
        if not (text.startswith(b"[") and text.endswith(b"]")):
            return None
        texts.append(text[1:-1])
    secret = secrets.randbits(SECRET_BITS)
    return numbers_in_each(texts, size, READING["FP64"], secret=secret, parser=simdjson.Parser())
