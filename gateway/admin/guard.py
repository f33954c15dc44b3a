"""Who may call the admin API: the token, and rules that keep web pages out.

All of it is decided on headers of the request that matched a route, never on a URL put together from them.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from gateway.admin.errors import BadRequest, Forbidden, Unauthorized, WrongType

__all__ = ("MAX_ACTOR", "actor_of", "authorize", "check_json", "check_origin")

Headers = Sequence[tuple[bytes, bytes]]

MAX_ACTOR = 200
_SAME_SITE = frozenset({b"same-origin", b"none"})


def authorize(headers: Headers, *, token: str) -> None:
    """Let a request pass that carries the token; compared as SHA-256, in a time that tells nothing.

    Raises
    ------
    Unauthorized
        No bearer token, another one, or more than one.
    """
    if not token:
        return
    found = _values(headers, b"authorization")
    scheme, _, given = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
    expected = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
    same = hmac.compare_digest(hashlib.sha256(given.strip()).digest(), expected)
    if scheme.lower() != b"bearer" or not given.strip():
        raise Unauthorized("a bearer token is needed: set GATEWAY_TOKEN, or send 'Authorization: Bearer <token>'")
    if not same:
        raise Unauthorized("the bearer token is not the one of this gateway (admin.token); look at GATEWAY_TOKEN")


def check_origin(headers: Headers, *, method: str, token: str) -> None:
    """Keep other sites' pages from acting through the operator's browser.

    Without a token the Host must be an address or `localhost` too, or a name that resolves to this machine by an
    attacker's will (DNS rebinding) would make his page "same origin".

    Raises
    ------
    Forbidden
        With the header that gave it away. Source: Fetch Metadata (W3C), as datasette's and Go's CSRF checks use it.
    """
    host = b"".join(_values(headers, b"host")[:1]).decode("latin-1")
    if not token and not _is_local_name(host):
        raise Forbidden(f"Host {host[:100]!r} is not an address of this machine; use 127.0.0.1 or set admin.token")
    if method in ("GET", "HEAD", "OPTIONS"):
        return
    for site in _values(headers, b"sec-fetch-site"):
        if site not in _SAME_SITE:
            raise Forbidden("a page of another site may not call the admin API (Sec-Fetch-Site)")
    for origin in _values(headers, b"origin"):
        if _host_of(origin.decode("latin-1")) != host.lower():
            raise Forbidden("a page of another site may not call the admin API (Origin)")


def check_json(headers: Headers) -> None:
    """Ask for `Content-Type: application/json`, which a form of another site cannot send.

    Raises
    ------
    WrongType
        With the type that came.
    """
    found = b", ".join(_values(headers, b"content-type")).decode("latin-1")
    if found.partition(";")[0].strip().lower() != "application/json":
        raise WrongType(f"Content-Type is {found[:100]!r}; expected application/json")


def actor_of(headers: Headers) -> str:
    """Who acts, in his own words: the header `Gateway-Actor`, percent-encoded UTF-8.

    Raises
    ------
    BadRequest
        The text is too long or not printable.
    """
    found = _values(headers, b"gateway-actor")
    if not found:
        return "api"
    actor = unquote(found[0].decode("latin-1"))
    if not 0 < len(actor) <= MAX_ACTOR or not actor.isprintable():
        raise BadRequest(f"Gateway-Actor: expected 1 to {MAX_ACTOR} printable characters")
    return actor


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _is_local_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost":
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
