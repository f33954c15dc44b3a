"""Following the predictions in a spool, filtered, as they were written."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.events.records import KIND_PREDICTION
from gateway.predictions.reader import SpoolReader

__all__ = ("PredictionTail", "parse_start")

BATCH = 500


class _Head(msgspec.Struct):
    model: str
    time: str


class PredictionTail:
    """The predictions of a spool from some moment on; ask again for what was written since.

    Parameters
    ----------
    spool_dir : Path
    model : str, optional
        Only predictions of this model.
    start : "start", "now" or datetime
        Everything, only what is yet to come, or what has this time and later ones.
    """

    def __init__(self, spool_dir: Path, *, model: str | None = None, start: str | datetime = "start") -> None:
        self._reader = SpoolReader(spool_dir, start="latest" if start == "now" else "earliest")
        self._model = model
        self._since = start if isinstance(start, datetime) else None
        self._head = msgspec.json.Decoder(_Head)
        self.at_end = False

    def __repr__(self) -> str:
        return f"<PredictionTail model={self._model} {self._reader!r}>"

    def read(self) -> list[bytes]:
        """The next predictions, each as its JSON text. `at_end` tells whether this was all there is by now.

        Raises
        ------
        SpoolError
            When a file of the spool cannot be read.
        """
        records = self._reader.read(BATCH)
        self.at_end = len(records) < BATCH
        return [record.payload for record in records if record.kind == KIND_PREDICTION and self._wants(record.payload)]

    def close(self) -> None:
        self._reader.close()

    def _wants(self, payload: bytes) -> bool:
        if self._model is None and self._since is None:
            return True
        try:
            head = self._head.decode(payload)
            return (self._model is None or head.model == self._model) and (
                self._since is None or _utc(head.time) >= self._since
            )
        except (msgspec.DecodeError, ValueError):
            return False


def parse_start(text: str) -> str | datetime:
    """Read where to begin: "start", "now", or an ISO 8601 time (UTC where it names no zone).

    >>> parse_start("start"), parse_start("2012-03-01T06:00").isoformat()
    ('start', '2012-03-01T06:00:00+00:00')

    Raises
    ------
    ValueError
        The text is none of them.
    """
    if text in ("start", "now"):
        return text
    try:
        return _utc(text)
    except ValueError:
        raise ValueError(
            f"{text[:64]!r} is no start: expected 'start', 'now' or a time such as 2026-05-01T06:00"
        ) from None


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
