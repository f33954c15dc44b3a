"""Tensors of a record as arrays again."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from gateway.events.records import PredictionRecord, TensorRecord
from gateway.protocol.datatypes import NUMPY_OF, bfloat16_of

__all__ = ("NotLogged", "array_of", "arrays_of", "left_out")

Array = np.ndarray[Any, np.dtype[Any]]
LeftOut = Literal["failed", "sampled_out", "redacted", "summarised", "unreadable"]


class NotLogged(Exception):
    """Raised when a tensor's content is not in its record."""


def left_out(record: PredictionRecord) -> LeftOut | None:
    """Why the inputs of a record are not whole, or None when they are.

    "failed": no inputs could be read of a request that failed.
    """
    if not record.sampled:
        return "sampled_out"
    if not record.inputs:
        return "failed" if record.status != 200 else "unreadable"
    for tensor in record.inputs:
        if tensor.redacted or tensor.redacted_columns:
            return "redacted"
        if tensor.data is None:
            return "summarised"
    return None


def array_of(tensor: TensorRecord) -> Array:
    """A logged tensor as an array of its datatype and shape; null is NaN in floating point.

    Raises
    ------
    NotLogged
        It was redacted, summarised, or is no such tensor.
    """
    dtype = NUMPY_OF.get(tensor.datatype)
    if tensor.data is None or dtype is None or tensor.redacted_columns:
        raise NotLogged(f"tensor {tensor.name!r} was not logged whole")
    try:
        flat = bfloat16_of(tensor.data) if tensor.datatype == "BF16" else np.array(tensor.data, dtype=dtype)
        return flat.reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise NotLogged(f"tensor {tensor.name!r} cannot be read back: {error}") from None


def arrays_of(tensors: list[TensorRecord]) -> dict[str, Array]:
    """Logged tensors by name.

    Raises
    ------
    NotLogged
    """
    return {tensor.name: array_of(tensor) for tensor in tensors}
