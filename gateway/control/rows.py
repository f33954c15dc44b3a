"""The rows of one version between two flushes, and their counts per bin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from gateway.control.block import LoggedColumn
from gateway.control.logged import LoggedTensor, in_single, read_numbers
from gateway.drift.columns import MAX_COLUMNS
from gateway.drift.profile import FeatureProfile, ProfileError, bin_counts, columns_of
from gateway.events.records import TensorRecord

__all__ = ("RowBuffer",)

Array = np.ndarray[Any, Any]
Tensor = TensorRecord | LoggedTensor

_ROWS_AT_ONCE = 1024
"""Rows that are binned at a time, so that what is compared again and again stays near the processor."""
_ROWS_WAITING = 4096
"""Rows of blocks that wait at most, so that one flush has no more to count than others."""


class RowBuffer:
    """Collects tensors as they were logged, and counts them bin by bin when asked.

    A tensor that was summarised, redacted, or is not of the size it says is no evidence; it is counted in `skipped`.
    Numbers of FP32 count as what the model was given, as in the profile: their decimals in a record are only as long as
    it takes to tell one FP32 from another.

    Parameters
    ----------
    features : mapping of str to FeatureProfile
        Scalar columns to count.
    columns : mapping of str to sequence of str
        The names of each tensor's scalar columns, as in the profile.
    ignore : iterable of str
        Tensors or columns that are no evidence.

    Attributes
    ----------
    features : dict
        Those that are counted, in the order of the counts.
    """

    def __init__(
        self, features: dict[str, FeatureProfile], columns: dict[str, tuple[str, ...]], *, ignore: Iterable[str] = ()
    ) -> None:
        ignored = set(ignore)
        self._columns = columns
        self._waiting: list[tuple[Sequence[Tensor], int]] = []
        self._arrays: dict[tuple[str, tuple[int, ...], str], list[Array]] = {}
        self._rows_waiting = 0
        self.features: dict[str, FeatureProfile] = {}
        self.skipped = 0
        tensors: dict[str, list[str]] = {}
        for tensor, names in columns.items():
            watched = [name for name in names if name in features and not {name, tensor} & ignored]
            if watched:
                tensors[tensor] = watched
                self.features |= {name: features[name] for name in watched}
        self._index = {name: place for place, name in enumerate(self.features)}
        self._bins = max((len(feature.counts) for feature in self.features.values()), default=0)
        self._counts = self._nothing()
        self._tensors = {
            tensor: _Columns(columns[tensor], {name: features[name] for name in watched}, first=self._index[watched[0]])
            for tensor, watched in tensors.items()
        }

    def __repr__(self) -> str:
        return f"<RowBuffer features={len(self.features)} waiting={len(self._waiting)} skipped={self.skipped}>"

    def add(self, tensors: Sequence[Tensor], rows: int) -> None:
        """Keep the first `rows` rows of each tensor of a request until the next `take`."""
        if self._tensors:
            self._waiting.append((tensors, rows))

    def add_column(self, column: LoggedColumn, rows: Sequence[int], counted: Sequence[int]) -> None:
        """Keep the tensor of a block of requests until the next `take`.

        Parameters
        ----------
        rows, counted : sequence of int
            Rows of each request, and how many of them count, from the first on.
        """
        columns = self._tensors.get(column.name)
        if columns is None:
            return
        values = column.first(rows, counted)
        row_shape = values.shape[1:]
        self._arrays.setdefault((column.name, row_shape, values.dtype.str), []).append(values)
        self._rows_waiting += len(values)
        if self._rows_waiting >= _ROWS_WAITING:
            self._count_arrays(self._counts)

    def take(self) -> Array:
        """Rows in each bin since the last call, int64, shape [features, bins of the widest]."""
        waiting, self._waiting = self._waiting, []
        counts, self._counts = self._counts, self._nothing()
        self._count_arrays(counts)
        for name, (parts, rows) in self._by_tensor(waiting).items():
            columns = self._tensors[name]
            whole = [tensor for tensor, wanted in zip(parts, rows, strict=True) if wanted >= _rows_of(tensor)]
            numbers = read_numbers(whole)
            if numbers is not None and columns.takes(whole[0].shape[1:]):
                columns.count(in_single(numbers, whole[0].datatype).reshape(-1, columns.width), counts)
                left = [each for each in zip(parts, rows, strict=True) if each[1] < _rows_of(each[0])]
                parts, rows = [tensor for tensor, _ in left], [wanted for _, wanted in left]
            for (row_shape, datatype), values in self._whole(parts, rows).items():
                if columns.takes(row_shape) and not isinstance(values[0], str):
                    self._count(columns, values, datatype, counts)
                else:
                    self._count_other(name, row_shape, values, datatype, counts)
        return counts

    def _nothing(self) -> Array:
        return np.zeros((len(self.features), self._bins), dtype=np.int64)

    def _count_arrays(self, counts: Array) -> None:
        arrays, self._arrays, self._rows_waiting = self._arrays, {}, 0
        for (name, row_shape, _), parts in arrays.items():
            columns = self._tensors[name]
            values = parts[0] if len(parts) == 1 else np.concatenate(parts)
            if columns.takes(row_shape):
                columns.count(values.reshape(-1, columns.width), counts)
            else:
                self._count_scalars(name, values.astype(np.float64), counts)

    def _by_tensor(
        self, waiting: list[tuple[Sequence[Tensor], int]]
    ) -> dict[str, tuple[Sequence[Tensor], Sequence[int]]]:
        """Each tensor over all requests, with the rows that count of each."""
        rows = [each for _, each in waiting]
        if len({len(tensors) for tensors, _ in waiting}) == 1:
            found: dict[str, tuple[Sequence[Tensor], Sequence[int]]] = {}
            for column in zip(*(tensors for tensors, _ in waiting), strict=True):
                names = {tensor.name for tensor in column}
                if len(names) > 1:
                    break
                if (name := names.pop()) in self._tensors:
                    found[name] = (column, rows)
            else:
                return found
        return self._by_name(waiting)

    def _by_name(
        self, waiting: list[tuple[Sequence[Tensor], int]]
    ) -> dict[str, tuple[Sequence[Tensor], Sequence[int]]]:
        """The same for requests that name their tensors in different orders."""
        parts: dict[str, list[Tensor]] = {}
        rows: dict[str, list[int]] = {}
        for tensors, each in waiting:
            for tensor in tensors:
                if tensor.name in self._tensors:
                    parts.setdefault(tensor.name, []).append(tensor)
                    rows.setdefault(tensor.name, []).append(each)
        return {name: (found, rows[name]) for name, found in parts.items()}

    def _whole(self, parts: Sequence[Tensor], rows: Sequence[int]) -> dict[tuple[tuple[int, ...], str], list[Any]]:
        """The values that are as many as their shape says, flat, by the shape of a row and the datatype."""
        kinds = {(tensor.shape, tensor.datatype) for tensor in parts}
        every = [tensor.data for tensor in parts]
        if len(kinds) == 1:
            shape, datatype = kinds.pop()
            if shape and shape[0] == 1 and None not in every and len({len(each or ()) for each in every}) == 1:
                flat = list(chain.from_iterable(each for each in every if each is not None))
                return {(shape[1:], datatype): flat} if flat else {}
        by_shape: dict[tuple[tuple[int, ...], str], list[Any]] = {}
        for tensor, values, counted in zip(parts, every, rows, strict=True):
            total = _rows_of(tensor)
            if not values or total < 1 or len(values) % total:
                self.skipped += 1
                continue
            kept = values[: min(counted, total) * (len(values) // total)]
            by_shape.setdefault((tensor.shape[1:], tensor.datatype), []).extend(kept)
        return by_shape

    def _count(self, columns: _Columns, values: list[Any], datatype: str, counts: Array) -> None:
        try:
            table = in_single(np.array(values, dtype=np.float64), datatype).reshape(-1, columns.width)
        except (ValueError, TypeError, OverflowError):
            self.skipped += 1
            return
        columns.count(table, counts)

    def _count_other(
        self, name: str, row_shape: tuple[int, ...], values: list[Any], datatype: str, counts: Array
    ) -> None:
        """Strings, and tensors too wide to be followed column by column."""
        try:
            if isinstance(values[0], str):
                tensor = np.array(values, dtype=object)
            else:
                tensor = in_single(np.array(values, dtype=np.float64), datatype)
            tensor = tensor.reshape(-1, *row_shape)
        except (ValueError, TypeError, OverflowError):
            self.skipped += 1
            return
        self._count_scalars(name, tensor, counts)

    def _count_scalars(self, name: str, tensor: Array, counts: Array) -> None:
        try:
            for column, each in columns_of({name: tensor}, self._columns).items():
                if column in self.features:
                    binned = bin_counts(self.features[column], each)
                    counts[self._index[column], : len(binned)] += binned
        except (ValueError, TypeError, OverflowError, ProfileError):
            self.skipped += 1


def _rows_of(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.shape else 1


class _Columns:
    """The numeric columns of one tensor, binned all at once."""

    def __init__(self, names: tuple[str, ...], watched: dict[str, FeatureProfile], *, first: int) -> None:
        self.width = len(names)
        self._numeric = all(feature.kind == "numeric" for feature in watched.values())
        self._places = [names.index(name) for name in watched]
        self._rows = slice(first, first + len(watched))
        edges = [feature.edges for feature in watched.values()]
        widest = max(len(each) for each in edges)
        # NaN as an edge is never reached, so columns with fewer edges have no more bins than they should.
        padded = np.array([(*each, *[np.nan] * (widest - len(each))) for each in edges]).reshape(len(edges), widest)
        self._edges = padded.T[:, :, None]
        self._bin = np.uint8 if widest + 1 < 256 else np.intp
        self._missing = np.array([[len(each) + 1] for each in edges], self._bin)

    def takes(self, row_shape: tuple[int, ...]) -> bool:
        """Whether rows of this shape are split into these columns as they are."""
        width = row_shape[0] if len(row_shape) == 1 else 1
        return self._numeric and len(row_shape) <= 1 and width == self.width <= MAX_COLUMNS

    def count(self, table: Array, counts: Array) -> None:
        """Add the bins of a table of shape [rows, width]; the same bins as `bin_indices` gives.

        The table may be of any dtype of numbers or booleans.
        """
        bins = counts.shape[1]
        first = np.arange(len(self._places))[:, None] * bins
        for start in range(0, len(table), _ROWS_AT_ONCE):
            part = table[start : start + _ROWS_AT_ONCE].T
            part = part if len(self._places) == self.width else part[self._places]
            values = part.astype(np.float64, order="C")
            indices = np.zeros(values.shape, self._bin)
            for edge in self._edges:
                indices += values >= edge
            np.copyto(indices, self._missing, where=np.isnan(values))
            found = np.bincount((indices + first).ravel(), minlength=len(self._places) * bins)
            counts[self._rows] += found.reshape(-1, bins)
