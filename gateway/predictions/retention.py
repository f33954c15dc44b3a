"""What the spool keeps: whole segments go, the oldest first, by age and by size."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gateway.predictions.index import index_path
from gateway.predictions.reader import Position
from gateway.predictions.segments import LOCK_NAME, list_segments, list_streams, reserve_of, spool_size

__all__ = ("sweep",)

_DECISIONS = "decisions"
# A living writer begins a new segment after an hour, so one that is older has been left behind.
_LEFT_BEHIND_SECONDS = 2 * 3600.0


class _Segment(NamedTuple):
    written_at: float
    path: Path
    size: int


def sweep(
    spool_dir: Path,
    *,
    max_bytes: int,
    max_age_seconds: float,
    shipped: Position | None,
    now: float,
    keep: Callable[[Path], bool] = lambda segment: True,
) -> list[Path]:
    """Remove closed segments that are too old, or the oldest while the spool is too large; return what was removed.

    The spool is brought below `max_bytes` by an eighth, or by twice the writers' reserve where that is more, so that
    they find room until the next sweep however fast they write. The last segment of the decisions stays: what has
    been published is read from it.

    Parameters
    ----------
    max_bytes : int
        `spool.max_bytes`.
    max_age_seconds : float
        Seconds since a segment was last written to.
    shipped : mapping of stream to (segment, offset), or None
        How far Kafka has acknowledged: nothing behind it is removed. None when there is no Kafka.
    now : float
        Seconds since 1970.
    keep : callable
        Called with a segment before it is removed; brings it elsewhere, and returns False to have it stay, and with
        it all that are younger.
    """
    target = max_bytes - max(2 * reserve_of(max_bytes), max_bytes // 8)
    size = spool_size(spool_dir)
    removed = []
    for segment in sorted(_removable(spool_dir, shipped, now)):
        if now - segment.written_at <= max_age_seconds and size <= target:
            break
        if not keep(segment.path):
            break
        segment.path.unlink(missing_ok=True)
        index_path(segment.path).unlink(missing_ok=True)
        size -= segment.size
        removed.append(segment.path)
    return removed


def _removable(spool_dir: Path, shipped: Position | None, now: float) -> Iterator[_Segment]:
    for stream in list_streams(spool_dir):
        folder = spool_dir / stream
        names = list_segments(folder)
        acknowledged = None if shipped is None else shipped.get(stream, ("", 0))
        for name in names:
            try:
                status = (folder / name).stat()
            except FileNotFoundError:
                continue
            if name == names[-1] and stream == _DECISIONS:
                continue
            if name == names[-1] and (now - status.st_mtime < _LEFT_BEHIND_SECONDS or _has_writer(folder)):
                continue
            if acknowledged is None or (name, status.st_size) <= acknowledged:
                yield _Segment(status.st_mtime, folder / name, status.st_size)


def _has_writer(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
