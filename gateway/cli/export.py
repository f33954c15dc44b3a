"""`gateway predictions export`: a window of the log as a table for other programs."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

import typer

from gateway.cli.client import CommandError
from gateway.cli.screen import clean
from gateway.cli.window import (
    AnsweringArm,
    Config,
    Progress,
    Since,
    Source,
    StateDir,
    Until,
    interruptible,
    readings_of,
    records_of,
    settings_of,
    window,
)
from gateway.events.records import KIND_FEEDBACK, KIND_PREDICTION

if TYPE_CHECKING:
    from gateway.predictions.table import ColumnNames

__all__ = ("export",)

_Form = Literal["jsonl", "parquet"]
_FORMS: dict[str, _Form] = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


def export(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file; its end tells the format: .jsonl, .json or .parquet.",
            show_default="JSON lines on standard output",
        ),
    ] = None,
    form: Annotated[_Form | None, typer.Option("--format", show_default="as the file's end tells")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Only what this version answered.")] = None,
    arm: Annotated[AnsweringArm | None, typer.Option(help="Only what this arm answered.")] = None,
    since: Since = None,
    until: Until = None,
    failed: Annotated[bool, typer.Option("--failed", help="Failed predictions too.")] = False,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Join the labels that have come by now.")] = True,
    source: Source = "spool",
    models: Annotated[Path | None, typer.Option(help="Model folders.", show_default="as the settings have it")] = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Write predictions as a table: a line for each row, with inputs and outputs by their names, and the label.

    The columns have the names of the version's reference. Parquet needs the extra `archive`.
    """
    form = form or _form_of(output)
    if form == "parquet" and output is None:
        raise typer.BadParameter("Parquet goes into a file", param_hint="--output")
    settings = settings_of(config, state_dir)
    low, high = window(since, until)
    high = time.time() if high is None else high
    from gateway.predictions.arrow import NeedsArchiveExtra
    from gateway.predictions.export import chosen, export_jsonl, export_parquet, lines_of
    from gateway.predictions.table import TableLine, labels_by_prediction

    progress = Progress("rows written")
    try:
        with interruptible(progress):
            # A label comes after its prediction, however late: the window bounds the predictions alone.
            joined = (
                labels_by_prediction(records_of(settings, source, kinds={KIND_FEEDBACK}, since=low, until=None), model)
                if labels
                else {}
            )
            names = _column_names(models or settings.models)

            read = readings_of(settings, source, kinds={KIND_PREDICTION}, since=low, until=high)

            def lines() -> Iterator[TableLine]:
                wanted = chosen(read(), model=model, version=version, arm=arm, failed=failed)
                empty = True
                for line in lines_of(wanted, names, joined):
                    empty = False
                    yield line
                if empty and model is not None:
                    # Before a file takes the place of one that was there.
                    _check_known(models or settings.models, model, version)

            if form == "parquet" and output is not None:
                export_parquet(lines, output, progress.add)
            else:
                with _opened(output) as file:
                    export_jsonl(lines(), file, progress.add)
    except NeedsArchiveExtra as error:
        raise CommandError(f"Parquet cannot be written: {error}") from None
    except BrokenPipeError:
        # Whoever read the lines has had enough; nothing more may be written when this process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise CommandError(f"cannot write {output or 'the table'}: {error.strerror}") from None
    if output is not None:
        typer.echo(f"{progress.count} rows in {output}")


def _check_known(models: Path, model: str, version: int | None) -> None:
    folder = models / model if version is None else models / model / str(version)
    if not folder.is_dir():
        what = clean(model) if version is None else f"{clean(model)} version {version}"
        raise CommandError(f"the log has no prediction of {what}, and {models} no such folder")


def _form_of(output: Path | None) -> _Form:
    if output is None:
        return "jsonl"
    if output.suffix not in _FORMS:
        raise typer.BadParameter(
            f"{str(output)!r} tells no format: expected an end of {', '.join(_FORMS)}, or --format",
            param_hint="--output",
        )
    return _FORMS[output.suffix]


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file that is there when it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def _column_names(models: Path) -> ColumnNames:
    from gateway.drift.profile import ProfileError, decode_profile
    from gateway.repository.manifest import PROFILE_NAME

    @functools.lru_cache(maxsize=256)
    def names(model: str, version: int) -> Mapping[str, Sequence[str]]:
        try:
            return decode_profile((models / model / str(version) / PROFILE_NAME).read_bytes()).columns
        except (OSError, ProfileError):
            return {}

    return names
