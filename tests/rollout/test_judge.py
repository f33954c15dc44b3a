from __future__ import annotations

import json
import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rollout.certificate import Observation, observe, recompute, replay
from gateway.rollout.errors import EvidenceError
from gateway.rollout.judge import Judge
from gateway.rollout.plan import METRICS, Plan

EAGER = Plan(steps=(10.0, 50.0), bad_promotion=0.5, worse_ratio=3.0, minimum_units=3, minimum_labels=3)
"""A plan that promotes on next to nothing, so that a search finds the traces that do."""

OBSERVATIONS = st.lists(
    st.builds(
        Observation,
        kind=st.sampled_from(["unit", "label", "event", "output_bin"]),
        on_canary=st.booleans(),
        weight=st.sampled_from([0.0, 10.0, 50.0, 100.0]),
        name=st.sampled_from(["errors", "invalid_outputs", "inputs_out_of_range"]),
        index=st.integers(0, 9),
        miss=st.booleans(),
        unit_key=st.sampled_from([None, None, "a", "b"]),
        position=st.sampled_from([None, "p-1", "p-2"]),
    ),
    max_size=120,
)


def traffic(judge: Judge, requests: int, *, weight: float, seed: int = 1) -> random.Random:
    """Tell the judge of requests at their weight that all went well."""
    draw = random.Random(seed)
    for _ in range(requests):
        judge.unit(draw.random() < weight / 100.0, weight)
    return draw


def labels(judge: Judge, number: int, *, weight: float, stable: float, canary: float, seed: int = 2) -> None:
    """Tell the judge of labels, each arm with its share of misses."""
    draw = random.Random(seed)
    for _ in range(number):
        on_canary = draw.random() < weight / 100.0
        judge.label(draw.random() < (canary if on_canary else stable), on_canary, weight=weight)


def test_a_judge_that_has_seen_nothing_holds_and_says_what_it_needs() -> None:
    verdict = Judge(Plan()).verdict(step=0)
    assert (verdict.kind, verdict.metric) == ("hold", "units")
    assert verdict.needs == "50 more requests on stable at this step"


@pytest.mark.promise("P10")
@settings(deadline=None)
@given(OBSERVATIONS, st.sampled_from([0, 1, None]))
def test_nothing_goes_forward_without_requests_and_labels_on_both_arms(
    trace: list[Observation], step: int | None
) -> None:
    verdict = replay(trace, EAGER).verdict(step=step)
    if verdict.kind not in ("advance", "promote"):
        return
    weights = [10.0, 50.0] if step is None else [EAGER.steps[step]]
    for kind in ("unit", "label"):
        for arm in (False, True):
            seen = [each for each in trace if each.kind == kind and each.on_canary == arm and each.weight in weights]
            assert len(seen) >= 3, (kind, arm)
    assert any(each.miss for each in trace if each.kind == "label" and not each.on_canary)


@pytest.mark.promise("P10")
@pytest.mark.parametrize("require", [("quality",), ("errors",), ("errors", "quality")])
@pytest.mark.parametrize("weight", [0.0, 0.01, 100.0])
def test_silence_on_one_arm_is_never_success(require: tuple[str, ...], weight: float) -> None:
    judge = Judge(msgspec.structs.replace(Plan(), require=require))
    for _ in range(5_000):
        judge.unit(weight == 100.0, weight)
        judge.label(False, weight == 100.0, weight=weight)
    assert judge.verdict().kind == "hold"


def test_a_canary_that_is_better_takes_one_step_after_the_other() -> None:
    judge = Judge(Plan())
    traffic(judge, 1_000, weight=10.0)
    assert (judge.verdict(step=0).kind, judge.verdict(step=0).metric) == ("hold", "labels")
    labels(judge, 2_000, weight=10.0, stable=0.3, canary=0.1)
    assert judge.verdict(step=0).kind == "advance"
    assert judge.verdict(step=1).needs.endswith("at this step")
    traffic(judge, 300, weight=50.0, seed=3)
    labels(judge, 300, weight=50.0, stable=0.3, canary=0.1, seed=4)
    assert judge.verdict(step=1).kind == "promote"


def test_a_canary_with_more_misses_is_taken_back_on_its_labels() -> None:
    judge = Judge(Plan())
    traffic(judge, 1_000, weight=10.0)
    labels(judge, 1_000, weight=10.0, stable=0.1, canary=0.5)
    verdict = judge.verdict(step=0)
    assert (verdict.kind, verdict.metric) == ("rollback", "quality")
    assert verdict.log_evidence >= verdict.threshold == -math.log(0.01)


def test_a_quality_that_is_only_alerted_on_takes_nothing_back() -> None:
    plan = msgspec.structs.replace(Plan(), actions=Plan().actions | {"quality": "alert"})
    judge = Judge(plan)
    traffic(judge, 1_000, weight=10.0)
    labels(judge, 1_000, weight=10.0, stable=0.1, canary=0.5)
    assert judge.verdict(step=0).kind == "hold"
    assert {each.metric: each.action for each in judge.readings() if each.direction == "harm"}["quality"] == "alert"


def test_errors_that_hit_both_arms_take_nothing_back() -> None:
    judge, draw = Judge(Plan()), random.Random(8)
    for _ in range(3_000):
        on_canary = draw.random() < 0.1
        judge.unit(on_canary, 10.0)
        if draw.random() < 0.8:
            judge.event("errors", on_canary, weight=10.0)
        assert judge.verdict().kind == "hold"


def test_a_canary_that_fails_outright_needs_no_statistics() -> None:
    judge, draw = Judge(Plan(false_rollback=1e-60)), random.Random(9)
    for _ in range(400):
        on_canary = draw.random() < 0.1
        judge.unit(on_canary, 10.0)
        if on_canary:
            judge.event("errors", on_canary, weight=10.0)
    verdict = judge.verdict()
    assert (verdict.kind, verdict.metric) == ("rollback", "errors")
    assert "latest" in verdict.reason


@pytest.mark.parametrize("name", ["crash_loop", "load_failure"])
def test_a_guard_takes_the_canary_back_at_once(name: str) -> None:
    judge = Judge(Plan())
    judge.guard(name, "exited 5 times within 60 s")
    verdict = judge.verdict()
    assert (verdict.kind, verdict.metric, verdict.reason) == ("rollback", name, "exited 5 times within 60 s")
    assert judge.certificate()["guards"] == {name: "exited 5 times within 60 s"}


@pytest.mark.promise("P12")
def test_a_flood_under_one_key_is_one_unit() -> None:
    judge = Judge(Plan())
    traffic(judge, 200, weight=10.0)
    for _ in range(10_000):
        judge.unit(True, 10.0, unit_key="rider-7")
        judge.event("errors", True, weight=10.0, unit_key="rider-7")
        judge.label(True, True, weight=10.0, unit_key="rider-7")
        judge.output_bin("count", 3, on_canary=True, weight=10.0, unit_key="rider-7")
    assert judge.verdict().kind == "hold"
    assert {each.metric: each.canary for each in judge.readings() if each.direction == "harm"}["errors"] == 1


@pytest.mark.promise("P12")
def test_a_caller_that_fails_later_does_not_make_the_unit_of_another_fail() -> None:
    judge = Judge(Plan())
    known = [f"old-{number}" for number in range(40)]
    for key in known:
        judge.unit(True, 50.0, unit_key=key)
    for number, key in enumerate(known):
        judge.unit(False, 50.0, unit_key=f"stable-{number}")
        judge.unit(True, 50.0, unit_key=f"canary-{number}")
        judge.unit(True, 50.0, unit_key=key)
        judge.event("errors", True, weight=50.0, unit_key=key)
    assert judge.certificate()["guards"] == {}


@pytest.mark.promise("P12")
def test_a_caller_who_fails_on_both_arms_counts_where_it_failed_first() -> None:
    judge = Judge(Plan())
    judge.event("errors", False, weight=10.0, unit_key="rider-7")
    judge.event("errors", True, weight=50.0, unit_key="rider-7")
    counts = judge.counts()["harm"]["errors"]
    assert counts == [[0.1, 1, 0]]


def test_what_could_not_fall_on_either_arm_is_no_evidence_and_uses_no_unit_up() -> None:
    judge = Judge(Plan())
    for weight in (0.0, 100.0):
        judge.unit(True, weight, unit_key="rider-7")
        judge.event("errors", True, weight=weight, unit_key="rider-7")
    assert judge.counts()["units"] == []
    judge.unit(True, 10.0, unit_key="rider-7")
    assert judge.counts()["units"] == [[0.1, 0, 1]]


def test_arms_that_are_not_drawn_at_their_weight_freeze_the_rollout() -> None:
    judge = Judge(Plan())
    for number in range(400):
        judge.unit(number % 2 == 0, 10.0)
    verdict = judge.verdict()
    assert (verdict.kind, verdict.metric) == ("freeze", "units")
    assert verdict.reason.startswith("200 of 400 units")


def test_labels_that_reach_one_arm_only_freeze_and_never_take_back() -> None:
    judge = Judge(Plan())
    traffic(judge, 1_000, weight=10.0)
    for _ in range(200):
        judge.label(True, True, weight=10.0)
    assert (judge.verdict().kind, judge.verdict().metric) == ("freeze", "labels")


def test_outputs_that_shift_pause_until_a_person_has_looked() -> None:
    judge = Judge(Plan())
    draw = traffic(judge, 1_000, weight=10.0)
    for _ in range(1_000):
        on_canary = draw.random() < 0.1
        judge.output_bin(
            "count", draw.randrange(8, 10) if on_canary else draw.randrange(10), on_canary=on_canary, weight=10.0
        )
    assert (judge.verdict().kind, judge.verdict().metric) == ("pause", "outputs")
    judge.acknowledge("outputs")
    assert judge.verdict().kind == "hold"


def test_inputs_out_of_the_reference_are_harm_only_in_number() -> None:
    few, many = Judge(Plan()), Judge(Plan())
    for judge, every in ((few, 50), (many, 1)):
        draw = random.Random(4)
        canaries = 0
        for _ in range(3_000):
            on_canary = draw.random() < 0.1
            judge.unit(on_canary, 10.0)
            canaries += on_canary
            if on_canary and canaries % every == 0:
                judge.event("inputs_out_of_range", True, weight=10.0)
    assert few.verdict().kind == "hold"
    assert (many.verdict().kind, many.verdict().metric) == ("rollback", "inputs_out_of_range")


def test_nothing_goes_forward_under_suspicion() -> None:
    judge = Judge(Plan(require=("errors",), false_rollback=1e-9))
    draw = traffic(judge, 20_000, weight=10.0)
    assert judge.verdict(step=0).kind == "advance"
    for _ in range(12):
        judge.event("invalid_outputs", draw.random() < 0.8, weight=10.0)
    verdict = judge.verdict(step=0)
    assert (verdict.kind, verdict.metric) == ("hold", "invalid_outputs")


def test_without_labels_a_canary_that_never_fails_is_promoted_after_some_five_hundred_units() -> None:
    judge = Judge(Plan(steps=(50.0,), require=("errors",)))
    traffic(judge, 600, weight=50.0)
    verdict = judge.verdict(step=0)
    assert verdict.kind == "hold"
    assert "more requests without an error on the canary" in verdict.needs
    traffic(judge, 700, weight=50.0, seed=5)
    assert judge.verdict(step=0).kind == "promote"


def test_without_labels_a_canary_that_fails_too_often_is_not_promoted() -> None:
    judge, draw = Judge(Plan(steps=(50.0,), require=("errors",))), random.Random(6)
    for _ in range(3_000):
        on_canary = draw.random() < 0.5
        judge.unit(on_canary, 50.0)
        if on_canary and draw.random() < 0.02:
            judge.event("errors", True, weight=50.0)
        assert judge.verdict(step=0).kind != "promote"


def test_the_forecast_is_about_right_for_a_canary_that_is_as_good() -> None:
    judge = Judge(Plan(steps=(50.0,)))
    traffic(judge, 200, weight=50.0)
    labels(judge, 200, weight=50.0, stable=1.0, canary=1.0)
    needs = judge.verdict(step=0).needs
    assert needs.startswith("about ") and "more misses on both arms together" in needs
    assert 100 < int(needs.split()[1]) < 2_000


def test_a_trial_without_a_verdict_expires() -> None:
    judge = Judge(Plan(max_hours=24.0))
    assert judge.verdict(hours=23.9).kind == "hold"
    assert (judge.verdict(hours=24.0).kind, judge.verdict(hours=24.0).metric) == ("expire", "max_hours")


@pytest.mark.parametrize("weight", [-1.0, 100.1, math.nan, math.inf])
def test_a_weight_that_is_no_percentage_is_refused_everywhere(weight: float) -> None:
    judge = Judge(Plan())
    before = judge.state()
    with pytest.raises(EvidenceError, match="weight is"):
        judge.unit(True, weight)
    with pytest.raises(EvidenceError, match="weight is"):
        judge.event("errors", True, weight=weight)
    with pytest.raises(EvidenceError, match="weight is"):
        judge.label(True, True, weight=weight)
    with pytest.raises(EvidenceError, match="weight is"):
        judge.output_bin("count", 1, on_canary=True, weight=weight)
    assert judge.state() == before


def test_unknown_names_are_refused_with_what_is_known() -> None:
    judge = Judge(Plan())
    with pytest.raises(EvidenceError, match="metric is 'mood': expected one of"):
        judge.event("mood", True, weight=10.0)
    with pytest.raises(EvidenceError, match="guard is 'mood': expected one of"):
        judge.guard("mood", "low")
    with pytest.raises(EvidenceError, match="metric is 'mood': expected one of"):
        judge.acknowledge("mood")
    with pytest.raises(EvidenceError, match="step is 2: expected 0 to 1"):
        judge.verdict(step=2)
    with pytest.raises(EvidenceError, match="at most 64 names"):
        for number in range(65):
            judge.latency_bin(f"stage-{number}", 0, on_canary=True, weight=10.0)


@settings(deadline=None)
@given(OBSERVATIONS, OBSERVATIONS)
def test_a_judge_that_went_through_json_goes_on_as_if_nothing_had_happened(
    before: list[Observation], after: list[Observation]
) -> None:
    through = replay(before + after, EAGER)
    restored = Judge.restore(EAGER, json.loads(json.dumps(replay(before, EAGER).state())))
    for seen in after:
        observe(restored, seen)
    assert restored.state() == through.state()
    assert restored.certificate() == through.certificate()
    assert restored.verdict(step=0) == through.verdict(step=0)


@settings(deadline=None)
@given(OBSERVATIONS)
def test_a_certificate_is_recomputed_to_the_bit_from_its_counts_and_from_the_log(trace: list[Observation]) -> None:
    certificate = replay(trace, EAGER).certificate()
    travelled = json.loads(json.dumps(certificate))
    assert recompute(travelled) == certificate["log_evidence"] == travelled["log_evidence"]
    assert replay(trace, EAGER).certificate() == certificate


def test_a_certificate_names_the_log_it_was_read_from() -> None:
    judge = Judge(Plan())
    assert (judge.certificate()["first"], judge.certificate()["last"]) == (None, None)
    for position in ("a-1", "a-2", "a-3"):
        judge.at(position)
    assert (judge.certificate()["first"], judge.certificate()["last"]) == ("a-1", "a-3")


@pytest.mark.parametrize(
    "spoilt", [{}, {"plan": {}}, {"plan": {"steps": "all"}, "counts": {}}, {"plan": {}, "counts": {}}]
)
def test_a_spoilt_certificate_is_refused(spoilt: dict[str, object]) -> None:
    with pytest.raises(EvidenceError):
        recompute(spoilt)


def test_a_spoilt_state_is_refused() -> None:
    state = Judge(Plan()).state()
    for key in state:
        with pytest.raises(EvidenceError):
            Judge.restore(Plan(), {name: value for name, value in state.items() if name != key})


def test_every_metric_has_a_reading_and_the_judge_reads_in_one_line() -> None:
    judge = Judge(Plan())
    assert {each.metric for each in judge.readings() if each.direction == "harm"} == set(METRICS)
    assert repr(judge) == "<Judge units=0+0 labels=0+0 hold units 0.00/3.00>"


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from([0.0, 10.0, 50.0, 100.0]),
            st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(-1, 9)), min_size=1, max_size=40),
            st.none() | st.booleans(),
        ),
        max_size=10,
    )
)
def test_many_requests_at_once_are_the_evidence_that_they_are_one_by_one(
    sent: list[tuple[bool, float, list[tuple[bool, bool, int]], bool | None]],
) -> None:
    many, single = Judge(Plan()), Judge(Plan())
    for on_canary, weight, requests, label in sent:
        indices = [index for _, _, index in requests if index >= 0]
        many.requests(
            len(requests),
            on_canary,
            weight=weight,
            events={
                "inputs_out_of_range": sum(strange for strange, _, _ in requests),
                "invalid_outputs": sum(invalid for _, invalid, _ in requests),
            },
            bins={"y": {index: indices.count(index) for index in indices}},
        )
        for strange, invalid, index in requests:
            single.unit(on_canary, weight)
            if strange:
                single.event("inputs_out_of_range", on_canary, weight=weight)
            if invalid:
                single.event("invalid_outputs", on_canary, weight=weight)
            if index >= 0:
                single.output_bin("y", index, on_canary=on_canary, weight=weight)
        for judge in (many, single):
            judge.event("errors", on_canary, weight=weight)
            if label is not None:
                judge.label(label, on_canary, weight=weight, unit_key="k")
        assert many.state() == single.state()
        assert many.certificate() == single.certificate()
        assert many.verdict(step=0) == single.verdict(step=0)


def test_errors_are_told_one_by_one() -> None:
    judge = Judge(Plan())
    before = judge.state()
    with pytest.raises(EvidenceError, match="metric is 'errors': expected one of"):
        judge.requests(1, True, weight=10.0, events={"errors": 1}, bins={})
    assert judge.log_evidence() == Judge(Plan()).log_evidence()
    assert judge.state()["counts"] == before["counts"]
