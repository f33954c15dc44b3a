"""The rows of one version between two flushes, and their counts per bin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from gateway.drift.profile import FeatureProfile, ProfileError, bin_counts, columns_of
from gateway.events.records import TensorRecord

__all__ = ("RowBuffer",)

Counts = dict[str, np.ndarray[Any, Any]]


class RowBuffer:
    """Collects tensors as they were logged, and counts them bin by bin when asked.

    A tensor that was summarised, redacted, or is not of the size it says is no evidence; it is counted in `skipped`.

    Parameters
    ----------
    features : mapping of str to FeatureProfile
        Scalar columns to count.
    columns : mapping of str to sequence of str
        The names of each tensor's scalar columns, as in the profile.
    ignore : iterable of str
        Tensors or columns that are no evidence.
    """

    def __init__(
        self, features: dict[str, FeatureProfile], columns: dict[str, tuple[str, ...]], *, ignore: Iterable[str] = ()
    ) -> None:
        ignored = set(ignore)
        self._columns = columns
        self._chunks: dict[str, list[tuple[int, Sequence[Any], tuple[int, ...]]]] = {}
        self.features: dict[str, FeatureProfile] = {}
        self.skipped = 0
        for tensor, names in columns.items():
            watched = [name for name in names if name in features and not {name, tensor} & ignored]
            if watched:
                self._chunks[tensor] = []
                self.features |= {name: features[name] for name in watched}

    def __repr__(self) -> str:
        return f"<RowBuffer features={len(self.features)} skipped={self.skipped}>"

    def add(self, tensors: Iterable[TensorRecord], rows: int) -> None:
        """Keep the first `rows` rows of each tensor until the next `take`."""
        chunks = self._chunks
        for tensor in tensors:
            kept = chunks.get(tensor.name)
            if kept is None:
                continue
            if tensor.data is None:
                self.skipped += 1
            else:
                kept.append((rows, tensor.data, tensor.shape))

    def take(self) -> Counts:
        """Rows in each bin of each feature since the last call; features without rows are left out."""
        counts: Counts = {}
        for name, chunks in self._chunks.items():
            if not chunks:
                continue
            self._chunks[name] = []
            for tensor in self._joined(chunks):
                self._count(name, tensor, counts)
        return counts

    def _count(self, name: str, tensor: np.ndarray[Any, Any], counts: Counts) -> None:
        try:
            for column, values in columns_of({name: tensor}, self._columns).items():
                feature = self.features.get(column)
                if feature is not None:
                    counted = bin_counts(feature, values)
                    counts[column] = counts[column] + counted if column in counts else counted
        except ProfileError:
            self.skipped += 1

    def _joined(self, chunks: list[tuple[int, Sequence[Any], tuple[int, ...]]]) -> list[np.ndarray[Any, Any]]:
        """The chunks as one array for each shape of a row."""
        by_shape: dict[tuple[int, ...], list[Sequence[Any]]] = {}
        for rows, values, shape in chunks:
            total = shape[0] if shape else 1
            row_shape = shape[1:]
            size = len(values) // total if total else 0
            if not size or size * total != len(values):
                self.skipped += 1
            else:
                by_shape.setdefault(row_shape, []).append(values if rows >= total else values[: rows * size])
        arrays = []
        for row_shape, parts in by_shape.items():
            try:
                arrays.append(_array(list(chain.from_iterable(parts))).reshape(-1, *row_shape))
            except (ValueError, TypeError, OverflowError):
                self.skipped += len(parts)
        return arrays


def _array(values: list[Any]) -> np.ndarray[Any, Any]:
    """Numbers as float64, null as NaN; texts as objects."""
    if any(isinstance(value, str) for value in values[:1]):
        return np.array(values, dtype=object)
    return np.array(values, dtype=np.float64)
