"""How a version becomes known, approved or rejected, within one change of the store."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.control.change import Change, Status, VersionState
from gateway.control.errors import Conflict, Refused

__all__ = ("SYSTEM", "judge_version", "register_version", "version_summary")

SYSTEM = "gateway"
"""The actor of what the gateway does on its own."""


def register_version(change: Change, model: str, version: int, digest: str) -> VersionState:
    """Make a version known by its digest. An approved version keeps the digest it was approved with; the attempt to
    give it another one is recorded, once for each digest, and the caller sees it from the digest that comes back.
    """
    state = change.version(model, version)
    if state is not None and state.digest == digest:
        return state
    if state is None or state.status != "approved":
        fresh = VersionState(model, version, digest, "registered")
        change.put_version(fresh)
        change.decide(
            model,
            kind="version_registered",
            actor=SYSTEM,
            reason="the version's folder was found" if state is None else "the version's files have changed",
            before=version_summary(state),
            after=version_summary(fresh),
        )
        return fresh
    attempt = {"version": version, "digest": digest}
    last = change.last_decision(model, "digest_refused")
    if last is None or last.evidence != attempt:
        change.decide(
            model,
            kind="digest_refused",
            actor=SYSTEM,
            reason="the files of an approved version have changed",
            before=version_summary(state),
            after=version_summary(state),
            evidence=attempt,
        )
    return state


def judge_version(
    change: Change, model: str, version: int, *, status: Status, actor: str, reason: str, digest: str | None
) -> VersionState:
    """Approve or reject a version.

    Raises
    ------
    Conflict
        `digest` is given and the version has another one by now.
    Refused
        A version that carries traffic was to be rejected.
    """
    state = change.known_version(model, version)
    if digest is not None and digest != state.digest:
        raise Conflict(f"{model} version {version} has the digest {state.digest}, not {digest}; look at it again")
    if state.status == status:
        return state
    if status == "rejected":
        _take_off_route(change, model, version)
    judged = VersionState(model, version, state.digest, status)
    change.put_version(judged)
    change.decide(
        model,
        kind=f"version_{status}",
        actor=actor,
        reason=reason,
        before=version_summary(state),
        after=version_summary(judged),
    )
    return judged


def _take_off_route(change: Change, model: str, version: int) -> None:
    route = change.route(model)
    if route is None:
        return
    if version == route.stable:
        raise Refused(
            f"{model} version {version} is the stable version; set the route to another one first, or remove it"
        )
    if version == route.canary:
        if change.open_rollout(model) is not None:
            raise Refused(f"a rollout of {model} version {version} is open; `gateway rollout abort {model}` ends it")
        if route.weight > 0:
            raise Refused(f"{model} version {version} is a canary at {route.weight:g} %; take its weight away first")
        change.put_route(msgspec.structs.replace(route, canary=None, revision=change.revision))


def version_summary(state: VersionState | None) -> dict[str, Any]:
    """What a decision says of a version."""
    if state is None:
        return {}
    return {"version": state.version, "digest": state.digest, "status": state.status}
