"""A whole gateway under traffic, with labels, a rollout and a rollback: no panel of the dashboard stays empty."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.gateways import start_gateway
from tests.panels import has_data, panel_queries
from tests.prometheus import promtool, running_prometheus

MODEL = "bike-demand"
JSON_TYPES = {"BYTES": "x", "BOOL": True}


def call(url: str, body: dict[str, Any] | None = None, *, method: str = "") -> dict[str, Any]:
    """Send JSON and return the JSON of the answer, of an error too."""
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"content-type": "application/json"},
        method=method or ("POST" if body is not None else "GET"),
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        found = json.load(error)
    return found


class Traffic(threading.Thread):
    """Sends predictions and their labels until it is told to stop."""

    def __init__(self, http_url: str) -> None:
        super().__init__()
        self.answered = 0
        self.failure: Exception | None = None
        self._model_url = f"{http_url}/v2/models/{MODEL}"
        self._over = threading.Event()

    def run(self) -> None:
        try:
            inputs = [_input(spec) for spec in self._metadata()["inputs"]]
            while not self._over.wait(0.005):
                answer = call(f"{self._model_url}/infer", {"inputs": inputs})
                label = {"prediction_id": answer["parameters"]["prediction_id"], "row": 0, "label": 100.0}
                call(f"{self._model_url}/feedback", label)
                self.answered += 1
        except Exception as error:
            self.failure = error

    def _metadata(self) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        found = call(self._model_url)
        while "error" in found and time.monotonic() < deadline:
            time.sleep(0.2)
            found = call(self._model_url)
        return found

    def stop(self) -> None:
        self._over.set()
        self.join(30)
        if self.failure is not None:
            raise self.failure


def _input(spec: dict[str, Any]) -> dict[str, Any]:
    shape = [max(axis, 1) for axis in spec["shape"]]
    elements = 1
    for axis in shape:
        elements *= axis
    value = JSON_TYPES.get(spec["datatype"], 1)
    return {"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": [value] * elements}


def start_rollout(admin_url: str) -> None:
    """Approve version 2 if need be and start it as a canary."""
    api = f"{admin_url}/api/v1"
    call(f"{api}/models/{MODEL}/versions/1/approve", {"reason": "the dashboard's test"})
    call(f"{api}/models/{MODEL}/versions/2/approve", {"reason": "the dashboard's test"})
    call(f"{api}/routes/{MODEL}", {"stable": 1, "reason": "the dashboard's test"}, method="PUT")
    deadline = time.monotonic() + 30
    started: dict[str, Any] = {"error": "not asked yet"}
    while "error" in started and time.monotonic() < deadline:
        started = call(f"{api}/rollouts", {"model": MODEL, "canary": 2, "reason": "the dashboard's test"})
        time.sleep(0.2)
    assert "error" not in started, started


def totals(page: str) -> dict[str, float]:
    """The sum of each counter, by its name and, for events and labels, its state."""
    found: dict[str, float] = {}
    for family in parse_text(page):
        for sample in family.samples:
            name = sample.name + (f" {sample.labels['state']}" if "state" in sample.labels else "")
            found[name] = found.get(name, 0.0) + sample.value
    return found


@pytest.mark.slow
def test_no_panel_is_empty(tmp_path: Path) -> None:
    gateway = start_gateway(tmp_path, fronts=2)
    try:
        with running_prometheus(tmp_path / "prometheus", gateway.metrics_url) as prometheus:
            prometheus.wait_for('up{job="gateway"} == 1')
            start_rollout(gateway.admin_url)
            traffic = Traffic(gateway.http_url)
            traffic.start()
            empty = wait_for_panels(prometheus, seconds=60, but=("annotation Decisions",))
            rolled_back = call(
                f"{gateway.admin_url}/api/v1/routes/{MODEL}/rollback", {"reason": "the dashboard's test"}
            )
            empty |= wait_for_panels(prometheus, seconds=30, only=("annotation Decisions",))
            traffic.stop()
        assert traffic.answered > 20
        assert "error" not in rolled_back, rolled_back
        assert not empty
        page = rest(f"{gateway.metrics_url}")
        found = promtool("check", "metrics", page=page.encode())
        assert found.returncode == 0, found.stdout + found.stderr
        counted = totals(page)
        answered = counted["gateway_requests_total"] + counted["gateway_feedback_total received"]
        logged = counted["gateway_log_events_total spooled"] + counted["gateway_log_events_total dropped"]
        assert answered >= 2 * traffic.answered
        assert answered <= logged <= answered + counted["gateway_decisions_total"]
    finally:
        gateway.stop()


def wait_for_panels(
    prometheus: Any, *, seconds: float, only: tuple[str, ...] = (), but: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return the queries that drew nothing within `seconds`."""
    deadline = time.monotonic() + seconds
    empty = {
        title: query
        for title, query in panel_queries(MODEL, rate_interval="10s").items()
        if title not in but and (not only or title in only)
    }
    while empty and time.monotonic() < deadline:
        time.sleep(1)
        empty = {
            title: query for title, query in empty.items() if not has_data(prometheus.query_range(query, seconds=60))
        }
    return empty


def rest(metrics_url: str) -> str:
    """Return the metrics page once two readings of what was answered are the same."""
    url = f"{metrics_url.removesuffix('/metrics').rstrip('/')}/metrics"
    before = ""
    for _ in range(20):
        with urllib.request.urlopen(url, timeout=10) as answer:
            page: str = answer.read().decode()
        if before and totals(page)["gateway_requests_total"] == totals(before)["gateway_requests_total"]:
            return page
        before = page
        time.sleep(0.2)
    raise AssertionError("the counters did not come to rest")
