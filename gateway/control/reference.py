"""Answered requests against the reference of the version that served them, request by request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from gateway.drift.profile import FeatureProfile, Profile, ProfileError, bin_indices, columns_of, out_of_range
from gateway.events.records import PredictionRecord, TensorRecord

__all__ = ("is_finite", "out_of_reference", "output_bins")

_ROWS_EACH = 64
"""Rows of one request that are looked at."""

Array = np.ndarray[Any, Any]


def out_of_reference(records: Sequence[PredictionRecord], profile: Profile, *, ignore: Iterable[str]) -> list[bool]:
    """Which requests have a row with an input outside the range of the version's own reference.

    Parameters
    ----------
    records : sequence of PredictionRecord
        Served by the profile's version.
    ignore : iterable of str
        Tensors or columns that are no evidence.
    """
    ignored = set(ignore)
    strange = np.zeros(len(records), dtype=bool)
    tensors = [record.inputs for record in records]
    for name, names in profile.columns.items():
        watched = [column for column in names if column in profile.features and not {column, name} & ignored]
        if not watched:
            continue
        owners, values = _gather(tensors, name, rows_each=_ROWS_EACH)
        if values is None:
            continue
        try:
            for column, each in columns_of({name: values}, profile.columns).items():
                if column in watched and not _within(profile.features[column], each):
                    strange[owners[out_of_range(profile.features[column], each)]] = True
        except (ProfileError, KeyError):
            continue
    return [bool(each) for each in strange]


def output_bins(records: Sequence[PredictionRecord], profile: Profile) -> dict[str, list[int]]:
    """The bin of each numeric output column in the version's own reference, first row of each request; -1 for none.

    Bins are quantiles of each version's own reference, so two good versions look alike though one of them predicts
    higher throughout.
    """
    found: dict[str, list[int]] = {}
    tensors = [record.outputs for record in records]
    for name, names in profile.columns.items():
        watched = [column for column in names if column in profile.outputs]
        watched = [column for column in watched if profile.outputs[column].kind == "numeric"]
        if not watched:
            continue
        owners, values = _gather(tensors, name, rows_each=1)
        if values is None:
            continue
        try:
            columns = columns_of({name: values}, profile.columns)
            for column in watched:
                bins = np.full(len(records), -1)
                bins[owners] = bin_indices(profile.outputs[column], columns[column])
                found[column] = bins.tolist()
        except (ProfileError, KeyError):
            continue
    return found


def is_finite(tensors: Iterable[TensorRecord]) -> bool:
    """Whether every value that was logged is a number; JSON writes NaN and infinities as null."""
    return all(tensor.data is None or None not in tensor.data for tensor in tensors)


def _within(feature: FeatureProfile, values: Array) -> bool:
    """Whether all values lie between the smallest and the largest of the reference: a short way to the usual answer."""
    if feature.low is None or feature.high is None or not len(values):
        return False
    # NaN makes both comparisons false.
    return bool(values.min() >= feature.low and values.max() <= feature.high)


def _gather(tensors: Sequence[Sequence[TensorRecord]], name: str, *, rows_each: int) -> tuple[Array, Array | None]:
    """The first rows of one tensor over all requests that have it whole and alike, with the request each is of."""
    parts: list[Sequence[Any]] = []
    owners: list[int] = []
    row_shape: tuple[int, ...] | None = None
    for index, request in enumerate(tensors):
        for tensor in request:
            if tensor.name != name or tensor.data is None:
                continue
            rows = tensor.shape[0] if tensor.shape else 1
            row_shape = tensor.shape[1:] if row_shape is None else row_shape
            if rows and tensor.shape[1:] == row_shape and len(tensor.data) % rows == 0:
                taken = min(rows, rows_each)
                parts.append(tensor.data[: taken * (len(tensor.data) // rows)])
                owners += [index] * taken
    values = list(chain.from_iterable(parts))
    if not values or row_shape is None:
        return np.array([], dtype=np.intp), None
    try:
        flat = np.array(values, dtype=object if isinstance(values[0], str) else np.float64)
        return np.array(owners), flat.reshape(len(owners), *row_shape)
    except (ValueError, TypeError, OverflowError):
        return np.array([], dtype=np.intp), None
