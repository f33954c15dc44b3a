"""Records that Kafka will not take: `dead-letters.jsonl` in the spool, one JSON object a line."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from gateway.events.addresses import format_id
from gateway.predictions.segments import LogRecord

__all__ = ("DEAD_LETTERS_NAME", "DeadLetter", "write_dead_letters")

DEAD_LETTERS_NAME = "dead-letters.jsonl"


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that was not shipped and why; `payload` is its text, or base64 when it is no UTF-8."""

    id: str
    kind: int
    reason: str
    size: int
    payload: str
    encoding: str


def write_dead_letters(spool_dir: Path, letters: Iterable[tuple[LogRecord, str]]) -> None:
    """Add records with their reasons to the file and bring it to the disk.

    Raises
    ------
    OSError
        When the disk refuses.
    """
    lines = b"".join(msgspec.json.encode(_letter_of(record, reason)) + b"\n" for record, reason in letters)
    descriptor = os.open(spool_dir / DEAD_LETTERS_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _letter_of(record: LogRecord, reason: str) -> DeadLetter:
    try:
        payload, encoding = record.payload.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        payload, encoding = base64.b64encode(record.payload).decode("ascii"), "base64"
    identity = format_id(*record.address)
    return DeadLetter(identity, record.kind, reason, len(record.payload), payload, encoding)
