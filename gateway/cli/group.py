"""A group of commands whose failures are one line on standard error, and exit code 1."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from gateway.cli.client import CommandError
from gateway.cli.screen import clean

__all__ = ("Commands", "show_types")


def show_types(command: Any, ctx: Any) -> None:
    """Let help show flags without a type, as `--json <bool>` looks as if it took a value, and ranges once."""
    for option in command.get_params(ctx):
        if option.param_type_name == "option" and option.metavar is None:
            option.metavar = "" if option.is_flag else option.display_type(ctx).replace(" range>", ">")


class Commands(TyperGroup):
    """Turns a `CommandError` of any command in it into its one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            # It may hold what others worded, such as a model's failure.
            typer.echo(f"gateway: {clean(error)}", err=True)
            raise typer.Exit(1) from None
        except UnicodeEncodeError as error:
            typer.echo(f"gateway: {error.object[:64]!a} is no text that {error.encoding} has", err=True)
            raise typer.Exit(1) from None
