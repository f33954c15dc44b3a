"""The spool as people read it: everything in the order of time."""

from __future__ import annotations

import heapq
from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from gateway.events.encoding import RecordError, read_envelope, seconds_of
from gateway.predictions.archive import Archive, lowest_in
from gateway.predictions.reader import SpoolReader
from gateway.predictions.segments import LogRecord, list_segments, list_streams, scan, split_name

__all__ = ("moment_of", "read_all")

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
) -> Iterator[LogRecord]:
    """Yield what the log holds now: the archive day by day, then the spool, all streams merged in the order of time.

    Parameters
    ----------
    kinds : collection of int, optional
        Only records of these kinds.
    since, until : float, optional
        Only records of this time or later, and before this time, in seconds since 1970.
    archive : Archive, optional
        Where records are that have left the spool, and those that leave it while it is read.
    """
    lowest = {stream: lowest_in(spool_dir, stream) for stream in list_streams(spool_dir)}
    firsts = {stream: _first_segment(spool_dir / stream, since) for stream in list_streams(spool_dir)}
    if archive is not None:
        for _, record in archive.read(kinds=kinds, since=since, until=until, below=dict(ChainMap(*lowest.values()))):
            yield record
    streams = [
        _read_stream(spool_dir / stream, first, until, _Leaving(archive, lowest.get(stream, {})))
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


def _read_stream(folder: Path, first: str, until: float | None, leaving: _Leaving) -> Iterator[tuple[float, LogRecord]]:
    reader = SpoolReader(folder.parent, position={folder.name: (first, 0)}, streams=(folder.name,))
    segment = ""
    boot, sequence = split_name(first)
    before = LogRecord(0, boot, sequence - 1, b"")
    try:
        while block := reader.read():
            for record in block:
                yield from leaving.between(before, record)
                before = record
                yield moment_of(record), record
            now_in = reader.position()[folder.name][0]
            if until is not None and now_in != segment and _begins(folder / now_in) > until:
                return
            segment = now_in
        yield from leaving.after(before)
    finally:
        reader.close()


class _Leaving:
    """Finds what leaves a stream for the archive while the stream is read.

    Parameters
    ----------
    lowest : mapping of boot to number
        The first number of each life that was in the stream when reading began: what is before it is read elsewhere.
    """

    def __init__(self, archive: Archive | None, lowest: Mapping[str, int]) -> None:
        self._archive = archive
        self._lowest = lowest

    def between(self, before: LogRecord, record: LogRecord) -> Iterator[tuple[float, LogRecord]]:
        """What lay between two records that were read one after the other."""
        if record.boot == before.boot:
            if self._archive is not None and record.sequence > before.sequence + 1:
                yield from self._archive.between(record.boot, before.sequence + 1, record.sequence - 1)
            return
        yield from self._rest(before, until=record.boot)
        first = self._lowest.get(record.boot, 1)
        if self._archive is not None and record.sequence > first:
            yield from self._archive.between(record.boot, first, record.sequence - 1)

    def after(self, last: LogRecord) -> Iterator[tuple[float, LogRecord]]:
        """What lay behind the last record that was read."""
        yield from self._rest(last, until="g")

    def _rest(self, before: LogRecord, *, until: str) -> Iterator[tuple[float, LogRecord]]:
        """What lay behind a record, in its life and in those that followed it."""
        if self._archive is None:
            return
        yield from self._archive.between(before.boot, before.sequence + 1, _NO_END)
        for boot, first in sorted(self._lowest.items()):
            if before.boot < boot < until:
                yield from self._archive.between(boot, first, _NO_END)


def _first_segment(folder: Path, since: float | None) -> str | None:
    """Return the first segment that was still written to at `since`."""
    for name in list_segments(folder):
        try:
            if since is None or (folder / name).stat().st_mtime >= since:
                return name
        except FileNotFoundError:
            continue
    return None


def _begins(segment: Path) -> float:
    """Return a time before that of the first record of a segment and of all that come after it."""
    try:
        with segment.open("rb", buffering=0) as file:
            found = scan(file.read(_HEAD_BYTES), segment.name[:14], max_records=1).records
    except FileNotFoundError:
        return 0.0
    return moment_of(found[0]) - _SLACK_SECONDS if found else 0.0
