"""What to do about an alarm or a verdict. Pure: what was seen comes in, the moves to make come out.

Inputs alone never take a version back: whatever changed in the world, the version before sees the same inputs. A
version is taken back when the evidence differs between the arms, or when labels prove harm and the version before is
shown to do better on the same rows.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, Literal

import msgspec

from gateway.control.alarm import Alarm
from gateway.rollout.attribution import Attribution, Signs, attribute
from gateway.rollout.judge import Reading, Verdict
from gateway.rollout.machine import Event, Phase, RolloutState
from gateway.rollout.plan import Action
from gateway.routing.table import Route

__all__ = (
    "Comparison",
    "Move",
    "Situation",
    "decide_alarm",
    "decide_fault",
    "decide_harm",
    "decide_verdict",
    "metric_alarm",
    "needs_comparison",
    "week_of",
)


class Move(msgspec.Struct, frozen=True):
    """One thing to do to the store.

    Parameters
    ----------
    do : "record", "rollout" or "take_back"
        Record a decision that changes nothing; move a rollout by `event`; take `version` off the route.
    kind : str
        Kind of the decision that is recorded; where the route moves, the store names it.
    rollout, step, phase
        Where the rollout stood when this was decided; the move is refused when it stands elsewhere by then, so that one
        which a crash lets be tried again is never made twice. A pause names no step: it holds whatever step the store
        took without answering. A verdict that takes a canary back names the rollout too, or "" where none was open.
    trial : int or None
        The trial whose canary is taken back; a later one has to be judged by its own evidence.
    """

    model: str
    do: Literal["record", "rollout", "take_back"]
    kind: str
    reason: str
    evidence: dict[str, Any]
    event: Event | None = None
    rollout: str | None = None
    version: int | None = None
    step: int | None = None
    phase: Phase | None = None
    trial: int | None = None


class Situation(msgspec.Struct, frozen=True):
    """What a decision about one model depends on besides its evidence.

    `drifted` holds the versions whose inputs or outputs show at least half of the evidence that an alarm needs, by
    detector; `differing` those detectors about which the judge of the trial has at least half the evidence that the
    arms differ; `previous` is the version before the stable one where it is approved.
    """

    route: Route
    rollout: RolloutState | None = None
    drifted: dict[str, frozenset[int]] = {}
    previous: int | None = None
    differing: frozenset[str] = frozenset()


class Comparison(msgspec.Struct, frozen=True):
    """What came of running the previous version on the same labelled rows.

    `better` is None when it could not be run, and `note` says why; `pairs` lets a later comparison go on from here.
    """

    version: int
    better: bool | None
    rows: int = 0
    note: str = ""
    pairs: dict[str, int] = {}
    numbers: dict[str, float] = {}


def needs_comparison(alarm: Alarm, situation: Situation) -> bool:
    """Whether this alarm may take the stable version back, if the previous one does better on the same rows."""
    return (
        alarm.detector == "quality"
        and alarm.action == "rollback"
        and alarm.version == situation.route.stable
        and situation.previous is not None
    )


def decide_alarm(alarm: Alarm, situation: Situation) -> list[Move]:
    """Moves for an alarm of one version's own detectors."""
    if alarm.detector == "quality":
        return decide_harm(alarm, situation, None)
    if alarm.tier == "warn":
        return [_record("warning", alarm, _warning_text(alarm)), *_follow(alarm, situation)]
    of_stable = alarm.detector == "inputs" and alarm.version == situation.route.stable
    attribution = _attribution(alarm, situation)
    if of_stable or (_both_arms(alarm, situation) and attribution.verdict == "world_changed"):
        return [_record("world_changed", alarm, _world_text(alarm, situation)), *_follow(alarm, situation)]
    if alarm.detector == "outputs" and alarm.action == "rollback" and alarm.version == situation.route.canary:
        return [_take_back(alarm, situation, _drift_text(alarm) + "; the stable version's have not, so it goes back")]
    text = _drift_text(alarm)
    if alarm.detector == "outputs" and alarm.version in situation.drifted.get("inputs", frozenset()):
        text += "; so have its inputs"
    if attribution.rollback_helps:
        text += f"; {attribution.sentence}"
    return [_record("drift_alarm", alarm, text), *_follow(alarm, situation)]


def decide_harm(alarm: Alarm, situation: Situation, comparison: Comparison | None) -> list[Move]:
    """Moves for a version whose labelled rows miss more often than its reference allows."""
    text = _harm_text(alarm)
    if alarm.version != situation.route.stable:
        return [_record("harm", alarm, text + "; its trial decides what becomes of it"), *_follow(alarm, situation)]
    if comparison is not None and comparison.better:
        reason = f"{text}; version {comparison.version} does better on the same {comparison.rows} rows"
        evidence = _evidence(alarm) | {"comparison": msgspec.to_builtins(comparison)}
        return [Move(alarm.model, "take_back", "rollback", reason, evidence, version=alarm.version)]
    evidence = _evidence(alarm)
    if comparison is not None:
        evidence["comparison"] = msgspec.to_builtins(comparison)
    reason = text
    if alarm.action == "rollback":
        reason += f"; {_why_not_back(situation, comparison)}"
    harm = Move(alarm.model, "record", "harm", reason, evidence)
    return [harm, *_follow(alarm, situation, retrain=alarm.action in ("rollback", "retrain"))]


def decide_verdict(verdict: Verdict, situation: Situation, certificate: dict[str, Any]) -> list[Move]:
    """Moves for what the judge of a trial says.

    Without an open rollout the judge may take a canary back, and never promotes. A rollout that a person paused is
    taken forward by a person only; one that is frozen waits for a person altogether.
    """
    route, rollout = situation.route, situation.rollout
    if verdict.kind == "hold" or route.canary is None:
        return []
    reason = f"version {route.canary}: {verdict.reason}"
    evidence = {
        "metric": verdict.metric,
        "log_evidence": verdict.log_evidence,
        "log_threshold": verdict.threshold,
        "certificate": certificate,
    }
    if verdict.kind == "rollback":
        if rollout is not None and rollout.phase == "frozen":
            return []
        return [
            Move(
                route.model,
                "take_back",
                "rollback",
                reason,
                evidence,
                rollout=rollout.id if rollout is not None else "",
                version=route.canary,
                trial=route.trial,
            )
        ]
    if rollout is None:
        if verdict.kind == "freeze":
            return [Move(route.model, "record", "frozen", reason + "; its evidence does not count", evidence)]
        return []
    if rollout.phase != "running" and not (verdict.kind == "freeze" and rollout.phase == "paused"):
        return []
    event = _event_of(verdict)
    if event == "expire":
        reason += "; the rollout is paused until a person decides"
    # A verdict is said again at each flush, so a move that is refused as the rollout has moved on costs nothing.
    return [_move(rollout, event, reason, evidence)]


def metric_alarm(
    reading: Reading, situation: Situation, certificate: dict[str, Any], *, window: dict[str, str]
) -> list[Move]:
    """Moves for a judge's metric that reached its line and may only alert or ask for retraining.

    Parameters
    ----------
    window : dict
        `start` and `end` of what the trial has read, in ISO 8601: what to train on.
    """
    model, canary = situation.route.model, situation.route.canary
    reason = (
        f"version {canary}: {reading.metric} differ from the stable version's "
        f"({reading.canary} on the canary, {reading.stable} on stable)"
    )
    evidence = {
        "metric": reading.metric,
        "version": canary,
        "log_evidence": reading.log_evidence,
        "log_threshold": reading.threshold,
        "certificate": certificate,
    }
    moves = [Move(model, "record", "drift_alarm", reason, evidence)]
    if reading.action == "retrain":
        wish = f"{model} wants training on what came after {window['start'][:10]}: {reason}"
        moves.append(Move(model, "record", "retrain_requested", wish, evidence | {"window": window}))
    return moves


def decide_fault(guard: str, reason: str, situation: Situation, *, action: Action) -> list[Move]:
    """Moves for a canary whose engine is out of service, where the policy for errors does not take it back."""
    route, rollout = situation.route, situation.rollout
    text = f"version {route.canary} is out of service: {reason}"
    evidence = {"metric": "errors", "version": route.canary, "guard": guard}
    moves = [Move(route.model, "record", "drift_alarm", text, evidence)]
    if action == "pause" and rollout is not None and rollout.phase == "running":
        moves.append(_move(rollout, "pause", text, evidence))
    return moves


def week_of(time: str) -> str:
    """The Monday of the week that an ISO 8601 time lies in; empty when it cannot be read.

    >>> week_of("2012-03-08T17:00:00Z"), week_of("soon")
    ('2012-03-05', '')
    """
    try:
        day = date.fromisoformat(time[:10])
        return (day - timedelta(days=day.weekday())).isoformat()
    except (ValueError, OverflowError):
        return ""


def _event_of(verdict: Verdict) -> Event:
    events: dict[str, Event] = {
        "advance": "advance",
        "promote": "promote",
        "pause": "pause",
        "freeze": "freeze",
        "expire": "expire",
    }
    return events[verdict.kind]


def _both_arms(alarm: Alarm, situation: Situation) -> bool:
    drifted = situation.drifted.get(alarm.detector, frozenset()) | {alarm.version}
    return situation.route.canary is not None and {situation.route.stable, situation.route.canary} <= drifted


def _attribution(alarm: Alarm, situation: Situation) -> Attribution:
    route = situation.route
    drifted = situation.drifted.get(alarm.detector, frozenset()) | {alarm.version}
    return attribute(
        Signs(
            stable_drifts=route.stable in drifted,
            canary_drifts=None if route.canary is None else route.canary in drifted,
            arms_differ=alarm.version == route.canary and alarm.detector in situation.differing,
        )
    )


def _follow(alarm: Alarm, situation: Situation, *, retrain: bool | None = None) -> list[Move]:
    """What the policy asks for besides telling people: pause the rollout, or ask for retraining."""
    moves = []
    rollout = situation.rollout
    if alarm.action == "pause" and rollout is not None and rollout.phase == "running":
        reason = f"paused as {alarm.detector} of version {alarm.version} raised an alarm"
        moves.append(_move(rollout, "pause", reason, _evidence(alarm)))
    if retrain if retrain is not None else alarm.action == "retrain":
        reason = (
            f"{alarm.model} wants training on what came after {alarm.since[:10]}: "
            f"the {alarm.detector} detector of version {alarm.version} raised an alarm"
        )
        window = {"start": alarm.since, "end": alarm.until}
        moves.append(Move(alarm.model, "record", "retrain_requested", reason, _evidence(alarm) | {"window": window}))
    return moves


def _record(kind: str, alarm: Alarm, reason: str) -> Move:
    return Move(alarm.model, "record", kind, reason, _evidence(alarm))


def _move(rollout: RolloutState, event: Event, reason: str, evidence: dict[str, Any]) -> Move:
    return Move(
        rollout.model,
        "rollout",
        event,
        reason,
        evidence,
        event=event,
        rollout=rollout.id,
        step=None if event == "pause" else rollout.step,
        phase=rollout.phase,
    )


def _take_back(alarm: Alarm, situation: Situation, reason: str) -> Move:
    # It names no rollout: one that has begun since is of the same canary, and this alarm is not said again.
    route = situation.route
    return Move(alarm.model, "take_back", "rollback", reason, _evidence(alarm), version=route.canary, trial=route.trial)


def _evidence(alarm: Alarm) -> dict[str, Any]:
    return {
        "version": alarm.version,
        "detector": alarm.detector,
        "tier": alarm.tier,
        "action": alarm.action,
        "log_evidence": alarm.evidence,
        "log_threshold": alarm.threshold,
        "features": alarm.features,
        "since": alarm.since,
        "since_week": week_of(alarm.since),
        "until": alarm.until,
        "rows": alarm.rows,
        "callers": alarm.callers,
        **alarm.numbers,
    }


def _since_text(alarm: Alarm) -> str:
    week = week_of(alarm.since)
    return f"since {alarm.since[:16]}" + (f" (week of {week})" if week else "")


def _features_text(alarm: Alarm) -> str:
    names = list(alarm.features)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _drift_text(alarm: Alarm) -> str:
    return (
        f"{alarm.detector} of version {alarm.version} have left its reference {_since_text(alarm)}: "
        f"{_features_text(alarm)}"
    )


def _world_text(alarm: Alarm, situation: Situation) -> str:
    where = "both arms see it alike" if _both_arms(alarm, situation) else "every version would see the same"
    return f"the world changed: {_drift_text(alarm)}; {where}, so nothing is rolled back"


def _harm_text(alarm: Alarm) -> str:
    numbers = alarm.numbers
    rates = ""
    if {"miss_rate_since", "allowed_miss_rate"} <= numbers.keys():
        rates = f": {numbers['miss_rate_since']:.1%} of {alarm.rows} labelled rows"
        rates += f", where {numbers['allowed_miss_rate']:.1%} would be borne"
    return f"version {alarm.version} misses more often than its reference {_since_text(alarm)}{rates}"


def _warning_text(alarm: Alarm) -> str:
    return f"{alarm.detector} sees the losses of version {alarm.version} change {_since_text(alarm)}"


def _why_not_back(situation: Situation, comparison: Comparison | None) -> str:
    if comparison is None:
        return "there is no previous approved version to go back to"
    if comparison.better is None:
        return f"version {comparison.version} could not be compared: {comparison.note}"
    return f"version {comparison.version} is not shown to do better on the same {comparison.rows} rows"
