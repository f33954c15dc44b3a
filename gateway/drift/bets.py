"""The null hypothesis of the e-CUSUM, the bets against it, and how a bet is projected onto it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from gateway.drift.bounds import lower_bounds, upper_bounds
from gateway.drift.feature import FeatureProfile

__all__ = ("Floats", "null_band", "project", "tilted")

Floats = np.ndarray[Any, np.dtype[np.float64]]

LOCATION_TILTS = (-1.0, -0.4, 0.4, 1.0)
SCALE_TILTS = (0.6, 1.6)
"""Shifts and stretches of the reference on the normal scale: they bet from the first batch on."""
REFERENCE_ERROR = 1e-3
"""Probability, over the draw of the reference, that any of its confidence bands is wrong."""


def null_band(features: Sequence[FeatureProfile], tolerance: float) -> tuple[Floats, Floats, Floats]:
    """Smoothed shares of the reference and the band of each bin, shape [features, bins], zero where padded."""
    bins = max(len(feature.counts) for feature in features)
    reference, low, high = (np.zeros((len(features), bins)) for _ in range(3))
    # Both sides of every bin share the error.
    error = REFERENCE_ERROR / (2 * sum(len(feature.counts) for feature in features))
    for index, feature in enumerate(features):
        counts = np.array(feature.counts, dtype=np.float64)
        rows = np.full(counts.shape, counts.sum())
        used = slice(0, counts.size)
        reference[index, used] = (counts + 0.5) / (counts + 0.5).sum()
        low[index, used] = lower_bounds(counts, rows, error) / (1.0 + tolerance)
        high[index, used] = np.minimum(upper_bounds(counts, rows, error) * (1.0 + tolerance), 1.0)
    return reference, low, high


def tilted(reference: Floats, bins: Sequence[int]) -> Floats:
    """The fixed bets, shape [features, tilts, bins]; the missing keep their share."""
    tilts = np.zeros((reference.shape[0], len(LOCATION_TILTS) + len(SCALE_TILTS), reference.shape[1]))
    normal = NormalDist()
    for index, count in enumerate(bins):
        present = reference[index, : count - 1]
        inner = [normal.inv_cdf(min(share, 1 - 1e-12)) for share in (present.cumsum() / present.sum())[:-1].tolist()]
        moved = [[normal.cdf(edge - shift) for edge in inner] for shift in LOCATION_TILTS]
        moved += [[normal.cdf(edge / scale) for edge in inner] for scale in SCALE_TILTS]
        for tilt, cumulative in enumerate(moved):
            tilts[index, tilt, : count - 1] = np.diff([0.0, *cumulative, 1.0]) * present.sum()
            tilts[index, tilt, count - 1] = reference[index, count - 1]
    return tilts


def project(bets: Floats, low: Floats, high: Floats) -> Floats:
    """Project distributions onto the box ``low <= r <= high, sum r = 1``, in relative entropy.

    ``sum clip(lambda * q, low, high)`` is piecewise linear in lambda with a knot wherever a bin leaves `low` or
    reaches `high`; the knots are sorted and the one segment that crosses 1 is solved exactly.

    Parameters
    ----------
    bets : ndarray, shape [..., bins]
        Positive, each summing to one; or one with bounds of zero in bins that are padding.
    low, high : ndarray, broadcastable to `bets`
        ``sum low < 1 < sum high``.

    Source: P. Grünwald, R. de Heide, W. Koolen, "Safe testing", 2024 (reverse information projection).

    >>> project(np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.1, 0.1]), np.array([0.5, 0.5, 0.5])).round(4).tolist()
    [0.5, 0.3333, 0.1667]
    """
    low, high = np.broadcast_to(low, bets.shape), np.broadcast_to(high, bets.shape)
    knots = np.concatenate((low / bets, high / bets), axis=-1)
    order = np.argsort(knots, axis=-1)
    knots = np.take_along_axis(knots, order, axis=-1)
    slopes = np.cumsum(np.take_along_axis(np.concatenate((bets, -bets), axis=-1), order, axis=-1), axis=-1)
    totals = np.empty_like(knots)
    totals[..., 0] = low.sum(axis=-1)
    np.cumsum(slopes[..., :-1] * np.diff(knots, axis=-1), axis=-1, out=totals[..., 1:])
    totals[..., 1:] += totals[..., :1]
    segment = np.clip((totals < 1.0).sum(axis=-1, keepdims=True) - 1, 0, knots.shape[-1] - 2)
    slope = np.maximum(np.take_along_axis(slopes, segment, axis=-1), np.finfo(np.float64).tiny)
    scale = np.take_along_axis(knots, segment, axis=-1) + (1.0 - np.take_along_axis(totals, segment, axis=-1)) / slope
    # A bet that lies inside the null is its own projection: no bet, and no rounding that adds up over the years.
    inside = (((bets >= low) & (bets <= high)) | (high <= 0.0)).all(axis=-1, keepdims=True)
    projected: Floats = np.clip(np.where(inside, 1.0, scale) * bets, low, high)
    return projected
