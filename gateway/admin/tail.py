"""The predictions in a spool, filtered, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

from gateway.events.encoding import Envelope, RecordError, read_envelope, seconds_of
from gateway.events.records import KIND_PREDICTION
from gateway.predictions.reader import SpoolReader
from gateway.predictions.segments import LogRecord
from gateway.predictions.tail import read_all

__all__ = ("Tail", "open_tail", "parse_start")

BLOCK = 500


class Tail(Protocol):
    """Predictions as JSON texts."""

    at_end: bool
    """Whether the last block ended with all there is by now."""

    def read(self) -> list[bytes]:
        """The next block; empty where nothing in it is wanted, or nothing is new."""

    def close(self) -> None:
        """Let go of files."""


def open_tail(spool_dir: Path, *, model: str | None, arm: str | None = None, start: str | float, follow: bool) -> Tail:
    """Read what the spool holds, in the order of time, or follow it from some moment on.

    Parameters
    ----------
    model : str or None
        Only predictions of this model.
    arm : str, optional
        Only those that this arm answered.
    start : "start", "now" or float
        Everything, only what is yet to come, or what has this time (seconds since 1970) and later ones.
    """
    wanted = _Wanted(model, arm)
    return _Following(spool_dir, wanted, start) if follow else _Held(spool_dir, wanted, start)


def parse_start(text: str) -> str | float:
    """Read where to begin: "start", "now", or an ISO 8601 time (UTC where it names no zone).

    >>> parse_start("start"), parse_start("1970-01-02T00:00")
    ('start', 86400.0)

    Raises
    ------
    ValueError
        The text is none of them.
    """
    if text in ("start", "now"):
        return text
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text[:64]!r} is no start: expected 'start', 'now' or a time such as 2026-05-01T06:00"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class _Wanted(NamedTuple):
    model: str | None
    arm: str | None

    def takes(self, envelope: Envelope | None) -> bool:
        if envelope is None:
            return self == (None, None)
        return self.model in (None, envelope.model) and self.arm in (None, envelope.arm)


class _Held:
    """What the spool holds now, all of its streams merged."""

    def __init__(self, spool_dir: Path, wanted: _Wanted, start: str | float) -> None:
        since = start if isinstance(start, float) else None
        self._records: Iterator[LogRecord] = (
            iter(()) if start == "now" else read_all(spool_dir, kinds={KIND_PREDICTION}, since=since)
        )
        self._wants = wanted
        self.at_end = False

    def read(self) -> list[bytes]:
        block = list(islice(self._records, BLOCK))
        self.at_end = len(block) < BLOCK
        return [record.payload for record in block if self._wants.takes(_envelope(record))]

    def close(self) -> None:
        self._records = iter(())


class _Following:
    """A spool from some moment on; a block is in the order of time."""

    def __init__(self, spool_dir: Path, wanted: _Wanted, start: str | float) -> None:
        self._reader = SpoolReader(spool_dir, start="latest" if start == "now" else "earliest")
        self._wants = wanted
        self._since = start if isinstance(start, float) else 0.0
        self.at_end = False

    def read(self) -> list[bytes]:
        block = self._reader.read(BLOCK)
        self.at_end = len(block) < BLOCK
        wanted = [found for record in block if (found := self._wanted(record)) is not None]
        return [payload for _, payload in sorted(wanted)]

    def close(self) -> None:
        self._reader.close()

    def _wanted(self, record: LogRecord) -> tuple[float, bytes] | None:
        envelope = _envelope(record)
        if record.kind != KIND_PREDICTION or envelope is None or not self._wants.takes(envelope):
            return None
        try:
            moment = seconds_of(envelope.time)
        except RecordError:
            moment = 0.0
        return (moment, record.payload) if moment >= self._since else None


def _envelope(record: LogRecord) -> Envelope | None:
    try:
        return read_envelope(record.payload)
    except RecordError:
        return None
