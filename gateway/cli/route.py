"""`gateway route`: which versions get a model's traffic."""

from __future__ import annotations

import math
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.client import open_client
from gateway.cli.group import Commands
from gateway.cli.screen import AsJson, Reason, clean, print_json, print_table

__all__ = ("app", "route_text")

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, help="Show, set and remove routes.")


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(help="The model; left out: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which versions get a model's traffic."""
    client = open_client()
    if name is None:
        body = client.get("/routes")
        routes = body["routes"]
    else:
        body = client.get(f"/routes/{quote(name, safe='')}")
        routes = [body]
    if as_json:
        print_json(body)
        return
    columns = ("model", "stable", "canary", "weight %", "previous", "revision")
    print_table(
        columns,
        [[route[key] for key in ("model", "stable", "canary", "weight", "previous", "revision")] for route in routes],
    )


@app.command(name="set")
def set_route(
    name: Annotated[str, typer.Argument(help="The model.")],
    stable: Annotated[int, typer.Option(min=1, help="The version that answers.")],
    canary: Annotated[int | None, typer.Option(min=1, help="A second version, on trial.")] = None,
    weight: Annotated[
        float | None,
        typer.Option(min=0, max=100, metavar="<%>", help="The canary's share of the traffic, percent."),
    ] = None,
    reason: Reason = "",
    allow_signature_change: Annotated[
        bool, typer.Option("--allow-signature-change", help="Also when the canary's inputs or outputs differ.")
    ] = False,
    revision: Annotated[int | None, typer.Option(help="Only if the route is still at this revision.")] = None,
    as_json: AsJson = False,
) -> None:
    """Set which versions get a model's traffic; an open rollout ends by it."""
    if weight is not None and not math.isfinite(weight):
        raise typer.BadParameter(f"{weight} is no weight in percent", param_hint="--weight")
    if canary is None and weight:
        raise typer.BadParameter("a weight needs a canary", param_hint="--weight")
    if canary is not None and weight is None:
        raise typer.BadParameter("a canary needs a weight in percent", param_hint="--weight")
    body = {
        "stable": stable,
        "canary": canary,
        "weight": weight or 0.0,
        "reason": reason,
        "allow_signature_change": allow_signature_change,
    }
    route = open_client().put(f"/routes/{quote(name, safe='')}", body, revision=revision)
    if as_json:
        print_json(route)
    else:
        typer.echo(route_text(route))
        _tell_superseded(route)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The model.")],
    reason: Reason = "",
    revision: Annotated[int | None, typer.Option(help="Only if the route is still at this revision.")] = None,
    as_json: AsJson = False,
) -> None:
    """Leave a model without traffic; only requests that name a version are answered. An open rollout ends by it."""
    body = open_client().post(f"/routes/{quote(name, safe='')}/remove", {"reason": reason}, revision=revision)
    if as_json:
        print_json(body)
        return
    typer.echo(f"{clean(name)} has no route any more")
    _tell_superseded(body)
    typer.echo(f"next, to end its engines: gateway models reject {clean(name)} VERSION --reason TEXT")


def _tell_superseded(body: dict[str, Any]) -> None:
    rollout = body.get("superseded")
    if rollout is not None:
        typer.echo(f"the rollout of version {rollout['canary']} ({clean(rollout['id'])}) ended by it")


def route_text(route: dict[str, Any]) -> str:
    """A route in one sentence.

    >>> route_text({"model": "m", "stable": 1, "canary": 2, "weight": 10.0})
    'm: version 1 is stable, version 2 is the canary with 10 %'
    """
    text = f"{clean(route['model'])}: version {route['stable']} is stable"
    if route["canary"] is not None:
        text += f", version {route['canary']} is the canary with {route['weight']:g} %"
    return text
