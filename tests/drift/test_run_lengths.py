"""How long the e-CUSUMs run without drift, and how soon they find it: seeded simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gateway.drift.ecusum import BinnedECusum, threshold
from gateway.drift.profile import FeatureProfile, bin_counts, build_feature
from gateway.drift.risk import RiskECusum

BATCH_ROWS = 64
LEVEL = 50.0
RUNS = 30
LONGEST_RUN = 300
NULL = [0.1] * 10
BOUNDARY = [0.109] * 5 + [0.091] * 5
OUTSIDE = [0.1 * 1.25] * 5 + [0.1 * 0.75] * 5


def mean_run_length(p, seed: int) -> float:
    """Batches until the evidence of one well known feature passes log 50, runs cut at 300 counted as 300."""
    edges = tuple(float(edge) for edge in range(9))
    # A reference of a million rows: the band is the tolerance and little else, so the bound has no slack to hide in.
    feature = FeatureProfile("numeric", edges, (), (*[100_000] * 10, 0), 0.0, 9.0, None)
    rng = np.random.default_rng(seed)
    detector = BinnedECusum({"x": feature})
    lengths = []
    for _ in range(RUNS):
        detector.reset()
        for counts in rng.multinomial(BATCH_ROWS, p, size=LONGEST_RUN):
            detector.update({"x": [*counts, 0]})
            if detector.evidence >= math.log(LEVEL):
                break
        lengths.append(detector.batches)
    return float(np.mean(lengths))


@pytest.mark.parametrize("p", [NULL, BOUNDARY], ids=["no drift", "at the tolerance"])
def test_runs_without_drift_are_as_long_as_promised(p):
    assert mean_run_length(p, seed=11) >= LEVEL


def test_runs_with_drift_beyond_the_tolerance_are_short():
    assert mean_run_length(OUTSIDE, seed=11) < LEVEL / 2


def rows_to_alarm(draw, seed: int, longest: int = 60) -> int | None:
    """Rows of drift in one of 30 features until the alarm, after 30 batches without; promise: 1e8 batches."""
    rng = np.random.default_rng(seed)
    features = {f"f{index}": build_feature(rng.normal(size=20_000)) for index in range(30)}
    detector = BinnedECusum(features)
    level = threshold(1e8, 1.0)
    for batch in range(30 + longest):
        columns = {name: rng.normal(size=BATCH_ROWS) for name in features}
        if batch >= 30:
            columns["f7"] = draw(rng, BATCH_ROWS)
        detector.update({name: bin_counts(feature, columns[name]) for name, feature in features.items()})
        if detector.evidence >= level:
            assert detector.drifted(level) == ["f7"]
            assert 29 <= detector.since["f7"] <= 32
            return (batch - 29) * BATCH_ROWS
    return None


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        pytest.param(lambda rng, rows: rng.normal(1.0, 1.0, rows), 128, id="mean by 1 sigma"),
        pytest.param(lambda rng, rows: rng.normal(0.0, 2.0, rows), 192, id="scale by 2"),
    ],
)
def test_drift_in_one_of_thirty_features_is_found_as_soon_as_measured_before(draw, expected, seed):
    delay = rows_to_alarm(draw, seed)
    assert delay is not None
    assert delay <= 2 * expected


def test_a_shift_within_the_tolerance_is_no_drift():
    assert rows_to_alarm(lambda rng, rows: rng.normal(0.1, 1.0, rows), seed=0, longest=300) is None


def test_labels_at_the_bound_run_as_long_as_promised_and_beyond_it_do_not():
    rng = np.random.default_rng(5)
    detector = RiskECusum(reference_rows=1_000_000, reference_misses=100_000, tolerance=0.01)
    lengths = {}
    for risk in (detector.bound, 0.25):
        runs = []
        for _ in range(60):
            detector.reset()
            for miss in (rng.random(1_000) < risk).tolist():
                detector.update(miss)
                if detector.evidence >= math.log(LEVEL):
                    break
            runs.append(detector.rows)
        lengths[risk] = float(np.mean(runs))
    assert lengths[detector.bound] >= LEVEL
    assert lengths[0.25] < 2 * LEVEL
