"""The spool on disk: how a record is framed, how segment files are named and listed.

A record is `length u32, crc32c u32, sequence u64, kind u8`, payload; little endian, no padding. The length is the
payload's, the CRC covers sequence, kind and payload. A block of predictions is a record of the file like any other,
has the sequence of its first prediction, and comes back as single predictions unless it is asked for whole.
`docs/log.md` describes the format for others.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import time
from pathlib import Path
from typing import Literal, NamedTuple

from google_crc32c import value as crc32c

from gateway.events.blocks import COUNT_BYTES, BlockError, count_of, predictions_of, read_block
from gateway.events.records import KIND_BLOCK, KIND_PREDICTION

__all__ = (
    "DAMAGED_SUFFIX",
    "HEADER_BYTES",
    "LOCK_NAME",
    "MAX_PAYLOAD_BYTES",
    "RECORD_HEAD",
    "RECORD_TAIL",
    "LogRecord",
    "Scan",
    "SegmentNames",
    "SpoolSize",
    "expanded",
    "list_segments",
    "list_streams",
    "numbers_of",
    "reserve_of",
    "scan",
    "segment_name",
    "spool_size",
    "split_name",
)

HEADER_BYTES = 17
# A record's header in two parts, as the second is covered by the CRC in the first.
RECORD_HEAD = struct.Struct("<II")
RECORD_TAIL = struct.Struct("<QB")
# The longest request body is 16 MiB by default and JSON at most quadruples a tensor.
MAX_PAYLOAD_BYTES = 64 * 2**20
LOCK_NAME = "writer.lock"
DAMAGED_SUFFIX = ".damaged"
"""Behind the name of a segment that was set aside."""

_SEGMENT = re.compile(r"([0-9a-f]{14})-([0-9a-f]{10})\.seg")
_COARSE_NS = 10**9
_UNSETTLED = -1
_HEADER = struct.Struct("<IIQB")
_CHECKED_FROM = RECORD_HEAD.size


class LogRecord(NamedTuple):
    """One record of the log: `boot` and `sequence` are its address, `payload` is its JSON.

    Who asked for blocks whole is given records of `KIND_BLOCK` too, with the sequence of their first prediction.
    """

    kind: int
    boot: str
    sequence: int
    payload: bytes

    @property
    def address(self) -> tuple[str, int]:
        """Where it stands in the log; that of a block is its first prediction's."""
        return self.boot, self.sequence

    @property
    def numbers(self) -> int:
        """How many numbers of the log it takes: one, or one for each prediction of a block.

        Raises
        ------
        BlockError
            It is of `KIND_BLOCK` and the payload is no block.
        """
        return 1 if self.kind != KIND_BLOCK else count_of(self.payload)


class Scan(NamedTuple):
    """Whole records of a part of a file, the offset after them, and what stopped the scan.

    `needed` is the length of the record at `end` as its header tells, 0 when no whole header is there or the length
    cannot be; `damaged` is set when the record at `end` does not check, or is a block and no records come of it.
    """

    records: list[LogRecord]
    end: int
    needed: int
    damaged: bool


def scan(
    content: bytes,
    boot: str,
    *,
    start: int = 0,
    max_records: int = 1 << 60,
    blocks: Literal["expanded", "whole", "unread"] = "expanded",
) -> Scan:
    """Return the whole records of `content` from offset `start`.

    Parameters
    ----------
    max_records : int
        Look no further with so many; of the block that comes last there may be up to `MAX_BLOCK` - 1 more. A whole
        block counts as its predictions.
    blocks : "expanded", "whole" or "unread"
        Give the predictions of a block; or the block itself as one record of `KIND_BLOCK`, when records come of it; or
        itself whatever it holds, which then counts as one.
    """
    records: list[LogRecord] = []
    taken = 0
    offset, size = start, len(content)
    unpack = _HEADER.unpack_from
    while taken < max_records and size - offset >= HEADER_BYTES:
        length, crc, sequence, kind = unpack(content, offset)
        if length > MAX_PAYLOAD_BYTES:
            return Scan(records, offset, 0, True)
        after = offset + HEADER_BYTES + length
        if after > size:
            return Scan(records, offset, after - offset, False)
        if crc32c(content[offset + _CHECKED_FROM : after]) != crc:
            return Scan(records, offset, after - offset, True)
        payload = content[offset + HEADER_BYTES : after]
        if kind != KIND_BLOCK or blocks == "unread":
            records.append(LogRecord(kind, boot, sequence, payload))
            taken += 1
        else:
            try:
                block = LogRecord(kind, boot, sequence, payload)
                if blocks == "whole":
                    taken += len(read_block(payload)[1])
                    records.append(block)
                else:
                    records += expanded(block)
                    taken = len(records)
            except BlockError:
                return Scan(records, offset, after - offset, True)
        offset = after
    return Scan(records, offset, 0, False)


def expanded(block: LogRecord) -> list[LogRecord]:
    """Return the predictions of a record of `KIND_BLOCK` one by one.

    Raises
    ------
    BlockError
        No records come of it.
    """
    predictions = predictions_of(block.payload, boot=block.boot, sequence=block.sequence)
    return [
        LogRecord(KIND_PREDICTION, block.boot, number, prediction)
        for number, prediction in enumerate(predictions, block.sequence)
    ]


def numbers_of(content: bytes, offset: int) -> int:
    """Return how many numbers the whole record at `offset` takes, by its header and what follows, unchecked."""
    length, _, _, kind = _HEADER.unpack_from(content, offset)
    if kind != KIND_BLOCK:
        return 1
    start = offset + HEADER_BYTES
    try:
        return count_of(content[start : start + min(length, COUNT_BYTES)])
    except BlockError:
        return 1


def segment_name(boot: str, sequence: int) -> str:
    """Return the file name of the segment whose first record is `sequence`; names sort in the order of writing."""
    return f"{boot}-{sequence:010x}.seg"


def split_name(name: str) -> tuple[str, int]:
    """Return boot and first sequence of a segment file's name, the inverse of `segment_name`."""
    match = _SEGMENT.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no segment; expected <14 hex digits>-<10 hex digits>.seg")
    return match[1], int(match[2], 16)


def list_segments(stream_dir: Path) -> list[str]:
    """Return the names of a stream's segments in the order of writing; none when the folder is not there."""
    return _segments_among(_names_in(stream_dir))


def list_streams(spool_dir: Path) -> list[str]:
    """Return the names of the streams of a spool, sorted."""
    try:
        with os.scandir(spool_dir) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


class SegmentNames:
    """The segments of a stream, listed again and again: the folder is read only when names have come or gone.

    `damaged` are the names of those that were set aside, as of the last look.

    Parameters
    ----------
    folder : Path
        The stream's; need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.damaged: list[str] = []
        self._stamp = _UNSETTLED
        self._names: list[str] = []

    def __repr__(self) -> str:
        return f"<SegmentNames {self._folder} {len(self._names)}>"

    def look(self) -> list[str]:
        """As `list_segments`; the list is not to be changed."""
        try:
            stamp = _stamp_of(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            stamp = _UNSETTLED
        if stamp == _UNSETTLED or stamp != self._stamp:
            names = _names_in(self._folder)
            self._names = _segments_among(names)
            self.damaged = sorted(name for name in names if name.endswith(DAMAGED_SUFFIX))
            self._stamp = stamp
        return self._names


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _segments_among(names: list[str]) -> list[str]:
    return sorted(name for name in names if _SEGMENT.fullmatch(name))


def spool_size(spool_dir: Path) -> int:
    """Return the bytes of all files of a spool, dead letters, checkpoint and what was set aside included."""
    total = 0
    for folder in (spool_dir, *(spool_dir / stream for stream in list_streams(spool_dir))):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        total += _size_of(entry)
        except FileNotFoundError:
            continue
    return total


class SpoolSize:
    """The bytes of a spool, counted again and again: what no writer adds to any more is looked at once.

    Parameters
    ----------
    spool_dir : Path
    """

    def __init__(self, spool_dir: Path) -> None:
        self._spool_dir = spool_dir
        self._folders: dict[Path, _Folder] = {}

    def count(self) -> int:
        """As `spool_size`, in a time that does not grow with the spool unless files have come or gone."""
        folders = (self._spool_dir, *(self._spool_dir / stream for stream in list_streams(self._spool_dir)))
        self._folders = {folder: self._folders.get(folder) or _Folder(folder) for folder in folders}
        return sum(folder.count() for folder in self._folders.values())


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _UNSETTLED
        self._settled: dict[str, int] = {}
        self._settled_bytes = 0
        self._growing: list[str] = []

    def count(self) -> int:
        try:
            stamp = _stamp_of(self._path)
            if stamp == _UNSETTLED or stamp != self._stamp:
                self._look()
                self._stamp = stamp
        except (FileNotFoundError, NotADirectoryError):
            return 0
        return self._settled_bytes + sum(self._size_of(name) for name in self._growing)

    def _look(self) -> None:
        names = set(os.listdir(self._path))
        for name in self._settled.keys() - names:
            self._settled_bytes -= self._settled.pop(name)
        others = names - self._settled.keys()
        last = max((name for name in others if _SEGMENT.fullmatch(name)), default="")
        # What was set aside is counted once its segment has gone, whose bytes it shares.
        self._growing = [
            name for name in others if name == last or name.endswith(DAMAGED_SUFFIX) or not _SEGMENT.match(name)
        ]
        for name in others.difference(self._growing):
            self._settled[name] = self._size_of(name)
            self._settled_bytes += self._settled[name]

    def _size_of(self, name: str) -> int:
        try:
            status = os.stat(self._path / name, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        return _bytes_of(name, status) if stat.S_ISREG(status.st_mode) else 0


def _stamp_of(folder: Path) -> int:
    """When names last came to a folder or went, in nanoseconds; _UNSETTLED while that was just now.

    A file may still come at what the clock of the file system calls the same moment.
    """
    changed_at = folder.stat().st_mtime_ns
    return changed_at if time.time_ns() - changed_at > _COARSE_NS else _UNSETTLED


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        return _bytes_of(entry.name, entry.stat(follow_symlinks=False))
    except FileNotFoundError:
        return 0


def _bytes_of(name: str, status: os.stat_result) -> int:
    return 0 if name.endswith(DAMAGED_SUFFIX) and status.st_nlink > 1 else status.st_size


def reserve_of(max_bytes: int) -> int:
    """Return the bytes that writers leave free below `max_bytes`: what other writers may add between two looks."""
    return min(64 * 2**20, max_bytes // 16)
