"""What commands print: JSON for programs, tables for people. Foreign text never reaches the terminal raw."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ("AsJson", "Reason", "clean", "console", "flat", "print_facts", "print_json", "print_table", "table_of")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it goes into the audit trail.")]

_PIPE_WIDTH = 200
_STYLES = {
    "approved": "green",
    "ready": "green",
    "promoted": "green",
    "running": "cyan",
    "rejected": "red",
    "failed": "red",
    "circuit open": "red",
    "rolled back": "red",
    "frozen": "yellow",
    "paused": "yellow",
}


def print_json(body: Any) -> None:
    """One JSON document."""
    typer.echo(json.dumps(body, indent=2, ensure_ascii=False))


def console() -> Console:
    """A console on standard output; wide where that is a pipe, so that no value is cut."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    console().print(table_of(columns, rows))


def table_of(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table of plain text; words that tell a state have its colour."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        texts = [clean(value) for value in row]
        table.add_row(*(Text(text, style=_STYLES.get(text, "")) for text in texts))
    return table


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Name and value, one a line, with the values under one another."""
    rows = [(name, clean(value)) for name, value in facts]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")


def clean(value: object) -> str:
    r"""A value as one line of printable text.

    >>> clean("a\x1b[31m\nb"), clean(None), clean(12.50)
    ('a\\x1b[31m b', '', '12.5')
    """
    if value is None:
        return ""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(
        letter if letter.isprintable() else " " if letter in "\n\t" else ascii(letter)[1:-1] for letter in text
    )


def flat(value: object) -> object:
    """A value as one fact: the parts of a dict that there are, in a line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items() if part is not None)
    return value
