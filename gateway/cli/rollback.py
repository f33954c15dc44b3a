"""`gateway rollback`: take a bad version back by hand."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.client import AdminClient, CommandError, open_client
from gateway.cli.route import route_text
from gateway.cli.screen import AsJson, Reason, clean, print_json

__all__ = ("rollback",)

_LAST_DECISIONS = 100


def rollback(
    name: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[
        int | None,
        typer.Option(
            min=1, help="The version to take back; refused when it carries no traffic.", show_default="by the route"
        ),
    ] = None,
    reason: Reason = "",
    revision: Annotated[int | None, typer.Option(help="Only if the route is still at this revision.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take the canary off the route; without one, go back to the stable version of before.

    After a canary was taken back, the stable version goes only when it is named.
    """
    client = open_client()
    path = f"/routes/{quote(name, safe='')}"
    if version is None:
        version = _meant(client, client.get(path), checked=revision is not None)
    body = client.post(f"{path}/rollback", {"version": version, "reason": reason}, revision=revision)
    if as_json:
        print_json(body)
    else:
        typer.echo(f"version {version} was taken back; {route_text(body['route'])}")


def _meant(client: AdminClient, route: dict[str, Any], *, checked: bool) -> int:
    """The version to take back where none was named; `checked` where the caller has seen this very route."""
    if route["weight"] > 0:
        return int(route["canary"])
    name, stable = clean(route["model"]), int(route["stable"])
    if checked:
        return stable
    decisions = client.get("/decisions", {"model": route["model"], "limit": _LAST_DECISIONS})["decisions"]
    last = next((one for one in reversed(decisions) if "stable" in one["after"]), None)
    if route["previous"] is None:
        way_on = f"there is no stable version of before; `gateway route set {name} --stable N` takes another"
    else:
        way_on = f"`gateway rollback {name} --version {stable}` takes the stable version back"
    # Who types this command may mean a canary that the monitor took back while he did.
    if last is None:
        raise CommandError(f"the last {_LAST_DECISIONS} decisions on {name} say nothing of its route; {way_on}")
    if _took_canary(last):
        raise CommandError(
            f"version {last['before']['canary']} of {name} was taken back already, by {clean(last['actor'])} at "
            f"{clean(last['time'])}; {way_on}"
        )
    return stable


def _took_canary(decision: dict[str, Any]) -> bool:
    before, after = decision["before"], decision["after"]
    return bool(before.get("weight")) and not after["weight"] and before["stable"] == after["stable"]
