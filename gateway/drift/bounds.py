"""Confidence bounds on probabilities, from counts."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ("lower_bounds", "upper_bounds")

_HALVINGS = 60
"""Enough to bring an interval of width one to the last bit of a double."""


def upper_bounds(hits: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], error: float) -> np.ndarray[Any, Any]:
    """Upper confidence bounds on probabilities after `hits` in `rows` independent draws, each missed at most `error`.

    The largest p with ``rows * KL(hits/rows, p) <= log(1/error)``: Chernoff's bound, which unlike the normal
    approximation holds for every p and every number of rows, zero hits and zero rows among them.

    Parameters
    ----------
    hits, rows : ndarray, one shape
        ``0 <= hits <= rows``.
    error : float
        Probability in (0, 1) that one bound does not hold.

    Source: W. Hoeffding, "Probability inequalities for sums of bounded random variables", 1963, theorem 1.

    >>> upper_bounds(np.array([0, 10, 0]), np.array([1000, 1000, 0]), 0.001).round(4).tolist()
    [0.0069, 0.0265, 1.0]
    """
    drawn = np.maximum(np.asarray(rows, dtype=np.float64), 1.0)
    share = np.asarray(hits, dtype=np.float64) / drawn
    budget = np.where(np.asarray(rows) > 0, np.log(1.0 / error) / drawn, np.inf)
    low, high = share.copy(), np.ones_like(share)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = _divergence(share, middle) <= budget
        low = np.where(inside, middle, low)
        high = np.where(inside, high, middle)
    return high


def lower_bounds(hits: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], error: float) -> np.ndarray[Any, Any]:
    """The lower counterpart of `upper_bounds`.

    >>> lower_bounds(np.array([0, 10, 1000]), np.array([1000, 1000, 1000]), 0.001).round(4).tolist()
    [0.0, 0.0023, 0.9931]
    """
    return 1.0 - upper_bounds(np.asarray(rows) - np.asarray(hits), rows, error)


def _divergence(share: np.ndarray[Any, Any], p: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # 0 log 0 is 0, and a p of one is infinitely far from any smaller share.
    with np.errstate(divide="ignore", invalid="ignore"):
        hit = np.where(share > 0, share * np.log(share / p), 0.0)
        miss = np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - p)), 0.0)
    total: np.ndarray[Any, Any] = hit + miss
    return total
