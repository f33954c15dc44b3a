from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.drift.bounds import lower_bounds, upper_bounds


@settings(deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(1e-12, 0.5))
def test_the_share_lies_between_its_bounds(hits, others, error):
    rows = np.array([hits + others])
    share = hits / max(hits + others, 1)
    low, high = lower_bounds(np.array([hits]), rows, error)[0], upper_bounds(np.array([hits]), rows, error)[0]
    assert 0.0 <= low <= share + 1e-15
    assert share - 1e-15 <= high <= 1.0


def test_bounds_hold_as_often_as_promised_for_small_shares_too():
    rng = np.random.default_rng(1)
    rows = np.full(20_000, 200)
    for p in (0.001, 0.02, 0.5):
        hits = rng.binomial(200, p, size=20_000)
        assert (upper_bounds(hits, rows, 0.01) < p).mean() <= 0.01
        assert (lower_bounds(hits, rows, 0.01) > p).mean() <= 0.01


def test_the_bound_after_no_hits_is_the_known_one():
    rows = np.array([1, 10, 1000, 10**9])
    assert np.allclose(upper_bounds(np.zeros(4), rows, 0.01), -np.expm1(math.log(0.01) / rows), rtol=1e-6)


def test_the_bound_is_where_the_divergence_spends_the_error():
    high = float(upper_bounds(np.array([30]), np.array([100]), 0.01)[0])
    divergence = 0.3 * math.log(0.3 / high) + 0.7 * math.log(0.7 / (1 - high))
    assert abs(100 * divergence - math.log(100)) < 1e-9


def test_nothing_is_known_without_rows():
    nothing = np.array([0])
    assert (lower_bounds(nothing, nothing, 0.01)[0], upper_bounds(nothing, nothing, 0.01)[0]) == (0.0, 1.0)


def test_more_rows_give_narrower_bounds():
    rows = np.array([10, 100, 1000, 10_000])
    width = upper_bounds(rows // 10, rows, 0.01) - lower_bounds(rows // 10, rows, 0.01)
    assert (np.diff(width) < 0).all()
