from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rollout.errors import EvidenceError
from gateway.rollout.guards import GUARD_SPAN, ErrorGuard, SeenUnits


def fed(units: list[tuple[bool, bool]]) -> ErrorGuard:
    guard = ErrorGuard()
    for on_canary, failed in units:
        guard.unit(on_canary, failed)
    return guard


def test_a_canary_that_fails_while_stable_does_not_fires() -> None:
    guard = fed([(number % 10 == 0, number % 10 == 0) for number in range(200)])
    assert guard.fires
    assert "20 of the latest 20 units on the canary failed, 0 of" in guard.reason


def test_too_few_units_on_either_arm_are_silent() -> None:
    assert not fed([(True, True)] * 500).fires
    assert not fed([(False, False)] * 500 + [(True, True)] * 19).fires
    assert not fed([(True, True)] * 500 + [(False, False)] * 19).fires


def test_an_outage_of_both_arms_is_not_the_canarys_fault_at_any_moment() -> None:
    guard = ErrorGuard()
    for number in range(4_000):
        guard.unit(number % 10 != 0, number >= 2_000)  # nine in ten on the canary, all fail from the middle on
        assert not guard.fires


def test_an_error_belongs_to_the_latest_unit_of_its_arm_only() -> None:
    guard = fed([(False, False), (True, False)])
    guard.fail(False)
    assert "canary=0/1" in repr(guard)
    guard.fail(True)
    guard.fail(True)
    assert repr(guard) == "<ErrorGuard stable=0/1 canary=1/1>"


def test_the_guard_remembers_a_bounded_span() -> None:
    guard = fed([(False, False)] * (3 * GUARD_SPAN))
    assert len(guard.state()) == GUARD_SPAN


def test_a_guard_survives_json() -> None:
    before, after = fed([(number % 7 == 0, number % 3 == 0) for number in range(100)]), ErrorGuard()
    after.restore(json.loads(json.dumps(before.state())))
    assert (repr(after), after.state()) == (repr(before), before.state())
    with pytest.raises(EvidenceError):
        after.restore([[True]])


def test_a_unit_counts_once_for_each_metric() -> None:
    seen = SeenUnits(10)
    assert [seen.first("rider-7", name) for name in ("errors", "quality", "errors", "quality")] == [
        True,
        True,
        False,
        False,
    ]


def test_without_a_key_each_event_is_a_unit_of_its_own() -> None:
    seen = SeenUnits(10)
    assert all(seen.first(None, "errors") for _ in range(5))
    assert repr(seen) == "<SeenUnits 0 of 10>"


def test_the_unit_that_came_first_is_forgotten_first() -> None:
    seen = SeenUnits(3)
    for key in "abcd":
        assert seen.first(key, "errors")
    assert repr(seen) == "<SeenUnits 3 of 3>"
    assert not seen.first("d", "errors")
    assert seen.first("a", "errors")


def test_seen_units_survive_json_in_their_order() -> None:
    before, after = SeenUnits(3), SeenUnits(3)
    for key in "abc":
        before.first(key, "errors")
    after.restore(json.loads(json.dumps(before.state())))
    after.first("d", "quality")
    assert after.first("a", "errors")
    assert not after.first("c", "errors")
    with pytest.raises(EvidenceError):
        after.restore({})


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 60) | st.just(GUARD_SPAN)), max_size=12))
def test_many_units_at_once_leave_what_they_leave_one_by_one(sent: list[tuple[bool, bool, int]]) -> None:
    many, single = ErrorGuard(), ErrorGuard()
    for on_canary, failed, count in sent:
        many.units(on_canary, count)
        many.unit(on_canary, failed)
        for _ in range(count):
            single.unit(on_canary)
        single.unit(on_canary, failed)
        assert many.state() == single.state()
        assert repr(many) == repr(single)
