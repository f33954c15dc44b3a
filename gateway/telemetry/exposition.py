"""The page of metrics: every process's file read as it stands, summed, and rendered for Prometheus.

The cost is bounded by files times series. A file that does not check is left out and counted; it never breaks the page.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway import __version__

from .catalog import CATALOG, Metric, MetricError, metric_named, series_labels
from .layout import BLOCK_BYTES, HEADER_BYTES, MAX_FILE_BYTES, MetricFileError, read_header, walk

__all__ = ("MetricFamily", "collect", "counters_of", "render")

MetricFamily = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

_Labels = tuple[str, ...]
_Cells = tuple[float, ...]


@dataclass(frozen=True)
class _File:
    """What one process's file said."""

    process: str
    process_id: int | None
    unpublished: int
    series: list[tuple[Metric, _Labels, _Cells]]


class _Totals:
    """Cells of all files, per metric and labels."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[_Labels, _Cells]] = {name: {} for name in CATALOG}

    def add(self, metric: Metric, labels: _Labels, cells: _Cells) -> None:
        series = self.cells[metric.name]
        if metric.kind == "gauge" and math.isnan(cells[0]):
            return
        series[labels] = _merged(metric, series[labels], cells) if labels in series else cells

    def gauge(self, name: str, value: float, *labels: str) -> None:
        self.add(metric_named(name, "gauge"), labels, (value, math.inf))


def collect(metrics_dir: Path) -> list[MetricFamily]:
    """Read every `<process>.cells` in `metrics_dir` and return one family for each metric of the catalog.

    Counters and histograms of all files are summed, those of ended processes too; gauges speak only for the living
    and are merged as the catalog says. A folder that does not exist has no files.
    """
    totals = _Totals()
    totals.gauge("gateway_build_info", 1.0, __version__)
    damaged = unpublished = 0
    for path in sorted(metrics_dir.glob("*.cells")):
        try:
            file = _read(path)
        except FileNotFoundError:
            continue
        except (MetricFileError, MetricError, OSError):
            damaged += 1
            continue
        if file is not None:
            _add(totals, file)
            unpublished += file.unpublished
    totals.gauge("gateway_metric_files_damaged", damaged)
    totals.gauge("gateway_metric_series_unpublished", unpublished)
    return [_family(metric, totals.cells[metric.name]) for metric in CATALOG.values()]


def counters_of(path: Path) -> dict[tuple[str, _Labels], float]:
    """Return the counters of one process's file by name and label values; none when it is not there.

    Raises
    ------
    MetricFileError
        The file is damaged.
    """
    try:
        file = _read(path)
    except FileNotFoundError:
        return {}
    except (MetricError, OSError) as error:
        raise MetricFileError(f"{path} cannot be read: {error}") from None
    series = file.series if file is not None else []
    return {(metric.name, labels): cells[0] for metric, labels, cells in series if metric.kind == "counter"}


def render(metrics_dir: Path, accept: str | None) -> tuple[bytes, str]:
    """Return the page and its content type, in the format that `accept` (a request's Accept header) asks for."""
    encode, content_type = choose_encoder(accept or "")
    return encode(_Page(metrics_dir)), content_type


class _Page(Collector):
    def __init__(self, metrics_dir: Path) -> None:
        self._metrics_dir = metrics_dir

    def collect(self) -> Iterable[MetricFamily]:
        return collect(self._metrics_dir)


def _add(totals: _Totals, file: _File) -> None:
    alive = file.process_id is not None
    totals.gauge("gateway_process_up", float(alive), file.process)
    resident = _resident_bytes(file.process_id) if file.process_id is not None else None
    if resident is not None:
        totals.gauge("gateway_process_resident_bytes", resident, file.process)
    for metric, labels, cells in file.series:
        if alive or metric.kind != "gauge":
            totals.add(metric, labels, cells)


def _merged(metric: Metric, one: _Cells, other: _Cells) -> _Cells:
    if metric.kind != "gauge" or metric.merge == "sum":
        return tuple(map(float.__add__, one, other))
    which = 0 if metric.merge == "max" else 1
    return max(one, other, key=lambda cells: cells[which])


def _read(path: Path) -> _File | None:
    (process,) = series_labels(CATALOG["gateway_process_up"], {"process": path.name.removesuffix(".cells")})
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        size = os.fstat(descriptor).st_size // BLOCK_BYTES * BLOCK_BYTES
        if size > MAX_FILE_BYTES:
            raise MetricFileError(f"{path} has more than {MAX_FILE_BYTES} bytes")
        if size == 0:
            return None
        with closing(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)) as mapped, memoryview(mapped) as file:
            header = read_header(file)
            if header is None:
                return None
            process_id = header.process_id if _is_locked(descriptor) else None
            return _File(process, process_id, header.unpublished, list(_series(file)))
    finally:
        os.close(descriptor)


def _series(file: memoryview[int]) -> Iterator[tuple[Metric, _Labels, _Cells]]:
    for start in range(0, len(file), BLOCK_BYTES):
        with file[start : start + BLOCK_BYTES] as block, block.cast("d") as cells:
            for series in walk(block, HEADER_BYTES if start == 0 else 0):
                yield series.metric, series.labels, tuple(cells[series.first : series.end // 8])


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _resident_bytes(process_id: int) -> int | None:
    try:
        pages = Path(f"/proc/{process_id}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * mmap.PAGESIZE


def _family(metric: Metric, series: dict[_Labels, _Cells]) -> MetricFamily:
    if metric.kind == "gauge":
        gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels in sorted(series):
            gauge.add_metric(labels, series[labels][0])
        return gauge
    if metric.kind == "counter":
        counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels in sorted(_filled(metric, series)):
            counter.add_metric(labels, series.get(labels, (0.0,))[0])
        return counter
    histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*(repr(bound) for bound in metric.buckets), "+Inf"]
    for labels in sorted(series):
        *counts, total = series[labels]
        histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
    return histogram


def _filled(metric: Metric, series: dict[_Labels, _Cells]) -> set[_Labels]:
    shown = set(series)
    for label, values in metric.filled.items():
        place = metric.labels.index(label)
        seen = series.keys() if len(metric.labels) > 1 else {("",)}
        shown |= {(*labels[:place], value, *labels[place + 1 :]) for labels in seen for value in values}
    return shown
