"""Route and key in; version, arm and reason out.

Whoever asks brings the point in [0, 1) that decides: drawn for a request without a routing key, computed from the key
with one. A key enters the canary when its point is below the canary's share of the traffic, so a key that entered
stays while the weight grows.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Literal

import msgspec

__all__ = ("MAX_SALT_BYTES", "Choice", "Route", "RouteError", "check_route", "choose", "hash_key", "point_of")

MAX_SALT_BYTES = 64
"""The longest key that BLAKE2b takes (RFC 7693, section 2.1)."""

_RESOLUTION = 2.0**-53


class RouteError(Exception):
    """A route that cannot be: the caller is at fault; nothing was changed."""


class Route(msgspec.Struct, frozen=True, gc=False):
    """Which versions get a model's traffic.

    Parameters
    ----------
    stable, canary, previous : int
        Versions. `previous` is the stable version before this one, the place a rollback goes to.
    weight : float
        The canary's share of the traffic, percent.
    salt : str
        Secret of the trial, 1 to 64 bytes; it keys the hash of routing keys, so that nobody can aim at the canary.
        It changes only when the canary changes.
    trial : int
        Counts the model's canaries; it rises whenever the canary changes.
    revision : int
        Revision of the route table that holds this route.
    """

    model: str
    stable: int
    canary: int | None = None
    weight: float = 0.0
    salt: str = ""
    previous: int | None = None
    trial: int = 0
    revision: int = 0


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The version that answers, the arm it stands in and why: "pinned", "sticky", "weight" or "stable"."""

    version: int
    arm: Literal["stable", "canary", "pinned"]
    reason: str


def choose(route: Route, point: float, *, sticky: bool, pinned: int | None = None) -> Choice:
    """Choose the version for one request.

    A pin stands in the arm "pinned" also where it names the stable version or the canary: nobody drew it, so it is
    never evidence.

    Parameters
    ----------
    point : float
        In [0, 1): drawn uniformly, or `point_of` the routing key.
    sticky : bool
        Whether the point comes from a routing key.
    pinned : int, optional
        The version that path or header name.

    >>> route = Route("bike-demand", stable=1, canary=2, weight=10.0, salt="s3cret")
    >>> choose(route, 0.0999, sticky=False)
    Choice(version=2, arm='canary', reason='weight')
    >>> choose(route, point_of("rider-7", route.salt), sticky=True)
    Choice(version=1, arm='stable', reason='sticky')
    """
    if pinned is not None:
        return _choice(pinned, "pinned", "pinned")
    if route.canary is None:
        return _choice(route.stable, "stable", "stable")
    reason = "sticky" if sticky else "weight"
    if point < route.weight / 100.0:
        return _choice(route.canary, "canary", reason)
    return _choice(route.stable, "stable", reason)


_choice = functools.lru_cache(maxsize=1024)(Choice)
"""Equal choices are mostly one object, so that requests that were routed alike are quickly told."""


def point_of(key: str, salt: str) -> float:
    """Map a routing key to its point in [0, 1): BLAKE2b keyed with the salt, its first 53 bits.

    >>> point_of("rider-7", "s3cret") == point_of("rider-7", "s3cret")
    True
    """
    digest = hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode("utf-8", "surrogatepass")
    ).digest()
    return (int.from_bytes(digest, "big") >> 11) * _RESOLUTION


def hash_key(key: str) -> str:
    """Return what the log keeps of a routing key: SHA-256, the first 16 hex digits.

    >>> hash_key("rider-7")
    '11bd6c4ba5e96373'
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_route(route: Route) -> None:
    """Refuse a route that cannot be served.

    Raises
    ------
    RouteError
        With the field, what came and what is expected.
    """
    _check_version("stable", route.stable)
    if route.canary is not None:
        _check_version("canary", route.canary)
    if route.previous is not None:
        _check_version("previous", route.previous)
    if route.canary == route.stable:
        raise RouteError(f"canary is {route.canary}, and so is stable: expected two versions")
    if not (math.isfinite(route.weight) and 0.0 <= route.weight <= 100.0):
        raise RouteError(f"weight is {route.weight}: expected a percentage from 0 to 100")
    if route.canary is None and route.weight != 0.0:
        raise RouteError(f"weight is {route.weight} but there is no canary: expected 0")
    if route.canary is not None and not route.salt:
        raise RouteError("salt is empty: expected a secret, without which routing keys can be aimed at the canary")
    if len(route.salt.encode("utf-8", "surrogatepass")) > MAX_SALT_BYTES:
        raise RouteError(f"salt has {len(route.salt)} characters: expected at most {MAX_SALT_BYTES} bytes")


def _check_version(field: str, version: int) -> None:
    if version < 1:
        raise RouteError(f"{field} is {version}: expected a version, a positive integer")
