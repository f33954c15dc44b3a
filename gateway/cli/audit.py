"""`gateway audit`: what the system and people did, and whether the record of it is whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.client import CommandError, open_client
from gateway.cli.group import Commands
from gateway.cli.screen import AsJson, clean, console, print_json, print_table
from gateway.control.told import told_change

__all__ = ("app",)

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, help="Read and verify the decisions.")

_TABLE_WIDTH = 140
"""Columns that the table takes; in fewer its texts would be a word or two wide."""


@app.command(name="list")
def list_decisions(
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="Those after this number; left out: the newest.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List decisions in their order: who did what, when and why, and what it made of a version or a route."""
    client = open_client()
    body = client.get("/decisions", {"model": model, "after": after, "limit": limit})
    if model is not None and not body["decisions"]:
        client.check_model(model)
    if as_json:
        print_json(body)
        return
    keys, last = ("seq", "time", "model", "kind", "actor"), ("change", "reason")
    rows = [
        [*(one[key] for key in keys), clean(told_change(one["before"], one["after"])), one["reason"]]
        for one in body["decisions"]
    ]
    if console().width >= _TABLE_WIDTH:
        print_table([*keys, *last], rows)
    else:
        _print_below_one_another(rows)


def _print_below_one_another(rows: list[list[Any]]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    screen = console()
    for *facts, change, reason in rows:
        screen.print(Text("  ".join(map(clean, facts))))
        for told in filter(None, (change, clean(reason))):
            screen.print(Padding.indent(Text(told), 4))


@app.command()
def verify(as_json: AsJson = False) -> None:
    """Walk the chain of all decisions; fails when one was changed, removed, moved or put in.

    It fails too when a version, a route or a rollout is not as its last decision left it.
    """
    report = open_client().get("/audit/verify")
    if as_json:
        print_json(report)
        if not report["ok"]:
            raise typer.Exit(1)
    elif report["ok"]:
        typer.echo(f"{report['decisions']} decisions, none touched; the last hash is {report['head']}")
    elif report["first_bad"] is None:
        raise CommandError(
            "the decisions are as they were written, but the store is not as they left it: "
            + "; ".join(clean(text) for text in report["differences"])
        )
    else:
        raise CommandError(
            f"decision {report['first_bad']} is not as it was written; "
            "compare it with the log's decisions, which carry the same hashes"
        )
