"""A process's metrics survive its death, and a file never grows wrong."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry import layout
from gateway.telemetry.catalog import CATALOG, MetricError
from gateway.telemetry.cells import CellFile, Histogram, MetricFileError

SPOOLED = ("gateway_log_events_total", {"state": "spooled"})
WEIGHT = ("gateway_route_weight", {"model": "bike-demand", "version": "2", "arm": "canary"})
DURATION = ("gateway_inference_duration_seconds", {"model": "bike-demand", "version": "2"})


def feature(number: int) -> tuple[str, dict[str, str]]:
    return "gateway_drift_evidence", {"model": "bike-demand", "version": "1", "feature": f"feature {number}"}


def test_the_same_series_is_the_same_child(tmp_path):
    cells = CellFile(tmp_path / "front-0.cells")
    assert cells.counter(*SPOOLED) is cells.counter(*SPOOLED)
    assert cells.gauge(*WEIGHT) is cells.gauge(*WEIGHT)
    assert cells.histogram(*DURATION) is cells.histogram(*DURATION)


def test_children_stay_valid_while_the_file_grows(tmp_path):
    cells = CellFile(tmp_path / "monitor.cells")
    spooled = cells.counter(*SPOOLED)
    spooled.inc(2)
    gauges = [cells.gauge(*feature(number)) for number in range(2_000)]
    for number, gauge in enumerate(gauges):
        gauge.set(number)
    spooled.inc(3)
    assert (tmp_path / "monitor.cells").stat().st_size > 2 * layout.BLOCK_BYTES
    assert spooled.value == 5
    assert [gauge.value for gauge in gauges] == list(range(2_000))


def test_an_earlier_life_is_continued_and_its_gauges_are_forgotten(tmp_path):
    earlier = CellFile(tmp_path / "front-0.cells")
    for number in range(500):
        earlier.gauge(*feature(number)).set(1)
    earlier.counter(*SPOOLED).inc(7)
    earlier.gauge(*WEIGHT).set(10)
    earlier.histogram(*DURATION).observe(0.2)
    earlier.close()
    later = CellFile(tmp_path / "front-0.cells")
    assert later.counter(*SPOOLED).value == 7
    assert math.isnan(later.gauge(*WEIGHT).value)
    assert later.histogram(*DURATION).count == 1
    later.counter(*SPOOLED).inc()
    assert later.counter(*SPOOLED).value == 8


def test_a_series_made_in_a_later_life_does_not_overwrite_one_of_an_earlier(tmp_path):
    earlier = CellFile(tmp_path / "front-0.cells")
    earlier.counter(*SPOOLED).inc(7)
    earlier.close()
    later = CellFile(tmp_path / "front-0.cells")
    later.histogram(*DURATION).observe(1.0)
    assert later.counter(*SPOOLED).value == 7


@pytest.mark.fault
def test_counts_survive_kill_9(tmp_path):
    program = (
        "import pathlib, sys, time\n"
        "from gateway.telemetry.cells import CellFile\n"
        "cells = CellFile(pathlib.Path(sys.argv[1]))\n"
        "spooled = cells.counter('gateway_log_events_total', {'state': 'spooled'})\n"
        "for _ in range(1000): spooled.inc()\n"
        "print('counted', flush=True)\n"
        "time.sleep(60)\n"
    )
    path = tmp_path / "front-0.cells"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"counted\n"
        with pytest.raises(MetricFileError, match="another process runs as"):
            CellFile(path)
        os.kill(process.pid, signal.SIGKILL)
    assert CellFile(path).counter(*SPOOLED).value == 1000


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file[:100],
        lambda file: b"\0" * len(file),
        lambda file: b"#" + file[1:],
        lambda file: file[:9] + b"#" + file[10:],
        lambda file: file[: layout.HEADER_BYTES + 20] + b"#" + file[layout.HEADER_BYTES + 21 :],
        lambda file: file.replace(b"spooled", b"shipped"),
        lambda file: file[: layout.HEADER_BYTES] + b"\xff\xff\xff\xff" + file[layout.HEADER_BYTES + 4 :],
        lambda file: file[: layout.HEADER_BYTES] + b"\x01\0\0\0" + file[layout.HEADER_BYTES + 4 :],
        lambda file: file + b"x",
    ],
    ids=["cut", "zeros", "magic", "catalog", "descriptor", "label", "long series", "short series", "tail"],
)
def test_a_damaged_file_is_replaced(tmp_path, damage):
    path = tmp_path / "front-0.cells"
    earlier = CellFile(path)
    earlier.counter(*SPOOLED).inc(7)
    earlier.close()
    path.write_bytes(damage(path.read_bytes()))
    later = CellFile(path)
    assert "series=0" in repr(later)
    assert later.counter(*SPOOLED).value == 0
    later.counter(*SPOOLED).inc()
    later.close()
    assert CellFile(path).counter(*SPOOLED).value == 1


def test_a_series_torn_by_a_kill_is_written_over(tmp_path):
    path = tmp_path / "front-0.cells"
    earlier = CellFile(path)
    earlier.counter(*SPOOLED).inc(7)
    earlier.close()
    whole = bytearray(path.read_bytes())
    (series,) = layout.walk(memoryview(whole), layout.HEADER_BYTES)
    whole[series.end + 4 : series.end + 90] = b"\xa5" * 86  # all but the length, which comes last
    path.write_bytes(whole)
    later = CellFile(path)
    assert later.counter(*SPOOLED).value == 7
    assert later.histogram(*DURATION).count == 0


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"")
    (tmp_path / "front-0.cells").symlink_to(tmp_path / "precious")
    with pytest.raises(MetricFileError, match="cannot create the metric file"):
        CellFile(tmp_path / "front-0.cells")


def test_series_without_room_count_for_nobody_and_are_told(tmp_path, monkeypatch):
    cells = CellFile(tmp_path / "front-0.cells")
    cells.counter(*SPOOLED).inc()

    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    gauges = [cells.gauge(*feature(number)) for number in range(2_000)]
    for gauge in gauges:
        gauge.set(1.5)
    assert all(gauge.value == 1.5 for gauge in gauges)
    assert (tmp_path / "front-0.cells").stat().st_size == layout.BLOCK_BYTES
    header = layout.read_header(memoryview((tmp_path / "front-0.cells").read_bytes()))
    assert header is not None and 0 < header.unpublished < 2_000
    assert f"unpublished={header.unpublished}" in repr(cells)
    assert cells.counter(*SPOOLED).value == 1


def test_a_file_does_not_grow_past_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.telemetry.cells.MAX_FILE_BYTES", 2 * layout.BLOCK_BYTES)
    cells = CellFile(tmp_path / "monitor.cells")
    for number in range(3_000):
        cells.gauge(*feature(number)).set(1)
    assert (tmp_path / "monitor.cells").stat().st_size == 2 * layout.BLOCK_BYTES


def test_a_removed_gauge_is_absent_until_set_again(tmp_path):
    cells = CellFile(tmp_path / "monitor.cells")
    cells.gauge(*WEIGHT).set(10)
    cells.remove(*WEIGHT)
    assert math.isnan(cells.gauge(*WEIGHT).value)
    cells.gauge(*WEIGHT).set(20)
    assert cells.gauge(*WEIGHT).value == 20
    cells.remove(*feature(1))


def test_a_counter_cannot_be_removed(tmp_path):
    with pytest.raises(MetricError, match="is a counter, not a gauge"):
        CellFile(tmp_path / "front-0.cells").remove(*SPOOLED)


def test_a_bad_label_leaves_no_series_behind(tmp_path):
    cells = CellFile(tmp_path / "front-0.cells")
    with pytest.raises(MetricError):
        cells.counter("gateway_feedback_total", {"model": "\ud800", "state": "received"})
    assert "series=0" in repr(cells)


@given(st.lists(st.floats(0, 100)))
def test_every_observation_falls_into_the_first_bucket_that_holds_it(values):
    bounds = CATALOG["gateway_request_duration_seconds"].buckets
    cells = memoryview(bytearray(8 * (len(bounds) + 2))).cast("d")
    histogram = Histogram(cells, 0, bounds=bounds)
    histogram.observe_many(values[1:])
    for value in values[:1]:
        histogram.observe(value)
    for place, (below, bound) in enumerate(zip((-math.inf, *bounds), (*bounds, math.inf), strict=True)):
        assert cells[place] == sum(below < value <= bound for value in values)
    assert histogram.count == len(values)
    assert histogram.sum == pytest.approx(math.fsum(values))
