"""`gateway`: the program. Each command is imported when it is called, so that every one of them starts quickly."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from gateway import __version__
from gateway.cli.group import Commands, show_types

__all__ = ("COMMANDS", "CommandLine", "app", "run")


class CommandLine(NamedTuple):
    """One command or noun: where it lives, and what `gateway --help` says of it before it is imported."""

    place: str
    panel: str
    summary: str
    hidden: bool = False


_RUN, _STEER, _LOOK, _PARTS = "Run", "Steer", "Look", "Parts of the gateway, one by one"

COMMANDS: dict[str, CommandLine] = {
    "serve": CommandLine("gateway.cli.serve:serve", _RUN, "Run the gateway."),
    "check": CommandLine("gateway.cli.serve:check", _RUN, "Check settings, policies and model folders."),
    "demo": CommandLine("gateway.cli.demo:demo", _RUN, "Replay real hours through a gateway of its own."),
    "models": CommandLine("gateway.cli.models:app", _STEER, "Add, list, approve and verify model versions."),
    "route": CommandLine("gateway.cli.route:app", _STEER, "Show and set which versions get a model's traffic."),
    "rollout": CommandLine("gateway.cli.rollout:app", _STEER, "Start, watch and steer rollouts."),
    "rollback": CommandLine("gateway.cli.rollback:rollback", _STEER, "Take a bad version back by hand."),
    "predictions": CommandLine("gateway.cli.predictions:app", _LOOK, "Follow and look up logged predictions."),
    "feedback": CommandLine("gateway.cli.feedback:app", _LOOK, "Send labels for answered predictions."),
    "drift": CommandLine("gateway.cli.drift:app", _LOOK, "Show drift and quality."),
    "audit": CommandLine("gateway.cli.audit:app", _LOOK, "Read and verify the decisions."),
    "front": CommandLine("gateway.cli.serve:front", _PARTS, "Run one front."),
    "monitor": CommandLine("gateway.cli.serve:monitor", _PARTS, "Run the monitor."),
    "ship": CommandLine("gateway.cli.serve:ship", _PARTS, "Run the shipper, from the spool to Kafka."),
    "archive": CommandLine("gateway.cli.serve:archive", _PARTS, "Run the archiver, from the spool to Parquet."),
    "admin-process": CommandLine("gateway.cli.serve:admin_process", _PARTS, "Run the admin API.", hidden=True),
}

_HELP = "gateway.help"


class _Program(Commands):
    """The commands of the table."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # Where typer looks for a name like one that is none.
        self.commands: Any = dict.fromkeys(name for name, line in COMMANDS.items() if not line.hidden)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        line = COMMANDS.get(cmd_name)
        if line is None:
            return None
        if ctx.meta.get(_HELP):
            return TyperCommand(cmd_name, help=line.summary, hidden=line.hidden, rich_help_panel=line.panel)
        return _imported(cmd_name, line)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        ctx.meta[_HELP] = True
        show_types(self, ctx)
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=_Program,
    name="gateway",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve versioned ONNX models, split their traffic, log every prediction, and take a bad version back.",
    epilog="Commands find the running gateway by GATEWAY_URL, or by the state directory here; GATEWAY_TOKEN is sent "
    "where it is set. Exit codes: 0 done, 1 refused or failed, 2 bad usage.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gateway {__version__}")
        raise typer.Exit(0)


@app.callback()
def gateway(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """The program itself has no options but `--version`."""


def run() -> None:
    """The entry point of the program."""
    app()


def _imported(name: str, line: CommandLine) -> Any:
    module, _, attribute = line.place.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    command.hidden = line.hidden
    for each in (command, *getattr(command, "commands", {}).values()):
        show_types(each, typer.Context(each))
    return command
