"""Reading the spool: follow every stream, record by record, beside the writers."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from gateway.predictions.salvage import end_of_records, ends_sooner, next_behind
from gateway.predictions.segments import LogRecord, Scan, SegmentNames, list_streams, scan, split_name
from gateway.predictions.spool import SpoolError

__all__ = ("Damage", "LogRecord", "Position", "SpoolReader")

Position = Mapping[str, tuple[str, int]]
_Blocks = Literal["expanded", "whole"]

_PART_BYTES = 256 * 1024
_NO_FILE = -1
_NEVER = -1


class Damage(NamedTuple):
    """A place of a segment that does not check, or from which on a closed one holds less than a record."""

    segment: Path
    offset: int


class SpoolReader:
    """Follows all streams of a spool, new ones too, and never holds up a writer.

    Order holds within a stream. Nothing is passed over silently: `corrupt` counts places that do not check, `torn`
    unfinished last records of closed segments, and `damage` says where both are; `removed` counts segments that were
    gone when their turn came, and `missing` record numbers that were never seen.

    Parameters
    ----------
    spool_dir : Path
        The spool; need not be there yet.
    position : mapping of stream to (segment, offset in bytes), optional
        Where to go on, as `position` returned it.
    start : "earliest" or "latest"
        Where to begin in streams that are there now and that `position` does not name.
    streams : collection of str, optional
        Only these streams.
    whole_blocks : bool
        Give blocks of predictions as they are, as records of `KIND_BLOCK`; otherwise their predictions one by one. In
        every count a block is as many records as it has predictions.
    """

    def __init__(
        self,
        spool_dir: Path,
        *,
        position: Position | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        streams: Collection[str] | None = None,
        whole_blocks: bool = False,
    ) -> None:
        self._spool_dir = spool_dir
        self._blocks: _Blocks = "whole" if whole_blocks else "expanded"
        self._streams = streams
        self._cursors: dict[str, _Cursor] = {}
        self._turn = 0
        for stream, (segment, offset) in (position or {}).items():
            split_name(segment)
            self._cursors[stream] = self._cursor(stream, segment=segment, offset=offset)
        self._find_streams()
        if start == "latest":
            for stream, cursor in self._cursors.items():
                if stream not in (position or {}):
                    cursor.go_to_end()

    def __repr__(self) -> str:
        return (
            f"<SpoolReader {len(self._cursors)} streams behind={self.bytes_behind()} corrupt={self.corrupt} "
            f"torn={self.torn} removed={self.removed} missing={self.missing}>"
        )

    def read(self, max_records: int = 1000) -> list[LogRecord]:
        """Return the next records, taken evenly from the streams; empty when none is new.

        There are `max_records` at most, and what is left of one block more: `MAX_BLOCK` - 1 predictions.

        Raises
        ------
        SpoolError
            When a file of the spool cannot be read.
        """
        records: list[LogRecord] = []
        taken = 0
        try:
            self._find_streams()
            waiting = list(self._cursors.values())
            self._turn += 1
            while waiting and taken < max_records:
                share = max(1, (max_records - taken) // len(waiting))
                first = self._turn % len(waiting)
                still = []
                for cursor in waiting[first:] + waiting[:first]:
                    limit = min(share, max_records - taken)
                    before = cursor.taken
                    records += cursor.read(limit)
                    taken += cursor.taken - before
                    if cursor.taken - before >= limit:
                        still.append(cursor)
                waiting = still
        except OSError as error:
            raise SpoolError(f"cannot read {self._spool_dir}: {error.strerror}") from None
        return records

    def position(self) -> dict[str, tuple[str, int]]:
        """Return, per stream, the segment and the offset of the first record, or block, not yet returned."""
        return {stream: (cursor.segment, cursor.offset) for stream, cursor in self._cursors.items() if cursor.segment}

    def bytes_behind(self) -> int:
        """Return the bytes that lie in the spool after the position."""
        return sum(cursor.bytes_behind() for cursor in self._cursors.values())

    def close(self) -> None:
        """Close the files. A second call does nothing."""
        for cursor in self._cursors.values():
            cursor.close()

    @property
    def damage(self) -> list[Damage]:
        return [damage for cursor in self._cursors.values() for damage in cursor.damage]

    @property
    def corrupt(self) -> int:
        return sum(cursor.corrupt for cursor in self._cursors.values())

    @property
    def torn(self) -> int:
        return sum(cursor.torn for cursor in self._cursors.values())

    @property
    def removed(self) -> int:
        return sum(cursor.removed for cursor in self._cursors.values())

    @property
    def missing(self) -> int:
        return sum(cursor.missing for cursor in self._cursors.values())

    def _find_streams(self) -> None:
        for stream in list_streams(self._spool_dir):
            if stream not in self._cursors and (self._streams is None or stream in self._streams):
                self._cursors[stream] = self._cursor(stream)

    def _cursor(self, stream: str, *, segment: str = "", offset: int = 0) -> _Cursor:
        return _Cursor(self._spool_dir / stream, segment=segment, offset=offset, blocks=self._blocks)


class _Cursor:
    """The place of a reader in one stream."""

    def __init__(self, folder: Path, *, segment: str, offset: int, blocks: _Blocks) -> None:
        self.folder = folder
        self.taken = 0
        self.segment = segment
        self.offset = offset
        self.corrupt = self.torn = self.removed = self.missing = 0
        self.damage: list[Damage] = []
        self._blocks: _Blocks = blocks
        self._names = SegmentNames(folder)
        self._file = _NO_FILE
        self._boot = ""
        self._part = b""
        self._part_at = 0
        self._asked = 0
        self._fresh = False
        self._gone = False
        self._searched = _NEVER
        self._expected: tuple[str, int] | None = None

    def read(self, limit: int) -> list[LogRecord]:
        records: list[LogRecord] = []
        until = self.taken + limit
        self._fresh = False
        while self.taken < until and self._open():
            found = scan(
                self._part,
                self._boot,
                start=self.offset - self._part_at,
                max_records=until - self.taken,
                blocks=self._blocks,
            )
            if found.records:
                self._take(found.records, self._part_at + found.end)
                records += found.records
            elif not self._fresh or found.needed > self._asked == len(self._part):
                self._refill(found.needed)
            elif not (self._pass_over(found) if found.damaged else self._advance(found)):
                break
        return records

    def go_to_end(self) -> None:
        names = self._names.look()
        if names:
            self.segment, self.offset = names[-1], end_of_records(self.folder / names[-1])

    def bytes_behind(self) -> int:
        behind = 0
        for name in self._names.look():
            if name >= self.segment:
                try:
                    behind += (self.folder / name).stat().st_size
                except FileNotFoundError:
                    continue
                if name == self.segment:
                    behind -= self.offset
        return max(0, behind)

    def close(self) -> None:
        file, self._file = self._file, _NO_FILE
        if file != _NO_FILE:
            os.close(file)
        self._part, self._fresh = b"", False

    def _open(self) -> bool:
        while self._file == _NO_FILE:
            if not self.segment and not self._step():
                return False
            try:
                self._file = os.open(self.folder / self.segment, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self.removed += not self._gone
                self._gone = True
                if not self._step():
                    return False
                continue
            self._boot = split_name(self.segment)[0]
            self._part, self._part_at, self._fresh = b"", self.offset, False
        return True

    def _step(self) -> bool:
        """Go to the start of the next segment, if there is one."""
        names = self._names.look()
        place = bisect_right(names, self.segment)
        if place == len(names):
            return False
        self.close()
        self.segment, self.offset = names[place], 0
        self._gone = False
        self._searched = _NEVER
        return True

    def _is_closed(self) -> bool:
        """Whether there is a next segment: a writer is done with one before it begins the next."""
        names = self._names.look()
        return bisect_right(names, self.segment) < len(names)

    def _advance(self, found: Scan) -> bool:
        """At the end of what can be read here: go to the next segment, or stay while this is the last."""
        if not self._is_closed():
            return self._has_wrong_length(found) and self._pass_over(found)
        # What is here now is all that will ever be.
        size = os.fstat(self._file).st_size
        if size > self._part_at + len(self._part):
            self._refill(0)
            return True
        return self._pass_over(found) if size > self.offset else self._step()

    def _has_wrong_length(self, found: Scan) -> bool:
        """Whether a record that seems unfinished is whole and its length wrong; looked at again when more is there."""
        size = self._part_at + len(self._part)
        if not found.needed or size == self._searched:
            return False
        if ends_sooner(self._part):
            return True
        self._searched = size
        return False

    def _pass_over(self, found: Scan) -> bool:
        """Go on behind what is no whole record, here or in the next segment; False while nothing whole lies there."""
        is_closed = self._is_closed()
        size = os.fstat(self._file).st_size
        if size == self._searched and not is_closed:
            return False
        part = os.pread(self._file, len(self._part), self.offset)
        if part != self._part:
            self._refill(found.needed)
            return True
        number = split_name(self.segment)[1]
        if self._expected is not None and self._expected[0] == self._boot:
            number = max(number, self._expected[1])
        place = next_behind(part, self._boot, found, number=number)
        if place is None or place == len(part):
            rest = os.pread(self._file, size - self.offset, self.offset)
            place = next_behind(rest, self._boot, found, number=number)
        self._note_damage(torn=not found.damaged and place is None)
        if place is None:
            self._searched = size
            return is_closed and self._step()
        self.offset += place
        self._fresh = False
        return True

    def _note_damage(self, *, torn: bool) -> None:
        damage = Damage(self.folder / self.segment, self.offset)
        if self.damage[-1:] != [damage]:
            self.damage.append(damage)
            self.torn += torn
            self.corrupt += not torn

    def _refill(self, needed: int) -> None:
        # Bytes of an unfinished record are never kept: the writer may cut them off and write others in their place.
        self._asked = max(_PART_BYTES, needed)
        self._part = os.pread(self._file, self._asked, self.offset)
        self._part_at = self.offset
        self._fresh = True

    def _take(self, records: list[LogRecord], end: int) -> None:
        numbers = sum([record.numbers for record in records]) if self._blocks == "whole" else len(records)
        first, after = records[0].sequence, records[-1].sequence + records[-1].numbers
        gap = after - first - numbers
        if self._expected is not None:
            gap += first - (self._expected[1] if self._expected[0] == self._boot else 1)
        self.missing += max(0, gap)
        self.taken += numbers
        self._expected = (self._boot, after)
        self.offset = end
        self._fresh = False
