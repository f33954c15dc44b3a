"""Every way traffic moves, within one change of the store: by hand, by a rollout, back."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.control.change import Change
from gateway.control.errors import Conflict, NotKnown, Refused
from gateway.control.traffic import (
    previous_route,
    promoted_route,
    route_summary,
    set_route,
    stable_route,
    step_route,
)
from gateway.events.records import DecisionRecord
from gateway.protocol.mistakes import told_mistake
from gateway.rollout.errors import RolloutError
from gateway.rollout.machine import Event, Phase, RolloutState, begin, move
from gateway.rollout.plan import Plan, check_plan
from gateway.routing.table import Route

__all__ = ("TRAFFIC_KINDS", "move_rollout", "remove_route", "roll_back", "set_route_by_hand", "start_rollout")

_KINDS: dict[Event, str] = {
    "advance": "rollout_advanced",
    "pause": "rollout_paused",
    "resume": "rollout_resumed",
    "freeze": "rollout_frozen",
    "thaw": "rollout_thawed",
    "promote": "rollout_promoted",
    "rollback": "rollback",
    "abort": "rollout_aborted",
    "supersede": "rollout_superseded",
    "expire": "rollout_expired",
}

TRAFFIC_KINDS = (
    "route_set",
    "route_removed",
    "rollback",
    "rollout_started",
    "rollout_advanced",
    "rollout_promoted",
    "rollout_aborted",
)
"""Kinds of the decisions that move traffic."""


def set_route_by_hand(
    change: Change,
    model: str,
    *,
    stable: int,
    canary: int | None,
    weight: float,
    salt: str,
    actor: str,
    reason: str,
    kind: str,
    evidence: dict[str, Any] | None,
    expected_revision: int | None,
) -> DecisionRecord:
    """Set a route as it is asked for. An open rollout no longer speaks for the route then, and is superseded."""
    old = change.route(model)
    _check_revision(model, old, expected_revision)
    for version in (stable, canary):
        if version is not None:
            _require_approved(change, model, version)
    new = set_route(
        old or Route(model, stable, trial=_trials_before(change, model)),
        stable=stable,
        canary=canary,
        weight=weight,
        salt=salt,
        revision=change.revision,
    )
    _supersede(change, model, old, actor=actor, reason="the route was set by hand")
    change.put_route(new)
    return change.decide(
        model,
        kind=kind,
        actor=actor,
        reason=reason,
        before=route_summary(old),
        after=route_summary(new),
        evidence=evidence,
    )


def remove_route(
    change: Change, model: str, *, actor: str, reason: str, expected_revision: int | None
) -> DecisionRecord:
    """Leave a model without traffic. Its versions stay approved, and a route that is set later counts trials on."""
    old = _known_route(change, model)
    _check_revision(model, old, expected_revision)
    _supersede(change, model, old, actor=actor, reason="the route was removed")
    change.remove_route(model)
    return change.decide(
        model,
        kind="route_removed",
        actor=actor,
        reason=reason,
        before=route_summary(old),
        after=route_summary(None),
    )


def start_rollout(
    change: Change, model: str, canary: int, *, plan: dict[str, Any], salt: str, actor: str, reason: str
) -> DecisionRecord:
    """Start a rollout at the first step of its plan."""
    old = _known_route(change, model)
    if change.open_rollout(model) is not None:
        raise Refused(f"a rollout of {model} is open already; `gateway rollout abort {model}` ends it")
    if old.weight > 0 and old.canary != canary:
        raise Refused(
            f"{model} has version {old.canary} as its canary at {old.weight:g} %; "
            f"`gateway route set {model} --stable {old.stable}` takes it off"
        )
    _require_approved(change, model, canary)
    try:
        whole = msgspec.convert(plan, Plan)
        check_plan(whole)
        state = begin(f"rollout-{change.next_seq}", model, stable=old.stable, canary=canary, steps=whole.steps)
    except (msgspec.ValidationError, RolloutError) as error:
        raise Refused(f"plan of a rollout of {model}: {told_mistake(error, Plan)}") from None
    new = set_route(
        old,
        stable=old.stable,
        canary=canary,
        weight=state.weight,
        salt=salt,
        revision=change.revision,
    )
    change.add_rollout(state, plan=whole)
    change.put_route(new)
    return change.decide(
        model,
        kind="rollout_started",
        actor=actor,
        reason=reason,
        before=route_summary(old),
        after={**route_summary(new), "rollout": _summary(state), "plan": msgspec.to_builtins(whole)},
    )


def move_rollout(
    change: Change,
    rollout_id: str,
    event: Event,
    *,
    actor: str,
    reason: str,
    evidence: dict[str, Any] | None,
    expected_step: int | None,
    expected_phase: Phase | None,
) -> DecisionRecord:
    """Move a rollout by the table, and the route with it."""
    state = change.rollout(rollout_id)
    if (expected_step is not None and state.step != expected_step) or expected_phase not in (None, state.phase):
        at = "" if expected_step is None else f" at step {expected_step}"
        raise Refused(
            f"rollout {rollout_id} of {state.model} is {state.phase} at step {state.step} by now; "
            f"{event} was decided when it was {expected_phase}{at}"
        )
    old = _known_route(change, state.model)
    try:
        moved = move(state, event)
    except RolloutError as error:
        raise Refused(f"rollout {rollout_id} of {state.model}: {error}") from None
    if (old.stable, old.canary) != (state.stable, state.canary):
        raise Refused(f"rollout {rollout_id} no longer speaks for the route of {state.model}")
    new = _route_after(old, moved, revision=change.revision)
    return _persist(change, state, event, old, new, actor=actor, reason=reason, evidence=evidence)


def roll_back(
    change: Change,
    model: str,
    *,
    version: int | None,
    expected_trial: int | None,
    expected_rollout: str | None,
    actor: str,
    reason: str,
    evidence: dict[str, Any] | None,
    expected_revision: int | None,
) -> DecisionRecord:
    """Take the canary back where one is under way, else the stable version.

    Raises
    ------
    Conflict
        The route has another revision by now than `expected_revision`.
    Refused
        There is nothing to take back, `version` carries no traffic (somebody took it back before), or another trial or
        rollout is under way than was expected.
    """
    old = _known_route(change, model)
    _check_revision(model, old, expected_revision)
    rollout = change.open_rollout(model)
    if expected_trial is not None and expected_trial != old.trial:
        raise Refused(f"{model} is in trial {old.trial} by now; this was decided in trial {expected_trial}")
    open_id = rollout.id if rollout is not None else ""
    if expected_rollout is not None and expected_rollout != open_id:
        raise Refused(
            f"{model} has {open_id or 'no rollout'} open by now; this was decided with {expected_rollout or 'none'}"
        )
    under_way = rollout is not None or old.weight > 0
    if version is not None and version != old.stable and not (under_way and version == old.canary):
        raise Refused(f"{model} version {version} carries no traffic; there is nothing to take back")
    if under_way and version != old.stable:
        new = stable_route(old, revision=change.revision)
        if rollout is not None:
            return _persist(change, rollout, "rollback", old, new, actor=actor, reason=reason, evidence=evidence)
    else:
        new = previous_route(old, revision=change.revision)
        _require_approved(change, model, new.stable)
        if rollout is not None:
            _persist(change, rollout, "abort", old, old, actor=actor, reason="the stable version was taken back")
    change.put_route(new)
    return change.decide(
        model,
        kind="rollback",
        actor=actor,
        reason=reason,
        before=route_summary(old),
        after=route_summary(new),
        evidence=evidence,
    )


def _persist(
    change: Change,
    state: RolloutState,
    event: Event,
    old: Route | None,
    new: Route | None,
    *,
    actor: str,
    reason: str,
    evidence: dict[str, Any] | None = None,
) -> DecisionRecord:
    moved = move(state, event)
    change.put_rollout(moved)
    if new is not None and new != old:
        change.put_route(new)
    return change.decide(
        state.model,
        kind=_KINDS[event],
        actor=actor,
        reason=reason,
        before={**route_summary(old), "rollout": _summary(state)},
        after={**route_summary(new), "rollout": _summary(moved)},
        evidence=evidence,
    )


def _route_after(old: Route, moved: RolloutState, *, revision: int) -> Route:
    if moved.phase == "promoted":
        return promoted_route(old, revision=revision)
    if moved.over:
        return stable_route(old, revision=revision)
    return step_route(old, moved, revision=revision)


def _supersede(change: Change, model: str, route: Route | None, *, actor: str, reason: str) -> None:
    rollout = change.open_rollout(model)
    if rollout is not None:
        _persist(change, rollout, "supersede", route, route, actor=actor, reason=reason)


def _trials_before(change: Change, model: str) -> int:
    removed = change.last_decision(model, "route_removed")
    return 0 if removed is None else int(removed.before["trial"])


def _check_revision(model: str, route: Route | None, expected: int | None) -> None:
    found = 0 if route is None else route.revision
    if expected is not None and expected != found:
        raise Conflict(f"the route of {model} is at revision {found}, not {expected}; look at it again")


def _known_route(change: Change, model: str) -> Route:
    route = change.route(model)
    if route is None:
        raise NotKnown(f"model {model} has no route")
    return route


def _require_approved(change: Change, model: str, version: int) -> None:
    state = change.known_version(model, version)
    if state.status != "approved":
        raise Refused(
            f"{model} version {version} is {state.status}, not approved; "
            f"`gateway models approve {model} {version} --reason TEXT` approves it"
        )


def _summary(state: RolloutState) -> dict[str, Any]:
    return {"id": state.id, "phase": state.phase, "step": state.step, "canary": state.canary}
