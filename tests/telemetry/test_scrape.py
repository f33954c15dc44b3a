"""A real Prometheus reads a page on which every metric has moved, and no panel stays empty."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from gateway.telemetry.catalog import CATALOG
from gateway.telemetry.cells import CellFile
from gateway.telemetry.page import create_metrics_app
from tests.panels import has_data, panel_queries
from tests.prometheus import running_prometheus

RULES = Path(__file__).parents[2] / "grafana" / "alerts" / "gateway.rules.yml"
VALUES = {
    "model": ("bike-demand",),
    "version": ("1",),
    "detector": ("quality",),
    "metric": ("miss_rate",),
    "kind": ("rollback",),
}


@contextmanager
def metrics_page(metrics_dir: Path) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_metrics_app(metrics_dir), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def move_everything(cells: CellFile) -> None:
    """Let every metric of the catalog count, as a busy gateway would."""
    for metric in CATALOG.values():
        first = {label: (*metric.values.get(label, ()), *VALUES.get(label, ("one",)))[0] for label in metric.labels}
        if metric.kind == "counter":
            cells.counter(metric.name, first).inc()
        elif metric.kind == "gauge":
            cells.gauge(metric.name, first).set(1)
        else:
            cells.histogram(metric.name, first).observe(0.01)


def test_prometheus_draws_every_panel_and_an_alert_fires(tmp_path):
    cells = CellFile(tmp_path / "metrics" / "front-0.cells")
    with (
        metrics_page(tmp_path / "metrics") as url,
        running_prometheus(tmp_path / "prometheus", url, rules=RULES) as prometheus,
    ):
        prometheus.wait_for('up{job="gateway"} == 1')
        deadline = time.monotonic() + 60
        empty = panel_queries() | {"a planted typo": "rate(gateway_request_total[20s])"}
        while len(empty) > 1 and time.monotonic() < deadline:
            move_everything(cells)
            time.sleep(0.5)
            empty = {
                title: query
                for title, query in empty.items()
                if not has_data(prometheus.query_range(query, seconds=60))
            }
        assert list(empty) == ["a planted typo"]
        firing = prometheus.wait_for('ALERTS{alertstate="firing", alertname="CanaryRolledBack"}')
        assert firing[0]["metric"]["severity"] == "info"
