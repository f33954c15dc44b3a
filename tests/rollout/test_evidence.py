from __future__ import annotations

import json
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rollout.errors import EvidenceError
from gateway.rollout.evidence import (
    MAX_BINS,
    MAX_SHARES,
    ArmBalance,
    Bet,
    BinShift,
    NonInferiority,
    OddsTest,
    RateRatio,
    log_factors,
    log_rate_above,
    log_rate_below,
)

SHARES = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
EVENTS = st.lists(st.tuples(st.booleans(), st.sampled_from([0.01, 0.1, 0.5, 0.9])), max_size=60)
TESTS: list[Callable[[], OddsTest]] = [
    RateRatio,
    lambda: RateRatio(1.3),
    lambda: NonInferiority(0.25),
    ArmBalance,
]


def chance(share: float, ratio: float) -> float:
    return share * ratio / (share * ratio + 1.0 - share)


def expected_factor(bet: Bet, share: float, ratio: float) -> float:
    on_canary, on_stable = log_factors(bet, share)
    theta = chance(share, ratio)
    return theta * math.exp(on_canary) + (1.0 - theta) * math.exp(on_stable)


@settings(deadline=None)
@given(SHARES, st.floats(0.01, 1.0))
def test_no_bet_on_harm_gains_when_the_canary_is_no_worse(share: float, ratio: float) -> None:
    for bet in RateRatio().bets:
        assert expected_factor(bet, share, ratio) <= 1.0 + 1e-9


@settings(deadline=None)
@given(SHARES, st.floats(1.25, 50.0))
def test_no_bet_on_being_as_good_gains_when_the_canary_is_worse_by_the_margin(share: float, ratio: float) -> None:
    for bet in NonInferiority(0.25).bets:
        assert expected_factor(bet, share, ratio) <= 1.0 + 1e-9


@settings(deadline=None)
@given(SHARES, st.floats(0.8, 1.25))
def test_no_bet_on_a_shift_gains_within_the_tolerance(share: float, ratio: float) -> None:
    for bets in BinShift(0.25).families:
        for bet in bets:
            assert expected_factor(bet, share, ratio) <= 1.0 + 1e-9


@pytest.mark.parametrize("build", TESTS)
def test_bets_are_the_whole_wealth_and_no_more(build: Callable[[], OddsTest]) -> None:
    assert math.isclose(math.fsum(bet.mass for bet in build().bets), 1.0)
    assert build().log_evidence == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("build", TESTS)
@settings(deadline=None)
@given(events=EVENTS)
def test_the_order_of_events_changes_no_bit(build: Callable[[], OddsTest], events: list[tuple[bool, float]]) -> None:
    forward, backward = build(), build()
    for event in events:
        forward.update(*event)
    for event in reversed(events):
        backward.update(*event)
    assert forward.log_evidence == backward.log_evidence
    assert repr(forward) == repr(backward)


@pytest.mark.parametrize("build", TESTS)
@settings(deadline=None)
@given(events=EVENTS)
def test_a_state_that_went_through_json_gives_the_same_bits(
    build: Callable[[], OddsTest], events: list[tuple[bool, float]]
) -> None:
    before, after = build(), build()
    for event in events:
        before.update(*event)
    after.restore(json.loads(json.dumps(before.state())))
    assert (after.log_evidence, after.stable, after.canary) == (before.log_evidence, before.stable, before.canary)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.booleans(), st.sampled_from([0.1, 0.5])), max_size=60))
def test_a_shift_is_a_function_of_counts_and_survives_json(values: list[tuple[int, bool, float]]) -> None:
    forward, backward, restored = BinShift(0.25), BinShift(0.25), BinShift(0.25)
    for index, on_canary, share in values:
        forward.update(index, on_canary, share=share)
    for index, on_canary, share in reversed(values):
        backward.update(index, on_canary, share=share)
    restored.restore(json.loads(json.dumps(forward.state())))
    assert forward.log_evidence == backward.log_evidence == restored.log_evidence
    assert forward.stable + forward.canary == len(values)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("build", TESTS)
def test_where_nothing_is_drawn_there_is_no_evidence(build: Callable[[], OddsTest], share: float) -> None:
    test = build()
    for _ in range(100):
        test.update(True, share)
    assert test.log_evidence == pytest.approx(0.0, abs=1e-12)
    assert test.canary == 0


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf, -math.inf])
def test_a_share_that_is_no_probability_is_refused_and_changes_nothing(share: float) -> None:
    test = RateRatio()
    with pytest.raises(EvidenceError, match="share is"):
        test.update(True, share)
    assert test.state() == []


@pytest.mark.parametrize("share", [5e-324, 1e-300, 1e-9, 1.0 - 2**-53])
def test_evidence_stays_finite_at_extreme_shares(share: float) -> None:
    for build in TESTS:
        test = build()
        for on_canary in (True, False):
            for _ in range(1000):
                test.update(on_canary, share)
        assert math.isfinite(test.log_evidence)


@pytest.mark.parametrize("index", [-1, MAX_BINS])
def test_a_bin_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(EvidenceError, match=f"bin is {index}"):
        BinShift(0.25).update(index, True, share=0.5)


def test_a_flood_of_weights_does_not_grow_the_memory() -> None:
    test = RateRatio()
    for number in range(3 * MAX_SHARES):
        test.update(True, (number + 1) / (3 * MAX_SHARES + 2))
    assert len(test.state()) == MAX_SHARES
    assert test.canary == MAX_SHARES


@pytest.mark.parametrize(
    "state", [[[0.5, 1]], [[0.5, -1, 1]], [[2.0, 1, 1]], [[0.5, 1.5, 1]], [[math.nan, 1, 1]], [None], 3, [["x", 1, 1]]]
)
def test_a_spoilt_state_is_refused_and_changes_nothing(state: object) -> None:
    test = RateRatio()
    test.update(True, 0.5)
    with pytest.raises(EvidenceError):
        test.restore(state)  # type: ignore[arg-type]
    assert test.canary == 1


@pytest.mark.parametrize("state", [[[0]], [[-1, []]], [["0", []]], [[0, 3]], 7])
def test_a_spoilt_state_of_a_shift_is_refused(state: object) -> None:
    with pytest.raises(EvidenceError):
        BinShift(0.25).restore(state)  # type: ignore[arg-type]


def test_weights_may_change_while_evidence_grows() -> None:
    draw, test = random.Random(7), RateRatio()
    for number in range(400):
        share = (0.01, 0.1, 0.5, 0.25)[number // 100]
        test.update(draw.random() < chance(share, 3.0), share)
    assert test.log_evidence > math.log(1e6)


def test_a_forecast_says_how_fast_evidence_grows_for_an_equal_canary() -> None:
    draw, test = random.Random(3), NonInferiority(0.25)
    for _ in range(20_000):
        test.update(draw.random() < 0.5, 0.5)
    assert test.log_evidence == pytest.approx(20_000 * test.gain(0.5), rel=0.25)
    assert test.gain(0.0) == test.gain(1.0) == 0.0


def test_few_failures_are_shown_only_by_units_without_one() -> None:
    assert log_rate_below(0, 0, floor=0.01) == pytest.approx(0.0)
    assert log_rate_below(600, 0, floor=0.01) > math.log(20.0)
    assert log_rate_below(600, 6, floor=0.01) < 0.0
    assert log_rate_below(0, 5, floor=0.01) < 0.0


def test_many_failures_are_shown_only_above_the_floor() -> None:
    assert log_rate_above(20, 20, floor=0.05) > math.log(100.0)
    assert log_rate_above(2_000, 100, floor=0.05) < 0.0
    assert log_rate_above(0, 0, floor=0.05) == pytest.approx(0.0)
