"""`gateway predictions reconcile`: served = logged + sampled out + dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gateway.cli.client import CommandError
from gateway.cli.screen import AsJson, print_json, print_table
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
from gateway.events.records import KIND_FEEDBACK, KIND_PREDICTION

if TYPE_CHECKING:
    from gateway.predictions.reconcile import FrontBalance, FrontCounts, Life
    from gateway.predictions.segments import LogRecord

__all__ = ("reconcile",)

_SHOWN_GAPS = 20


def reconcile(
    since: Since = None,
    until: Until = None,
    source: Source = "spool",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Prove that everything served is in the log, was sampled out, or was counted as dropped.

    The records of each front are numbered: what is missing between two that are there is named. Without a window the
    log is also held against what the fronts have counted since the gateway was started. Exit code 1 when something is
    missing that was not counted as dropped.
    """
    settings = settings_of(config, state_dir)
    metrics = settings.run_dir / "metrics"
    from gateway.predictions.reconcile import balance, lives_of

    # Without --until the log is read to where it ends: a clock that was set back must not hide a number.
    low, high = window(since, until)
    kinds = {KIND_PREDICTION, KIND_FEEDBACK}
    records = records_of(settings, source, kinds=kinds, since=low, until=high)
    progress = Progress("records")
    with interruptible(progress):
        before = _counts(metrics)
        lives = lives_of(_counted(records, progress))
        after = _counts(metrics)
    balances: list[FrontBalance] = []
    if source == "spool" and low is None and high is None and after:
        started = (settings.run_dir / "settings.json").stat().st_mtime
        balances = balance([life for life in lives if _began(life) >= started - 1], before, after)
    missing = sum(life.missing for life in lives)
    explained = sum(front.dropped for front in balances)
    ok = missing <= explained and all(front.holds for front in balances)
    if as_json:
        print_json(_body(lives, balances, ok=ok))
    else:
        _print(lives, balances, ok=ok)
    if not ok:
        raise typer.Exit(1)


def _counted(records: Iterator[LogRecord], progress: Progress) -> Iterator[LogRecord]:
    for record in records:
        progress.add()
        yield record


def _began(life: Life) -> float:
    return int(life.boot[:12], 16) / 1000


def _counts(metrics: Path) -> dict[int, FrontCounts]:
    from gateway.predictions.reconcile import FrontCounts
    from gateway.telemetry.exposition import counters_of
    from gateway.telemetry.layout import MetricFileError

    found = {}
    for path in metrics.glob("front-*.cells"):
        try:
            counters = counters_of(path)
        except MetricFileError as error:
            raise CommandError(str(error)) from None
        events = {labels[0]: int(v) for (name, labels), v in counters.items() if name == "gateway_log_events_total"}
        received = (v for (name, labels), v in counters.items() if name == "gateway_feedback_total")
        found[int(path.stem.removeprefix("front-"))] = FrontCounts(
            requests=int(sum(v for (name, _), v in counters.items() if name == "gateway_requests_total")),
            refused=events.get("refused", 0),
            labels=int(sum(received)),
            spooled=events.get("spooled", 0),
            sampled_out=events.get("sampled_out", 0),
            dropped=events.get("dropped", 0),
        )
    return found


def _body(lives: list[Life], balances: list[FrontBalance], *, ok: bool) -> dict[str, Any]:
    import msgspec

    written = [
        {
            **msgspec.to_builtins(life),
            "front": life.slot,
            "missing": life.missing,
            "gaps": [gap._asdict() for gap in life.gaps],
        }
        for life in lives
    ]
    return {"ok": ok, "lives": written, "fronts": msgspec.to_builtins(balances)}


def _print(lives: list[Life], balances: list[FrontBalance], *, ok: bool) -> None:
    columns = ("front", "life", "from", "to", "numbers", "logged", "sampled out", "labels", "missing", "repeated")
    print_table(
        columns,
        [
            (
                life.slot,
                life.boot,
                life.since,
                life.until,
                f"{life.first} to {life.last}",
                life.predictions - life.sampled_out,
                life.sampled_out,
                life.labels,
                life.missing,
                life.repeated,
            )
            for life in lives
        ],
    )
    gaps = [(life, gap) for life in lives for gap in life.gaps]
    for life, gap in gaps[:_SHOWN_GAPS]:
        typer.echo(f"missing: {life.boot} numbers {gap.first} to {gap.last}, between {gap.after} and {gap.before}")
    if len(gaps) > _SHOWN_GAPS:
        typer.echo(f"... and {len(gaps) - _SHOWN_GAPS} gaps more; --json names all of them")
    for front in balances:
        typer.echo(
            f"front {front.front} since its start: served {front.served} = logged {front.logged} + sampled out "
            f"{front.sampled_out} + dropped {front.served - front.logged - front.sampled_out}; "
            f"lost {front.lost}, uncounted {front.uncounted}, dropped with labels {front.dropped}"
        )
    if not balances:
        typer.echo("no counts of a running gateway were compared: the numbers alone speak here")
    typer.echo("nothing is missing" if ok else "something is missing that was not counted as dropped")
