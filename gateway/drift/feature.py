"""One scalar column of the reference: its bins, and how live values are held against them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np

from gateway.drift.errors import ProfileError

__all__ = (
    "FeatureProfile",
    "bin_counts",
    "bin_indices",
    "build_feature",
    "check_feature",
    "mean_of",
    "out_of_range",
    "psi",
)

BINS = 10
"""Quantile bins of a numeric feature: the deciles, as PSI has always been drawn."""
TOP_CATEGORIES = 20
RANGE_MARGIN = 0.05
"""Share of the reference's spread by which a value may leave it before it is out of range."""
_ROUNDING = 1e-6
"""Relative slack for a constant that was stored in single precision (2**-24 is 6e-8)."""

Values = np.ndarray[Any, Any]


class FeatureProfile(msgspec.Struct, frozen=True):
    """One scalar column of the reference.

    Parameters
    ----------
    kind : "numeric" or "category"
    edges : tuple of float
        Inner edges, rising; a value equal to an edge lies above it. Empty for categories.
    categories : tuple of str
        The most frequent first, at most 20. Empty for numbers.
    counts : tuple of int
        Rows in each bin. Numbers: ``len(edges) + 1`` bins of values, then the missing (NaN). Categories: one bin
        each, then all others, then the missing (None).
    low, high, mean : float or None
        Of the finite values; None where there are none, and for categories.
    """

    kind: Literal["numeric", "category"]
    edges: tuple[float, ...]
    categories: tuple[str, ...]
    counts: tuple[int, ...]
    low: float | None
    high: float | None
    mean: float | None


def build_feature(values: Values) -> FeatureProfile:
    """Profile one column, shape [n]: numbers by quantile bins, strings by their most frequent values.

    Bins are cut between distinct values, as near to the deciles as ties allow, so a value that fills several deciles
    has a bin of its own and a constant has one bin, with one below and one above.

    >>> build_feature(np.array([3.0] * 5)).counts
    (0, 5, 0, 0)
    >>> build_feature(np.array([0.0] * 6 + [1.0, 2.0, 3.0, np.nan])).edges
    (0.5, 1.5, 2.5)
    """
    if values.dtype.kind in "OUST":
        return _category(values)
    numbers = values.astype(np.float64, copy=False)
    finite = numbers[np.isfinite(numbers)]
    unbinned = FeatureProfile(
        kind="numeric",
        edges=_edges(finite),
        categories=(),
        counts=(),
        low=float(finite.min()) if finite.size else None,
        high=float(finite.max()) if finite.size else None,
        mean=mean_of(finite) if finite.size else None,
    )
    return msgspec.structs.replace(unbinned, counts=tuple(bin_counts(unbinned, numbers).tolist()))


def bin_indices(feature: FeatureProfile, values: Values) -> Values:
    """The bin of every value, shape [n], intp: NaN (or None) is missing, infinities are in the outermost bins.

    Raises
    ------
    ProfileError
        Strings came for a numeric feature.

    >>> bin_indices(build_feature(np.arange(4.0)), np.array([-np.inf, 0.0, 2.0, np.inf, np.nan]))
    array([0, 0, 2, 3, 4])
    """
    if feature.kind == "category":
        return _category_indices(feature, values)
    numbers = _numbers(values)
    indices = np.searchsorted(feature.edges, numbers, side="right")
    indices[np.isnan(numbers)] = len(feature.edges) + 1
    return indices


def bin_counts(feature: FeatureProfile, values: Values) -> Values:
    """Rows in each bin, shape [bins], int64: what detectors add up. Counts of disjoint batches add."""
    counts: Values = np.bincount(bin_indices(feature, values), minlength=_bins(feature))
    return counts


def out_of_range(feature: FeatureProfile, values: Values) -> Values:
    """Which values the reference does not vouch for, shape [n], bool.

    A number outside ``[low, high]`` of the reference widened by 5 % of its spread, an infinity, a category where
    the reference had no others beside its listed ones, a missing value where the reference had none.

    >>> out_of_range(build_feature(np.arange(101.0)), np.array([-5.0, -5.1, 105.0, 106.0, np.nan]))
    array([False,  True, False,  True,  True])
    """
    missing_is_new = feature.counts[-1] == 0
    if feature.kind == "category":
        indices = _category_indices(feature, values)
        strange = (indices == len(feature.categories)) & (feature.counts[-2] == 0)
        missing = indices == len(feature.categories) + 1
    else:
        numbers = _numbers(values)
        strange = np.isinf(numbers)
        if feature.low is None or feature.high is None:
            strange |= np.isfinite(numbers)
        else:
            margin = RANGE_MARGIN * feature.high - RANGE_MARGIN * feature.low
            margin += _ROUNDING * max(abs(feature.low), abs(feature.high))
            strange |= (numbers < feature.low - margin) | (numbers > feature.high + margin)
        missing = np.isnan(numbers)
    beyond: Values = strange | (missing & missing_is_new)
    return beyond


def psi(feature: FeatureProfile, counts: Iterable[int]) -> float:
    """Population stability index of live counts against the reference, for people to read; never a trigger.

    Without any drift its expectation is about ``(bins - 1) * (1/n + 1/m)`` for n live and m reference rows: 0.095 for
    10 bins and 100 rows, so that the customary limit of 0.1 is crossed by luck in four of ten such windows. This
    expectation is subtracted, and what is left is about zero without drift, at any sample size (and may be a little
    below). Half a row is added to every bin, so an empty one gives a finite number. NaN where nothing was counted.

    Source: B. Yurdakul, J. Naranjo, "Statistical properties of the population stability index", 2020.

    >>> round(psi(build_feature(np.arange(1000.0)), [100] * 5 + [50] * 5 + [0]), 3)
    0.093
    """
    live = np.array(list(counts), dtype=np.float64)
    reference = np.array(feature.counts, dtype=np.float64)
    _check_counts(live, len(reference))
    if live.sum() == 0 or reference.sum() == 0:
        return math.nan
    seen = (live > 0) | (reference > 0)
    live_share = (live[seen] + 0.5) / (live[seen] + 0.5).sum()
    reference_share = (reference[seen] + 0.5) / (reference[seen] + 0.5).sum()
    raw = float(((live_share - reference_share) * np.log(live_share / reference_share)).sum())
    return raw - (int(seen.sum()) - 1) * (1 / float(live.sum()) + 1 / float(reference.sum()))


def check_feature(name: str, feature: FeatureProfile) -> None:
    """Whether sizes agree, counts are not negative and edges rise.

    Raises
    ------
    ProfileError
        With the feature's name and what does not hold.
    """
    bins = _bins(feature)
    if len(feature.counts) != bins:
        raise ProfileError(f"feature {name!r} has {len(feature.counts)} counts; expected {bins}, one for each bin")
    if any(count < 0 for count in feature.counts):
        raise ProfileError(f"feature {name!r} has the count {min(feature.counts)}; expected none below 0")
    numbers = (*feature.edges, *(value for value in (feature.low, feature.high, feature.mean) if value is not None))
    if not all(math.isfinite(number) for number in numbers):
        raise ProfileError(f"feature {name!r} has an edge, low, high or mean that is not finite")
    if any(left >= right for left, right in pairwise(feature.edges)):
        raise ProfileError(f"feature {name!r} has edges {list(feature.edges)}; expected them to rise")
    if (feature.low is None) != (feature.high is None):
        raise ProfileError(f"feature {name!r} has only one of low and high")
    if feature.low is not None and feature.high is not None and feature.low > feature.high:
        raise ProfileError(f"feature {name!r} has low {feature.low} above high {feature.high}")
    if feature.kind == "numeric" and feature.categories or feature.kind == "category" and feature.edges:
        raise ProfileError(f"feature {name!r} of kind {feature.kind} has both edges and categories")
    if len(set(feature.categories)) != len(feature.categories):
        raise ProfileError(f"feature {name!r} names a category twice")


def mean_of(finite: Values) -> float:
    """The mean of finite values, shape [n], n at least 1, however large they are."""
    # Scaled first: the sum of large values overflows.
    peak = max(float(np.abs(finite).max()), 1.0)
    return float(np.clip((finite / peak).mean(), -1.0, 1.0)) * peak


def _bins(feature: FeatureProfile) -> int:
    # Numbers have one bin more than edges, categories one more than are listed; the missing come last.
    return len(feature.edges) + len(feature.categories) + 2


def _numbers(values: Values) -> Values:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ProfileError(f"strings came for a numeric feature, for example {values[:1].tolist()}") from None


def _text(value: Any) -> str | None:
    if value is None or value != value:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _category(values: Values) -> FeatureProfile:
    texts = Counter(_text(value) for value in values.tolist())
    missing = texts.pop(None, 0)
    ranked = sorted(texts.items(), key=lambda item: (-item[1], item[0] or ""))
    top = ranked[:TOP_CATEGORIES]
    others = sum(count for _, count in ranked[TOP_CATEGORIES:])
    return FeatureProfile(
        kind="category",
        edges=(),
        categories=tuple(text for text, _ in top if text is not None),
        counts=(*(count for _, count in top), others, missing),
        low=None,
        high=None,
        mean=None,
    )


def _category_indices(feature: FeatureProfile, values: Values) -> Values:
    bins: dict[str | None, int] = {text: index for index, text in enumerate(feature.categories)}
    other = len(feature.categories)
    bins[None] = other + 1
    return np.array([bins.get(_text(value), other) for value in values.tolist()], dtype=np.intp)


def _edges(finite: Values) -> tuple[float, ...]:
    distinct, ties = np.unique(finite, return_counts=True)
    if not distinct.size:
        return ()
    if distinct.size == 1:
        return _around(float(distinct[0]))
    below = np.cumsum(ties)[:-1]
    targets = finite.size * np.arange(1, BINS) / BINS
    upper = np.minimum(np.searchsorted(below, targets), below.size - 1)
    lower = np.maximum(upper - 1, 0)
    cuts = np.unique(np.where(targets - below[lower] < below[upper] - targets, lower, upper))
    left, right = distinct[cuts], distinct[cuts + 1]
    # Halves first: the sum of two large values overflows. Neighbouring doubles have no midpoint, there the upper is it.
    middle = left / 2 + right / 2
    return tuple(np.where(middle > left, middle, right).tolist())


def _around(constant: float) -> tuple[float, ...]:
    slack = max(abs(constant) * _ROUNDING, 1e-9)
    return tuple(edge for edge in (constant - slack, constant + slack) if math.isfinite(edge))


def _check_counts(counts: Values, bins: int) -> None:
    if counts.shape != (bins,):
        raise ProfileError(f"counts of shape {list(counts.shape)} came; expected [{bins}], one for each bin")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ProfileError("a count is negative or not finite; expected numbers of rows")
