"""What the spool keeps: whole segments go, the oldest first, by age and by size."""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gateway.predictions.index import index_path
from gateway.predictions.reader import Position
from gateway.predictions.segments import LOCK_NAME, SegmentNames, SpoolSize, list_streams, reserve_of

__all__ = ("Retention",)

_DECISIONS = "decisions"
# A living writer begins a new segment after an hour, so one that is older has been left behind.
_LEFT_BEHIND_SECONDS = 2 * 3600.0
# What was set aside may take an eighth of the spool, or it would fill it for ever.
_DAMAGED_SHARE = 8


class _Segment(NamedTuple):
    written_at: float
    path: Path
    size: int


class Retention:
    """Removes what is due from a spool, swept again and again in a time that does not grow with the spool.

    Parameters
    ----------
    spool_dir : Path
    note : callable
        Gets a line when a segment that was set aside is removed.
    """

    def __init__(self, spool_dir: Path, *, note: Callable[[str], None] = lambda text: None) -> None:
        self._spool_dir = spool_dir
        self._note = note
        self._size = SpoolSize(spool_dir)
        self._names: dict[str, SegmentNames] = {}

    def __repr__(self) -> str:
        return f"<Retention {self._spool_dir}>"

    def sweep(
        self,
        *,
        max_bytes: int,
        max_age_seconds: float,
        shipped: Position | None,
        now: float,
        keep: Callable[[Path], bool] = lambda segment: True,
    ) -> list[Path]:
        """Remove closed segments that are too old, or the oldest while the spool is too large; return what went.

        The spool is brought below `max_bytes` by an eighth, or by twice the writers' reserve where that is more, so
        that they find room until the next sweep however fast they write. The last segment of the decisions that holds
        any stays: what has been published is read from it. Damaged segments that were set aside stay as long as they
        take no more than an eighth of `max_bytes`.

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
            Called with a segment before it is removed; brings it elsewhere, and returns False to have it stay, and
            with it all that are younger.
        """
        self._bound_damaged(max_bytes // _DAMAGED_SHARE)
        target = max_bytes - max(2 * reserve_of(max_bytes), max_bytes // 8)
        size = self._size.count()
        removed: list[Path] = []
        for segment in heapq.merge(
            *(self._removable(stream, shipped, now) for stream in list_streams(self._spool_dir))
        ):
            if now - segment.written_at <= max_age_seconds and size <= target:
                break
            if not keep(segment.path):
                break
            segment.path.unlink(missing_ok=True)
            index_path(segment.path).unlink(missing_ok=True)
            size -= segment.size
            removed.append(segment.path)
        return removed

    def _bound_damaged(self, most: int) -> None:
        found = []
        for stream in list_streams(self._spool_dir):
            names = self._names_of(stream)
            names.look()
            found += [(name, self._spool_dir / stream / name) for name in names.damaged]
        for _, path in sorted(found, reverse=True):
            with contextlib.suppress(FileNotFoundError):
                most -= path.stat().st_size
                if most < 0:
                    path.unlink()
                    self._note(
                        f"{path.parent.name}/{path.name} was removed: what is set aside has its share of the spool"
                    )

    def _names_of(self, stream: str) -> SegmentNames:
        return self._names.setdefault(stream, SegmentNames(self._spool_dir / stream))

    def _removable(self, stream: str, shipped: Position | None, now: float) -> Iterator[_Segment]:
        folder = self._spool_dir / stream
        names = self._names_of(stream).look()
        acknowledged = None if shipped is None else shipped.get(stream, ("", 0))
        kept = _last_written(folder, names) if stream == _DECISIONS else ""
        for segment in _in_order(folder, names, now):
            name = segment.path.name
            if name == kept or (acknowledged is not None and (name, segment.size) > acknowledged):
                return
            if name == names[-1] and (now - segment.written_at < _LEFT_BEHIND_SECONDS or _has_writer(folder)):
                return
            yield segment


def _in_order(folder: Path, names: list[str], now: float) -> Iterator[_Segment]:
    """The segments of a stream in the order of their names, which is that of writing whatever the clock was set to.

    A time that is still to come is taken to be that of the next segment.
    """
    ahead: list[tuple[Path, int]] = []
    for name in names:
        try:
            status = (folder / name).stat()
        except FileNotFoundError:
            continue
        ahead.append((folder / name, status.st_size))
        if status.st_mtime <= now:
            yield from [_Segment(status.st_mtime, path, size) for path, size in ahead]
            ahead.clear()
    yield from [_Segment(now, path, size) for path, size in ahead]


def _last_written(folder: Path, names: list[str]) -> str:
    """The last segment that holds anything; the first when none does."""
    for name in reversed(names):
        try:
            if (folder / name).stat().st_size:
                return name
        except FileNotFoundError:
            continue
    return names[0] if names else ""


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
