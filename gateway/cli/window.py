"""What commands on the log share: which log, which window of time, and how far they have come."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gateway.cli.client import CommandError, state_dir_here
from gateway.events.encoding import RecordError, seconds_of

if TYPE_CHECKING:
    from gateway.predictions.archive import Archive
    from gateway.predictions.segments import LogRecord
    from gateway.settings import Settings

__all__ = (
    "AnsweringArm",
    "Config",
    "Progress",
    "Since",
    "Source",
    "StateDir",
    "Until",
    "archive_of",
    "interruptible",
    "readings_of",
    "records_of",
    "settings_of",
    "spool_of",
    "window",
)

_AGO = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TELL_SECONDS = 0.5

AnsweringArm = Literal["stable", "canary", "pinned"]
"""The arms that answer; no record is of `shadow` yet."""
Since = Annotated[
    str | None,
    typer.Option(help="From this time on: 2026-05-01T06:00 (UTC), or 90s, 30m, 12h, 7d ago.", show_default="all"),
]
Until = Annotated[str | None, typer.Option(help="Before this time; as --since.", show_default="now")]
Source = Annotated[Literal["spool", "kafka"], typer.Option("--from", help="Where the log is read.")]
StateDir = Annotated[
    Path | None, typer.Option(help="The state directory whose log is read.", show_default="the one here")
]
Config = Annotated[Path | None, typer.Option(help="Settings file.", show_default="gateway.toml, if there is one")]


def _moment(text: str | None, option: str) -> float | None:
    """Read a time, or how long ago it was, as seconds since 1970; None for none.

    Raises
    ------
    typer.BadParameter
    """
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        return time.time() - int(ago[1]) * _SECONDS[ago[2]]
    try:
        return seconds_of(text)
    except RecordError:
        raise typer.BadParameter(
            f"{text[:64]!r} is no time: expected one such as 2026-05-01T06:00, or 90s, 30m, 12h, 7d for so long ago",
            param_hint=option,
        ) from None


def window(since: str | None, until: str | None) -> tuple[float | None, float | None]:
    """Read `--since` and `--until` as seconds since 1970; None where nothing bounds the window.

    Raises
    ------
    typer.BadParameter
    """
    low, high = _moment(since, "--since"), _moment(until, "--until")
    if low is not None and high is not None and high <= low:
        raise typer.BadParameter(f"{until} is not after --since {since}", param_hint="--until")
    return low, high


def settings_of(config: Path | None, state_dir: Path | None) -> Settings:
    """The settings here, for the log of a state directory.

    Raises
    ------
    typer.Exit
        They are wrong, which has been told.
    """
    from gateway.settings import SettingsError, load_settings

    try:
        return load_settings(config, overrides={"state_dir": state_dir or state_dir_here()})
    except SettingsError as error:
        typer.echo(f"gateway: {error}", err=True)
        raise typer.Exit(2) from None


def records_of(
    settings: Settings, source: str, *, kinds: Collection[int], since: float | None, until: float | None
) -> Iterator[LogRecord]:
    """Read a window of the log, from the spool or from Kafka, to where it ends when that begins.

    Raises
    ------
    CommandError
    """
    if source == "kafka":
        from gateway.predictions.kafka_window import read_topics

        return read_topics(settings.kafka, kinds=kinds, since=since, until=until)
    from gateway.predictions.tail import read_all

    archive = archive_of(settings)
    return read_all(spool_of(settings), kinds=kinds, since=since, until=until, archive=archive)


def readings_of(
    settings: Settings, source: str, *, kinds: Collection[int], since: float | None, until: float | None
) -> Callable[[], Iterator[LogRecord]]:
    """As `records_of`, to be read more than once: always to where the log ends now.

    Raises
    ------
    CommandError, SpoolError, KafkaUnreadable
    """
    if source == "kafka":
        from gateway.predictions.kafka_window import ends_of_topics, read_topics

        held = ends_of_topics(settings.kafka, kinds=kinds)
        return lambda: read_topics(settings.kafka, kinds=kinds, since=since, until=until, ends=held)
    from gateway.predictions.tail import ends_of, read_all

    spool, archive = spool_of(settings), archive_of(settings)
    ends = ends_of(spool)
    return lambda: read_all(spool, kinds=kinds, since=since, until=until, archive=archive, ends=ends)


def archive_of(settings: Settings) -> Archive | None:
    """The archive of the settings; None where they name none.

    Raises
    ------
    CommandError
    """
    if not settings.spool.archive_url:
        return None
    from gateway.predictions.archive import Archive, ArchiveError
    from gateway.predictions.arrow import NeedsArchiveExtra

    try:
        return Archive.of(settings.spool.archive_url)
    except (ArchiveError, NeedsArchiveExtra) as error:
        raise CommandError(f"spool.archive_url = {settings.spool.archive_url!r}: {error}") from None


def spool_of(settings: Settings) -> Path:
    """The spool of a state directory that has one.

    Raises
    ------
    CommandError
    """
    if not settings.spool_dir.is_dir():
        raise CommandError(
            f"{settings.state_dir} holds no log: expected a folder {settings.spool_dir}; name one with --state-dir"
        )
    return settings.spool_dir


class Progress:
    """One line on standard error that says how far long work has come; silent where that is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr.isatty()
        self._told = self._began = time.monotonic()
        self.count = 0

    def add(self, count: int = 1) -> None:
        self.count += count
        now = time.monotonic()
        if self._shown and now - self._told >= _TELL_SECONDS:
            self._told = now
            rate = self.count / (now - self._began)
            sys.stderr.write(f"\r{self.count:,} {self._what}, {rate:,.0f} a second \x1b[K")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line back."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextmanager
def interruptible(progress: Progress) -> Iterator[None]:
    """End cleanly on SIGINT, and tell what a log that cannot be read says in one line.

    Raises
    ------
    CommandError
    """
    from gateway.predictions.archive import ArchiveError
    from gateway.predictions.kafka_window import KafkaUnreadable
    from gateway.predictions.spool import SpoolError

    try:
        yield
    except KeyboardInterrupt:
        progress.end()
        raise CommandError(f"stopped after {progress.count:,}") from None
    except (SpoolError, KafkaUnreadable, ArchiveError) as error:
        raise CommandError(str(error)) from None
    finally:
        progress.end()
