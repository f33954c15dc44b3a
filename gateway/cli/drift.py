"""`gateway drift`: what the monitor sees."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from gateway.cli.client import open_client
from gateway.cli.evidence import alarms_table, feedback_text, readings_table, verdict_text, versions_table
from gateway.cli.group import Commands
from gateway.cli.screen import AsJson, clean, console, print_json

__all__ = ("app",)

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, help="Show drift and quality.")


@app.callback()
def drift() -> None:
    """Show drift and quality."""


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="The model; left out: all.")] = None, as_json: AsJson = False
) -> None:
    """Show what the monitor sees: evidence per detector, alarms, quality."""
    client = open_client()
    if as_json:
        print_json(client.get("/drift" if name is None else f"/drift/{quote(name, safe='')}"))
        return
    models = client.get("/drift")["models"] if name is None else {name: client.get(f"/drift/{quote(name, safe='')}")}
    screen = console()
    for model, seen in models.items():
        screen.print(clean(model), markup=False)
        screen.print(versions_table(seen))
        for table in (readings_table(seen), alarms_table(seen)):
            if table is not None:
                screen.print(table)
        for text in (verdict_text(seen), feedback_text(seen), *seen.get("notes", [])):
            if text:
                screen.print(clean(text), markup=False)
