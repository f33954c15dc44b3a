"""From decisions to findings and outcomes."""

from __future__ import annotations

from typing import Any

from gateway.demo.ledger import Proof
from gateway.demo.report import report_of
from gateway.demo.scene import Scene

PROOF = Proof(1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def decision(seq: int, kind: str, *, actor: str = "gateway monitor", **fields: Any) -> dict[str, Any]:
    whole = {"before": {}, "after": {}, "evidence": {}, "reason": "", "time": f"2027-01-15T08:00:{seq:02d}Z"}
    return whole | {"seq": seq, "kind": kind, "actor": actor} | fields


def report(scene: Scene, *decisions: dict[str, Any]) -> Any:
    scene.decisions = list(decisions)
    return report_of(scene, PROOF, audit_ok=True, labels_sent=True, seconds=1.0)


def test_a_decision_is_told_in_the_time_of_the_data(scene: Scene) -> None:
    scene.reach("2012-01-09T23:00", 1_800_000_000.0)
    scene.reach("2012-01-10T23:00", 1_800_000_002.0)
    evidence = {"version": 1, "rows": 99, "since_week": "2012-01-02", "log_evidence": 20.0, "log_threshold": 17.0}
    found = report(scene, decision(1, "harm", evidence=evidence)).decay
    assert (found.data_time, found.seconds, found.since_week) == ("2012-01-09T23:00", 1.0, "2012-01-02")


def test_what_a_person_does_is_no_finding(scene: Scene) -> None:
    taken = decision(1, "rollback", actor="somebody", before={"stable": 1, "canary": 2})
    found = report(scene, taken)
    assert found.findings == [] and found.outcomes == {"2": "rolled_back"}


def test_a_trial_without_an_end_is_held(scene: Scene) -> None:
    assert report(scene, decision(1, "rollout_started", after={"canary": 3})).outcomes == {"3": "held"}


def test_a_trial_that_was_paused_and_resumed_is_not_paused(scene: Scene) -> None:
    arms = {"stable": 1, "canary": 2}
    steps = [
        decision(1, "rollout_started", after=arms),
        decision(2, "rollout_paused", before=arms),
        decision(3, "rollout_resumed", before=arms, actor="somebody"),
    ]
    assert report(scene, *steps[:2]).outcomes == {"2": "paused"}
    assert report(scene, *steps).outcomes == {"2": "held"}
    assert report(scene, *steps, decision(4, "rollout_promoted", before=arms)).outcomes == {"2": "promoted"}


def test_the_evidence_of_a_rollback_is_counted_by_arm(scene: Scene) -> None:
    certificate = {"counts": {"harm": {"quality": [[0.1, 20, 30]]}, "labels": [[0.1, 100, 40]]}}
    evidence = {"metric": "quality", "log_evidence": 5.0, "log_threshold": 4.6, "certificate": certificate}
    taken = decision(1, "rollback", before={"stable": 2, "canary": 3}, evidence=evidence)
    [found] = report(scene, taken).findings
    assert found.what == "version 3 is rolled back"
    assert "20 of 100 on stable (20%), 30 of 40 on canary (75%)" in found.evidence


def test_foreign_times_and_numbers_do_not_end_the_report(scene: Scene) -> None:
    evidence = {"version": 1, "rows": 5, "since_week": "", "log_evidence": None, "log_threshold": None}
    found = report(scene, decision(1, "harm", time="soon", evidence=evidence))
    assert found.decay.data_time == "" and found.decay.log_evidence == 0.0
