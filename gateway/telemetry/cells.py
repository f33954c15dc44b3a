"""One process's metrics as 64-bit floats in a memory-mapped file (`layout.py` has the layout).

Adding is one store to memory that the kernel keeps when the process is killed; any other process reads the file as it
stands. Each block is mapped by itself, so what a child holds stays valid while the file grows. While its writer lives
the file is locked: no second writer, and readers tell the living from the dead, whose gauges no longer speak.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .catalog import Kind, Metric, MetricError, metric_named, series_labels
from .layout import (
    BLOCK_BYTES,
    HEADER_BYTES,
    MAX_FILE_BYTES,
    Header,
    MetricFileError,
    read_header,
    series_bytes,
    walk,
    write_header,
    write_series,
)

__all__ = ("CellFile", "Counter", "Gauge", "Histogram", "MetricError", "MetricFileError", "add_all")

LOCK_SECONDS = 1.0

_Key = tuple[str, tuple[str, ...]]


class Counter:
    """A count that only grows; it survives the death of its process."""

    __slots__ = ("_cells", "_index")

    def __init__(self, cells: memoryview[float], index: int) -> None:
        self._cells = cells
        self._index = index

    def inc(self, amount: float = 1.0) -> None:
        """Add `amount`, which is finite and not negative."""
        self._cells[self._index] += amount

    @property
    def value(self) -> float:
        return self._cells[self._index]

    def __repr__(self) -> str:
        return f"Counter({self.value:g})"


def add_all(counters: Sequence[Counter], amounts: Sequence[float]) -> None:
    """Add to each counter its amount, finite and not negative; cheaper than one by one."""
    for counter, amount in zip(counters, amounts, strict=True):
        counter._cells[counter._index] += amount  # noqa: SLF001


class Gauge:
    """A value that comes and goes; NaN is no value."""

    __slots__ = ("_cells", "_clock", "_index")

    def __init__(self, cells: memoryview[float], index: int, *, clock: Callable[[], float]) -> None:
        self._cells = cells
        self._index = index
        self._clock = clock

    def set(self, value: float) -> None:
        self._cells[self._index + 1] = self._clock()
        self._cells[self._index] = value

    @property
    def value(self) -> float:
        return self._cells[self._index]

    def __repr__(self) -> str:
        return f"Gauge({self.value:g})"


class Histogram:
    """How many observations fell into each bucket, and their sum."""

    __slots__ = ("_bounds", "_cells", "_index", "_sum_index")

    def __init__(self, cells: memoryview[float], index: int, *, bounds: tuple[float, ...]) -> None:
        self._cells = cells
        self._index = index
        self._bounds = bounds
        self._sum_index = index + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Observe `value`, which is finite."""
        cells = self._cells
        cells[self._index + bisect_left(self._bounds, value)] += 1.0
        cells[self._sum_index] += value

    def observe_many(self, values: Sequence[float]) -> None:
        """Observe all of `values`; cheaper than one by one, and most so where few buckets take them all."""
        if len(values) < 2:
            for value in values:
                self.observe(value)
            return
        cells, index, bounds = self._cells, self._index, self._bounds
        # What comes in the order of time or against it is sorted at the cost of one look at each.
        ordered = sorted(values)
        last = bisect_left(bounds, ordered[-1])
        below = 0
        for bucket in range(bisect_left(bounds, ordered[0]), last):
            upto = bisect_right(ordered, bounds[bucket])
            cells[index + bucket] += upto - below
            below = upto
        cells[index + last] += len(ordered) - below
        cells[self._sum_index] += sum(values)

    @property
    def count(self) -> float:
        return math.fsum(self._cells[self._index : self._sum_index])

    @property
    def sum(self) -> float:
        return self._cells[self._sum_index]

    def __repr__(self) -> str:
        return f"Histogram(count={self.count:g}, sum={self.sum:g})"


class CellFile:
    """The metrics of this process; for one thread.

    A file left by an earlier life of the same process is continued: its counts go on, its gauges are forgotten. A
    damaged file, or one of another version's catalog, is replaced. A series that finds no room on disk is counted but
    not published, and the page says how many there are: metrics are not worth a prediction.

    Parameters
    ----------
    path : Path
        `<process>.cells`; its folder is made if need be.
    clock : callable
        Seconds since 1970: when a gauge was set.

    Raises
    ------
    MetricFileError
        If another process holds the file, or it cannot be created.

    >>> import tempfile
    >>> cells = CellFile(Path(tempfile.mkdtemp()) / "front-0.cells")
    >>> cells.counter("gateway_log_events_total", {"state": "spooled"}).inc(3)
    >>> cells.counter("gateway_log_events_total", {"state": "spooled"})
    Counter(3)
    >>> cells.close()
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._counters: dict[_Key, Counter] = {}
        self._gauges: dict[_Key, Gauge] = {}
        self._histograms: dict[_Key, Histogram] = {}
        self._first = memoryview(b"")
        self._last = memoryview(b"")
        self._free = BLOCK_BYTES
        self._unpublished = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_locked(path)
            try:
                self._continue()
            except MetricFileError:
                self._replace()
        except OSError as error:
            raise MetricFileError(f"cannot create the metric file {path}: {error}") from None

    def counter(self, name: str, labels: Mapping[str, str]) -> Counter:
        """Return the counter `name` with `labels`; asked twice, the same one. Raises MetricError."""
        metric, key = _described(name, "counter", labels)
        if key not in self._counters:
            self._counters[key] = Counter(*self._append(metric, key[1]))
        return self._counters[key]

    def gauge(self, name: str, labels: Mapping[str, str]) -> Gauge:
        """Return the gauge `name` with `labels`; asked twice, the same one. It has no value until it is set."""
        metric, key = _described(name, "gauge", labels)
        if key not in self._gauges:
            self._gauges[key] = self._absent_gauge(*self._append(metric, key[1]))
        return self._gauges[key]

    def histogram(self, name: str, labels: Mapping[str, str]) -> Histogram:
        """Return the histogram `name` with `labels`; asked twice, the same one. Raises MetricError."""
        metric, key = _described(name, "histogram", labels)
        if key not in self._histograms:
            cells, index = self._append(metric, key[1])
            self._histograms[key] = Histogram(cells, index, bounds=metric.buckets)
        return self._histograms[key]

    def remove(self, name: str, labels: Mapping[str, str]) -> None:
        """Take a gauge off the page; it comes back when it is set again."""
        _, key = _described(name, "gauge", labels)
        if key in self._gauges:
            self._gauges[key].set(math.nan)

    def close(self) -> None:
        """Take the gauges off the page and let the file go; children may still be used and count for nobody."""
        for gauge in self._gauges.values():
            gauge.set(math.nan)
        if self._file >= 0:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = -1

    def __repr__(self) -> str:
        series = len(self._counters) + len(self._gauges) + len(self._histograms)
        return f"CellFile({self.path.name}, series={series}, unpublished={self._unpublished})"

    def _continue(self) -> None:
        size = os.fstat(self._file).st_size
        if size % BLOCK_BYTES or size > MAX_FILE_BYTES:
            raise MetricFileError(f"{self.path} has {size} bytes, not a number of blocks up to {MAX_FILE_BYTES}")
        for start in range(0, size, BLOCK_BYTES):
            self._last = self._mapped(start)
            if start == 0:
                if read_header(self._last) is None:
                    raise MetricFileError(f"{self.path} has no header")
                self._first = self._last
            self._adopt(HEADER_BYTES if start == 0 else 0)
        if size == 0:
            self._grow()
        write_header(self._first, Header(os.getpid(), 0))

    def _adopt(self, free: int) -> None:
        cells = self._last.cast("d")
        self._free = free
        for series in walk(self._last, free):
            key = (series.metric.name, series.labels)
            if series.metric.kind == "counter":
                self._counters[key] = Counter(cells, series.first)
            elif series.metric.kind == "gauge":
                self._gauges[key] = self._absent_gauge(cells, series.first)
            else:
                self._histograms[key] = Histogram(cells, series.first, bounds=series.metric.buckets)
            self._free = series.end

    def _replace(self) -> None:
        for children in (self._counters, self._gauges, self._histograms):
            children.clear()
        # Not truncated: a reader that has it mapped would be killed.
        os.unlink(self.path)
        os.close(self._file)
        self._file = _open_locked(self.path)
        self._grow()
        write_header(self._first, Header(os.getpid(), 0))

    def _append(self, metric: Metric, labels: tuple[str, ...]) -> tuple[memoryview[float], int]:
        size = series_bytes(metric, labels)
        if self._free + size > BLOCK_BYTES:
            try:
                self._grow()
            except OSError:
                self._unpublished += 1
                write_header(self._first, Header(os.getpid(), self._unpublished))
                return memoryview(bytearray(8 * metric.cells)).cast("d"), 0
        index = write_series(self._last, self._free, metric=metric, labels=labels)
        self._free += size
        return self._last.cast("d"), index

    def _grow(self) -> None:
        start = os.fstat(self._file).st_size
        if start >= MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"a metric file has at most {MAX_FILE_BYTES} bytes")
        # Reserved, not sparse: storing into a hole of a full disk kills the process.
        os.posix_fallocate(self._file, start, BLOCK_BYTES)
        self._last = self._mapped(start)
        self._free = 0
        if start == 0:
            self._first = self._last
            self._free = HEADER_BYTES

    def _mapped(self, start: int) -> memoryview[int]:
        return memoryview(mmap.mmap(self._file, BLOCK_BYTES, offset=start))

    def _absent_gauge(self, cells: memoryview[float], index: int) -> Gauge:
        gauge = Gauge(cells, index, clock=self._clock)
        gauge.set(math.nan)
        return gauge


def _described(name: str, kind: Kind, labels: Mapping[str, str]) -> tuple[Metric, _Key]:
    metric = metric_named(name, kind)
    return metric, (name, series_labels(metric, labels))


def _open_locked(path: Path) -> int:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            # A reader that asks whether we live holds the lock for a moment; another writer holds it for good.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(file)
        if time.monotonic() > deadline:
            raise MetricFileError(f"another process runs as {path.stem}: it holds {path}")
        time.sleep(0.01)
