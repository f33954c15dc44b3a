"""What each change does to a route. Pure: a route comes in, the route that shall be comes out.

A route whose canary was taken back, by evidence or by hand, names no canary any more. So a later trial of the same
version is a new one, with a new salt and evidence of its own.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.control.errors import Refused
from gateway.rollout.machine import RolloutState
from gateway.routing.table import Route, RouteError, check_route

__all__ = ("previous_route", "promoted_route", "route_summary", "set_route", "stable_route", "step_route")


def set_route(before: Route, *, stable: int, canary: int | None, weight: float, salt: str, revision: int) -> Route:
    """The route as a person or a plan wants it; `salt` is used when the canary is another one than before.

    Raises
    ------
    Refused
        The route cannot be served.
    """
    begins = canary is not None and canary != before.canary
    route = Route(
        before.model,
        stable,
        canary,
        float(weight),
        salt if begins or not before.salt else before.salt,
        before.stable if stable != before.stable else before.previous,
        before.trial + 1 if begins else before.trial,
        revision,
    )
    try:
        check_route(route)
    except RouteError as error:
        raise Refused(f"route of {before.model}: {error}") from None
    return route


def step_route(route: Route, rollout: RolloutState, *, revision: int) -> Route:
    """The route while a rollout is open: the canary has the weight of the present step."""
    return msgspec.structs.replace(route, weight=rollout.weight, revision=revision)


def promoted_route(route: Route, *, revision: int) -> Route:
    """The canary is the stable version now, and the old one is where a rollback would go."""
    if route.canary is None:
        raise Refused(f"the route of {route.model} has no canary to promote")
    return msgspec.structs.replace(
        route, stable=route.canary, canary=None, weight=0.0, previous=route.stable, revision=revision
    )


def stable_route(route: Route, *, revision: int) -> Route:
    """The canary is off the route."""
    return msgspec.structs.replace(route, canary=None, weight=0.0, revision=revision)


def previous_route(route: Route, *, revision: int) -> Route:
    """The stable version of before is back, alone; there is no second way back from here."""
    if route.previous is None:
        raise Refused(
            f"the route of {route.model} has no previous stable version to go back to; "
            f"`gateway route set {route.model} --stable N` takes another"
        )
    return msgspec.structs.replace(
        route, stable=route.previous, canary=None, weight=0.0, previous=None, revision=revision
    )


def route_summary(route: Route | None) -> dict[str, Any]:
    """What a decision says of a route; the salt stays a secret."""
    if route is None:
        return {}
    return {
        "stable": route.stable,
        "canary": route.canary,
        "weight": route.weight,
        "previous": route.previous,
        "trial": route.trial,
    }
