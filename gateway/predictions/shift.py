"""How far the outputs of two versions lie apart: prediction by prediction, and as distributions. Memory is bounded."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from gateway.protocol.datatypes import numbers_of

__all__ = ("Comparison", "OutputShift", "ks_distance", "population_shift")

Array = np.ndarray[Any, np.dtype[Any]]

_MAX_COLUMNS = 64
_MAX_SAMPLE = 20_000
_BINS = 10
_FLOOR = 1e-4


class OutputShift(msgspec.Struct, frozen=True):
    """One scalar output: means of both sides, their largest difference in a row, and how the distributions differ."""

    mean_left: float
    mean_right: float
    largest_difference: float
    psi: float
    ks: float


class Comparison:
    """Compares the outputs of many predictions.

    Parameters
    ----------
    tolerance : float
        Differences up to so much of the left value (of 1, where that is smaller) are within tolerance.
    """

    def __init__(self, *, tolerance: float) -> None:
        self.predictions = self.equal = self.within = 0
        self._tolerance = tolerance
        self._columns: dict[str, _Column] = {}

    def __repr__(self) -> str:
        return f"<Comparison {self.predictions} equal={self.equal} within={self.within}>"

    @property
    def beyond(self) -> int:
        """Predictions that differ beyond the tolerance, or in shape."""
        return self.predictions - self.equal - self.within

    def add(self, left: dict[str, Array], right: dict[str, Array], starts: Array) -> Array:
        """Compare a batch of predictions, output by output.

        Parameters
        ----------
        left, right : dict of output name to array
            Both of the same outputs, shapes and datatypes. NaN and infinities are alike, as they are in the log.
        starts : array of int, shape [predictions]
            The first row of each prediction, from 0; a single prediction needs no row axis.

        Returns
        -------
        array of bool, shape [predictions]
            Which differ in a bit.
        """
        count = len(starts)
        differs, beyond = np.zeros(count, bool), np.zeros(count, bool)
        for name, one in left.items():
            unequal, far = self._unequal(one, right[name])
            if count == 1:
                differs |= unequal.any()
                beyond |= far.any()
            else:
                differs |= np.logical_or.reduceat(_by_row(unequal), starts)
                beyond |= np.logical_or.reduceat(_by_row(far), starts)
            self._note(name, one, right[name])
        self.predictions += count
        self.equal += int(count - differs.sum())
        self.within += int((differs & ~beyond).sum())
        return differs

    def add_unlike(self) -> None:
        """Count a prediction whose outputs are others, or have another shape or datatype."""
        self.predictions += 1

    def outputs(self) -> dict[str, OutputShift]:
        """The scalar outputs, by name; `name[i]` where an output has several. Beyond the first 64 none is kept."""
        return {name: column.shift() for name, column in self._columns.items() if column.count}

    def _unequal(self, left: Array, right: Array) -> tuple[Array, Array]:
        left, right = numbers_of(left), numbers_of(right)
        if left.dtype.kind != "f":
            unequal = np.asarray(left != right)
            if left.dtype.kind not in "iu":
                return unequal, unequal
            left, right = left.astype("f8"), right.astype("f8")
            finite = np.ones(left.shape, bool)
        else:
            bits = f"u{left.dtype.itemsize}"
            finite = np.isfinite(left) & np.isfinite(right)
            both_not = ~np.isfinite(left) & ~np.isfinite(right)
            unequal = (left.view(bits) != right.view(bits)) & ~both_not
            left, right = left.astype("f8"), right.astype("f8")
        with np.errstate(invalid="ignore"):
            far = ~(np.abs(left - right) <= self._tolerance * np.maximum(np.abs(left), 1.0))
        return unequal, unequal & (far | ~finite)

    def _note(self, name: str, left: Array, right: Array) -> None:
        left, right = numbers_of(left), numbers_of(right)
        if left.dtype.kind not in "fiu" or not left.size:
            return
        rows = len(left) if left.ndim > 1 else left.size
        one, other = (np.ascontiguousarray(side, dtype="f8").reshape(rows, -1) for side in (left, right))
        for place in range(one.shape[1]):
            column = name if one.shape[1] == 1 else f"{name}[{place}]"
            if column not in self._columns:
                if len(self._columns) == _MAX_COLUMNS:
                    return
                self._columns[column] = _Column()
            self._columns[column].add(one[:, place], other[:, place])


class _Column:
    """Sums over all rows, and every n-th row for the distributions."""

    def __init__(self) -> None:
        self.count = 0
        self._left = self._right = self._largest = 0.0
        self._stride = 1
        self._offset = 0
        self._kept: list[Array] = []
        self._held = 0

    def add(self, left: Array, right: Array) -> None:
        finite = np.isfinite(left) & np.isfinite(right)
        if not finite.all():
            left, right = left[finite], right[finite]
        if not left.size:
            return
        self.count += left.size
        self._left += float(left.sum())
        self._right += float(right.sum())
        self._largest = max(self._largest, float(np.abs(left - right).max()))
        pairs = np.stack((left, right))[:, self._offset :: self._stride]
        self._offset = (self._offset - left.size) % self._stride
        self._kept.append(pairs)
        self._held += pairs.shape[1]
        if self._held > 2 * _MAX_SAMPLE:
            kept = np.concatenate(self._kept, axis=1)[:, ::2]
            self._stride *= 2
            self._offset = 0
            self._kept, self._held = [kept], kept.shape[1]

    def shift(self) -> OutputShift:
        left, right = np.concatenate(self._kept, axis=1)
        return OutputShift(
            mean_left=self._left / self.count,
            mean_right=self._right / self.count,
            largest_difference=self._largest,
            psi=population_shift(left, right),
            ks=ks_distance(left, right),
        )


def population_shift(left: Array, right: Array) -> float:
    """The population stability index of two samples, over bins of the first one's deciles.

    Source: Siddiqi, Credit Risk Scorecards (2006), chapter 9; empty bins count as 0.0001.

    >>> population_shift(np.arange(100.0), np.arange(100.0))
    0.0
    >>> round(population_shift(np.arange(100.0), np.arange(100.0) + 20), 3)
    1.6
    >>> population_shift(np.full(20, 582.8), np.full(20, 447.2)) > 1
    True
    """
    if not left.size or not right.size:
        return 0.0
    edges, times = np.unique(np.quantile(left, np.linspace(0, 1, _BINS + 1)[1:-1]), return_counts=True)
    # A value that is several deciles gets a bin of its own, or what fell below it would still be in its bin.
    edges = np.unique(np.concatenate((edges, np.nextafter(edges[times > 1], -np.inf))))
    shares = []
    for side in (left, right):
        counts = np.bincount(np.searchsorted(edges, side, side="left"), minlength=len(edges) + 1)
        shares.append(np.maximum(counts / side.size, _FLOOR))
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))


def ks_distance(left: Array, right: Array) -> float:
    """The largest distance between two empirical distributions (Kolmogorov-Smirnov).

    >>> ks_distance(np.array([1.0, 2, 3, 4]), np.array([3.0, 4, 5, 6]))
    0.5
    """
    if not left.size or not right.size:
        return 0.0
    both = np.sort(np.concatenate((left, right)))
    one, other = (np.searchsorted(np.sort(side), both, side="right") / side.size for side in (left, right))
    return float(np.abs(one - other).max())


def _by_row(flags: Array) -> Array:
    return np.asarray(flags.reshape(len(flags), -1).any(axis=1))
