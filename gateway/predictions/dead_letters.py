"""Records that Kafka will not take: `dead-letters.jsonl` in the spool, one JSON object a line.

They take a share of the spool and no more: a file that has half of it is renamed, and the one renamed before it goes.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from gateway.events.addresses import format_id
from gateway.predictions.segments import LogRecord

__all__ = ("DEAD_LETTERS_NAME", "OLDER_NAME", "DeadLetter", "share_of", "write_dead_letters")

DEAD_LETTERS_NAME = "dead-letters.jsonl"
OLDER_NAME = "dead-letters.older.jsonl"
_PART_BYTES = 2**20


class DeadLetter(msgspec.Struct, frozen=True):
    """A record that was not shipped and why; `payload` is its text, or base64 when it is no UTF-8.

    `encoding` says which: utf-8 or base64. It is "none" where the payload was too large to be kept.
    """

    id: str
    kind: int
    reason: str
    size: int
    payload: str
    encoding: str


def share_of(max_bytes: int) -> int:
    """Return the bytes that dead letters may take of a spool of `max_bytes`."""
    return max_bytes // 16


def write_dead_letters(
    spool_dir: Path,
    letters: Iterable[tuple[LogRecord, str]],
    *,
    max_bytes: int,
    discarded: Callable[[int], object] = lambda count: None,
) -> None:
    """Add records with their reasons to the file and bring it to the disk.

    A payload that is larger than a file may be is discarded alone, and counts too.

    Parameters
    ----------
    max_bytes : int
        What all dead letters may take (`share_of`).
    discarded : callable
        Gets how many letters were discarded, of those before these also when the disk refuses.

    Raises
    ------
    OSError
        When the disk refuses; what of these letters is there already comes twice when they are given again.
    """
    path, most = spool_dir / DEAD_LETTERS_NAME, max_bytes // 2
    too_large = size = 0
    lines: list[bytes] = []
    for record, reason in letters:
        line = msgspec.json.encode(_letter_of(record, reason)) + b"\n"
        if len(line) > most:
            too_large += 1
            line = msgspec.json.encode(_letter_without_payload(record, reason)) + b"\n"
        if size + len(line) > most:
            _add(path, b"".join(lines), most, discarded)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    _add(path, b"".join(lines), most, discarded)
    if too_large:
        discarded(too_large)


def _add(path: Path, content: bytes, most: int, discarded: Callable[[int], object]) -> None:
    if path.exists() and path.stat().st_size + len(content) > most:
        older = path.with_name(OLDER_NAME)
        count = _lines_in(older)
        os.replace(path, older)
        if count:
            discarded(count)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        try:
            done = 0
            while done < len(content):
                done += file.write(content[done:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise


def _lines_in(path: Path) -> int:
    try:
        with path.open("rb", buffering=0) as file:
            return sum(part.count(b"\n") for part in iter(lambda: file.read(_PART_BYTES), b""))
    except FileNotFoundError:
        return 0


def _letter_of(record: LogRecord, reason: str) -> DeadLetter:
    try:
        payload, encoding = record.payload.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        payload, encoding = base64.b64encode(record.payload).decode("ascii"), "base64"
    identity = format_id(*record.address)
    return DeadLetter(identity, record.kind, reason, len(record.payload), payload, encoding)


def _letter_without_payload(record: LogRecord, reason: str) -> DeadLetter:
    return DeadLetter(format_id(*record.address), record.kind, reason, len(record.payload), "", "none")
