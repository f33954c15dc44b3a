"""The end of the demo: what happened, when, on what evidence, and the proof that what was answered was logged."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from gateway.demo.ledger import Proof
from gateway.demo.scene import Scene
from gateway.events.encoding import RecordError, seconds_of

__all__ = ("Finding", "Report", "finding_of", "report_of")

MONITOR = "gateway monitor"
_DRIFT = ("world_changed", "drift_alarm")


class Finding(msgspec.Struct, frozen=True):
    """One verdict of the gateway.

    Parameters
    ----------
    what : str
        In words.
    version : int
    kind : str
        Kind of the decision.
    data_time : str
        The hour that the replay had come to when it was decided, local time.
    seconds : float
        The same in seconds since the demo began.
    since_week : str
        Monday of the week in which it began, by the alarm; empty where the decision names none.
    evidence : str
        The numbers, in words.
    log_evidence, log_threshold : float
        Natural logarithms.
    decision : int
        Its number in the audit trail.
    """

    what: str
    version: int
    kind: str
    data_time: str
    seconds: float
    since_week: str
    evidence: str
    log_evidence: float
    log_threshold: float
    decision: int


class Report(msgspec.Struct, frozen=True):
    """The whole demo.

    Parameters
    ----------
    decay : Finding or None
        Version 1's losses were reported.
    drift : list of Finding
        What was reported of inputs and outputs of version 1, which takes no labels.
    outcomes : dict
        By version that was on trial: "promoted", "rolled_back", or what its rollout was at last.
    findings : list of Finding
        All verdicts that matter, in their order.
    seconds_to_switch : float or None
        From the last rollback to the last answer of the version that was taken back; negative or 0 when it came before.
    """

    decay: Finding | None
    drift: list[Finding]
    outcomes: dict[str, str]
    findings: list[Finding]
    seconds_to_switch: float | None
    route: dict[str, Any]
    decisions: list[dict[str, Any]]
    proof: Proof
    proof_holds: bool
    audit_ok: bool
    labels_sent: bool
    seconds: float


def report_of(scene: Scene, proof: Proof, *, audit_ok: bool, labels_sent: bool, seconds: float) -> Report:
    """Read the report off the decisions and the two books."""
    decisions = [each for each in scene.decisions if each["actor"] == MONITOR]
    findings = [finding_of(scene, each) for each in decisions]
    told = [each for each in findings if each is not None]
    return Report(
        decay=next((each for each in told if each.kind == "harm" and each.version == 1), None),
        drift=[each for each in told if each.kind in _DRIFT and each.version == 1],
        outcomes=_outcomes(scene.decisions),
        findings=told,
        seconds_to_switch=_seconds_to_switch(scene, decisions),
        route={name: scene.route.get(name) for name in ("stable", "canary", "weight", "previous")},
        decisions=scene.decisions,
        proof=proof,
        proof_holds=proof.holds,
        audit_ok=audit_ok,
        labels_sent=labels_sent,
        seconds=round(seconds, 1),
    )


def finding_of(scene: Scene, decision: dict[str, Any]) -> Finding | None:
    """A decision of the monitor as a finding; None for one that is not a verdict, or is a person's."""
    if decision["actor"] != MONITOR:
        return None
    kind, evidence = decision["kind"], decision["evidence"]
    told = {
        "harm": _told_harm,
        "world_changed": _told_drift,
        "drift_alarm": _told_drift,
        "rollout_advanced": _told_trial,
        "rollout_promoted": _told_trial,
        "rollout_paused": _told_trial,
        "rollout_frozen": _told_trial,
        "rollback": _told_trial,
    }.get(kind)
    version = _version_of(decision)
    if told is None or version is None:
        return None
    what, numbers = told(decision, version)
    log_evidence, line = float(evidence.get("log_evidence") or 0.0), float(evidence.get("log_threshold") or 0.0)
    return Finding(
        what,
        version,
        kind,
        scene.data_time(decision["time"]),
        round(scene.seconds_into(decision["time"]), 1),
        str(evidence.get("since_week", "")),
        numbers + (f"; evidence {_power(log_evidence)}, needed {_power(line)}" if line else ""),
        log_evidence,
        line,
        decision["seq"],
    )


def _version_of(decision: dict[str, Any]) -> int | None:
    before = decision["before"].get("canary") or decision["before"].get("stable")
    found = decision["evidence"].get("version") or before
    return found if isinstance(found, int) else None


def _told_harm(decision: dict[str, Any], version: int) -> tuple[str, str]:
    numbers = decision["evidence"]
    text = f"{numbers['rows']} labelled hours"
    if {"miss_rate_since", "allowed_miss_rate"} <= numbers.keys():
        text = f"{numbers['miss_rate_since']:.0%} of {text} missed, {numbers['allowed_miss_rate']:.0%} would be borne"
    return f"version {version} decays since the week of {numbers['since_week']}", text


def _told_drift(decision: dict[str, Any], version: int) -> tuple[str, str]:
    numbers = decision["evidence"]
    if "detector" not in numbers:
        return f"{numbers['metric']} of version {version} differ between the arms", "on trial"
    what = f"{numbers['detector']} of version {version} left its reference in the week of {numbers['since_week']}"
    return what, f"{', '.join(numbers['features'])} over {numbers['rows']} hours"


def _told_trial(decision: dict[str, Any], version: int) -> tuple[str, str]:
    what = {
        "rollout_advanced": f"version {version} goes on to {decision['after'].get('weight', 0):g} %",
        "rollout_promoted": f"version {version} takes over",
        "rollout_paused": f"version {version} is paused",
        "rollout_frozen": f"version {version} is frozen",
        "rollback": f"version {version} is rolled back",
    }[decision["kind"]]
    metric = str(decision["evidence"].get("metric") or decision["evidence"].get("detector", ""))
    return what, f"{metric.replace('_', ' ')}: {_by_arm(decision['evidence'].get('certificate', {}), metric)}"


def _by_arm(certificate: dict[str, Any], metric: str) -> str:
    """How often a metric's event happened on each arm, in words."""
    counts = certificate.get("counts", {})
    events, units = counts.get("harm", {}).get(metric), counts.get("labels" if metric == "quality" else "units")
    if not events or not units:
        return "distributed otherwise than on stable"
    shares = []
    for name, column in (("stable", 1), ("canary", 2)):
        happened, of = sum(row[column] for row in events), sum(row[column] for row in units)
        shares.append(f"{happened} of {of} on {name}" + (f" ({happened / of:.0%})" if of else ""))
    noun = "misses" if metric == "quality" else "events"
    return f"{noun} " + ", ".join(shares)


def _outcomes(decisions: list[dict[str, Any]]) -> dict[str, str]:
    """Where each trial ended, by version."""
    outcomes: dict[str, str] = {}
    ends = {"rollout_promoted": "promoted", "rollout_paused": "paused", "rollout_frozen": "frozen"}
    for decision in decisions:
        kind = decision["kind"]
        if kind == "rollout_started":
            outcomes[str(decision["after"]["canary"])] = "held"
        elif kind == "rollout_resumed":
            outcomes[str(decision["before"]["canary"])] = "held"
        elif kind in ends:
            outcomes[str(decision["before"]["canary"])] = ends[kind]
        elif kind == "rollback":
            outcomes[str(decision["before"]["canary"] or decision["before"]["stable"])] = "rolled_back"
    return outcomes


def _seconds_to_switch(scene: Scene, decisions: list[dict[str, Any]]) -> float | None:
    for decision in reversed(decisions):
        version = _version_of(decision)
        if decision["kind"] == "rollback" and version is not None:
            try:
                return round(scene.answers.last_of(version) - seconds_of(decision["time"]), 2)
            except RecordError:
                return None
    return None


def _power(log: float) -> str:
    """A number by its natural logarithm, as a power of ten.

    >>> _power(17.25), _power(3.0)
    ('10^7.5', '20')
    """
    return f"{math.exp(log):.0f}" if log < math.log(1e5) else f"10^{log / math.log(10):.1f}"
