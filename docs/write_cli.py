"""Write `docs/cli.md` from the commands themselves.

Run it after a change of a command: `python docs/write_cli.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from gateway.cli.main import COMMANDS, app

PAGE = Path(__file__).with_name("cli.md")

_HEAD = """# Command line

Written by `docs/write_cli.py`; `gateway COMMAND --help` says the same.

- Commands that steer or look speak to the admin API of a running gateway: the one at `GATEWAY_URL`, else the one that
  runs on the state directory here (`GATEWAY_STATE_DIR`, `state_dir` in `gateway.toml`, or `.gateway`). Where no state
  directory is named and `.gateway` has none running, it is `http://127.0.0.1:8003`. `GATEWAY_TOKEN` is sent as bearer
  token. The user's name goes along as the actor.
- `serve`, `check`, `models add` and `models verify` work on files and need no gateway. `predictions tail` reads the
  log of the state directory when no gateway runs.
- Reads take `--json`. Exit codes: 0 done, 1 refused or failed (one line on standard error says why), 2 bad usage.
"""


def page() -> str:
    """Return the text of `docs/cli.md`."""
    return _HEAD + "".join(f"\n{section}" for section in _sections())


def _sections() -> Iterator[str]:
    program: Any = typer.main.get_command(app)
    context = typer.Context(program, info_name="gateway")
    for name, line in COMMANDS.items():
        if line.hidden:
            continue
        command = program.get_command(context, name)
        children = getattr(command, "commands", None)
        if children is None:
            yield _section(f"gateway {name}", command)
        else:
            for child, called in children.items():
                yield _section(f"gateway {name} {child}", called)


def _section(name: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    options = [parameter for parameter in shown if parameter.param_type_name == "option" and parameter.name != "help"]
    usage = " ".join([name, *(_argument(argument) for argument in arguments), *(["[OPTIONS]"] if options else [])])
    lines = [f"## {name}", "", _paragraphs(command.help or ""), "", f"    {usage}", ""]
    if shown:
        lines += ["| | |", "|---|---|"]
        lines += [f"| `{argument.name.upper()}` | {_cell(argument.help)} |" for argument in arguments]
        lines += [f"| `{_flags(option)}` | {_cell(option.help)}{_default(option)} |" for option in options]
        lines.append("")
    return "\n".join(lines)


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _argument(argument: Any) -> str:
    name = str(argument.name).upper()
    return name if argument.required else f"[{name}]"


def _flags(option: Any) -> str:
    return " / ".join([*option.opts, *option.secondary_opts])


def _default(option: Any) -> str:
    if option.required:
        return " Required."
    if isinstance(option.show_default, str):
        return f" Default: {option.show_default}."
    if option.default in (None, "", False) or callable(option.default):
        return ""
    return f" Default: {'yes' if option.default is True else option.default}."


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
