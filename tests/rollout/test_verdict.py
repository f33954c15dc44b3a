from __future__ import annotations

import math

import msgspec
import pytest

from gateway.rollout.plan import METRICS, Metric, Plan
from gateway.rollout.verdict import Sheet, Verdict, decide

FINE = Sheet(
    harm=dict.fromkeys(METRICS, 0.0),
    good={"errors": 5.0, "quality": 5.0},
    events=dict.fromkeys(METRICS, (3, 3)),
    balance={"units": 0.0, "labels": 0.0},
    arrived={"units": (900, 100), "labels": (900, 100)},
    arrived_at_step={"units": (900, 100), "labels": (900, 100)},
    guards={},
    acknowledged=(),
    share=0.1,
)


def decided(sheet: Sheet, plan: Plan | None = None, *, last_step: bool = True, hours: float = 0.0) -> Verdict:
    return decide(plan or Plan(), sheet, last_step=last_step, threshold=math.log(20.0), hours=hours)


def harmed(**harm: float) -> Sheet:
    return msgspec.structs.replace(FINE, harm=FINE.harm | harm)


def test_a_fine_sheet_goes_forward() -> None:
    assert decided(FINE).kind == "promote"
    assert decided(FINE, last_step=False).kind == "advance"


def test_one_metric_of_four_needs_four_times_the_evidence() -> None:
    assert decided(harmed(errors=math.log(390.0))).kind == "hold"
    assert decided(harmed(errors=math.log(400.0))).kind == "rollback"


def test_metrics_that_each_prove_little_prove_it_together() -> None:
    each: dict[str, float] = dict.fromkeys(
        ("errors", "invalid_outputs", "inputs_out_of_range", "quality"), math.log(101.0)
    )
    assert decided(harmed(**each)).kind == "rollback"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("action", ["alert", "pause", "rollback", "retrain"])
def test_a_metric_does_what_the_plan_says_and_nothing_else(metric: Metric, action: str) -> None:
    plan = msgspec.structs.replace(Plan(), actions={metric: action})
    expected = action if action in ("pause", "rollback") else "promote"
    assert decided(harmed(**{metric: 50.0}), plan).kind == expected


def test_labels_that_reach_the_arms_unevenly_are_no_evidence_of_harm() -> None:
    uneven = msgspec.structs.replace(harmed(quality=90.0), balance={"units": 0.0, "labels": 9.0})
    assert (decided(uneven).kind, decided(uneven).metric) == ("freeze", "labels")
    failing = msgspec.structs.replace(uneven, harm=uneven.harm | {"errors": 90.0})
    assert (decided(failing).kind, decided(failing).metric) == ("rollback", "errors")


def test_each_reason_outweighs_the_ones_after_it() -> None:
    sheet = msgspec.structs.replace(
        harmed(errors=90.0, outputs=90.0), guards={"crash_loop": "again"}, balance={"units": 9.0, "labels": 9.0}
    )
    kinds = []
    for change in (
        {},
        {"guards": {}},
        {"balance": {"units": 0.0, "labels": 9.0}},
        {"harm": FINE.harm | {"outputs": 90.0}},
        {"balance": {"units": 0.0, "labels": 0.0}},
        {"acknowledged": ("outputs",)},
        {"good": {"errors": 0.0, "quality": 0.0}},
    ):
        sheet = msgspec.structs.replace(sheet, **change)
        kinds.append(decided(sheet, hours=1e6).kind)
    assert kinds == ["rollback", "freeze", "rollback", "freeze", "pause", "promote", "expire"]


def test_every_required_metric_has_to_be_shown() -> None:
    plan = Plan(require=("errors", "quality"))
    for missing in plan.require:
        verdict = decided(msgspec.structs.replace(FINE, good=FINE.good | {missing: 2.9}), plan)
        assert (verdict.kind, verdict.metric) == ("hold", missing)
        assert verdict.needs.startswith("about ")


@pytest.mark.parametrize("name", ["units", "labels"])
@pytest.mark.parametrize("counts", [(0, 100), (900, 0), (49, 100), (900, 49)])
def test_each_arm_has_to_be_seen_at_the_step(name: str, counts: tuple[int, int]) -> None:
    verdict = decided(msgspec.structs.replace(FINE, arrived_at_step=FINE.arrived_at_step | {name: counts}))
    assert (verdict.kind, verdict.metric) == ("hold", name)
    assert verdict.needs.startswith(f"{50 - min(counts)} more ")
