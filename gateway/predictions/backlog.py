"""How many records of the spool lie behind a position, told by names, lengths and numbers alone."""

from __future__ import annotations

import os
from bisect import bisect_left
from itertools import groupby
from pathlib import Path

from gateway.events.records import KIND_BLOCK
from gateway.predictions.reader import Position
from gateway.predictions.salvage import can_follow, next_behind
from gateway.predictions.segments import (
    HEADER_BYTES,
    RECORD_HEAD,
    RECORD_TAIL,
    Scan,
    SegmentNames,
    list_streams,
    numbers_of,
    split_name,
)

__all__ = ("Backlog",)

_PART_BYTES = 1 << 20


class Backlog:
    """Counts records that are still to be read.

    Segments are named by their first record's number, so only the newest of each life of a writer is looked into, and
    of that only what came since the last look. Numbers without a record (a full spool that drops) count as records.
    """

    def __init__(self, spool_dir: Path) -> None:
        self._spool_dir = spool_dir
        self._ends: dict[Path, tuple[int, int]] = {}
        self._names: dict[str, SegmentNames] = {}

    def __repr__(self) -> str:
        return f"<Backlog {self._spool_dir}>"

    def count(self, position: Position) -> int:
        """Return the records behind `position`, all of a stream that it does not name.

        Raises
        ------
        OSError
            When a file of the spool cannot be read.
        """
        known, self._ends = self._ends, {}
        total = 0
        for stream in list_streams(self._spool_dir):
            segment, offset = position.get(stream, ("", 0))
            names = self._names.setdefault(stream, SegmentNames(self._spool_dir / stream)).look()
            waiting = names[bisect_left(names, segment) :]
            for _, life in groupby(waiting, key=lambda name: split_name(name)[0]):
                paths = [self._spool_dir / stream / name for name in life]
                try:
                    total += self._count_life(paths, offset if paths[0].name == segment else 0, known)
                except FileNotFoundError:
                    # Retention was faster; what is gone is not to be read.
                    continue
        return total

    def _count_life(self, paths: list[Path], offset: int, known: dict[Path, tuple[int, int]]) -> int:
        """Count from `offset` of the first of these segments of one life to the end of the last."""
        last = paths[-1]
        with open(last, "rb", buffering=0) as file:
            begun = known.get(last, (0, split_name(last.name)[1]))
            end, after = self._ends[last] = _hop(file.fileno(), *begun)
        if offset == 0:
            return after - split_name(paths[0].name)[1]
        with open(paths[0], "rb", buffering=0) as file:
            number = _number_at(file.fileno(), offset, least=split_name(paths[0].name)[1])
        if number is None or (len(paths) == 1 and offset >= end):
            return after - split_name(paths[1].name)[1] if len(paths) > 1 else 0
        return max(0, after - number)


def _hop(file: int, offset: int, number: int) -> tuple[int, int]:
    """From the record at `offset`, whose number is `number`, go to the end; return where it is and the number there."""
    before, least = offset, number
    while len(part := os.pread(file, _PART_BYTES, offset)) >= HEADER_BYTES:
        at, size = 0, os.fstat(file).st_size
        while len(part) - at >= HEADER_BYTES and can_follow(part, at, least=number):
            after = at + HEADER_BYTES + int(RECORD_HEAD.unpack_from(part, at)[0])
            # Of a record that is larger than what was read the header will do.
            if after > len(part) and (at or offset + after > size):
                break
            before, least = offset + at, number
            number = _number_after(part, at)
            at = after
        offset += at
        if at == 0:
            found = _behind(file, before, least=least)
            if found is None:
                break
            offset, number = found
            before, least = offset, number
    return offset, number


def _number_at(file: int, offset: int, *, least: int) -> int | None:
    """The number of the record here, or of the next one that is whole; None where there is none."""
    head = os.pread(file, HEADER_BYTES, offset)
    if len(head) == HEADER_BYTES and can_follow(head, 0, least=least):
        return int(RECORD_TAIL.unpack_from(head, RECORD_HEAD.size)[0])
    found = _behind(file, offset, least=least)
    return None if found is None else found[1]


def _behind(file: int, offset: int, *, least: int) -> tuple[int, int] | None:
    """Where the first whole record behind this place begins, and its number; None where nothing whole is behind."""
    rest = os.pread(file, os.fstat(file).st_size - offset, offset)
    place = next_behind(rest, "", Scan([], 0, 0, True), number=least)
    return None if place is None else (offset + place, int(RECORD_TAIL.unpack_from(rest, place + RECORD_HEAD.size)[0]))


def _number_after(part: bytes, at: int) -> int:
    """The number of what follows the record at this place."""
    number, kind = RECORD_TAIL.unpack_from(part, at + RECORD_HEAD.size)
    return int(number) + (1 if kind != KIND_BLOCK else numbers_of(part, at))
