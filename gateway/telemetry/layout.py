"""How a metric file is laid out, and how to walk one.

A file is a row of blocks of one size. A block is a row of series:

    length u32 | descriptor bytes u32 | CRC32 of descriptor u32 | cells u32 | descriptor | pad to 8 | cells

little endian, aligned to 8 bytes; `length` counts the whole series, the descriptor is the JSON
`[metric, [label value, ...]]`, a cell is a 64-bit float. `length` is stored last, so a reader sees a series whole or
not at all, and a block ends where it reads 0. The first block begins with a header, its magic stored last.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from .catalog import CATALOG, Metric, MetricError, metric_named, series_labels

__all__ = (
    "BLOCK_BYTES",
    "HEADER_BYTES",
    "MAX_FILE_BYTES",
    "Header",
    "MetricFileError",
    "Series",
    "read_header",
    "series_bytes",
    "walk",
    "write_header",
    "write_series",
)

BLOCK_BYTES = 64 * 1024
MAX_FILE_BYTES = 512 * BLOCK_BYTES  # about 100,000 series
MAGIC = b"GWCELLS1"

_HEADER = struct.Struct("<8sIIII")  # magic, CRC32 of the catalog, process id of the writer, unpublished series, spare
_HEADER_BODY = struct.Struct("<IIII")
_SERIES = struct.Struct("<IIII")
HEADER_BYTES = _HEADER.size


class MetricFileError(Exception):
    """Raised when a metric file is damaged, is held by another process, or cannot be created."""


@dataclass(frozen=True)
class Header:
    """What the first block says about the file: its writer and how many series found no room."""

    process_id: int
    unpublished: int


@dataclass(frozen=True)
class Series:
    """One series of a block; `first` is the index of its first cell, counted in floats from the block's start."""

    metric: Metric
    labels: tuple[str, ...]
    first: int

    @property
    def end(self) -> int:
        """The byte of the block where the next series may begin."""
        return 8 * (self.first + self.metric.cells)


def catalog_checksum() -> int:
    """Return a CRC32 over what decides the cells' meaning, so that no file is read by another version's catalog."""
    table = [[metric.name, metric.kind, metric.labels, metric.buckets] for metric in CATALOG.values()]
    return zlib.crc32(json.dumps(table).encode())


def write_header(block: memoryview[int], header: Header) -> None:
    """Store the header in the first block, the magic last."""
    _HEADER_BODY.pack_into(block, len(MAGIC), catalog_checksum(), header.process_id, header.unpublished, 0)
    block[: len(MAGIC)] = MAGIC


def read_header(block: memoryview[int]) -> Header | None:
    """Return the header, or None of a file whose writer has not come so far yet. Raises MetricFileError."""
    magic, checksum, process_id, unpublished, _ = _HEADER.unpack_from(block)
    if magic == bytes(8):
        return None
    if magic != MAGIC:
        raise MetricFileError(f"begins with {magic!r}, not {MAGIC!r}")
    if checksum != catalog_checksum():
        raise MetricFileError("was written with another catalog of metrics")
    return Header(process_id, unpublished)


def series_bytes(metric: Metric, labels: tuple[str, ...]) -> int:
    """Return how much of a block a series takes."""
    return _padded(_SERIES.size + len(_descriptor(metric, labels))) + 8 * metric.cells


def write_series(block: memoryview[int], offset: int, *, metric: Metric, labels: tuple[str, ...]) -> int:
    """Store a series at `offset` of `block`, cells at 0, and return the index of its first cell."""
    descriptor = _descriptor(metric, labels)
    begin = _padded(offset + _SERIES.size + len(descriptor))
    end = begin + 8 * metric.cells
    block[begin:end] = bytes(end - begin)
    block[offset + _SERIES.size : offset + _SERIES.size + len(descriptor)] = descriptor
    _SERIES.pack_into(block, offset, 0, len(descriptor), zlib.crc32(descriptor), metric.cells)
    struct.pack_into("<I", block, offset, end - offset)
    return begin // 8


def walk(block: memoryview[int], offset: int) -> Iterator[Series]:
    """Yield each series of `block` from `offset` on.

    Raises
    ------
    MetricFileError
        At the first series that does not check.
    """
    while offset + _SERIES.size <= len(block):
        length, size, checksum, cells = _SERIES.unpack_from(block, offset)
        if length == 0:
            break
        begin = _padded(offset + _SERIES.size + size)
        if begin + 8 * cells != offset + length or offset + length > len(block):
            raise MetricFileError(f"has a series of an impossible length at byte {offset} of a block")
        descriptor = bytes(block[offset + _SERIES.size : offset + _SERIES.size + size])
        if zlib.crc32(descriptor) != checksum:
            raise MetricFileError(f"has a damaged descriptor at byte {offset} of a block")
        yield _described(descriptor, cells, begin // 8)
        offset += length


def _descriptor(metric: Metric, labels: tuple[str, ...]) -> bytes:
    return json.dumps([metric.name, labels], separators=(",", ":")).encode()


def _described(descriptor: bytes, cells: int, first: int) -> Series:
    try:
        name, values = json.loads(descriptor)
        metric = metric_named(name)
        labels = series_labels(metric, dict(zip(metric.labels, values, strict=True)))
    except (ValueError, TypeError, MetricError) as error:
        raise MetricFileError(f"describes no series of the catalog: {error}") from None
    if cells != metric.cells:
        raise MetricFileError(f"has {cells} cells for {metric.name}, which has {metric.cells}")
    return Series(metric, labels, first)


def _padded(offset: int) -> int:
    return (offset + 7) & ~7
