"""What one segment holds and where: a mark every few records or blocks, and the predictions its labels speak of.

The index of a closed segment lies beside it as `<segment>.idx`, so that one record among millions, and the labels of
it, are found without reading the log. It is made from the segment and can be made again at any time.
"""

from __future__ import annotations

import os
import time
from array import array
from bisect import bisect_right
from pathlib import Path

import msgspec
import numpy as np

from gateway.events.addresses import AddressError, parse_id
from gateway.events.records import KIND_FEEDBACK
from gateway.predictions.salvage import can_follow, ends_sooner, next_behind
from gateway.predictions.segments import (
    HEADER_BYTES,
    RECORD_HEAD,
    RECORD_TAIL,
    Scan,
    list_segments,
    list_streams,
    split_name,
)

__all__ = ("INDEX_SUFFIX", "SegmentIndex", "index_closed", "index_path", "read_index")

INDEX_SUFFIX = ".idx"
_VERSION = 1
_MARK_EVERY = 64
# Blocks are large; what lies between two marks is read at once.
_MARK_BYTES = 32 * 1024


class _Label(msgspec.Struct):
    prediction_id: str = ""


class _Stored(msgspec.Struct, array_like=True):
    """The file: arrays as little-endian 64-bit numbers."""

    version: int
    size: int
    sequences: bytes
    offsets: bytes
    boots: bytes
    numbers: bytes
    places: bytes


_labels = msgspec.json.Decoder(_Label)
_stored = msgspec.msgpack.Decoder(_Stored)


class SegmentIndex:
    """The index of the first `size` bytes of a segment; `extend` takes in what was written since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._count = 0
        self._sequences, self._offsets = array("Q"), array("Q")
        self._boots, self._numbers, self._places = array("Q"), array("Q"), array("Q")

    def __repr__(self) -> str:
        return f"<SegmentIndex {self.path.name} bytes={self.size} labels={len(self._places)}>"

    def extend(self) -> None:
        """Take in the whole records behind `size`; those of a segment that is gone are none."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.size)
                part = file.read()
        except FileNotFoundError:
            return
        offset, end = 0, len(part)
        least = self._sequences[-1] if self._sequences else split_name(self.path.name)[1]
        # Where the record before this one began, and the least number it could have.
        before, before_least = -1, least
        while offset + HEADER_BYTES <= end:
            length, _ = RECORD_HEAD.unpack_from(part, offset)
            after = offset + HEADER_BYTES + length
            sequence, kind = RECORD_TAIL.unpack_from(part, offset + RECORD_HEAD.size)
            follows = can_follow(part, offset, least=least)
            if follows and after > end and not ends_sooner(part[offset:]):
                break
            if not follows or after > end:
                # This one is damaged, or the one before.
                behind = next_behind(part, "", Scan([], before, 0, True), number=before_least)
                if behind is None:
                    break
                offset, least = behind, before_least
                continue
            before, before_least, least = offset, least, sequence + 1
            place = self.size + offset
            if self._count % _MARK_EVERY == 0 or place - self._offsets[-1] >= _MARK_BYTES:
                self._sequences.append(sequence)
                self._offsets.append(place)
                self._count = 0
            self._count += 1
            if kind == KIND_FEEDBACK:
                self._note_label(part[offset + HEADER_BYTES : after], place)
            offset = after
        self.size += offset

    def place_before(self, sequence: int) -> tuple[int, int] | None:
        """The bytes, from and to, between which the record with this number, or its block, lies if it is here."""
        place = bisect_right(self._sequences, sequence)
        if not place:
            return None
        return self._offsets[place - 1], self._offsets[place] if place < len(self._offsets) else self.size

    def labels_of(self, boot: str, sequence: int) -> list[int]:
        """The offsets of the labels for this prediction."""
        if not self._numbers:
            return []
        found = np.flatnonzero(np.frombuffer(self._numbers, "u8") == sequence)
        return [self._places[place] for place in found.tolist() if self._boots[place] == int(boot, 16)]

    def save(self) -> None:
        """Write the index beside its segment, whole or not at all."""
        parts = (self._sequences, self._offsets, self._boots, self._numbers, self._places)
        stored = _Stored(_VERSION, self.size, *(np.frombuffer(part, "<u8").tobytes() for part in parts))
        target = index_path(self.path)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(msgspec.msgpack.encode(stored))
        partial.replace(target)

    def restore(self, stored: _Stored) -> None:
        parts = (stored.sequences, stored.offsets, stored.boots, stored.numbers, stored.places)
        read = [array("Q", np.frombuffer(part, "<u8").astype("u8").tobytes()) for part in parts]
        self._sequences, self._offsets, self._boots, self._numbers, self._places = read
        self.size = stored.size

    def _note_label(self, payload: bytes, offset: int) -> None:
        try:
            boot, sequence = parse_id(_labels.decode(payload).prediction_id)
        except (msgspec.DecodeError, UnicodeDecodeError, AddressError):
            return
        self._boots.append(int(boot, 16))
        self._numbers.append(sequence)
        self._places.append(offset)


def index_path(segment: Path) -> Path:
    """Where the index of a segment lies."""
    return segment.with_name(segment.name + INDEX_SUFFIX)


def read_index(segment: Path) -> SegmentIndex | None:
    """Read the index of a closed segment; None when there is none that fits."""
    try:
        stored = _stored.decode(index_path(segment).read_bytes())
        size = segment.stat().st_size
    except (OSError, msgspec.DecodeError):
        return None
    if stored.version != _VERSION or stored.size > size:
        return None
    index = SegmentIndex(segment)
    try:
        index.restore(stored)
    except ValueError:
        return None
    return index


def index_closed(spool_dir: Path, *, seconds: float) -> int:
    """Index closed segments that have no index yet, for at most so many seconds, and return how many were.

    Indexes of segments that are gone are removed. What the disk refuses is left for the next time.
    """
    until = time.monotonic() + seconds
    done = 0
    for folder in (spool_dir / stream for stream in list_streams(spool_dir)):
        names = list_segments(folder)
        indexed = _indexed(folder)
        for name in indexed.difference(names):
            index_path(folder / name).unlink(missing_ok=True)
        for name in names[:-1]:
            if time.monotonic() > until:
                return done
            if name not in indexed:
                index = SegmentIndex(folder / name)
                try:
                    index.extend()
                except OSError:
                    continue
                try:
                    index.save()
                except OSError:
                    return done
                done += 1
    return done


def _indexed(folder: Path) -> set[str]:
    """The segments, there or gone, that have an index."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return set()
    return {name.removesuffix(INDEX_SUFFIX) for name in names if name.endswith(INDEX_SUFFIX)}
