"""`gateway predictions`: the log of answered requests."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from gateway.cli.client import CommandError, NoGateway, open_client, state_dir_here
from gateway.cli.export import export
from gateway.cli.group import Commands
from gateway.cli.reconcile import reconcile
from gateway.cli.replay import replay
from gateway.cli.screen import AsJson, clean, flat, print_facts, print_json
from gateway.cli.window import AnsweringArm, archive_of, settings_of
from gateway.events.records import Arm, PredictionRecord, TensorRecord

__all__ = ("app", "arm_text")

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help="Follow and look up logged predictions."
)

POLL_SECONDS = 0.1
SHOWN_VALUES = 8

StateDir = Annotated[Path | None, typer.Option(help="Read the log in this state directory, without asking a gateway.")]


@app.command()
def tail(
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    arm: Annotated[AnsweringArm | None, typer.Option(help="Only what this arm answered.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="start, now, or a time such as 2026-05-01T06:00 (UTC).",
            show_default="now; start with --no-follow",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on as predictions are made.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON record a line.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Print predictions as they were logged, failed ones too."""
    from gateway.admin.tail import parse_start

    start = start or ("now" if follow else "start")
    try:
        parse_start(start)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--from") from None
    try:
        for line in _records(model, arm, start, follow=follow, state_dir=state_dir):
            typer.echo(line if as_json else _line(msgspec.json.decode(line, type=PredictionRecord)))
    except msgspec.DecodeError as error:
        raise CommandError(f"a record is of another form than this program reads; try --json ({error})") from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command()
def show(
    prediction_id: Annotated[str, typer.Argument(help="The id, as answers carry it.")],
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Show one prediction: what came in and went out, its labels, which version answered, why, and whence that comes.

    Without a gateway the log of the state directory tells of the prediction and its labels alone.
    """
    body = _prediction(prediction_id, state_dir)
    if as_json:
        print_json(body)
    else:
        print_facts(_facts(body))


app.command()(export)
app.command()(replay)
app.command()(reconcile)


def _prediction(prediction_id: str, state_dir: Path | None) -> dict[str, Any]:
    if state_dir is None:
        try:
            body: dict[str, Any] = open_client().get(f"/predictions/{prediction_id.replace('/', '')}")
            return body
        except NoGateway as error:
            state_dir = state_dir_here()
            if not (state_dir / "spool").is_dir():
                raise CommandError(f"{error}; {state_dir} holds no log either") from None
    return _from_log(state_dir, prediction_id)


def _from_log(state_dir: Path, prediction_id: str) -> dict[str, Any]:
    from gateway.events.addresses import AddressError
    from gateway.events.encoding import RecordError, read_envelope, seconds_of
    from gateway.events.records import KIND_PREDICTION
    from gateway.predictions.archive import ArchiveError
    from gateway.predictions.lookup import LogLookup

    lookup = LogLookup(state_dir / "spool", archive_of(settings_of(None, state_dir)))
    try:
        found = lookup.find(prediction_id)
        if found is None or found.kind != KIND_PREDICTION:
            raise CommandError(f"the log in {state_dir} holds no prediction {prediction_id[:64]} (any more)")
        told = read_envelope(found.payload)
        labels = lookup.labels_of(prediction_id, model=told.model, since=seconds_of(told.time))
    except (AddressError, RecordError, ArchiveError) as error:
        raise CommandError(str(error)) from None
    return {
        "prediction": json.loads(found.payload),
        "labels": [json.loads(label.payload) for label in labels],
        "version": None,
        "approval": None,
        "route": None,
    }


def _records(model: str | None, arm: Arm | None, start: str, *, follow: bool, state_dir: Path | None) -> Iterator[str]:
    if state_dir is not None:
        yield from _from_spool(state_dir, model, arm, start, follow=follow)
        return
    query = {"model": model, "arm": arm, "from": start, "follow": "true" if follow else "false"}
    present = {name: value for name, value in query.items() if value is not None}
    try:
        client = open_client()
        if model is not None and model not in [known["model"] for known in client.get("/models")["models"]]:
            _warn(f"there is no model {model!r} (yet); `gateway models list` shows those that there are")
        yield from client.lines("/predictions", present)
    except NoGateway as error:
        here = state_dir_here()
        if not (here / "spool").is_dir():
            raise CommandError(f"{error}; {here} holds no log either") from None
        yield from _from_spool(here, model, arm, start, follow=follow)


def _from_spool(state_dir: Path, model: str | None, arm: Arm | None, start: str, *, follow: bool) -> Iterator[str]:
    from gateway.admin.tail import open_tail, parse_start
    from gateway.predictions.spool import SpoolError

    if not (state_dir / "spool").is_dir():
        raise CommandError(f"{state_dir} holds no log: expected a folder {state_dir / 'spool'}")
    if model is not None:
        _warn_if_not_here(model, state_dir)
    with closing(open_tail(state_dir / "spool", model=model, arm=arm, start=parse_start(start), follow=follow)) as tail:
        while True:
            try:
                lines = tail.read()
            except SpoolError as error:
                raise CommandError(str(error)) from None
            for line in lines:
                yield line.decode()
            if tail.at_end:
                if not follow:
                    return
                time.sleep(POLL_SECONDS)


def _warn_if_not_here(model: str, state_dir: Path) -> None:
    # The log may lie far from any models or settings.
    with suppress(CommandError, OSError):
        models = settings_of(None, state_dir).models
        if model not in os.listdir(models):
            _warn(f"there is no model {model!r} in {models} (yet)")


def _warn(text: str) -> None:
    typer.echo(f"gateway: {text}", err=True)


def _line(record: PredictionRecord) -> str:
    outcome = record.error or " ".join(_tensor(output) for output in record.outputs)
    return (
        f"{clean(record.time)}  {clean(record.id)}  {clean(record.model)}/{record.version} "
        f"{clean(record.arm)}  {record.status}  {record.timings.total_us / 1000:.2f} ms  {clean(outcome)}"
    )


def _tensor(tensor: TensorRecord) -> str:
    if tensor.data is None:
        return f"{clean(tensor.name)}=<{'x'.join(map(str, tensor.shape))}>"
    shown = ", ".join(clean(value) for value in tensor.data[:SHOWN_VALUES])
    return f"{clean(tensor.name)}=[{shown}{', ...' if len(tensor.data) > SHOWN_VALUES else ''}]"


def _facts(body: dict[str, Any]) -> Iterator[tuple[str, object]]:
    record, version = msgspec.convert(body["prediction"], PredictionRecord), body["version"]
    timings = record.timings
    yield "prediction", record.id
    yield "time", record.time
    status = f" ({version['status']})" if version else ""
    yield "model", f"{record.model} version {record.version}{status}"
    yield "digest", record.digest
    yield "arm", arm_text(record.arm, record.reason, weight=record.weight)
    yield "status", f"{record.status}{f' {record.error}' if record.error else ''}"
    yield (
        "timings",
        f"{timings.total_us} us: {timings.queue_us} us queued, {timings.inference_us} us in the model",
    )
    yield "rows", record.rows
    for side, tensors in (("input", record.inputs), ("output", record.outputs)):
        for tensor in tensors:
            yield side, f"{tensor.datatype} {_tensor(tensor)}"
    if not record.sampled:
        yield "sampled", f"no: {record.sample:g} of such predictions are logged with inputs and outputs"
    for label in body["labels"]:
        yield "label", f"{label['label']:g} for row {label['row']}, {label['time']}"
    if record.parameters:
        yield "parameters", json.dumps(record.parameters, ensure_ascii=False)
    if body["approval"]:
        yield "approved", _because(body["approval"])
    if body["route"]:
        yield "route", _because(body["route"])
    if version is None:
        return
    if version["lineage"] is None:
        yield "lineage", version.get("problem")
        return
    for name, value in version["lineage"].items():
        if value:
            yield name, flat(value)


def arm_text(arm: str, reason: str, *, weight: float) -> str:
    """Which arm a prediction came on, and why.

    >>> arm_text("stable", "sticky", weight=10.0)
    'stable, canary at 10 %, by its routing key'
    """
    if reason == "pinned":
        return f"{arm}, the request named the version"
    if reason == "stable":
        return f"{arm}, there was no canary"
    return f"{arm}, canary at {weight:g} %, {'by its routing key' if reason == 'sticky' else 'drawn'}"


def _because(decision: dict[str, Any]) -> str:
    reason = f": {decision['reason']}" if decision["reason"] else ""
    return f"{decision['time']} by {decision['actor']}, {decision['kind']} (decision {decision['seq']}){reason}"
