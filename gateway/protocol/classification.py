"""The classification extension: the largest elements of an output, instead of all of them.

Source: Triton, "Classification Extension".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.protocol.datatypes import FREE, TensorSpec, numbers_of

__all__ = ("classify",)

Array = np.ndarray[Any, np.dtype[Any]]


def classify(array: Array, classes: int, *, spec: TensorSpec, labels: Sequence[str] = ()) -> Array:
    """The largest elements as `"<value>:<index>[:<label>]"`, largest first; of equal ones the first first, NaN last.

    Parameters
    ----------
    array : ndarray of numbers
        An output. Where its first axis is free and not its only one, each row is classified for itself.
    classes : int
        How many; fewer where there are not so many elements.
    spec : TensorSpec
        Of the output.
    labels : sequence of str
        Names of the indices, as far as there are any.

    Returns
    -------
    ndarray of str, shape [rows, classes] or [classes]

    >>> scores = np.array([[0.25, 1.5, -1.0]], "f4")
    >>> classify(scores, 2, spec=TensorSpec("y", "FP32", (-1, 3)), labels=("cat", "dog")).tolist()
    [['1.500000:1:dog', '0.250000:0:cat']]
    """
    by_row = len(spec.shape) > 1 and spec.shape[0] == FREE
    rows = len(array) if by_row else 1
    width = math.prod(array.shape[1:]) if by_row else array.size
    table = numbers_of(array).reshape(rows, width)
    # The complement reverses the order of integers without overflow, as the sign does for floats.
    order = np.argsort(~table if table.dtype.kind in "iu" else -table, axis=1, kind="stable")[:, :classes]
    form = "%d" if table.dtype.kind in "iu" else "%f"
    texts = np.empty(order.shape, dtype=object)
    for row, column in np.ndindex(order.shape):
        index = int(order[row, column])
        text = f"{form % table[row, index]}:{index}"
        texts[row, column] = f"{text}:{labels[index]}" if index < len(labels) else text
    return texts if by_row else texts.reshape(-1)
