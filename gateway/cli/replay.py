"""`gateway predictions replay`: logged inputs through a version."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gateway.cli.client import CommandError
from gateway.cli.screen import AsJson, clean, print_facts, print_json, print_table
from gateway.cli.window import (
    Config,
    Progress,
    Since,
    Source,
    StateDir,
    Until,
    interruptible,
    records_of,
    settings_of,
    window,
)
from gateway.events.records import KIND_PREDICTION

if TYPE_CHECKING:
    from gateway.predictions.replay import ReplayReport
    from gateway.predictions.versions import OpenVersion
    from gateway.settings import Settings

__all__ = ("replay",)

_SHOWN_OUTPUTS = 20


def replay(
    model: Annotated[str, typer.Option(help="The model.")],
    version: Annotated[int, typer.Option(min=1, help="Run this version; it need not be approved.")],
    against: Annotated[
        int | None, typer.Option(min=1, help="Compare with this version's answers.", show_default="the logged answers")
    ] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many predictions, the oldest first.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference within tolerance, relative; absolute below 1.")
    ] = 1e-6,
    require: Annotated[
        Literal["bits", "tolerance"] | None, typer.Option(help="Exit with 1 unless all answers are alike so far.")
    ] = None,
    source: Source = "spool",
    as_json: AsJson = False,
    models: Annotated[Path | None, typer.Option(help="Model folders.", show_default="as the settings have it")] = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Run logged predictions through a version, and tell how its answers differ.

    It runs in an engine of its own; nothing that serves is touched. Predictions share a run only where the version's
    manifest says that this changes no bit.
    """
    settings = settings_of(config, state_dir)
    low, high = window(since, until)
    records = records_of(
        settings, source, kinds={KIND_PREDICTION}, since=low, until=time.time() if high is None else high
    )
    from gateway.predictions.replay import replay as run

    progress = Progress("predictions replayed")
    with interruptible(progress), contextlib.ExitStack() as engines:
        opened = engines.enter_context(_opened(settings, models, model, version))
        other = None if against is None else engines.enter_context(_opened(settings, models, model, against))
        report = run(
            records,
            opened.replayed,
            model=model,
            against=None if other is None else other.replayed,
            tolerance=tolerance,
            limit=limit,
            progress=progress.add,
        )
    if as_json:
        import msgspec

        print_json({**msgspec.to_builtins(report), "bit_identical": report.is_bit_identical})
    else:
        _print(report, opened)
    if not report.replayed:
        raise CommandError(f"nothing was replayed: {report.read} predictions of {model} were read")
    if require and (report.failed or any(side.beyond + (require == "bits") * side.within for side in report.compared)):
        raise typer.Exit(1)


@contextlib.contextmanager
def _opened(settings: Settings, models: Path | None, model: str, version: int) -> Iterator[OpenVersion]:
    from gateway.engine.errors import EngineError
    from gateway.predictions.versions import open_version
    from gateway.repository.errors import RepositoryError
    from gateway.repository.policy import PolicyError

    folder = models or settings.models
    _check_there(folder, model, version)
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(open_version(folder, model, version, threads=settings.engine.threads))
        except (RepositoryError, PolicyError, EngineError) as error:
            raise CommandError(f"version {version} of {model} cannot be run: {error}") from None
        yield opened


def _check_there(models: Path, model: str, version: int) -> None:
    from gateway.repository.manifest import parse_version

    if not (models / model).is_dir():
        raise CommandError(f"there is no model {clean(model)} in {models}")
    known = sorted(filter(None, (parse_version(path.name) for path in (models / model).iterdir())))
    if version not in known:
        there = ", ".join(map(str, known)) or "none"
        raise CommandError(f"there is no version {version} of {clean(model)} in {models}; there are {there}")


def _print(report: ReplayReport, opened: OpenVersion) -> None:
    left_out = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in report.not_replayed.items())
    print_facts(
        [
            ("version", f"{report.model} version {report.version}, {opened.digest[:19]}, batching {opened.verdict}"),
            ("replayed", f"{report.replayed} of {report.read} predictions, {report.rows} rows"),
            ("took", f"{report.seconds:.1f} s"),
            *([("left out", left_out)] if left_out else []),
            *([("failed", str(report.failed))] if report.failed else []),
        ]
    )
    for error in report.errors:
        typer.echo(f"  {clean(error)}")
    for side in report.compared:
        typer.echo(
            f"against {side.against}: {side.equal} of {side.predictions} equal bit for bit, {side.within} within "
            f"tolerance, {side.beyond} beyond"
        )
        if side.first_different:
            typer.echo(f"  the first that differ: {', '.join(map(clean, side.first_different))}")
        if side.unlike:
            typer.echo(f"  {side.unlike} have other outputs, as {clean(side.first_unlike)}")
        if not side.outputs:
            continue
        print_table(
            ("output", "mean there", "mean here", "largest difference", "PSI", "KS"),
            [
                (
                    name,
                    f"{shift.mean_left:.6g}",
                    f"{shift.mean_right:.6g}",
                    f"{shift.largest_difference:.3g}",
                    f"{shift.psi:.4f}",
                    f"{shift.ks:.4f}",
                )
                for name, shift in list(side.outputs.items())[:_SHOWN_OUTPUTS]
            ],
        )
    print_table(
        ("time in the model", "runs", "p50 us", "p99 us", "us a row"),
        [
            (
                name,
                latency.runs,
                f"{latency.p50_us:.0f}",
                f"{latency.p99_us:.0f}",
                "" if latency.row_us is None else f"{latency.row_us:.2f}",
            )
            for name, latency in report.latency.items()
        ],
    )
