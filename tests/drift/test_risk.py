from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.drift.risk import ODDS, RiskECusum


@settings(deadline=None)
@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 1))
def test_no_bet_wins_on_average_at_any_risk_up_to_the_bound(rows, share, tolerance, fraction):
    detector = RiskECusum(reference_rows=rows, reference_misses=int(share * rows), tolerance=tolerance)
    risk = fraction * detector.bound
    for log_miss, log_hit in zip(detector._log_miss, detector._log_hit, strict=True):
        assert risk * math.exp(log_miss) + (1 - risk) * math.exp(log_hit) <= 1.0 + 1e-9


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.lists(st.booleans(), max_size=60))
def test_a_restored_detector_goes_on_bit_for_bit(before, after):
    kept = RiskECusum(reference_rows=500, reference_misses=50, tolerance=0.02)
    for miss in before:
        kept.update(miss)
    restored = RiskECusum(reference_rows=500, reference_misses=50, tolerance=0.02)
    restored.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(kept.state())))
    for miss in after:
        kept.update(miss)
        restored.update(miss)
    assert kept.state() == restored.state()
    assert (kept.evidence, kept.since) == (restored.evidence, restored.since)


def test_the_bound_is_above_the_reference_by_its_uncertainty_and_the_tolerance():
    small = RiskECusum(reference_rows=100, reference_misses=10, tolerance=0.05)
    large = RiskECusum(reference_rows=100_000, reference_misses=10_000, tolerance=0.05)
    assert 0.15 < large.bound < 0.156 < small.bound


def test_misses_give_evidence_and_hits_take_it_back():
    detector = RiskECusum(reference_rows=10_000, reference_misses=1_000, tolerance=0.01)
    for _ in range(30):
        detector.update(True)
    high = detector.evidence
    for _ in range(30):
        detector.update(False)
    assert high > 30.0
    assert detector.evidence < high
    assert (detector.rows, detector.misses) == (60, 30)


def test_since_tells_the_row_at_which_the_excursion_began():
    detector = RiskECusum(reference_rows=10_000, reference_misses=1_000, tolerance=0.01)
    for _ in range(100):
        detector.update(False)
    assert detector.since is None
    for _ in range(20):
        detector.update(True)
    assert detector.since == 101


def test_a_batch_counts_as_its_rows_when_the_evidence_has_left_its_floor():
    one, batch = (RiskECusum(reference_rows=1_000, reference_misses=100, tolerance=0.0) for _ in range(2))
    for _ in range(12):
        one.update(True)
    batch.update_batch(12, 12)
    assert batch.evidence == pytest.approx(one.evidence)
    assert (batch.rows, batch.misses, batch.since) == (12, 12, 1)


def test_an_empty_batch_changes_nothing():
    detector = RiskECusum(reference_rows=1_000, reference_misses=100, tolerance=0.0)
    detector.update(True)
    before = detector.state()
    detector.update_batch(0, 0)
    assert detector.state() == before


def test_where_everything_may_miss_there_is_nothing_to_watch():
    detector = RiskECusum(reference_rows=10, reference_misses=9, tolerance=0.5)
    for _ in range(100):
        detector.update(True)
    assert (detector.bound, detector.evidence, detector.since) == (1.0, 0.0, None)


def test_a_reference_without_a_miss_can_be_watched():
    detector = RiskECusum(reference_rows=10_000, reference_misses=0, tolerance=0.0)
    for _ in range(10):
        detector.update(True)
    assert detector.evidence > 10.0


def test_evidence_stays_finite_whatever_is_counted():
    detector = RiskECusum(reference_rows=10**12, reference_misses=0, tolerance=0.0)
    for _ in range(10):
        detector.update_batch(10**18, 10**18)
        detector.update_batch(10**18, 0)
        assert math.isfinite(detector.evidence)


def test_reset_forgets_everything():
    detector = RiskECusum(reference_rows=1_000, reference_misses=100, tolerance=0.0)
    fresh = detector.state()
    detector.update(True)
    detector.reset()
    assert detector.state() == fresh


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"bound": 0.5}, "its bound is 0.5"),
        ({"schema": 9}, "another detector"),
        ({"log_m": [0.0]}, "expected 5 finite numbers"),
        ({"log_m": [math.nan] * len(ODDS)}, "expected 5 finite numbers"),
        ({"rows": "many"}, "damaged"),
        ({"started": None}, "damaged"),
    ],
)
def test_a_state_of_another_detector_or_a_damaged_one_is_refused(changes, text):
    detector = RiskECusum(reference_rows=1_000, reference_misses=100, tolerance=0.0)
    detector.update(True)
    before = detector.state()
    with pytest.raises(ValueError, match=text):
        detector.restore(before | changes)
    assert detector.state() == before


@pytest.mark.parametrize(
    ("rows", "misses", "tolerance"), [(0, 0, 0.1), (10, 11, 0.1), (10, -1, 0.1), (10, 1, -0.1), (10, 1, math.nan)]
)
def test_a_reference_that_makes_no_sense_is_refused(rows, misses, tolerance):
    with pytest.raises(ValueError, match="expected"):
        RiskECusum(reference_rows=rows, reference_misses=misses, tolerance=tolerance)


@pytest.mark.parametrize(("rows", "misses"), [(1, 2), (3, -1), (-2, -2)])
def test_labels_that_are_none_are_refused(rows, misses):
    with pytest.raises(ValueError, match="expected 0 to rows"):
        RiskECusum(reference_rows=10, reference_misses=1, tolerance=0.0).update_batch(rows, misses)
