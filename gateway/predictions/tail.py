"""The spool as people read it: everything in the order of time."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from pathlib import Path

from gateway.events.encoding import RecordError, read_envelope, seconds_of
from gateway.predictions.reader import SpoolReader
from gateway.predictions.segments import LogRecord, list_segments, list_streams, scan

__all__ = ("moment_of", "read_all")

_HEAD_BYTES = 256 * 1024
# Clocks are set back now and then; by how much a later record may have an earlier time.
_SLACK_SECONDS = 60.0


def read_all(
    spool_dir: Path,
    *,
    kinds: Collection[int] | None = None,
    since: float | None = None,
    until: float | None = None,
) -> Iterator[LogRecord]:
    """Yield what the spool holds now, all streams merged in the order of the records' time.

    Parameters
    ----------
    kinds : collection of int, optional
        Only records of these kinds.
    since, until : float, optional
        Only records of this time or later, and before this time, in seconds since 1970.
    """
    streams = [_read_stream(spool_dir, stream, since, until) for stream in list_streams(spool_dir)]
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


def _read_stream(
    spool_dir: Path, stream: str, since: float | None, until: float | None
) -> Iterator[tuple[float, LogRecord]]:
    first = _first_segment(spool_dir / stream, since)
    if first is None:
        return
    reader = SpoolReader(spool_dir, position={stream: (first, 0)}, streams=(stream,))
    segment = ""
    try:
        while block := reader.read():
            for record in block:
                yield moment_of(record), record
            now_in = reader.position()[stream][0]
            if until is not None and now_in != segment and _begins(spool_dir / stream / now_in) > until:
                return
            segment = now_in
    finally:
        reader.close()


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
