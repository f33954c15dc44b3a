"""The admin API as one table: method, path, what is read, what is called. Routes and `/openapi.json` come from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.admin.errors import BadRequest
from gateway.admin.operations import Body, Operations
from gateway.admin.requests import (
    ReasonRequest,
    RejectRequest,
    RollbackRequest,
    RolloutRequest,
    RouteRequest,
)
from gateway.repository.manifest import MODEL_NAME, parse_version
from gateway.rollout.machine import Event

__all__ = ("ENDPOINTS", "MAX_LIMIT", "MODEL_QUERY", "PREFIX", "Call", "Endpoint", "Query", "is_true", "version_in")

PREFIX = "/api/v1"
MAX_LIMIT = 1000
MAX_SEQUENCE = 2**53
MAX_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read: path and query parameters, the body where there is one, and who asks."""

    path: dict[str, str]
    query: dict[str, str]
    body: Any
    actor: str
    if_match: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """One query parameter: `highest` is that of a whole number, `choices` are those of a text, `or_time` one more.

    `pattern` is the regular expression that all of a text has to match.
    """

    name: str
    meaning: str
    type: str = "string"
    highest: int | None = None
    choices: tuple[str, ...] = ()
    or_time: bool = False
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One line of the table. `is_open` needs no token."""

    method: str
    path: str
    summary: str
    run: Callable[[Operations, Call], Body]
    body: type[msgspec.Struct] | None = None
    query: tuple[Query, ...] = ()
    is_open: bool = False
    media_type: str = "application/json"


MODEL_QUERY = Query("model", "Only this model.", pattern=MODEL_NAME)
_LIMIT = Query("limit", f"At most so many, up to {MAX_LIMIT}.", "integer", MAX_LIMIT)


def version_in(call: Call) -> int:
    """The version in the path.

    Raises
    ------
    BadRequest
        It is not a positive whole number.
    """
    version = parse_version(call.path["version"])
    if version is None:
        raise BadRequest(f"{call.path['version'][:32]!r} is not a version: expected a positive whole number such as 1")
    return version


def is_true(call: Call, name: str, *, default: bool) -> bool:
    """A yes or no in the query.

    Raises
    ------
    BadRequest
        It is neither true nor false.
    """
    text = call.query.get(name, "true" if default else "false")
    if text not in ("true", "false"):
        raise BadRequest(f"{name}={text[:32]!r}: expected true or false")
    return text == "true"


def _number(call: Call, name: str, *, default: int | None, highest: int) -> int | None:
    text = call.query.get(name)
    if text is None:
        return default
    if not _is_number(text) or int(text) > highest:
        raise BadRequest(f"{name}={text[:32]!r}: expected a whole number from 0 to {highest}")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def _limit(call: Call, default: int) -> int:
    return _number(call, "limit", default=default, highest=MAX_LIMIT) or default


def _revision(call: Call) -> int | None:
    if call.if_match is None:
        return None
    revision = call.if_match.strip().removeprefix("W/").strip('"')
    if not _is_number(revision):
        raise BadRequest(f"If-Match is {call.if_match[:32]!r}; expected the revision of the route, in quotes")
    return int(revision)


def _set_route(operations: Operations, call: Call) -> Body:
    return operations.set_route(
        call.path["model"],
        **msgspec.structs.asdict(call.body),
        expected_revision=_revision(call),
        actor=call.actor,
    )


def _start_rollout(operations: Operations, call: Call) -> Body:
    return operations.start_rollout(
        call.body.model,
        canary=call.body.canary,
        plan=call.body.plan,
        reason=call.body.reason,
        allow_signature_change=call.body.allow_signature_change,
        actor=call.actor,
    )


def _move(event: Event) -> Endpoint:
    return Endpoint(
        "POST",
        f"/rollouts/{{rollout}}/{event}",
        f"{event.capitalize()} a rollout.",
        lambda operations, call: operations.move_rollout(
            call.path["rollout"], event, reason=call.body.reason, actor=call.actor
        ),
        body=ReasonRequest,
    )


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint("GET", "/health", "Whether the admin API reaches the store.", lambda o, call: o.health(), is_open=True),
    Endpoint("GET", "/models", "Models with their versions and routes.", lambda o, call: o.models()),
    Endpoint("GET", "/models/{model}", "One model.", lambda o, call: o.model(call.path["model"])),
    Endpoint(
        "GET",
        "/models/{model}/versions/{version}",
        "One version: status, engine, manifest, lineage, profile.",
        lambda o, call: o.version(call.path["model"], version_in(call)),
    ),
    Endpoint(
        "POST",
        "/models/{model}/versions/{version}/reject",
        "Bar a version from traffic.",
        lambda o, call: o.reject(call.path["model"], version_in(call), reason=call.body.reason, actor=call.actor),
        body=RejectRequest,
    ),
    Endpoint("GET", "/routes", "All routes.", lambda o, call: o.routes()),
    Endpoint("GET", "/routes/{model}", "The route of a model.", lambda o, call: o.route(call.path["model"])),
    Endpoint(
        "PUT",
        "/routes/{model}",
        "Set the route of a model; an open rollout is superseded. If-Match: the revision that was read.",
        _set_route,
        body=RouteRequest,
    ),
    Endpoint(
        "POST",
        "/routes/{model}/remove",
        "Leave a model without traffic; an open rollout is superseded. If-Match: the revision that was read.",
        lambda o, call: o.remove_route(
            call.path["model"], reason=call.body.reason, expected_revision=_revision(call), actor=call.actor
        ),
        body=ReasonRequest,
    ),
    Endpoint(
        "POST",
        "/routes/{model}/rollback",
        "Take the canary off the route, or without one go back to the previous stable version. If-Match: the revision "
        "that was read.",
        lambda o, call: o.rollback(
            call.path["model"],
            version=call.body.version,
            reason=call.body.reason,
            expected_revision=_revision(call),
            actor=call.actor,
        ),
        body=RollbackRequest,
    ),
    Endpoint(
        "GET",
        "/rollouts",
        "Rollouts, the newest first.",
        lambda o, call: o.rollouts(model=call.query.get("model"), limit=_limit(call, 20)),
        query=(MODEL_QUERY, _LIMIT),
    ),
    Endpoint("POST", "/rollouts", "Start a rollout.", _start_rollout, body=RolloutRequest),
    Endpoint("GET", "/rollouts/{rollout}", "One rollout.", lambda o, call: o.rollout(call.path["rollout"])),
    _move("pause"),
    _move("resume"),
    _move("promote"),
    _move("abort"),
    Endpoint(
        "GET",
        "/predictions/{prediction}",
        "One prediction: its record, the lineage of its version, who approved it, and why it was routed so.",
        lambda o, call: o.prediction(call.path["prediction"]),
    ),
    Endpoint(
        "GET",
        "/decisions",
        "Decisions after a sequence number, in order; without `after` the newest ones.",
        lambda o, call: o.decisions(
            model=call.query.get("model"),
            after=_number(call, "after", default=None, highest=MAX_SEQUENCE),
            limit=_limit(call, 100),
        ),
        query=(MODEL_QUERY, Query("after", "A sequence number.", "integer", MAX_SEQUENCE), _LIMIT),
    ),
    Endpoint("GET", "/audit/verify", "Walk the chain of decisions.", lambda o, call: o.verify_audit()),
    Endpoint("GET", "/drift", "What the monitor sees, per model.", lambda o, call: o.drift(None)),
    Endpoint("GET", "/drift/{model}", "What the monitor sees of a model.", lambda o, call: o.drift(call.path["model"])),
)
