"""`gateway demo`: the whole gateway on real data, in under two minutes."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.client import CommandError
from gateway.cli.screen import AsJson

if TYPE_CHECKING:
    from gateway.demo.acts import Script
    from gateway.demo.report import Report

__all__ = ("demo",)

_CHECKOUT = Path(__file__).resolve().parents[2]


def demo(
    candidate: Annotated[
        Path | None,
        typer.Option(help="Folder of a version that takes the place of version 3, such as one without its mistake."),
    ] = None,
    without_labels: Annotated[
        bool, typer.Option("--without-labels", help="Nobody sends back what turned out to be true.")
    ] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Keep models, state and log in this folder, which must not exist.")
    ] = None,
    speed: Annotated[float, typer.Option(min=10, max=5000, help="Hours that are replayed in a second, at most.")] = 400,
    models: Annotated[Path | None, typer.Option(help="Folder of model folders.", show_default="the checkout's")] = None,
    hours: Annotated[Path | None, typer.Option(help="The hours to replay.", show_default="the checkout's")] = None,
    as_json: AsJson = False,
) -> None:
    """Replay real hours of bike sharing through a gateway of its own, and prove that all of it was logged.

    The demo runs `gateway serve` on free ports with an empty state. Each hour from October 2011 on is one request over
    HTTP, in the order of time; what turned out to be true follows two days later.

    Act 1: version 1, trained on 2011, serves alone. The scheme grows, and it decays.

    Act 2: version 2, trained on 2012, starts as a canary.

    Act 3: version 3 starts as a canary. It learned from temperatures in Fahrenheit, while callers send Celsius.

    The demo plays the callers and the operator, who approves versions and starts rollouts. Every verdict is the
    gateway's own and comes from the data. Exit code 0: predictions answered equal predictions logged.
    """
    from gateway.demo.acts import Script
    from gateway.demo.errors import DemoError

    folder = _folder(keep)
    script = Script(
        folder,
        models or _CHECKOUT / "models",
        hours or _CHECKOUT / "training" / "bike-demand" / "hours.csv.gz",
        candidate=candidate,
        labels=not without_labels,
        speed=speed,
    )
    # SIGTERM ends the demo as Ctrl-C does: the gateway is stopped and nothing is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = _play(script, as_json=as_json)
    except DemoError as error:
        raise CommandError(str(error)) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if keep is not None:
        typer.echo(f"models, state and log are in {keep}", err=True)
    raise typer.Exit(0 if report.proof_holds else 1)


def _folder(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="gateway-demo-"))
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise CommandError(f"cannot keep the demo in {keep}: {error.strerror}; name a folder to be made") from None
    return keep.resolve()


def _play(script: Script, *, as_json: bool) -> Report:
    import msgspec
    from rich.console import Console

    from gateway.demo.acts import Play
    from gateway.demo.closing import print_report
    from gateway.demo.ledger import prove
    from gateway.demo.report import report_of
    from gateway.demo.stage import LiveStage, PlainStage

    # The report alone goes to standard output where a program reads it.
    console = Console(stderr=as_json, highlight=False)
    began = time.monotonic()
    with LiveStage(console) if console.is_terminal else PlainStage(sys.stderr if as_json else sys.stdout) as stage:
        play = Play(script, show=stage.show)
        asyncio.run(play.run())
    report = report_of(
        play.scene,
        prove(play.scene.answers, play.book),
        audit_ok=play.audit_ok,
        labels_sent=script.labels,
        seconds=time.monotonic() - began,
    )
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print_report(report, Console(highlight=False, width=None if console.is_terminal else 140))
    return report
