from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.drift.bets import project
from gateway.drift.ecusum import BinnedECusum, threshold
from gateway.drift.profile import FeatureProfile, bin_counts, build_feature

COUNTS = st.lists(st.integers(0, 5000), min_size=3, max_size=12)
ROWS = st.lists(st.integers(0, 300), min_size=12, max_size=12)


def feature_of(counts) -> FeatureProfile:
    edges = tuple(float(edge) for edge in range(len(counts) - 2))
    return FeatureProfile("numeric", edges, (), tuple(counts), 0.0, 1.0, 0.5)


def largest_expectation(e_values, low, high) -> float:
    """The mean of the e-values under the worst distribution of the null: most mass where they are largest."""
    p = low.copy()
    spare = 1.0 - low.sum()
    for index in np.argsort(-e_values):
        more = min(high[index] - low[index], spare)
        p[index] += more
        spare -= more
    assert abs(p.sum() - 1.0) < 1e-9
    return float(p @ e_values)


def normal_features(count: int, seed: int, rows: int = 20_000) -> dict[str, FeatureProfile]:
    rng = np.random.default_rng(seed)
    return {f"f{index}": build_feature(rng.normal(size=rows)) for index in range(count)}


def normal_counts(features, rng, rows: int = 64) -> dict[str, np.ndarray]:
    return {name: bin_counts(feature, rng.normal(size=rows)) for name, feature in features.items()}


@settings(deadline=None, max_examples=200)
@given(COUNTS, st.lists(ROWS, max_size=4), st.floats(0.001, 2.0))
def test_no_bet_wins_on_average_under_any_distribution_of_the_null(reference, batches, tolerance):
    detector = BinnedECusum({"x": feature_of(reference)}, tolerance=tolerance)
    for rows in batches:
        detector.update({"x": rows[: len(reference)]})
    for log_e in detector._log_e[0]:
        assert largest_expectation(np.exp(log_e), detector._low[0], detector._high[0]) <= 1.0 + 1e-9


@settings(deadline=None, max_examples=200)
@given(COUNTS, st.lists(st.floats(1e-6, 1.0), min_size=12, max_size=12), st.floats(0.001, 2.0))
def test_a_projected_bet_is_a_distribution_of_the_null(reference, weights, tolerance):
    detector = BinnedECusum({"x": feature_of(reference)}, tolerance=tolerance)
    bet = np.array(weights[: len(reference)]) / sum(weights[: len(reference)])
    null = project(bet, detector._low[0], detector._high[0])
    assert abs(null.sum() - 1.0) < 1e-9
    assert (detector._low[0] <= null).all()
    assert (null <= detector._high[0]).all()
    assert largest_expectation(bet / null, detector._low[0], detector._high[0]) <= 1.0 + 1e-9


def test_the_null_is_the_band_of_the_reference_stretched_by_the_tolerance_both_ways():
    detector = BinnedECusum({"x": feature_of([10**12] * 4 + [0])}, tolerance=0.25)
    assert detector._low[0, :4] == pytest.approx(0.25 / 1.25, rel=1e-4)
    assert detector._high[0, :4] == pytest.approx(0.25 * 1.25, rel=1e-4)


@settings(deadline=None)
@given(COUNTS, COUNTS, ROWS, ROWS)
def test_a_narrow_feature_is_watched_beside_a_wide_one_as_alone(first, second, rows, more):
    features = {"a": feature_of(first), "b": feature_of(second)}
    both = BinnedECusum(features)
    turned = BinnedECusum({"b": features["b"], "a": features["a"]})
    for counts in (rows, more):
        batch = {"a": counts[: len(first)], "b": counts[: len(second)]}
        both.update(batch)
        turned.update(batch)
    assert both.feature_evidence == pytest.approx(turned.feature_evidence, abs=1e-9)
    assert both.evidence == pytest.approx(turned.evidence, abs=1e-9)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(1, 4))
def test_a_restored_detector_goes_on_bit_for_bit(batches, solve_every):
    features = normal_features(3, 1, rows=500)
    counts = [{name: rows[:11] for name in features} for rows in batches]
    kept = BinnedECusum(features, solve_every=solve_every)
    for batch in counts:
        kept.update(batch)
    restored = BinnedECusum(features, solve_every=solve_every)
    restored.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(kept.state())))
    for batch in counts:
        kept.update(batch)
        restored.update(batch)
    assert kept.state() == restored.state()
    assert (kept.evidence, kept.feature_evidence, kept.since) == (
        restored.evidence,
        restored.feature_evidence,
        restored.since,
    )


def test_workers_that_add_their_counts_see_what_one_worker_sees():
    features = normal_features(4, 1)
    one, merged = BinnedECusum(features), BinnedECusum(features)
    rng = np.random.default_rng(2)
    for _ in range(20):
        rows = {name: rng.normal(loc=0.4, size=80) for name in features}
        one.update({name: bin_counts(feature, rows[name]) for name, feature in features.items()})
        parts = [
            {name: bin_counts(feature, rows[name][worker::8]) for name, feature in features.items()}
            for worker in range(8)
        ]
        merged.update({name: sum(part[name] for part in parts) for name in features})
    assert one.state() == merged.state()


def test_counts_may_come_as_one_array_or_by_name():
    features = {"wide": feature_of([50] * 11), "narrow": feature_of([50] * 4)}
    by_name, as_array = BinnedECusum(features), BinnedECusum(features)
    array = np.zeros(as_array.shape, dtype=np.int64)
    array[0], array[1, :4] = np.arange(11), [9, 0, 0, 0]
    as_array.update(array)
    by_name.update({"wide": array[0], "narrow": array[1, :4]})
    assert by_name.state() == as_array.state()


def test_a_batch_is_paid_by_bets_that_were_made_before_it():
    features = {"x": feature_of([100] * 11)}
    first, second = BinnedECusum(features), BinnedECusum(features)
    first.update({"x": [1000, *[0] * 10]})
    second.update({"x": [0] * 10 + [1000]})
    # Only the fixed bets differ by direction; those that follow had not seen anything yet and bet nothing.
    assert (first._log_m[0, :3] == 0.0).all()
    assert (second._log_m[0, :3] == 0.0).all()


def test_a_batch_without_rows_changes_nothing():
    detector = BinnedECusum(normal_features(2, 1))
    detector.update({"f0": [200, *[0] * 10]})
    before = detector.state()
    detector.update({})
    detector.update({"f0": [0] * 11})
    detector.update(np.zeros(detector.shape))
    assert detector.state() == before
    assert (detector.batches, detector.rows) == (1, 200)


def test_a_feature_that_had_no_rows_keeps_its_evidence():
    detector = BinnedECusum(normal_features(2, 1))
    for _ in range(5):
        detector.update({"f0": [60, *[1] * 10], "f1": [6] * 10 + [0]})
    before = detector.feature_evidence["f0"]
    detector.update({"f1": [6] * 10 + [0]})
    assert detector.feature_evidence["f0"] == pytest.approx(before, abs=0.1)
    assert before > 20


def test_reset_forgets_everything():
    detector = BinnedECusum(normal_features(2, 1))
    fresh = detector.state()
    detector.update({"f0": [500, *[0] * 10]})
    detector.reset()
    assert detector.state() == fresh
    assert (detector.evidence, detector.since) == (0.0, {})


def test_rarely_solved_bets_find_the_same_drift_a_little_later():
    rng = np.random.default_rng(3)
    features = normal_features(3, 1)
    every, eighth = BinnedECusum(features), BinnedECusum(features, solve_every=8)
    for _ in range(40):
        counts = normal_counts(features, rng)
        counts["f1"] = bin_counts(features["f1"], rng.normal(scale=1.8, size=64))
        every.update(counts)
        eighth.update(counts)
    assert every.drifted(15.0) == eighth.drifted(15.0) == ["f1"]


def test_features_are_named_when_k_of_them_have_an_equal_share_of_what_is_needed():
    detector = BinnedECusum({f"f{index}": feature_of([100] * 11) for index in range(4)})
    detector._log_m[:] = np.array([[5.0], [9.0], [5.0], [-3.0]])
    # All four: 5 + log 3 for the three best, against the level + log 4.
    assert detector.drifted(5.0 + math.log(3) - math.log(4) - 0.01) == ["f1", "f0", "f2"]
    assert detector.drifted(5.0 + math.log(3) - math.log(4) + 0.01) == ["f1"]
    assert detector.drifted(9.0) == []


def test_since_tells_the_batch_at_which_the_excursion_began():
    detector = BinnedECusum({"x": feature_of([1000] * 10 + [0])})
    for _ in range(5):
        detector.update({"x": [10] * 10 + [0]})
    assert detector.since == {}
    for _ in range(3):
        detector.update({"x": [50, 50, *[0] * 9]})
    assert detector.since == {"x": 6}


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"y": [1] * 11}, "'y', which is no feature here"),
        ({"x": [1] * 10}, r"shape \[10\] came for 'x'; expected \[11\]"),
        ({"x": 3}, r"shape \[\] came for 'x'"),
        ({"x": ["many"] * 11}, "are no numbers of rows"),
        ({"x": [-1, *[1] * 10]}, "negative"),
        ({"x": [math.nan, *[1] * 10]}, "not finite"),
        ({"x": [math.inf, *[1] * 10]}, "not finite"),
        ({"x": [2**60, *[1] * 10]}, "beyond 2"),
        ({"x": [10**400, *[1] * 10]}, "are no numbers of rows"),
        (np.ones((2, 12)), r"shape \[2, 12\] came; expected \[2, 11\]"),
        (np.ones((2, 11)), "a bin that its feature does not have"),
    ],
)
def test_counts_that_are_none_are_refused_and_change_nothing(counts, text):
    detector = BinnedECusum({"x": feature_of([100] * 11), "z": feature_of([100] * 4)})
    before = detector.state()
    with pytest.raises(ValueError, match=text):
        detector.update(counts)
    assert detector.state() == before


def test_evidence_stays_finite_whatever_is_counted():
    detector = BinnedECusum({"x": feature_of([10**9] * 10 + [0]), "y": feature_of([0] * 4), "z": feature_of([7, 0])})
    for _ in range(50):
        detector.update({"x": [0] * 10 + [2**53], "y": [2**53, 0, 0, 0], "z": [0, 2**53]})
        detector.update({"x": [2**53, *[0] * 10], "y": [0, 0, 0, 2**53], "z": [1, 0]})
        assert math.isfinite(detector.evidence)
        assert all(math.isfinite(log) for log in detector.feature_evidence.values())


def test_a_feature_without_a_reference_never_alarms():
    detector = BinnedECusum({"x": feature_of([0] * 6)})
    for _ in range(50):
        detector.update({"x": [1000, 0, 0, 0, 0, 0]})
    assert detector.evidence <= 0.0


def test_a_constant_that_moves_is_found_in_its_second_batch():
    feature = build_feature(np.full(5_000, 3.0))
    detector = BinnedECusum({"x": feature})
    for _ in range(2):
        detector.update({"x": bin_counts(feature, np.full(64, 4.0))})
    assert detector.evidence > threshold(365 * 86_400, 1.0)


def test_values_gone_missing_are_found():
    feature = build_feature(np.random.default_rng(1).normal(size=5_000))
    detector = BinnedECusum({"x": feature})
    rng = np.random.default_rng(2)
    for _ in range(20):
        values = rng.normal(size=64)
        values[rng.random(64) < 0.1] = np.nan
        detector.update({"x": bin_counts(feature, values)})
    assert detector.drifted(threshold(365 * 86_400, 1.0)) == ["x"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"names": ["y"]}, "names is"),
        ({"reference": 1}, "reference is 1"),
        ({"schema": 2}, "schema is 2"),
        ({"log_m": b"short"}, "log_m has not the 72 bytes"),
        ({"shares": None}, "shares has not"),
        ({"log_m": np.full(9, np.nan).tobytes()}, "not finite"),
        ({"rows": -1}, "rows is -1"),
        ({"batches": "2"}, "batches is '2'"),
    ],
)
def test_a_state_of_another_detector_or_a_damaged_one_is_refused(changes, text):
    detector = BinnedECusum({"x": feature_of([100] * 11)})
    detector.update({"x": [100, *[0] * 10]})
    before = detector.state()
    with pytest.raises(ValueError, match=text):
        detector.restore(before | changes)
    assert detector.state() == before


def test_a_state_does_not_fit_another_tolerance():
    feature = feature_of([100] * 11)
    with pytest.raises(ValueError, match="reference is"):
        BinnedECusum({"x": feature}, tolerance=0.2).restore(BinnedECusum({"x": feature}, tolerance=0.1).state())


def test_the_state_of_thirty_features_is_below_a_hundred_kilobytes():
    assert len(msgspec.msgpack.encode(BinnedECusum(normal_features(30, 1)).state())) < 100_000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"features": {}}, "no features"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"half_lives": ()}, "half_lives are"),
        ({"half_lives": (128.0, -1.0)}, "half_lives are"),
        ({"solve_every": 0}, "solve_every is 0"),
    ],
)
def test_a_detector_that_makes_no_sense_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        BinnedECusum(**{"features": {"x": feature_of([100] * 11)}, **arguments})


@pytest.mark.parametrize(("alarm", "flush"), [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_threshold_needs_positive_times(alarm, flush):
    with pytest.raises(ValueError, match="expected a positive number of seconds"):
        threshold(alarm, flush)


def test_repr_tells_the_state_in_one_line():
    assert repr(BinnedECusum(normal_features(2, 1))) == "<BinnedECusum features=2 batches=0 rows=0 evidence=0.00>"
