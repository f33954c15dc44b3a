"""`gateway rollback`: take a bad version back by hand."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from gateway.cli.client import open_client
from gateway.cli.route import route_text
from gateway.cli.screen import AsJson, Reason, print_json

__all__ = ("rollback",)


def rollback(
    name: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="The version to take back; refused when it carries no traffic.")
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Take the canary off the route; without one, go back to the stable version of before."""
    body = open_client().post(f"/routes/{quote(name, safe='')}/rollback", {"version": version, "reason": reason})
    if as_json:
        print_json(body)
    else:
        typer.echo(f"rolled back; {route_text(body['route'])}")
