"""Rows to warm a model up with: what its reference looked like, or zeros where it has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gateway.drift.profile import FeatureProfile, Profile
from gateway.protocol.datatypes import FREE, NUMPY_OF, Signature, TensorSpec, bfloat16_of

__all__ = ("ROWS", "reference_rows", "take_rows", "zero_row")

ROWS = 8

Array = np.ndarray[Any, np.dtype[Any]]


def reference_rows(signature: Signature, profile: Profile) -> dict[str, Array] | None:
    """`ROWS` rows that are like the reference, column by column: from its low values over its middle to its high ones.

    A tensor too wide for a profile of each column is filled with the means of rows.

    Parameters
    ----------
    signature : Signature
    profile : Profile
        Of a reference that the model has run on.

    Returns
    -------
    dict of input name to array of shape [ROWS, ...], or None where the profile does not describe every input or an
    input has no free first axis.
    """
    rows = {}
    for spec in signature.inputs:
        names = profile.columns.get(spec.name, ())
        if not spec.shape or spec.shape[0] != FREE or not all(name in profile.features for name in names):
            return None
        shape = tuple(1 if axis == FREE else axis for axis in spec.shape[1:])
        columns = [_spread(profile.features[name], text=spec.datatype == "BYTES") for name in names]
        if not columns:
            return None
        if len(columns) == np.prod(shape, dtype=np.int64):
            filled = np.stack(columns, axis=1).reshape(ROWS, *shape)
        elif spec.datatype == "BYTES":
            filled = np.full((ROWS, *shape), "", dtype=object)
        else:
            filled = np.broadcast_to(columns[0].reshape(ROWS, *[1] * len(shape)), (ROWS, *shape))
        rows[spec.name] = _typed(filled, spec)
    return rows


def zero_row(signature: Signature) -> dict[str, Array]:
    """One row of zeros and empty strings, free axes taken as one."""
    zeros = {}
    for spec in signature.inputs:
        shape = [1 if axis == FREE else axis for axis in spec.shape]
        zeros[spec.name] = (
            np.full(shape, "", object) if spec.datatype == "BYTES" else np.zeros(shape, NUMPY_OF[spec.datatype])
        )
    return zeros


def take_rows(rows: Mapping[str, Array], start: int, count: int) -> dict[str, Array]:
    """`count` rows from `start` on, from the first again after the last."""
    wanted = np.arange(start, start + count) % ROWS
    return {name: np.ascontiguousarray(array[wanted]) for name, array in rows.items()}


def _spread(feature: FeatureProfile, *, text: bool) -> Any:
    """`ROWS` values of one column."""
    if text or feature.kind == "category":
        words = feature.categories or ("",)
        return np.array([words[row % len(words)] for row in range(ROWS)], dtype=object)
    known = sorted({value for value in (feature.low, *feature.edges, feature.high) if value is not None}) or [0.0]
    return np.array([known[round(row * (len(known) - 1) / (ROWS - 1))] for row in range(ROWS)])


def _typed(values: Any, spec: TensorSpec) -> Array:
    if spec.datatype == "BF16":
        return bfloat16_of(values)
    dtype = NUMPY_OF[spec.datatype]
    if dtype.kind in "iu":
        # An edge lies between two values that were seen: the one below it is one of them, or as good.
        bounds = np.iinfo(dtype)
        values = np.clip(np.floor(values), bounds.min, bounds.max)
    typed: Array = values.astype(dtype)
    return typed
