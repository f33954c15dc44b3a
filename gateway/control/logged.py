"""Predictions as the monitor reads them: the numbers of their inputs stay text until they are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import simdjson

from gateway.events.encoding import RecordError
from gateway.events.records import PredictionRecord, TensorRecord
from gateway.protocol.json_tensor import READING, numbers_in

__all__ = ("LoggedPrediction", "LoggedTensor", "read_numbers", "read_prediction")

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


def read_numbers(tensors: Sequence[TensorRecord | LoggedTensor]) -> Array | None:
    """The elements of many tensors, read all at once.

    Returns
    -------
    array of float64 or None
        Flat, one tensor after another; None where not all are numbers, as many as one and the same shape says.
    """
    if not tensors:
        return None
    shape = tensors[0].shape
    size = math.prod(shape)
    texts: list[bytes] = []
    for tensor in tensors:
        if not isinstance(tensor, LoggedTensor) or tensor.shape != shape or not shape:
            return None
        text = bytes(tensor.text)
        if text.count(b",") != size - 1:
            return None
        texts.append(text)
    numbers = numbers_in(texts, READING["FP64"], parser=simdjson.Parser())
    return numbers if numbers is not None and numbers.size == size * len(texts) else None
