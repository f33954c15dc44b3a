"""`gateway feedback`: labels for answered predictions."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.client import DEFAULT_INFERENCE_URL, CommandError, error_text, inference_url, is_url
from gateway.cli.group import Commands
from gateway.events.addresses import AddressError, parse_id

__all__ = ("app",)

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help="Send labels for answered predictions."
)

SEND_SECONDS = 15.0
BATCH = 500
COLUMNS = ("prediction_id", "row", "label")


@app.callback()
def feedback() -> None:
    """Send labels for answered predictions."""


@app.command()
def send(
    model: Annotated[str, typer.Argument(help="The model that predicted.")],
    prediction_id: Annotated[str | None, typer.Argument(help="The prediction's id.")] = None,
    row: Annotated[int, typer.Option(min=0, help="Row of the request, from 0.")] = 0,
    label: Annotated[float | None, typer.Option(help="What turned out to be true.")] = None,
    file: Annotated[
        Path | None, typer.Option(help=f"A CSV file with the columns {', '.join(COLUMNS)} in place of one label.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="The inference port.", show_default="the gateway here")] = None,
) -> None:
    """Send one label, or those of a file; sending one again changes nothing.

    They go into the log; how many fit a prediction is in `gateway drift status MODEL` once the monitor has read them.
    """
    if file is not None:
        if prediction_id is not None or label is not None:
            raise typer.BadParameter("a file takes the place of a prediction and its label", param_hint="--file")
        labels = _read(file)
    elif prediction_id is None or label is None:
        raise typer.BadParameter("expected PREDICTION_ID and --label, or --file")
    elif not math.isfinite(label):
        raise typer.BadParameter(f"{label} is no number that can be true", param_hint="--label")
    else:
        labels = iter([{"prediction_id": prediction_id, "row": row, "label": label}])
    base = url or inference_url()
    if not is_url(base):
        raise CommandError(f"{base!r} is no URL; expected one such as {DEFAULT_INFERENCE_URL}")
    sent = _send(f"{base}/v2/models/{quote(model, safe='')}/feedback", labels)
    typer.echo(f"{sent} label{'' if sent == 1 else 's'} taken")


def _send(url: str, labels: Iterator[dict[str, Any]]) -> int:
    import httpx2

    sent = 0
    try:
        with httpx2.Client(timeout=SEND_SECONDS, trust_env=False) as http:
            for batch in _batches(labels):
                response = http.post(url, json=batch[0] if len(batch) == 1 else {"feedback": batch})
                if response.status_code >= 400:
                    raise CommandError(f"{sent} labels taken, then refused: {error_text(response)}")
                sent += len(batch)
    except httpx2.ConnectError:
        raise CommandError(f"no gateway answers at {url}; start one with `gateway serve`, or give --url") from None
    except httpx2.HTTPError as error:
        raise CommandError(f"{sent} labels taken, then the gateway went away: {error}") from None
    except (httpx2.InvalidURL, ValueError) as error:
        raise CommandError(f"{sent} labels taken, and the rest cannot be sent: {error}") from None
    return sent


def _batches(labels: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for label in labels:
        batch.append(label)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"prediction_id", "label"} <= set(rows.fieldnames or ()):
                raise CommandError(f"{path} has the columns {rows.fieldnames}; expected {', '.join(COLUMNS)}")
            for line in rows:
                try:
                    parse_id(line["prediction_id"])
                    yield {
                        "prediction_id": line["prediction_id"],
                        "row": _whole(line.get("row") or "0"),
                        "label": _finite(line["label"]),
                    }
                except AddressError as error:
                    raise CommandError(f"{path}, line {rows.line_num}: {error}") from None
                except (TypeError, ValueError):
                    text = f"{path}, line {rows.line_num}: expected a whole row from 0 on, and a number as label"
                    raise CommandError(text) from None
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"cannot read {path}: {error}") from None
