"""From what was seen to what is done: the whole table, case by case."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.control.alarm import Alarm
from gateway.control.decisions import (
    Comparison,
    Situation,
    decide_alarm,
    decide_fault,
    decide_harm,
    decide_verdict,
    needs_comparison,
)
from gateway.rollout.judge import Verdict
from gateway.rollout.machine import EVENTS, RolloutState, begin, move
from gateway.routing.table import Route

ON_TRIAL = Route("m", stable=1, canary=2, weight=10.0, previous=3, trial=1)
ALONE = Route("m", stable=1, previous=3)


def alarm(detector: str, *, version: int = 1, action: str = "alert", tier: str = "page") -> Alarm:
    times = {"since": "2012-03-08T17:00:00Z", "until": "2012-04-01T00:00:00Z"}
    features = {"temp": 30.0, "x": 20.0}
    return Alarm("m", version, detector, tier, action, 21.0, 17.3, features, rows=500, callers=20, **times)  # type: ignore[arg-type]


def rollout(*events: Any) -> RolloutState:
    state = begin("rollout-1", "m", stable=1, canary=2, steps=(10.0, 50.0))
    for event in events:
        state = move(state, event)
    return state


def verdict(kind: Any, *, metric: str = "quality") -> Verdict:
    return Verdict(kind, metric, 5.0, 4.6, "", "because")


def done(moves: Any) -> list[tuple[str, str]]:
    return [(each.do, each.kind) for each in moves]


@pytest.mark.parametrize("action", ["alert", "pause", "rollback", "retrain"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("route", [ON_TRIAL, ALONE])
@pytest.mark.parametrize("drifted", [frozenset(), frozenset({1}), frozenset({2}), frozenset({1, 2})])
def test_drift_of_the_inputs_never_takes_anything_back(action: str, version: int, route: Route, drifted: Any) -> None:
    situation = Situation(route, None, {"inputs": drifted}, 3)
    assert all(each.do == "record" for each in decide_alarm(alarm("inputs", version=version, action=action), situation))


def test_drift_of_the_stable_versions_inputs_is_a_changed_world() -> None:
    [moved] = decide_alarm(alarm("inputs"), Situation(ALONE))
    assert moved.kind == "world_changed"
    assert "since 2012-03-08T17:00 (week of 2012-03-05)" in moved.reason
    assert "temp, x" in moved.reason
    assert moved.evidence["since_week"] == "2012-03-05"


def test_outputs_of_the_canary_alone_are_taken_back_only_where_the_policy_says_so() -> None:
    alone = Situation(ON_TRIAL, None, {"outputs": frozenset({2})})
    assert done(decide_alarm(alarm("outputs", version=2), alone)) == [("record", "drift_alarm")]
    assert done(decide_alarm(alarm("outputs", version=2, action="rollback"), alone)) == [("take_back", "rollback")]
    both = Situation(ON_TRIAL, None, {"outputs": frozenset({1, 2})})
    assert done(decide_alarm(alarm("outputs", version=2, action="rollback"), both)) == [("record", "world_changed")]


def test_outputs_of_the_stable_version_never_take_it_back() -> None:
    situation = Situation(ALONE, None, {"outputs": frozenset({1})}, 3)
    assert done(decide_alarm(alarm("outputs", action="rollback"), situation)) == [("record", "drift_alarm")]


def test_the_policy_may_pause_a_rollout_or_ask_for_retraining() -> None:
    situation = Situation(ON_TRIAL, rollout())
    assert done(decide_alarm(alarm("inputs", action="pause"), situation)) == [
        ("record", "world_changed"),
        ("rollout", "pause"),
    ]
    moves = decide_alarm(alarm("outputs", action="retrain"), Situation(ALONE))
    assert done(moves) == [("record", "drift_alarm"), ("record", "retrain_requested")]
    assert moves[1].evidence["window"] == {"start": "2012-03-08T17:00:00Z", "end": "2012-04-01T00:00:00Z"}


def test_a_warning_only_warns() -> None:
    warned = decide_alarm(alarm("ADWIN", tier="warn", action="rollback"), Situation(ALONE, previous=3))
    assert done(warned) == [("record", "warning")]


def test_only_harm_of_the_stable_version_with_a_way_back_is_compared() -> None:
    harm = alarm("quality", action="rollback")
    assert needs_comparison(harm, Situation(ALONE, previous=3))
    assert not needs_comparison(harm, Situation(ALONE, previous=None))
    assert not needs_comparison(alarm("quality", action="alert"), Situation(ALONE, previous=3))
    assert not needs_comparison(alarm("quality", version=2, action="rollback"), Situation(ON_TRIAL, previous=3))
    assert not needs_comparison(alarm("inputs", action="rollback"), Situation(ALONE, previous=3))


@pytest.mark.parametrize(("better", "kinds"), [(True, ["rollback"]), (False, ["harm", "retrain_requested"])])
def test_harm_goes_back_only_to_what_is_shown_to_be_better(better: bool, kinds: list[str]) -> None:
    moves = decide_harm(alarm("quality", action="rollback"), Situation(ALONE, previous=3), Comparison(3, better, 400))
    assert [each.kind for each in moves] == kinds
    assert "the same 400 rows" in moves[0].reason
    assert moves[0].evidence["comparison"]["version"] == 3


def test_harm_of_the_canary_is_left_to_its_trial() -> None:
    assert done(decide_alarm(alarm("quality", version=2, action="rollback"), Situation(ON_TRIAL, previous=3))) == [
        ("record", "harm")
    ]


@pytest.mark.parametrize(
    ("kind", "phase", "expected"),
    [
        ("hold", (), []),
        ("advance", (), [("rollout", "advance")]),
        ("promote", (), [("rollout", "promote")]),
        ("pause", (), [("rollout", "pause")]),
        ("expire", (), [("rollout", "expire")]),
        ("freeze", (), [("rollout", "freeze")]),
        ("rollback", (), [("take_back", "rollback")]),
        ("advance", ("pause",), []),
        ("promote", ("pause",), []),
        ("pause", ("pause",), []),
        ("expire", ("pause",), []),
        ("freeze", ("pause",), [("rollout", "freeze")]),
        ("rollback", ("pause",), [("take_back", "rollback")]),
        ("advance", ("freeze",), []),
        ("promote", ("freeze",), []),
        ("freeze", ("freeze",), []),
        ("rollback", ("freeze",), []),
    ],
)
def test_a_verdict_moves_a_rollout_only_where_its_phase_allows(kind: Any, phase: Any, expected: Any) -> None:
    moves = decide_verdict(verdict(kind), Situation(ON_TRIAL, rollout(*phase)), {})
    assert done(moves) == expected
    assert all(each.event in (*EVENTS, None) for each in moves)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("promote", []),
        ("advance", []),
        ("pause", []),
        ("expire", []),
        ("freeze", [("record", "frozen")]),
        ("rollback", [("take_back", "rollback")]),
    ],
)
def test_without_a_rollout_a_canary_can_only_be_taken_back(kind: Any, expected: Any) -> None:
    assert done(decide_verdict(verdict(kind), Situation(ON_TRIAL), {})) == expected


def test_a_verdict_carries_its_certificate() -> None:
    [moved] = decide_verdict(verdict("rollback"), Situation(ON_TRIAL), {"counts": 1})
    assert moved.evidence == {
        "metric": "quality",
        "log_evidence": 5.0,
        "log_threshold": 4.6,
        "certificate": {"counts": 1},
    }
    assert moved.version == 2


def test_what_takes_a_canary_back_names_the_trial_that_the_evidence_is_of() -> None:
    [by_hand] = decide_verdict(verdict("rollback"), Situation(ON_TRIAL), {})
    assert (by_hand.trial, by_hand.rollout) == (1, "")
    [in_rollout] = decide_verdict(verdict("rollback"), Situation(ON_TRIAL, rollout()), {})
    assert (in_rollout.trial, in_rollout.rollout) == (1, "rollout-1")
    drifted = Situation(ON_TRIAL, rollout(), {"outputs": frozenset({2})})
    [by_alarm] = decide_alarm(alarm("outputs", version=2, action="rollback"), drifted)
    assert (by_alarm.trial, by_alarm.rollout) == (1, None)


def test_what_pauses_a_rollout_names_it_and_its_phase_and_holds_at_any_step() -> None:
    situation = Situation(ON_TRIAL, rollout("advance"))
    by_alarm = decide_alarm(alarm("inputs", action="pause"), situation)[-1]
    by_fault = decide_fault("crash_loop", "it ended", situation, action="pause")[-1]
    [by_verdict] = decide_verdict(verdict("pause"), situation, {})
    for moved in (by_alarm, by_fault, by_verdict):
        assert (moved.event, moved.rollout, moved.step, moved.phase) == ("pause", "rollout-1", None, "running")


def test_both_arms_drifting_is_no_changed_world_when_the_judge_sees_them_differ() -> None:
    both = Situation(ON_TRIAL, drifted={"inputs": frozenset({1, 2})})
    differing = msgspec.structs.replace(both, differing=frozenset({"inputs"}))
    assert done(decide_alarm(alarm("inputs", version=2), both)) == [("record", "world_changed")]
    [moved] = decide_alarm(alarm("inputs", version=2), differing)
    assert moved.kind == "drift_alarm" and "differs from stable on the same traffic" in moved.reason
    assert done(decide_alarm(alarm("inputs", version=1), differing)) == [("record", "world_changed")]
