"""`gateway rollout`: take a canary forward on evidence."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.client import AdminClient, CommandError, open_client
from gateway.cli.evidence import readings_table, verdict_text
from gateway.cli.group import Commands
from gateway.cli.screen import AsJson, Reason, clean, console, print_json, print_table, table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ("app",)

app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, help="Start, watch and steer rollouts.")

WATCH_SECONDS = 0.5
_LAST_DECISIONS = 100
_COLUMNS = ("model", "stable", "canary", "phase", "step", "weight %", "id")

Name = Annotated[str, typer.Argument(help="The model.")]


@app.command()
def start(
    name: Name,
    canary: Annotated[int, typer.Option(min=1, help="The version on trial.")],
    steps: Annotated[
        str | None, typer.Option(help="Weights in percent, such as 5,25,50.", show_default="from model.toml")
    ] = None,
    reason: Reason = "",
    allow_signature_change: Annotated[
        bool, typer.Option("--allow-signature-change", help="Also when the canary's inputs or outputs differ.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a rollout; evidence takes it forward, holds it, or takes it back."""
    body = {
        "model": name,
        "canary": canary,
        "plan": {} if steps is None else {"steps": _weights(steps)},
        "reason": reason,
        "allow_signature_change": allow_signature_change,
    }
    _print(open_client().post("/rollouts", body), as_json=as_json)


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="The model; left out: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show rollouts, the newest first."""
    client = open_client()
    body = client.get("/rollouts", {"model": name, "limit": limit})
    if name is not None and not body["rollouts"]:
        client.check_model(name)
    if as_json:
        print_json(body)
    else:
        print_table(_COLUMNS, [_row(rollout) for rollout in body["rollouts"]])


@app.command()
def watch(name: Name) -> None:
    """Follow the newest rollout of a model until it is over."""
    from rich.live import Live

    client = open_client()
    rollout_id = _newest(client, name)["id"]
    screen = console()
    try:
        with Live(console=screen, refresh_per_second=4, transient=False) as live:
            while True:
                rollout = client.get(f"/rollouts/{rollout_id}")
                if rollout["over"]:
                    live.update(_view(rollout, {}, said=""))
                    break
                seen = _seen(client, name)
                live.update(_view(rollout, seen, said=verdict_text(seen) or "no evidence yet"))
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    if not screen.is_terminal:
        screen.print()  # where it is one, Live has ended its last line
    screen.print(clean(_ending(client, rollout)), markup=False)


@app.command()
def pause(name: Name, reason: Reason = "", as_json: AsJson = False) -> None:
    """Keep the weight as it is until someone resumes."""
    _move(name, "pause", reason, as_json=as_json)


@app.command()
def resume(name: Name, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let evidence take the rollout forward again."""
    _move(name, "resume", reason, as_json=as_json)


@app.command()
def promote(name: Name, reason: Reason = "", as_json: AsJson = False) -> None:
    """Make the canary the stable version, on your word instead of evidence."""
    _move(name, "promote", reason, as_json=as_json)


@app.command()
def abort(name: Name, reason: Reason = "", as_json: AsJson = False) -> None:
    """End the rollout and take the canary off the route."""
    _move(name, "abort", reason, as_json=as_json)


def _move(name: str, event: str, reason: str, *, as_json: bool) -> None:
    client = open_client()
    rollout = _newest(client, name)
    _print(client.post(f"/rollouts/{rollout['id']}/{event}", {"reason": reason}), as_json=as_json)


def _newest(client: AdminClient, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = client.get("/rollouts", {"model": name, "limit": 1})["rollouts"]
    if not found:
        raise CommandError(f"there is no rollout of {name}; `gateway rollout start {name} --canary N` starts one")
    return found[0]


def _print(rollout: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(rollout)
        return
    typer.echo(
        f"{clean(rollout['model'])}: rollout of version {rollout['canary']} is {clean(rollout['phase'])}, "
        f"step {rollout['step'] + 1} of {len(rollout['steps'])}, weight {rollout['weight']:g} % ({rollout['id']})"
    )
    for note in rollout.get("notes", []):
        typer.echo(f"note: {clean(note)}")


def _row(rollout: dict[str, Any]) -> list[object]:
    step = f"{rollout['step'] + 1} of {len(rollout['steps'])}"
    phase = rollout["phase"].replace("_", " ")
    return [rollout["model"], rollout["stable"], rollout["canary"], phase, step, rollout["weight"], rollout["id"]]


def _seen(client: AdminClient, name: str) -> dict[str, Any]:
    try:
        status = client.get(f"/drift/{quote(name, safe='')}")
    except CommandError:
        return {}
    seen: dict[str, Any] = status
    return seen


def _ending(client: AdminClient, rollout: dict[str, Any]) -> str:
    decisions = client.get("/decisions", {"model": rollout["model"], "limit": _LAST_DECISIONS})["decisions"]
    for one in reversed(decisions):
        if (one["after"].get("rollout") or {}).get("id") == rollout["id"]:
            reason = f": {one['reason']}" if one["reason"] else ""
            return f"{one['kind'].replace('_', ' ')} by {one['actor']}, {one['time']}{reason}"
    return ""


def _view(rollout: dict[str, Any], seen: dict[str, Any], *, said: str) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    parts: list[RenderableType] = [
        table_of(_COLUMNS, [_row(rollout)]),
        Padding(ProgressBar(total=100, completed=rollout["weight"], width=60)),
    ]
    readings = readings_table(seen)
    if readings is not None:
        parts.append(readings)
    if said:
        parts.append(Text(clean(said), style="dim"))
    return Group(*parts)


def _weights(text: str) -> list[float]:
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = [math.nan]
    if not all(map(math.isfinite, weights)):
        raise typer.BadParameter(f"{text!r}: expected weights such as 5,25,50", param_hint="--steps")
    return weights
