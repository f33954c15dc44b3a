"""How many records of the spool lie behind a position, told by names, lengths and numbers alone."""

from __future__ import annotations

import os
from bisect import bisect_left
from itertools import groupby
from pathlib import Path

from gateway.events.records import KIND_BLOCK
from gateway.predictions.reader import Position
from gateway.predictions.salvage import can_follow
from gateway.predictions.segments import (
    HEADER_BYTES,
    RECORD_HEAD,
    RECORD_TAIL,
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
            head = os.pread(file.fileno(), HEADER_BYTES, offset)
        if len(head) < HEADER_BYTES or (len(paths) == 1 and offset >= end):
            return after - split_name(paths[1].name)[1] if len(paths) > 1 else 0
        return max(0, after - int(RECORD_TAIL.unpack_from(head, RECORD_HEAD.size)[0]))


def _hop(file: int, offset: int, number: int) -> tuple[int, int]:
    """From the record at `offset`, whose number is `number`, go to the end; return where it is and the number there."""
    while len(part := os.pread(file, _PART_BYTES, offset)) >= HEADER_BYTES:
        at = 0
        while len(part) - at >= HEADER_BYTES:
            length = RECORD_HEAD.unpack_from(part, at)[0]
            after = at + HEADER_BYTES + length
            # Behind a damaged length there may be anything.
            if not can_follow(part, at, least=number):
                return offset + at, number
            if after > len(part):
                break
            number = _number_after(part, at)
            at = after
        if at == 0:
            # A record larger than what was read, or one that is not whole yet.
            length = RECORD_HEAD.unpack_from(part)[0]
            if os.fstat(file).st_size < offset + HEADER_BYTES + length:
                break
            number = _number_after(part, 0)
            at = HEADER_BYTES + length
        offset += at
    return offset, number


def _number_after(part: bytes, at: int) -> int:
    """The number of what follows the record at this place."""
    number, kind = RECORD_TAIL.unpack_from(part, at + RECORD_HEAD.size)
    return int(number) + (1 if kind != KIND_BLOCK else numbers_of(part, at))
