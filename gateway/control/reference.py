"""Answered requests against the reference of the version that served them, request by request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from gateway.control.block import LoggedBlock
from gateway.control.logged import in_single
from gateway.drift.profile import FeatureProfile, Profile, ProfileError, bin_indices, columns_of, out_of_range
from gateway.events.records import PredictionRecord

__all__ = ("Request", "are_finite", "count_of", "out_of_reference", "output_bins")

_ROWS_EACH = 64
"""Rows of one request that are looked at."""

Array = np.ndarray[Any, Any]
Request = PredictionRecord | LoggedBlock


def out_of_reference(requests: Sequence[Request], profile: Profile, *, ignore: Iterable[str]) -> list[bool]:
    """Which requests have a row with an input outside the range of the version's own reference.

    Parameters
    ----------
    requests : sequence of PredictionRecord or LoggedBlock
        Served by the profile's version; a block is as many requests as it has predictions.
    ignore : iterable of str
        Tensors or columns that are no evidence.
    """
    ignored = set(ignore)
    strange = np.zeros(sum(map(count_of, requests)), dtype=bool)
    for name, names in profile.columns.items():
        watched = [column for column in names if column in profile.features and not {column, name} & ignored]
        if not watched:
            continue
        for owners, values in _gather(requests, "inputs", name, rows_each=_ROWS_EACH):
            try:
                for column, each in columns_of({name: values}, profile.columns).items():
                    if column in watched and not _within(profile.features[column], each):
                        strange[owners[out_of_range(profile.features[column], each)]] = True
            except (ProfileError, KeyError):
                continue
    return [bool(each) for each in strange]


def output_bins(requests: Sequence[Request], profile: Profile) -> dict[str, list[int]]:
    """The bin of each numeric output column in the version's own reference, first row of each request; -1 for none.

    Bins are quantiles of each version's own reference, so two good versions look alike though one of them predicts
    higher throughout.
    """
    found: dict[str, Array] = {}
    for name, names in profile.columns.items():
        watched = [column for column in names if column in profile.outputs]
        watched = [column for column in watched if profile.outputs[column].kind == "numeric"]
        if not watched:
            continue
        for owners, values in _gather(requests, "outputs", name, rows_each=1):
            try:
                columns = columns_of({name: values}, profile.columns)
                for column in watched:
                    bins = bin_indices(profile.outputs[column], columns[column])
                    found.setdefault(column, np.full(sum(map(count_of, requests)), -1))[owners] = bins
            except (ProfileError, KeyError):
                continue
    return {column: bins.tolist() for column, bins in found.items()}


def are_finite(request: Request) -> list[bool]:
    """Of each request, whether every value of its outputs that was logged is a number.

    JSON writes NaN and infinities as null.
    """
    if isinstance(request, PredictionRecord):
        return [all(tensor.data is None or None not in tensor.data for tensor in request.outputs)]
    values = request.outputs.values
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if finite.all():
        return [True] * request.count
    starts = np.cumsum([0, *request.rows[:-1]])
    whole: list[bool] = np.logical_and.reduceat(finite, starts).tolist()
    return whole


def count_of(request: Request) -> int:
    """How many requests it is."""
    return request.count if isinstance(request, LoggedBlock) else 1


def _within(feature: FeatureProfile, values: Array) -> bool:
    """Whether all values lie between the smallest and the largest of the reference: a short way to the usual answer."""
    if feature.low is None or feature.high is None or not len(values):
        return False
    # NaN makes both comparisons false.
    return bool(values.min() >= feature.low and values.max() <= feature.high)


def _gather(
    requests: Sequence[Request], side: Literal["inputs", "outputs"], name: str, *, rows_each: int
) -> Iterator[tuple[Array, Array]]:
    """The first rows of one tensor over all requests that have it whole, and the request each is of, by their shape.

    Where a caller chooses the shape of a row, one that fits no column must not cost the rows of others.
    """
    by_shape: defaultdict[tuple[int, ...], _Rows] = defaultdict(_Rows)
    place = 0
    for request in requests:
        if isinstance(request, LoggedBlock):
            column = request.inputs if side == "inputs" else request.outputs
            if column.name == name:
                taken = request.rows
                if max(taken) > rows_each:
                    taken = [min(rows, rows_each) for rows in taken]
                alike = by_shape[column.values.shape[1:]]
                alike.parts.add_array(column.first(request.rows, taken).reshape(-1))
                alike.places += range(place, place + request.count)
                alike.taken += taken
            place += request.count
            continue
        for tensor in request.inputs if side == "inputs" else request.outputs:
            if tensor.name != name or (values := tensor.data) is None:
                continue
            rows = tensor.shape[0] if tensor.shape else 1
            if rows > 0 and len(values) % rows == 0:
                first = min(rows, rows_each)
                alike = by_shape[tensor.shape[1:]]
                alike.parts.add_values(values[: first * (len(values) // rows)], tensor.datatype)
                alike.places.append(place)
                alike.taken.append(first)
        place += 1
    for row_shape, alike in by_shape.items():
        try:
            flat = alike.parts.joined()
            if flat.size:
                yield np.repeat(alike.places, alike.taken), flat.reshape(sum(alike.taken), *row_shape)
        except (ValueError, TypeError, OverflowError):
            continue


class _Rows:
    """Rows of one shape: their values, the requests that have some, and how many each has."""

    def __init__(self) -> None:
        self.parts = _Parts()
        self.places: list[int] = []
        self.taken: list[int] = []


class _Parts:
    """Values of many requests behind one another; those that come as lists are made arrays together."""

    def __init__(self) -> None:
        self._parts: list[Array | tuple[str, list[Any]]] = []

    def add_array(self, array: Array) -> None:
        self._parts.append(array)

    def add_values(self, values: list[Any], datatype: str) -> None:
        last = self._parts[-1] if self._parts else None
        if isinstance(last, tuple) and last[0] == datatype:
            last[1].extend(values)
        else:
            self._parts.append((datatype, values))

    def joined(self) -> Array:
        arrays = [part if isinstance(part, np.ndarray) else _array_of(*part) for part in self._parts]
        return np.concatenate(arrays) if arrays else np.array([])


def _array_of(datatype: str, values: list[Any]) -> Array:
    if values and isinstance(values[0], str):
        return np.array(values, dtype=object)
    return in_single(np.array(values, dtype=np.float64), datatype)
