"""What is whole in a damaged segment: where a length is wrong, what follows is found by its number."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from google_crc32c import value as crc32c

from gateway.events.blocks import MAX_BLOCK
from gateway.events.records import KIND_BLOCK, KIND_DECISION, KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.segments import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    RECORD_HEAD,
    RECORD_TAIL,
    LogRecord,
    Scan,
    expanded,
    scan,
    split_name,
)

__all__ = (
    "can_follow",
    "end_of_records",
    "ends_sooner",
    "last_number",
    "next_behind",
    "whole_bytes",
    "whole_record",
    "whole_records",
)

_AT_ONCE = 1000
_PART_BYTES = 2**20
_KINDS = (KIND_PREDICTION, KIND_FEEDBACK, KIND_DECISION, KIND_BLOCK)
_NUMBERS = 1 << 40
# The last bytes of a header: a number has 10 hex digits at most.
_HEADER_END = re.compile(b"\0\0\0[%s]" % bytes(_KINDS))


def whole_records(content: bytes, boot: str, first: int) -> tuple[list[LogRecord], list[int]]:
    """Return all records of a segment that check, and the offsets at which something lies that does not.

    Parameters
    ----------
    first : int
        The number of the first record, as the segment's name tells.
    """
    records: list[LogRecord] = []
    damaged: list[int] = []
    for found in _parts(content, boot, first, blocks="expanded"):
        records += found.records
        if not found.records and found.end < len(content):
            damaged.append(found.end)
    return records, damaged


def whole_record(content: bytes, boot: str, first: int, *, sequence: int) -> LogRecord | None:
    """Return the record with this number of a segment, or of what lies from some record on; None when none checks."""
    for found in _parts(content, boot, first, blocks="whole"):
        for record in found.records:
            if record.sequence > sequence:
                return None
            if sequence < record.sequence + record.numbers:
                return record if record.kind != KIND_BLOCK else expanded(record)[sequence - record.sequence]
    return None


def can_follow(content: bytes, place: int, *, least: int) -> bool:
    """Whether the header here can be that of a record behind others, with this number at least.

    It is told by what the header says alone, and by its checksum where many numbers are missing before it.
    """
    length, _ = RECORD_HEAD.unpack_from(content, place)
    number, kind = RECORD_TAIL.unpack_from(content, place + RECORD_HEAD.size)
    if length > MAX_PAYLOAD_BYTES or kind not in _KINDS or not least <= number < _NUMBERS:
        return False
    return number - least <= MAX_BLOCK or not scan(content, "", start=place, max_records=1, blocks="unread").damaged


def end_of_records(segment: Path) -> int:
    """Return the offset from which on a segment holds nothing whole; 0 when it is gone."""
    try:
        content = segment.read_bytes()
    except FileNotFoundError:
        return 0
    end = 0
    for found in _parts(content, *split_name(segment.name), blocks="unread"):
        end = found.end
    return end


def last_number(content: bytes, boot: str, first: int) -> int:
    """Return the number of the last record of a segment that checks; the one before `first` where none does."""
    number = first - 1
    for found in _parts(content, boot, first, blocks="whole"):
        if found.records:
            last = found.records[-1]
            number = last.sequence + last.numbers - 1
    return number


def next_behind(content: bytes, boot: str, found: Scan, *, number: int) -> int | None:
    """Return where to go on behind what stopped a scan; None when nothing whole lies behind it.

    Parameters
    ----------
    number : int
        The least that what follows can have.
    """
    if found.damaged and found.needed:
        behind = found.end + found.needed
        if behind == len(content) or scan(content, boot, start=behind, max_records=1).records:
            return behind
    return _find(content, boot, start=found.end + 1, number=number)


def whole_bytes(file: int) -> int | None:
    """Return the offset after the last record of a segment when all up to there check; None when one does not.

    Zeros are what a file holds that was never written, and no record.
    """
    offset, asked = 0, _PART_BYTES
    while True:
        part = os.pread(file, asked, offset)
        found = scan(part, "", blocks="unread")
        offset += found.end
        if found.damaged:
            return offset if not any(part[found.end :]) and len(part) < asked else None
        if not found.records and (len(part) < asked or found.needed <= asked):
            return None if found.needed and ends_sooner(part[found.end :]) else offset
        asked = max(_PART_BYTES, found.needed)


def ends_sooner(rest: bytes) -> bool:
    """Whether a record that goes beyond the end of its file has a wrong length: it checks up to the next one.

    Only that tells it from an unfinished one in whose tensors a client has written what looks like a record.
    """
    _, crc = RECORD_HEAD.unpack_from(rest)
    number, _ = RECORD_TAIL.unpack_from(rest, RECORD_HEAD.size)
    place = _find(rest, "", start=HEADER_BYTES, number=number + 1)
    return place is not None and crc32c(rest[RECORD_HEAD.size : place]) == crc


def _parts(content: bytes, boot: str, first: int, *, blocks: Literal["expanded", "whole", "unread"]) -> Iterator[Scan]:
    """Scan a segment; a scan without records ends at what does not check, or at the end."""
    start: int | None = 0
    number = first
    while start is not None:
        found = scan(content, boot, start=start, max_records=_AT_ONCE, blocks=blocks)
        yield found
        if found.records:
            start, number = found.end, found.records[-1].sequence + 1
        elif found.end == len(content):
            return
        else:
            start = next_behind(content, boot, found, number=number)


def _find(content: bytes, boot: str, *, start: int, number: int) -> int | None:
    """Where the first whole record begins that has this number or a later one.

    Where many records are gone its number may be any; what the columns of a block look like by chance is told from it
    by the record behind.
    """
    for match in _HEADER_END.finditer(content, start + HEADER_BYTES - 4):
        place = match.end() - HEADER_BYTES
        length, _ = RECORD_HEAD.unpack_from(content, place)
        following, _ = RECORD_TAIL.unpack_from(content, place + RECORD_HEAD.size)
        likely = 0 <= following - number <= MAX_BLOCK or (
            following > number and _has_next(content, place + HEADER_BYTES + length, following)
        )
        if likely and scan(content, boot, start=place, max_records=1).records:
            return place
    return None


def _has_next(content: bytes, place: int, number: int) -> bool:
    """Whether here is the end, or what begins here, if it is a record, can be the one behind that with this number."""
    if len(content) - place < HEADER_BYTES:
        return place == len(content)
    following, kind = RECORD_TAIL.unpack_from(content, place + RECORD_HEAD.size)
    return kind in _KINDS and 0 < following - number <= MAX_BLOCK
