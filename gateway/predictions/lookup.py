"""Finding one record by its id: the id names the segment, and lengths lead to the record."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

from gateway.events.addresses import parse_id
from gateway.predictions.segments import (
    HEADER_BYTES,
    RECORD_HEAD,
    LogRecord,
    list_segments,
    list_streams,
    scan,
    segment_name,
    split_name,
)

__all__ = ("find",)


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
        block = path.read_bytes()
    except FileNotFoundError:
        return None
    used, number = 0, split_name(path.name)[1]
    while used + HEADER_BYTES <= len(block):
        if number == sequence:
            found = scan(block, boot, start=used, max_records=1).records
            return found[0] if found and found[0].sequence == sequence else None
        used += HEADER_BYTES + RECORD_HEAD.unpack_from(block, used)[0]
        number += 1
    return None
