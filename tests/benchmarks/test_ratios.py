"""Ratios asked by name, held against measurements."""

from __future__ import annotations

from pathlib import Path

from benchmarks.ratios import ASKED, judge
from benchmarks.suites import SUITES
from tests.benchmarks.series import series


def test_a_ratio_is_the_median_over_rounds_measured_in_turn() -> None:
    ours, peer = series("gateway", 300, 100, 200), series("bare handler", 100, 100, 100)
    verdict = next(each for each in judge([ours, peer]) if "bare handler, 1 row, 64" in each.asked.text)
    assert (verdict.median, verdict.low, verdict.high) == (2.0, 1.0, 3.0)
    assert verdict.holds is False


def test_a_ratio_at_its_limit_holds() -> None:
    verdicts = judge([series("gateway", 250), series("bare handler", 100)])
    assert [each.holds for each in verdicts if "bare handler, 1 row, 64" in each.asked.text] == [True]


def test_what_may_be_slower_is_judged_by_the_most_it_may_be() -> None:
    ours = series("gateway", 100, connections=1, p50_us=161.0)
    for p50_us, holds in ((101.0, True), (100.0, False)):
        peer = series("bare handler", 100, connections=1, p50_us=p50_us)
        assert [each.holds for each in judge([ours, peer]) if each.asked.unit] == [holds]


def test_a_tail_is_held_against_the_same_rounds_median() -> None:
    verdicts = judge([series("gateway", 100, p50_us=1000.0, p99_us=3001.0)])
    assert [(each.median, each.holds) for each in verdicts if each.asked.text.startswith("p99")] == [(3.001, False)]


def test_a_peer_that_was_not_measured_is_not_judged() -> None:
    verdicts = judge([series("gateway", 100)])
    assert [each.holds for each in verdicts if "mosec" in each.asked.text] == [None]


def test_nothing_is_said_of_what_the_run_was_not_about() -> None:
    assert not judge([series("bare handler", 100)])


def test_the_ratios_suite_measures_everything_that_is_asked() -> None:
    measured = {
        (stage.name, case.workload.name, case.connections, server)
        for stage in SUITES["ratios"](Path("tritonserver"))
        for case in stage.cases
        for server in case.servers or [name for source in stage.sources for name in source.names]
    }
    assert {key for asked in ASKED for key in (asked.ours, asked.peer)} <= measured
