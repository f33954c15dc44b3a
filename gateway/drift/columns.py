"""Tensors to scalar columns: what a feature is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gateway.drift.errors import ProfileError
from gateway.protocol.datatypes import numbers_of

__all__ = ("MAX_COLUMNS", "column_names", "columns_of")

MAX_COLUMNS = 256
"""A tensor with more scalars a row is summarised. 256 columns of 12 bins are what one detector follows at 100 kB."""

_NUMBER_SUMMARIES = ("mean", "min", "max", "zeros")
_STRING_SUMMARIES = ("length", "empty")


def columns_of(tensors: Mapping[str, np.ndarray[Any, Any]], columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Split tensors into one-dimensional columns, one value a row.

    A tensor of shape [n] or [n, 1] is one column with the tensor's name; [n, k] is k columns ``name[0]`` to
    ``name[k-1]``. A wide tensor (k > 256, or rank above 2) is summarised per row by a few scalars: ``name.mean``,
    ``name.min``, ``name.max`` and ``name.zeros`` (share of zeros) for numbers, ``name.length`` (mean length) and
    ``name.empty`` (share of empty strings) for strings. What such scalars do not show is not watched.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        Any V2 dtype; the first axis is the row.
    columns : mapping of str to sequence of str
        Names to use instead, one for each scalar column of a tensor; tensors left out get the names above.

    Returns
    -------
    dict of str to ndarray, shape [n]
        float64 for numbers and booleans (NaN is missing), object for strings (None is missing).

    Raises
    ------
    ProfileError
        A tensor has not as many columns as names, or two columns have one name.

    >>> table = columns_of({"x": np.array([[1, 2], [3, 4]]), "y": np.array([[5.0], [6.0]])}, {"x": ("a", "b")})
    >>> {name: column.tolist() for name, column in table.items()}
    {'a': [1.0, 3.0], 'b': [2.0, 4.0], 'y': [5.0, 6.0]}
    """
    table: dict[str, Any] = {}
    for tensor_name, tensor in tensors.items():
        names = column_names(tensor_name, tensor, columns.get(tensor_name, ()))
        for name, column in zip(names, _scalars(tensor), strict=True):
            if name in table:
                raise ProfileError(f"two columns are named {name!r}; expected one name for each")
            table[name] = column
    return table


def column_names(tensor_name: str, tensor: np.ndarray[Any, Any], given: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the scalar columns of one tensor: as given, or by default.

    Raises
    ------
    ProfileError
        Names are given, but not as many as there are columns.
    """
    if _is_wide(tensor):
        names = tuple(f"{tensor_name}.{summary}" for summary in _summaries(tensor))
    elif tensor.ndim < 2 or tensor.shape[1] == 1:
        names = (tensor_name,)
    else:
        names = tuple(f"{tensor_name}[{column}]" for column in range(tensor.shape[1]))
    if not given:
        return names
    if len(given) != len(names):
        raise ProfileError(
            f"tensor {tensor_name!r} of shape {list(tensor.shape)} has {len(names)} columns, "
            f"but {len(given)} names: {', '.join(given[:5])}"
        )
    return tuple(given)


def _is_wide(tensor: np.ndarray[Any, Any]) -> bool:
    return tensor.ndim > 2 or (tensor.ndim == 2 and tensor.shape[1] > MAX_COLUMNS)


def _is_text(tensor: np.ndarray[Any, Any]) -> bool:
    return tensor.dtype.kind in "OUST"


def _summaries(tensor: np.ndarray[Any, Any]) -> tuple[str, ...]:
    return _STRING_SUMMARIES if _is_text(tensor) else _NUMBER_SUMMARIES


def _scalars(tensor: np.ndarray[Any, Any]) -> list[Any]:
    flat = tensor.reshape(1, 1) if tensor.ndim == 0 else tensor.reshape(tensor.shape[0], _width(tensor))
    if _is_text(tensor):
        if not _is_wide(tensor):
            return list(flat.astype(object).T)
        flat = np.array([[len(str(text)) for text in row] for row in flat], dtype=np.float64).reshape(flat.shape)
        return _summarised(flat)[::3]
    flat = numbers_of(flat).astype(np.float64, copy=False)
    return _summarised(flat) if _is_wide(tensor) else list(flat.T)


def _width(tensor: np.ndarray[Any, Any]) -> int:
    width = 1
    for size in tensor.shape[1:]:
        width *= size
    return width


def _summarised(flat: np.ndarray[Any, Any]) -> list[Any]:
    if flat.shape[1] == 0:
        return [np.full(flat.shape[0], np.nan) for _ in _NUMBER_SUMMARIES]
    # Infinities of both signs have no mean: NaN is the right answer and no cause for a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        return [flat.mean(axis=1), flat.min(axis=1), flat.max(axis=1), (flat == 0.0).mean(axis=1)]
