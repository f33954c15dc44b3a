"""The spool's one writer per stream: a batch of records is one write, and it is in the log before it is answered."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from google_crc32c import value as crc32c

from gateway.events.blocks import count_of
from gateway.events.records import KIND_BLOCK
from gateway.predictions.disk import Disk, LocalDisk, SyncDebt
from gateway.predictions.salvage import whole_bytes
from gateway.predictions.segments import (
    HEADER_BYTES,
    LOCK_NAME,
    MAX_PAYLOAD_BYTES,
    RECORD_HEAD,
    RECORD_TAIL,
    SpoolSize,
    list_segments,
    numbers_of,
    reserve_of,
    segment_name,
    split_name,
)
from gateway.settings import SpoolSettings

__all__ = ("SpoolError", "SpoolFull", "SpoolWriter")

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_FILE = -1
# Every open segment of a small spool must fit beside the closed ones, or nothing could ever be removed.
_SEGMENTS_PER_SPOOL = 32
_MIN_SEGMENT_BYTES = 4096
# A stream that writes little closes its segment after this time, so that retention by age can remove it.
_SEGMENT_SECONDS = 3600.0
_PROBE_BYTES = 4096
_PROBE_NAME = "probe"


class SpoolError(Exception):
    """Raised when records could not be written; the first `written` of the batch are in the log all the same.

    A block counts as the predictions it holds, and all of them are in the log or none.
    """

    def __init__(self, text: str, *, written: int = 0) -> None:
        super().__init__(text)
        self.written = written


class SpoolFull(SpoolError):
    """Raised when there is no space left, on the disk or below `spool.max_bytes`."""


class SpoolWriter:
    """The writer of one stream; the lock in its folder keeps a second one out.

    Not safe to use from several threads. Records are numbered from 1 in each life (`boot`) of a writer. When a batch
    is refused, its records have no number and nothing of them lies in the log; when it is dropped (`full = "drop"`)
    the numbers are used up, so that the gap shows in the log.

    Parameters
    ----------
    directory : Path
        Folder of the stream, `<spool>/<stream>`; made when missing.
    slot : int
        0 to 255, different for each stream of one spool; part of `boot`.
    settings : SpoolSettings
    clock : callable
        Seconds since 1970.
    reserve_bytes : int, optional
        Bytes this writer leaves free below `settings.max_bytes` and on the disk; the default is `reserve_of`.
    deferred : bool
        Nothing is brought to the disk here: whoever asked for it does so with `take_debt` and `settle`, in a thread.
    disk : Disk, optional

    Raises
    ------
    SpoolError
        When the folder cannot be used or has a writer already.
    """

    def __init__(
        self,
        directory: Path,
        *,
        slot: int,
        settings: SpoolSettings,
        clock: Callable[[], float] = time.time,
        reserve_bytes: int | None = None,
        deferred: bool = False,
        disk: Disk | None = None,
    ) -> None:
        if not 0 <= slot <= 255:
            raise ValueError(f"slot is {slot}; expected 0 to 255")
        self.directory = directory
        self.next_sequence = 1
        self.size_bytes = 0
        self.full = False
        self.dropped = 0
        self.unsynced = 0
        self.cut = 0
        self._clock = clock
        self._disk = disk or LocalDisk()
        self._fsync = settings.fsync
        self._deferred = deferred
        self._fsync_interval = settings.fsync_interval_seconds
        self._drop = settings.full == "drop"
        self._max_bytes = settings.max_bytes
        self._segment_bytes = max(
            _MIN_SEGMENT_BYTES, min(settings.segment_bytes, settings.max_bytes // _SEGMENTS_PER_SPOOL)
        )
        self._reserve = reserve_of(settings.max_bytes) if reserve_bytes is None else reserve_bytes
        self._room = 0
        self._spool_size = SpoolSize(directory.parent)
        self._file = _NO_FILE
        self._path = directory
        self._dirty = False
        self.unsure = False
        self._retired: list[int] = []
        self._renamed: list[Path] = []
        self._naming = 0
        self._synced_at = clock()
        self._begun_at = clock()
        self._lock = self._take_lock()
        try:
            self.boot = self._next_boot(slot)
            # The folder may have been made in an earlier life that did not come to sync its name.
            self._note_names(self.directory.parent, self.directory.parent.parent)
            self.cut = self._cut_torn_tail()
            self._look_for_room()
        except OSError as error:
            os.close(self._lock)
            raise _translated(error, self.directory) from None

    def __repr__(self) -> str:
        state = "closed" if self._lock == _NO_FILE else "full" if self.full else "open"
        return (
            f"<SpoolWriter {self.directory.name} {state} boot={self.boot} next={self.next_sequence} "
            f"segment={self.size_bytes} room={self._room} dropped={self.dropped}>"
        )

    def append(self, records: Sequence[tuple[int, bytes]]) -> None:
        """Write `(kind, payload)` pairs in one write; on return all of them are in the log.

        Each takes one number, a block (`KIND_BLOCK`) as many as it holds predictions. With `fsync = "always"` they
        are on the disk, unless the writer is `deferred`. With `full = "drop"` a full spool is no error: the records
        are counted in `dropped`.

        Raises
        ------
        SpoolFull
            No space is left.
        SpoolError
            The disk refused. In both cases `written` tells how many of the batch are in the log.
        BlockError
            What is said to be a block is none; nothing was written.
        """
        head, tail = RECORD_HEAD.pack, RECORD_TAIL.pack
        first = sequence = self.next_sequence
        parts: list[bytes] = []
        for kind, payload in records:
            # One copy is cheaper than a second call for the checksum.
            numbered = tail(sequence, kind) + payload
            parts.append(head(len(payload), crc32c(numbered)))
            parts.append(numbered)
            sequence += 1 if kind != KIND_BLOCK else count_of(payload)
        frame = b"".join(parts)
        size = len(frame)
        if size > MAX_PAYLOAD_BYTES:
            _check_sizes(records)
        try:
            if self._file == _NO_FILE or (self.size_bytes + size > self._segment_bytes and self.size_bytes):
                self._begin_segment()
            if size > self._room:
                raise SpoolFull(f"the spool has reached its limit of {self._max_bytes} bytes")
            done = self._disk.write(self._file, frame)
            if done != size:
                self._write_rest(frame, done)
        except (OSError, SpoolError) as error:
            self._refuse(error, first, sequence)
            return
        self.next_sequence = sequence
        self.size_bytes += size
        self._room -= size
        self._dirty = True
        self.full = self.unsure
        if self._fsync == "always" and not self._deferred:
            self._sync_batch(sequence - first)

    def tick(self) -> None:
        """Look again for room, close a segment that is old, and bring to the disk what is due; call it every second.

        Never raises: what the disk refuses shows in `full` and at the next `append`.
        """
        if self._lock == _NO_FILE:
            return
        now = self._clock()
        try:
            self._look_for_room()
            if self.size_bytes and (self.full or not 0 <= now - self._begun_at <= _SEGMENT_SECONDS):
                self._begin_segment()
            if self.full and self._room > _PROBE_BYTES:
                os.close(self._probe())
                self.full = self.unsure
            if not self._deferred and (self.unsure or self._fsync == "interval" and self._is_sync_due(now)):
                self.sync()
        except (OSError, SpoolError):
            self.full = True

    def sync(self) -> None:
        """Bring everything written so far to the disk.

        Raises
        ------
        SpoolError
            When the disk refused; what was written since the last call may not survive a power loss.
        """
        error = None
        try:
            self.take_debt().pay(self._disk)
        except OSError as fault:
            error = fault
        failure = self.settle(error)
        if failure is not None:
            raise failure

    @property
    def owes(self) -> bool:
        """Whether something has been written that a power loss may take, and shall not (`fsync` is not "never")."""
        return self._fsync != "never" and (self._dirty or bool(self._retired) or bool(self._renamed))

    def take_debt(self) -> SyncDebt:
        """Take over what is not on the disk yet; the next debt is taken only when this one is settled.

        A disk that refused before is tried with a file beside the log, so that it shows when it takes anything again.

        Raises
        ------
        OSError
            To be settled as if the disk had refused.
        """
        self._synced_at = self._clock()
        last = []
        if self._dirty:
            last.append(os.dup(self._file))
        elif self.unsure:
            last.append(self._probe())
        debt = SyncDebt((*self._retired, *last), tuple(self._renamed))
        self._retired, self._dirty, self._naming = [], False, len(self._renamed)
        return debt

    def settle(self, error: OSError | None) -> SpoolError | None:
        """Take note of how a debt was paid; returns what to tell those who waited, and who wait by now.

        After a failure nothing written so far can be relied on, and the next record begins another file.
        """
        paid, self._naming = self._naming, 0
        if error is None:
            del self._renamed[:paid]
            if self.unsure:
                self.unsure = self.full = False
            return None
        self.unsure = self.full = True
        self._dirty = False
        self._leave_segment()
        for file in self._retired:
            os.close(file)
        self._retired = []
        return _translated(error, self.directory)

    def close(self) -> None:
        """Close the segment and let go of the lock. A second call does nothing."""
        if self._lock == _NO_FILE:
            return
        try:
            if self.owes:
                self.sync()
            self._leave_segment()
        finally:
            os.close(self._lock)
            self._lock = _NO_FILE

    def _take_lock(self) -> int:
        try:
            self._make_folder()
            lock = os.open(self.directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _translated(error, self.directory) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise SpoolError(f"{self.directory} already has a writer; one gateway per state directory") from None
            raise _translated(error, self.directory) from None
        return lock

    def _next_boot(self, slot: int) -> str:
        """Return a boot later than any before it, even when the clock went back or the segments are gone."""
        past = [split_name(name)[0] for name in list_segments(self.directory)[-1:]]
        noted = os.pread(self._lock, 14, 0).decode("ascii", "replace")
        if re.fullmatch("[0-9a-f]{14}", noted):
            past.append(noted)
        latest = int(max(past, default="0" * 14)[:12], 16)
        boot = f"{max(int(self._clock() * 1000), latest + 1):012x}{slot:02x}"
        # On a full disk the note fails and the names of the segments still tell.
        with contextlib.suppress(OSError):
            os.pwrite(self._lock, boot.encode("ascii"), 0)
        return boot

    def _make_folder(self) -> None:
        if not self.directory.is_dir():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._note_names(self.directory.parent, self.directory.parent.parent)

    def _note_names(self, *folders: Path) -> None:
        """There are new names in these folders, to be brought to the disk with what is written next."""
        if self._fsync != "never":
            self._renamed += [folder for folder in folders if folder not in self._renamed[self._naming :]]

    def _cut_torn_tail(self) -> int:
        """Cut what a killed writer left unfinished off the last segment; returns its bytes.

        A record that is whole and does not check stays, and so does all behind it: its readers shall tell. Where the
        disk does not let it be cut, the tail stays as well, and readers pass over it.
        """
        for name in list_segments(self.directory)[-1:]:
            with contextlib.suppress(OSError), (self.directory / name).open("r+b", buffering=0) as segment:
                size = os.fstat(segment.fileno()).st_size
                whole = whole_bytes(segment.fileno())
                if whole is not None and whole < size:
                    self._disk.cut(segment.fileno(), whole)
                    return size - whole
        return 0

    def _look_for_room(self) -> None:
        """Count the spool and the free disk; see whether the open segment is still there."""
        self._make_folder()
        if self._file != _NO_FILE and not self._path.exists():
            self._leave_segment()
        disk = os.statvfs(self.directory)
        self._room = min(self._max_bytes - self._spool_size.count(), disk.f_bavail * disk.f_frsize) - self._reserve

    def _begin_segment(self) -> None:
        if self._lock == _NO_FILE:
            raise SpoolError(f"the writer of {self.directory} is closed")
        self._leave_segment()
        self._look_for_room()
        path = self.directory / segment_name(self.boot, self.next_sequence)
        # A file of this name exists only when nothing whole could be written to it before.
        self._file, self._path = self._disk.begin(path), path
        self._begun_at = self._clock()
        self._note_names(self.directory)

    def _leave_segment(self) -> None:
        """Write no more to the open segment; what it owes to the disk is kept for the next debt."""
        file, self._file = self._file, _NO_FILE
        self.size_bytes = 0
        if file == _NO_FILE:
            return
        if self._dirty and self._fsync != "never":
            self._retired.append(file)
        else:
            os.close(file)
        self._dirty = False

    def _probe(self) -> int:
        """Write a few bytes beside the log, to learn whether the disk takes any; returns their file, without a name."""
        path = self.directory / _PROBE_NAME
        file = self._disk.begin(path)
        try:
            path.unlink(missing_ok=True)
            self._disk.write(file, bytes(_PROBE_BYTES))
        except OSError:
            os.close(file)
            raise
        return file

    def _write_rest(self, frame: bytes, done: int) -> None:
        """Go on after a short write; when the disk refuses, cut the file back to the last whole record."""
        try:
            while done < len(frame):
                done += self._disk.write(self._file, frame[done:])
        except OSError:
            count, whole = _whole_records(frame, done)
            self.next_sequence += count
            self.size_bytes += whole
            self._room -= whole
            self._dirty = True
            try:
                self._disk.cut(self._file, self.size_bytes)
            except OSError:
                # Readers pass over a torn record at the end of a segment that is not the last.
                self._leave_segment()
            raise

    def _refuse(self, error: OSError | SpoolError, first: int, end: int) -> None:
        """Note that of the numbers from `first` to before `end` only those before `next_sequence` are in the log."""
        self.full = True
        refused, written = end - self.next_sequence, self.next_sequence - first
        if isinstance(error, OSError) and error.errno not in _NO_SPACE:
            self._leave_segment()
        if written and self._fsync == "always" and not self._deferred:
            self._sync_batch(written)
        if not self._drop:
            failure = _translated(error, self.directory) if isinstance(error, OSError) else error
            failure.written = written
            raise failure from None
        self.dropped += refused
        self.next_sequence = end

    def _is_sync_due(self, now: float) -> bool:
        return self.owes and not 0 <= now - self._synced_at < self._fsync_interval

    def _sync_batch(self, count: int) -> None:
        try:
            self.sync()
        except SpoolError:
            if not self._drop:
                raise
            self.unsynced += count


def _translated(error: OSError, directory: Path) -> SpoolError:
    kind = SpoolFull if error.errno in _NO_SPACE else SpoolError
    return kind(f"cannot write to {directory}: {error.strerror}")


def _check_sizes(records: Sequence[tuple[int, bytes]]) -> None:
    for kind, payload in records:
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise SpoolError(
                f"a record of kind {kind} has {len(payload)} bytes; expected at most {MAX_PAYLOAD_BYTES} bytes"
            )


def _whole_records(frame: bytes, written: int) -> tuple[int, int]:
    """Return how many numbers the records take that lie whole in the first `written` bytes, and their bytes."""
    count = used = 0
    while used + HEADER_BYTES <= written:
        after = used + HEADER_BYTES + RECORD_HEAD.unpack_from(frame, used)[0]
        if after > written:
            break
        count, used = count + numbers_of(frame, used), after
    return count, used
