"""The process log: one line for each event, on stderr, that nothing a caller sent can break or forge."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

__all__ = ("ProcessLog", "take_loggers")

MAX_VALUE_CHARACTERS = 4096
OURS = "gateway"
TALKATIVE = frozenset({"aiokafka"})
"""Libraries that repeat themselves while a peer is away, of which the shipper says one line by itself."""

Level = Literal["note", "warn"]


class ProcessLog:
    """Writes what a process has to say, one line for each event.

    Parameters
    ----------
    process : str
        As `ps` shows it, such as `front 0`.
    json : bool
        JSON lines instead of text for people.
    stream : TextIO
        Where to; a stream that is gone is borne in silence, since no prediction may fail for it.
    clock : callable
        Seconds since 1970.

    >>> import sys
    >>> log = ProcessLog("front 0", json=False, stream=sys.stdout, clock=lambda: 0.0)
    >>> log.note("listening", {"port": 8000, "by": "a caller\\n"})
    1970-01-01T00:00:00.000Z front 0: listening port=8000 by="a caller\\n"
    """

    def __init__(self, process: str, *, json: bool, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self.process = process
        self._json = json
        self._stream = stream
        self._clock = clock

    def note(self, text: str, fields: Mapping[str, object] | None = None) -> None:
        """Say what happened."""
        self._write("note", text, fields or {})

    def warn(self, text: str, fields: Mapping[str, object] | None = None) -> None:
        """Say what went wrong and what the process does about it."""
        self._write("warn", text, fields or {})

    def __repr__(self) -> str:
        return f"ProcessLog({self.process}, json={self._json})"

    def _write(self, level: Level, text: str, fields: Mapping[str, object]) -> None:
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        cut = {name: _cut(value) for name, value in fields.items()}
        line = self._as_json(moment, level, text, cut) if self._json else self._as_text(moment, level, text, cut)
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    def _as_json(self, moment: str, level: Level, text: str, fields: Mapping[str, object]) -> str:
        event = {"time": moment, "level": level, "process": self.process, "text": _cut(text), "fields": fields}
        return json.dumps(event)

    def _as_text(self, moment: str, level: Level, text: str, fields: Mapping[str, object]) -> str:
        mark = "warning: " if level == "warn" else ""
        shown = "".join(f" {_escaped(name)}={_quoted(value)}" for name, value in fields.items())
        return f"{moment} {self.process}: {mark}{_escaped(_cut(text))}{shown}"


def take_loggers(log: ProcessLog, *, names: tuple[str, ...] = (OURS, "uvicorn", "aiokafka", "asyncio")) -> None:
    """Send what these loggers have at warning and above (`TALKATIVE`: critical) through `log`, and nowhere else."""
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers = [_ToProcessLog(log)]
        logger.propagate = False
        logger.setLevel(logging.CRITICAL if name in TALKATIVE else logging.WARNING)


class _ToProcessLog(logging.Handler):
    def __init__(self, log: ProcessLog) -> None:
        super().__init__()
        self._log = log
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {} if record.name.startswith(f"{OURS}.") else {"library": record.name}
        if record.exc_info:
            fields["trace"] = self._formatter.formatException(record.exc_info)
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        self._log.warn(text, fields)


def _cut(value: object) -> str | int | float | bool | None:
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    if len(text) > MAX_VALUE_CHARACTERS:
        return f"{text[:MAX_VALUE_CHARACTERS]}... ({len(text)} characters)"
    return text


def _escaped(text: object) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and not any(character in ' ="' or not character.isprintable() for character in text)
    return text if plain else '"' + _escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'
