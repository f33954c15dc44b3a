"""Finding one record by its id: the id names the segment, and lengths lead to the record."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import BinaryIO

from gateway.events.addresses import parse_id
from gateway.predictions.segments import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    RECORD_HEAD,
    LogRecord,
    list_segments,
    list_streams,
    scan,
    segment_name,
    split_name,
)

__all__ = ("find",)

_BLOCK_BYTES = 32 * 1024


def find(spool_dir: Path, event_id: str) -> LogRecord | None:
    """Return the record with this id, or None when the spool does not hold it (any more).

    Raises
    ------
    AddressError
        When `event_id` is no event id (a `ValueError`).
    """
    boot, sequence = parse_id(event_id)
    for stream in list_streams(spool_dir):
        names = list_segments(spool_dir / stream)
        place = bisect_right(names, segment_name(boot, sequence))
        if place and split_name(names[place - 1])[0] == boot:
            record = _find_in(spool_dir / stream / names[place - 1], boot, sequence)
            if record is not None:
                return record
    return None


def _find_in(path: Path, boot: str, sequence: int) -> LogRecord | None:
    try:
        with path.open("rb", buffering=_BLOCK_BYTES) as file:
            return _walk(file, boot, first=split_name(path.name)[1], sequence=sequence)
    except FileNotFoundError:
        return None


def _walk(file: BinaryIO, boot: str, *, first: int, sequence: int) -> LogRecord | None:
    """Step from header to header, a block in memory at a time, up to the record and no further."""
    offset, block, start = 0, b"", 0
    for _ in range(sequence - first):
        if offset + HEADER_BYTES > start + len(block):
            file.seek(offset)
            block, start = file.read(_BLOCK_BYTES), offset
            if len(block) < HEADER_BYTES:
                return None
        offset += HEADER_BYTES + RECORD_HEAD.unpack_from(block, offset - start)[0]
    file.seek(offset)
    head = file.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES or (length := RECORD_HEAD.unpack_from(head)[0]) > MAX_PAYLOAD_BYTES:
        return None
    found = scan(head + file.read(length), boot, max_records=1).records
    return found[0] if found and found[0].sequence == sequence else None
