"""The spool as people read it: everything in the order of time."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from itertools import takewhile
from pathlib import Path

from gateway.events.encoding import RecordError, read_envelope, seconds_of
from gateway.predictions.archive import Archive, lowest_of
from gateway.predictions.reader import SpoolReader
from gateway.predictions.salvage import last_number
from gateway.predictions.segments import LogRecord, list_segments, list_streams, scan, split_name
from gateway.predictions.spool import SpoolError

__all__ = ("Ends", "ends_of", "moment_of", "read_all")

Ends = Mapping[str, tuple[str, int]]
"""By stream the address of its last record."""

_AT_ONCE = 1000
_HEAD_BYTES = 256 * 1024
# Clocks are set back now and then; by how much a later record may have an earlier time.
_SLACK_SECONDS = 60.0
_NO_END = 1 << 60


def read_all(
    spool_dir: Path,
    *,
    kinds: Collection[int] | None = None,
    since: float | None = None,
    until: float | None = None,
    archive: Archive | None = None,
    ends: Ends | None = None,
) -> Iterator[LogRecord]:
    """Yield what the log holds now: the archive day by day, then the spool, all streams merged in the order of time.

    What is written while it is read is not yielded, so that it comes to an end beside writers.

    Parameters
    ----------
    kinds : collection of int, optional
        Only records of these kinds.
    since, until : float, optional
        Only records of this time or later, and before this time, in seconds since 1970.
    archive : Archive, optional
        Where records are that have left the spool, and those that leave it while it is read.
    ends : mapping of stream to address, optional
        Yield what the log held when `ends_of` returned this.

    Raises
    ------
    SpoolError, ArchiveError
    """
    ends = ends_of(spool_dir) if ends is None else ends
    names = {stream: list_segments(spool_dir / stream) for stream in list_streams(spool_dir)}
    lowest = {stream: lowest_of(segments) for stream, segments in names.items()}
    firsts = {stream: _first_segment(spool_dir / stream, names.get(stream, []), since) for stream in ends}
    archived = None if archive is None else _Archived(archive, spool_dir)
    if archive is not None:
        for _, record in archive.read(kinds=kinds, since=since, until=until, below=_archived_below(lowest, ends)):
            yield record
    streams = [
        _read_stream(spool_dir / stream, first, ends[stream], until, _Leaving(archived, stream, lowest.get(stream, {})))
        for stream, first in firsts.items()
        if first is not None
    ]
    for moment, record in heapq.merge(*streams, key=lambda pair: pair[0]):
        if until is not None and moment >= until:
            continue
        if (kinds is None or record.kind in kinds) and (since is None or moment >= since):
            yield record


def moment_of(record: LogRecord) -> float:
    """Return a record's time; one that cannot be read is placed where its writer's life began."""
    try:
        return seconds_of(read_envelope(record.payload).time)
    except RecordError:
        return int(record.boot[:12], 16) / 1000


def ends_of(spool_dir: Path) -> dict[str, tuple[str, int]]:
    """Return where each stream ends now.

    Raises
    ------
    SpoolError
        A file of the spool cannot be read.
    """
    found = {stream: _end_of(spool_dir / stream) for stream in list_streams(spool_dir)}
    return {stream: end for stream, end in found.items() if end is not None}


def _archived_below(lowest: Mapping[str, Mapping[str, int]], ends: Ends) -> dict[str, int]:
    """By life the number below which records are read from the archive: in the spool they are, or behind the end."""
    below = {boot: number + 1 for boot, number in ends.values()}
    for stream, lives in lowest.items():
        last, number = ends.get(stream, ("", 0))
        for boot, first in lives.items():
            below[boot] = first if boot < last else min(first, number + 1) if boot == last else 0
    return below


def _end_of(folder: Path) -> tuple[str, int] | None:
    for name in reversed(list_segments(folder)):
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SpoolError(f"cannot read {folder / name}: {error.strerror}") from None
        boot, first = split_name(name)
        return boot, last_number(content, boot, first)
    return None


def _read_stream(
    folder: Path, first: str, end: tuple[str, int], until: float | None, leaving: _Leaving
) -> Iterator[tuple[float, LogRecord]]:
    """Read from a segment on to a record, in the order of writing."""
    records = _read_from(folder, first, end, until, leaving)
    return takewhile(lambda found: found[1].address <= end, records)


def _read_from(
    folder: Path, first: str, end: tuple[str, int], until: float | None, leaving: _Leaving
) -> Iterator[tuple[float, LogRecord]]:
    reader = SpoolReader(folder.parent, position={folder.name: (first, 0)}, streams=(folder.name,))
    segment = ""
    boot, sequence = split_name(first)
    before = LogRecord(0, boot, sequence - 1, b"")
    try:
        while before.address < end and (block := reader.read(_AT_ONCE)):
            for record in block:
                yield from leaving.between(before, record)
                before = record
                yield moment_of(record), record
            now_in = reader.position()[folder.name][0]
            if until is not None and now_in != segment and _begins(folder / now_in) > until:
                return
            segment = now_in
        if before.address < end:
            yield from leaving.after(before)
    finally:
        reader.close()


class _Archived:
    """The archive as what leaves the spool goes there; it is listed again where something has left since it was."""

    def __init__(self, archive: Archive, spool_dir: Path) -> None:
        self._archive = archive
        self._spool_dir = spool_dir
        self._there = self._segments()

    def between(self, stream: str, boot: str, first: int, last: int) -> Iterator[tuple[float, LogRecord]]:
        """Yield times and records of one life of a stream, numbers `first` to `last`."""
        there = {name for name in self._there.get(stream, ()) if name.startswith(boot)}
        has_left = not there.issubset(list_segments(self._spool_dir / stream))
        if has_left:
            # First what is still there: a segment is in the archive before it leaves.
            self._there = self._segments()
        yield from self._archive.between(boot, first, last, afresh=has_left)

    def _segments(self) -> dict[str, list[str]]:
        return {stream: list_segments(self._spool_dir / stream) for stream in list_streams(self._spool_dir)}


class _Leaving:
    """Finds what leaves a stream for the archive while the stream is read.

    Parameters
    ----------
    lowest : mapping of boot to number
        The first number of each life that was in the stream when reading began: what is before it is read elsewhere.
    """

    def __init__(self, archive: _Archived | None, stream: str, lowest: Mapping[str, int]) -> None:
        self._archive = archive
        self._stream = stream
        self._lowest = lowest

    def between(self, before: LogRecord, record: LogRecord) -> Iterator[tuple[float, LogRecord]]:
        """What lay between two records that were read one after the other."""
        if record.boot == before.boot:
            if self._archive is not None and record.sequence > before.sequence + 1:
                yield from self._archive.between(self._stream, record.boot, before.sequence + 1, record.sequence - 1)
            return
        yield from self._rest(before, until=record.boot)
        first = self._lowest.get(record.boot, 1)
        if self._archive is not None and record.sequence > first:
            yield from self._archive.between(self._stream, record.boot, first, record.sequence - 1)

    def after(self, last: LogRecord) -> Iterator[tuple[float, LogRecord]]:
        """What lay behind the last record that was read."""
        yield from self._rest(last, until="g")

    def _rest(self, before: LogRecord, *, until: str) -> Iterator[tuple[float, LogRecord]]:
        """What lay behind a record, in its life and in those that followed it."""
        if self._archive is None:
            return
        yield from self._archive.between(self._stream, before.boot, before.sequence + 1, _NO_END)
        for boot, first in sorted(self._lowest.items()):
            if before.boot < boot < until:
                yield from self._archive.between(self._stream, boot, first, _NO_END)


def _first_segment(folder: Path, names: list[str], since: float | None) -> str | None:
    """Return the first of these segments that was still written to at `since`, or that has gone meanwhile."""
    for name in names:
        try:
            if since is None or (folder / name).stat().st_mtime >= since:
                return name
        except FileNotFoundError:
            return name
    return None


def _begins(segment: Path) -> float:
    """Return a time before that of the first record of a segment and of all that come after it."""
    try:
        with segment.open("rb", buffering=0) as file:
            found = scan(file.read(_HEAD_BYTES), segment.name[:14], max_records=1).records
    except FileNotFoundError:
        return 0.0
    return moment_of(found[0]) - _SLACK_SECONDS if found else 0.0
