"""The page adds all processes exactly, and no file can break it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.testclient import TestClient

from gateway.telemetry.catalog import CATALOG
from gateway.telemetry.cells import CellFile
from gateway.telemetry.exposition import collect, render
from gateway.telemetry.page import create_metrics_app

FEEDBACK = ("gateway_feedback_total", {"model": "bike-demand", "state": "joined"})
WEIGHT = ("gateway_route_weight", {"model": "bike-demand", "version": "2", "arm": "canary"})
DURATION = ("gateway_inference_duration_seconds", {"model": "bike-demand", "version": "2"})


def samples(metrics_dir: Path) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the page, as a Prometheus reads it."""
    page, _ = render(metrics_dir, None)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(page.decode())
        for sample in family.samples
    }


def sample(metrics_dir: Path, name: str, labels: dict[str, str]) -> float | None:
    return samples(metrics_dir).get((name, frozenset(labels.items())))


@settings(max_examples=25)
@given(counts=st.lists(st.integers(0, 2**40), min_size=1, max_size=4), rows=st.lists(st.integers(1, 2000), max_size=20))
def test_counters_and_histograms_of_all_files_add_exactly(tmp_path_factory, counts, rows):
    metrics_dir = tmp_path_factory.mktemp("metrics")
    labels = {"model": "m", "version": "1"}
    for number, count in enumerate(counts):
        cells = CellFile(metrics_dir / f"front-{number}.cells")
        cells.counter(*FEEDBACK).inc(count)
        cells.histogram("gateway_batch_rows", labels).observe_many(rows)
        cells.close()
    page = samples(metrics_dir)
    assert page["gateway_feedback_total", frozenset(FEEDBACK[1].items())] == sum(counts)
    assert page["gateway_batch_rows_count", frozenset(labels.items())] == len(counts) * len(rows)
    assert page["gateway_batch_rows_sum", frozenset(labels.items())] == len(counts) * sum(rows)
    for bound in CATALOG["gateway_batch_rows"].buckets:
        seen = page["gateway_batch_rows_bucket", frozenset({**labels, "le": str(bound)}.items())]
        assert seen == len(counts) * sum(row <= bound for row in rows)


def test_a_summed_gauge_adds_the_processes(tmp_path):
    resident = ("gateway_engine_resident_bytes", {"model": "m", "version": "1"})
    files = [CellFile(tmp_path / f"{process}.cells") for process in ("one", "other")]
    for cells in files:
        cells.gauge(*resident).set(100)
    assert sample(tmp_path, *resident) == 200


def test_a_gauge_merged_by_maximum_shows_the_largest(tmp_path):
    files = [CellFile(tmp_path / f"front-{number}.cells") for number in range(2)]
    files[0].gauge("gateway_spool_bytes", {}).set(7)
    files[1].gauge("gateway_spool_bytes", {}).set(3)
    assert sample(tmp_path, "gateway_spool_bytes", {}) == 7


def test_of_a_gauge_merged_by_time_the_last_word_counts(tmp_path):
    files = [CellFile(tmp_path / f"front-{number}.cells", clock=lambda n=number: 10.0 - n) for number in range(2)]
    files[0].gauge(*WEIGHT).set(10)
    files[1].gauge(*WEIGHT).set(90)
    assert sample(tmp_path, *WEIGHT) == 10


def test_the_gauges_of_an_ended_process_are_silent_and_its_counters_stay(tmp_path):
    program = (
        "import os, pathlib, sys\n"
        "from gateway.telemetry.cells import CellFile\n"
        "cells = CellFile(pathlib.Path(sys.argv[1]))\n"
        "cells.counter('gateway_feedback_total', {'model': 'bike-demand', 'state': 'joined'}).inc(4)\n"
        "cells.gauge('gateway_spool_bytes', {}).set(5)\n"
        "os._exit(1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "front-1.cells")], timeout=60)
    assert ended.returncode == 1
    living = CellFile(tmp_path / "front-0.cells")
    living.counter(*FEEDBACK).inc()
    assert sample(tmp_path, *FEEDBACK) == 5
    assert sample(tmp_path, "gateway_spool_bytes", {}) is None
    assert sample(tmp_path, "gateway_process_up", {"process": "front-0"}) == 1
    assert sample(tmp_path, "gateway_process_up", {"process": "front-1"}) == 0
    resident = sample(tmp_path, "gateway_process_resident_bytes", {"process": "front-0"})
    assert resident is not None and resident > 2**20
    assert sample(tmp_path, "gateway_process_resident_bytes", {"process": "front-1"}) is None


def test_a_gauge_without_a_value_is_not_shown(tmp_path):
    cells = CellFile(tmp_path / "front-0.cells")
    cells.gauge(*WEIGHT)
    assert sample(tmp_path, *WEIGHT) is None
    cells.gauge(*WEIGHT).set(10)
    assert sample(tmp_path, *WEIGHT) == 10
    cells.remove(*WEIGHT)
    assert sample(tmp_path, *WEIGHT) is None


def test_closed_labels_are_shown_with_zero_before_the_first_event(tmp_path):
    cells = CellFile(tmp_path / "front-0.cells")
    series = {"model": "m", "version": "1", "arm": "stable"}
    cells.counter("gateway_requests_total", {**series, "outcome": "ok"}).inc()
    assert sample(tmp_path, "gateway_log_events_total", {"state": "dropped"}) == 0
    assert sample(tmp_path, "gateway_requests_total", {**series, "outcome": "model_error"}) == 0
    assert sample(tmp_path, "gateway_requests_total", {**series, "outcome": "ok"}) == 1
    assert sample(tmp_path, "gateway_requests_total", {**series, "arm": "canary", "outcome": "ok"}) is None


def test_every_metric_of_the_catalog_is_on_an_empty_page(tmp_path):
    families = collect(tmp_path / "there is no such folder")
    assert {family.name.removesuffix("_total") for family in families} == {
        name.removesuffix("_total") for name in CATALOG
    }


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def write_noise(path: Path) -> None:
    path.write_bytes(os.urandom(70_000))


def write_a_cut_file(path: Path) -> None:
    cells = CellFile(path)
    cells.counter(*FEEDBACK).inc()
    cells.close()
    path.write_bytes(path.read_bytes()[:1000])


def write_a_huge_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.parametrize(
    "spoil",
    [write_nothing, write_noise, write_a_cut_file, write_a_huge_file, Path.mkdir, os.mkfifo],
    ids=["empty", "noise", "cut", "huge", "folder", "pipe"],
)
def test_a_file_that_does_not_check_never_breaks_the_page(tmp_path, spoil):
    cells = CellFile(tmp_path / "front-0.cells")
    cells.counter(*FEEDBACK).inc(3)
    spoil(tmp_path / "front-1.cells")
    assert sample(tmp_path, *FEEDBACK) == 3


def test_damaged_files_are_counted(tmp_path):
    write_noise(tmp_path / "front-1.cells")
    write_a_huge_file(tmp_path / "front-2.cells")
    CellFile(tmp_path / "front\n.cells")
    assert sample(tmp_path, "gateway_metric_files_damaged", {}) == 3


@settings(max_examples=60)
@given(place=st.integers(0, 400), value=st.integers(0, 255))
def test_no_single_damaged_byte_breaks_the_page(tmp_path_factory, place, value):
    metrics_dir = tmp_path_factory.mktemp("metrics")
    cells = CellFile(metrics_dir / "front-0.cells")
    cells.counter(*FEEDBACK).inc()
    cells.histogram(*DURATION).observe(0.1)
    cells.close()
    spoilt = bytearray((metrics_dir / "front-0.cells").read_bytes())
    spoilt[place] = value
    (metrics_dir / "front-0.cells").write_bytes(spoilt)
    samples(metrics_dir)


def test_a_page_can_be_read_while_series_are_added(tmp_path):
    cells = CellFile(tmp_path / "monitor.cells")
    for number in range(600):
        labels = {"model": "m", "version": "1", "feature": f"feature {number}"}
        cells.gauge("gateway_drift_evidence", labels).set(number)
        if number % 100 == 0:
            assert sample(tmp_path, "gateway_drift_evidence", labels) == number
    assert sample(tmp_path, "gateway_metric_files_damaged", {}) == 0


def test_openmetrics_is_spoken_to_who_asks_for_it(tmp_path):
    CellFile(tmp_path / "front-0.cells").histogram(*DURATION).observe(0.1)
    page, content_type = render(tmp_path, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert page.endswith(b"# EOF\n")
    assert {family.name for family in parse_openmetrics(page.decode())} >= {"gateway_inference_duration_seconds"}


def test_the_port_shows_the_page_and_points_to_it(tmp_path):
    CellFile(tmp_path / "front-0.cells").counter(*FEEDBACK).inc()
    client = TestClient(create_metrics_app(tmp_path))
    page = client.get("/metrics")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'gateway_feedback_total{model="bike-demand",state="joined"} 1.0' in page.text
    assert "/metrics" in client.get("/").text
    assert client.get("/metric").status_code == 404
    assert "GET /metrics" in client.get("/metric").json()["error"]
    assert client.post("/metrics").status_code == 405
