"""Finding one record by its id, and the labels of a prediction: the id names the segment, an index the place in it."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from gateway.events.addresses import parse_id
from gateway.events.blocks import COUNT_BYTES
from gateway.events.encoding import RecordError, read_envelope
from gateway.events.records import KIND_BLOCK, KIND_FEEDBACK
from gateway.predictions.archive import Archive
from gateway.predictions.index import SegmentIndex, read_index
from gateway.predictions.salvage import can_follow, whole_record
from gateway.predictions.segments import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    RECORD_HEAD,
    RECORD_TAIL,
    LogRecord,
    list_segments,
    list_streams,
    numbers_of,
    scan,
    segment_name,
    split_name,
)

__all__ = ("LogLookup", "find")

_PART_BYTES = 32 * 1024
_KEPT_INDEXES = 1024
_SLACK_SECONDS = 60.0


class LogLookup:
    """Looks records up in a spool, again and again; keeps the indexes it has read, also of segments that still grow.

    Parameters
    ----------
    spool_dir : Path
        The spool; need not be there yet.
    archive : Archive, optional
        Where records are that have left it.
    """

    def __init__(self, spool_dir: Path, archive: Archive | None = None) -> None:
        self._spool_dir = spool_dir
        self._archive = archive
        self._indexes: OrderedDict[Path, SegmentIndex] = OrderedDict()

    def __repr__(self) -> str:
        return f"<LogLookup {self._spool_dir} indexes={len(self._indexes)}>"

    def find(self, event_id: str) -> LogRecord | None:
        """Return the record with this id, or None when the log does not hold it (any more).

        Raises
        ------
        AddressError, ArchiveError
        """
        found = find(self._spool_dir, event_id)
        return self._archive.find(event_id) if found is None and self._archive is not None else found

    def labels_of(self, prediction_id: str, *, model: str = "", since: float = 0.0) -> list[LogRecord]:
        """Return the labels that were sent for a prediction, each once, in the order of time.

        Parameters
        ----------
        model : str
            The model that answered, to look in the archive as well; labels sent to another one are passed over.
        since : float
            When the prediction was answered, in seconds since 1970: segments closed before it are passed over.

        Raises
        ------
        AddressError, ArchiveError
        """
        boot, sequence = parse_id(prediction_id)
        found = []
        for path, size in self._segments(since):
            index = self._index(path)
            if index.size < size:
                index.extend()
            for offset in index.labels_of(boot, sequence):
                found += [record for record in _read_at(path, offset) if record.kind == KIND_FEEDBACK]
        if self._archive is not None and model:
            # After the spool: a segment is in the archive before it leaves.
            found += self._archive.labels_of(prediction_id, model=model, since=since)
        labels = {record.address: record for record in found if not model or _is_of(record, model)}
        return sorted(labels.values(), key=_time_of)

    def _segments(self, since: float) -> list[tuple[Path, int]]:
        paths = []
        for stream in list_streams(self._spool_dir):
            for name in list_segments(self._spool_dir / stream):
                path = self._spool_dir / stream / name
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if status.st_mtime >= since - _SLACK_SECONDS:
                    paths.append((path, status.st_size))
        return paths

    def _index(self, path: Path) -> SegmentIndex:
        index = self._indexes.get(path)
        if index is None:
            index = self._indexes[path] = read_index(path) or SegmentIndex(path)
            if len(self._indexes) > _KEPT_INDEXES:
                self._indexes.popitem(last=False)
        return index


def _is_of(label: LogRecord, model: str) -> bool:
    try:
        return read_envelope(label.payload).model == model
    except RecordError:
        return False


def _time_of(record: LogRecord) -> str:
    try:
        return read_envelope(record.payload).time
    except RecordError:
        return ""


class _Damaged(Exception):
    """What lies here is no record."""


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
    index = read_index(path)
    start = index.place_before(sequence) if index is not None else None
    try:
        with path.open("rb", buffering=_PART_BYTES) as file:
            begin = start[0] if start else 0
            try:
                return _walk(file, boot, sequence=sequence, start=begin)
            except _Damaged:
                file.seek(begin)
                return whole_record(file.read(), boot, split_name(path.name)[1], sequence=sequence)
    except FileNotFoundError:
        return None


def _read_at(path: Path, offset: int) -> list[LogRecord]:
    try:
        with path.open("rb", buffering=0) as file:
            return _records_at(file, split_name(path.name)[0], offset)
    except FileNotFoundError:
        return []


def _walk(file: BinaryIO, boot: str, *, sequence: int, start: int) -> LogRecord | None:
    """Step from header to header, a part of the file in memory at a time, up to the record and no further."""
    offset, part, begin, least = start, b"", 0, 0
    while True:
        if offset + HEADER_BYTES + COUNT_BYTES > begin + len(part):
            file.seek(offset)
            part, begin = file.read(_PART_BYTES), offset
            if len(part) < HEADER_BYTES:
                if offset == os.fstat(file.fileno()).st_size:
                    return None
                raise _Damaged
        at = offset - begin
        length, _ = RECORD_HEAD.unpack_from(part, at)
        # Numbers may be missing where the log was full, so that counting headers would not do.
        number, kind = RECORD_TAIL.unpack_from(part, at + RECORD_HEAD.size)
        if not can_follow(part, at, least=least):
            raise _Damaged
        if number >= sequence or (kind == KIND_BLOCK and sequence < number + numbers_of(part, at)):
            records = _records_at(file, boot, offset)
            if not records:
                raise _Damaged
            return next((record for record in records if record.sequence == sequence), None)
        offset, least = offset + HEADER_BYTES + length, number + 1


def _records_at(file: BinaryIO, boot: str, offset: int) -> list[LogRecord]:
    """The record at this place, or all of a block."""
    file.seek(offset)
    head = file.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES or (length := RECORD_HEAD.unpack_from(head)[0]) > MAX_PAYLOAD_BYTES:
        return []
    return scan(head + file.read(length), boot, max_records=1).records
