from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest

from gateway.drift.port import RunDetector, StreamDetector
from gateway.drift.streams import BINARY_DETECTORS, DETECTORS, MEMORY_ROWS, RiverDetector, check_detector

CONFORMING: dict[str, Callable[[], StreamDetector]] = {
    "RunDetector": lambda: RunDetector(above=0.5, run=12),
    "ADWIN": lambda: RiverDetector("ADWIN", {}),
    "PageHinkley": lambda: RiverDetector("PageHinkley", {"threshold": 10.0}),
    "KSWIN": lambda: RiverDetector("KSWIN", {"alpha": 1e-4}),
    "DDM": lambda: RiverDetector("DDM", {}),
    "EDDM": lambda: RiverDetector("EDDM", {}),
    "FHDDM": lambda: RiverDetector("FHDDM", {}),
    "HDDMA": lambda: RiverDetector("HDDMA", {}),
    "HDDMW": lambda: RiverDetector("HDDMW", {}),
}
HOSTILE = [math.nan, math.inf, -math.inf, 1e308, -1e308, 1e160]


@pytest.fixture(params=list(CONFORMING))
def make(request) -> Callable[[], StreamDetector]:
    return CONFORMING[request.param]


def misses(rate: float, rows: int, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < rate) for _ in range(rows)]


def feed(detector: StreamDetector, values) -> list[int]:
    """The rows at which the detector found a change."""
    found = []
    for x in values:
        detector.update(x)
        if detector.detected:
            found.append(detector.rows)
    return found


def test_a_change_from_few_misses_to_nearly_all_is_found(make):
    detector = make()
    found = feed(detector, misses(0.05, 600, 1) + misses(0.97, 600, 2))
    assert any(600 < row <= 1000 for row in found)


def test_since_is_a_row_up_to_the_detection_or_not_told(make):
    detector = make()
    assert detector.since is None
    for x in misses(0.05, 600, 1) + misses(0.97, 600, 2):
        detector.update(x)
        assert detector.since is None or 1 <= detector.since <= detector.rows


def test_detected_tells_of_the_last_update_alone(make):
    detector = make()
    for x in misses(0.05, 600, 1) + misses(0.97, 600, 2):
        detector.update(x)
        if detector.detected:
            break
    assert detector.detected
    detector.update(math.nan)
    assert not detector.detected


def test_what_is_not_finite_is_refused_counted_and_changes_nothing(make):
    clean, attacked = make(), make()
    stream = misses(0.05, 600, 1) + misses(0.97, 600, 2)
    found = feed(clean, stream)
    hostile = [value for x in stream for value in (x, math.nan, math.inf, -math.inf)]
    assert feed(attacked, hostile) == found
    assert (attacked.rows, attacked.refused) == (len(stream), 3 * len(stream))


def test_a_hostile_number_does_not_blind(make):
    detector = make()
    feed(detector, misses(0.05, 600, 1) + HOSTILE + misses(0.05, 600, 3))
    before = detector.rows
    found = feed(detector, misses(0.97, 600, 2))
    assert any(before < row <= before + 400 for row in found)


def test_a_restored_detector_goes_on_exactly(make):
    kept, restored = make(), make()
    feed(kept, [*misses(0.05, 600, 1), math.nan, *misses(0.97, 300, 2), *misses(0.5, 200, 4)])
    restored.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(kept.state())))
    assert restored.state() == kept.state()
    assert (restored.rows, restored.refused, restored.since) == (kept.rows, kept.refused, kept.since)
    more = misses(0.05, 400, 5) + misses(0.97, 400, 6)
    assert feed(restored, more) == feed(kept, more)
    assert restored.state() == kept.state()


def test_a_state_taken_at_the_moment_of_detection_still_tells_it(make):
    kept, restored = make(), make()
    for x in misses(0.05, 600, 1) + misses(0.97, 600, 2):
        kept.update(x)
        if kept.detected:
            break
    restored.restore(kept.state())
    assert (restored.detected, restored.since) == (True, kept.since)


def test_a_constant_stream_holds_no_change(make):
    assert feed(make(), [0.0] * 1_500) == []


def test_memory_is_bounded_over_a_long_stream():
    detector = RiverDetector("ADWIN", {})
    feed(detector, misses(0.3, 20_000, 1))
    assert len(detector.state()["memory"]) <= 8 * MEMORY_ROWS


def test_a_detector_restored_from_its_last_values_still_finds_a_change():
    kept, restored = RiverDetector("ADWIN", {}), RiverDetector("ADWIN", {})
    feed(kept, misses(0.1, 10_000, 1))
    restored.restore(kept.state())
    found = feed(restored, misses(0.5, 500, 2))
    assert 10_000 < found[0] < 10_200


def test_adwin_tells_where_the_change_began():
    detector = RiverDetector("ADWIN", {})
    found = feed(detector, misses(0.02, 1_000, 1) + misses(0.9, 200, 2))
    assert len(found) >= 1
    assert detector.since is not None
    assert 900 <= detector.since <= 1_064


def test_a_detector_whose_estimate_is_lost_is_built_anew():
    detector = RiverDetector("ADWIN", {})
    feed(detector, misses(0.1, 100, 1))
    detector._detector.update(math.nan)
    detector.update(0.0)
    assert detector.rebuilt == 1
    assert any(row <= 900 for row in feed(detector, misses(0.05, 600, 1) + misses(0.97, 600, 2)))


@pytest.mark.parametrize("name", BINARY_DETECTORS)
def test_a_binary_detector_refuses_what_is_no_miss(name):
    detector = RiverDetector(name, {})
    feed(detector, [0.5, 2.0, -1.0, 1.0, True, 0])
    assert (detector.binary, detector.refused, detector.rows) == (True, 3, 3)


@pytest.mark.parametrize("name", ["FHDDM", "DDM", "HDDMA"])
def test_more_misses_are_reported_and_fewer_are_not(name):
    assert feed(RiverDetector(name, {}), misses(0.9, 800, 1) + misses(0.1, 800, 2)) == []


@pytest.mark.parametrize("name", DETECTORS)
def test_every_name_that_is_allowed_can_be_built_and_fed(name):
    detector = RiverDetector(name, {})
    feed(detector, misses(0.2, 150, 1))
    assert detector.rows == 150
    assert repr(detector).startswith(f"<RiverDetector {name} rows=150 refused=0 ")


@pytest.mark.parametrize(
    ("name", "parameters", "text"),
    [
        ("adwin", {}, "'adwin' is no drift detector here; expected one of ADWIN, PageHinkley"),
        ("DriftRetrainingClassifier", {}, "is no drift detector here"),
        ("__class__", {}, "is no drift detector here"),
        ("ADWIN", {"detla": 0.1}, "ADWIN has no parameter 'detla'; expected one of: delta, clock"),
        ("NoDrift", {"delta": 0.1}, "expected one of: none"),
        ("ADWIN", {"clock": 0}, "clock = 0; expected a whole number from 1"),
        ("ADWIN", {"clock": 1.5}, "clock = 1.5; expected a whole number"),
        ("ADWIN", {"delta": math.nan}, "delta = nan; expected a number"),
        ("ADWIN", {"delta": "small"}, "delta = 'small'"),
        ("ADWIN", {"clock": 10**400}, "expected a whole number"),
        ("FHDDM", {"confidence_level": 0.0}, "confidence_level = 0.0"),
        ("KSWIN", {"window_size": 40, "stat_size": 30}, r"2 \* stat_size <= window_size"),
        ("EDDM", {"alpha": 0.5}, "beta <= alpha"),
        ("FHDDM", {"short_window_size": 200}, "short_window_size <= sliding_window_size"),
    ],
)
def test_a_name_or_parameter_that_is_not_allowed_is_refused_with_what_is(name, parameters, text):
    with pytest.raises(ValueError, match=text):
        check_detector(name, parameters)
    with pytest.raises(ValueError, match=text):
        RiverDetector(name, parameters)


@pytest.mark.parametrize("extreme", [0, 1], ids=["lowest", "highest"])
@pytest.mark.parametrize("name", DETECTORS)
def test_river_takes_every_parameter_at_its_limits(name, extreme):
    from gateway.drift.streams import _PARAMETERS

    for key, limits in _PARAMETERS[name].items():
        parameters = {key: limits[extreme]}
        if name == "KSWIN" and key == "stat_size":
            parameters["window_size"] = 10_000
        if name == "KSWIN" and key == "window_size":
            parameters["stat_size"] = 1 if limits[extreme] < 4 else 30
        try:
            detector = RiverDetector(name, parameters)
        except ValueError as error:
            assert "expected" in str(error)
            continue
        feed(detector, misses(0.2, 150, 1) + misses(0.9, 150, 2))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "DDM"}, "name is 'DDM'"),
        ({"parameters": {"delta": 0.5}}, "parameters is"),
        ({"memory": b"123"}, "memory has not the bytes"),
        ({"memory": b"\xff" * 8}, "not finite"),
        ({"memory": bytes(8 * (MEMORY_ROWS + 1))}, "memory has not the bytes"),
        ({"rows": None}, "damaged"),
    ],
)
def test_a_state_of_another_detector_or_a_damaged_one_is_refused(changes, text):
    detector = RiverDetector("ADWIN", {})
    feed(detector, misses(0.2, 150, 1))
    before = detector.state()
    with pytest.raises(ValueError, match=text):
        detector.restore(before | changes)
    assert detector.state() == before


def test_river_is_imported_only_where_a_detector_is_built():
    code = "import sys, gateway.drift.streams as s; s.check_detector('ADWIN', {}); print('river' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
