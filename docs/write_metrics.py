"""Writes `docs/metrics.md` from the catalog: `python docs/write_metrics.py`."""

from __future__ import annotations

from pathlib import Path

from gateway.telemetry.catalog import CATALOG, Metric

__all__ = ("page",)

PAGE = Path(__file__).parent / "metrics.md"

_HEAD = """\
# Metrics

All processes of a gateway on one page, `http://localhost:8002/metrics`, as Prometheus text or OpenMetrics. This file is
written from `gateway/telemetry/catalog.py` by `python docs/write_metrics.py`; a test keeps the two alike.

- Names, labels and units are held on to: dashboards and alerts may rely on them.
- Values of labels come from loaded models and closed sets, never from a caller.
- Counters and histograms hold through the death of a process (they are in shared memory) and begin anew when the
  gateway is started. Gauges speak for living processes only; where several set one, `merge` says how they become one.
- What is answered is logged: at rest, over all series, `gateway_requests_total` and
  `gateway_feedback_total{state="received"}` together are what the fronts have put into
  `gateway_log_events_total{state=~"spooled|dropped"}`; decisions, which are events too, come on top.
- Labels with values in brackets are complete from the start: a value not seen yet is shown with 0.

| metric | kind | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """Return the text of `docs/metrics.md`."""
    return _HEAD + "".join(f"{_row(metric)}\n" for metric in CATALOG.values())


def _row(metric: Metric) -> str:
    labels = ", ".join(label + _values(metric, label) for label in metric.labels)
    merge = f" (merge: {metric.merge})" if metric.kind == "gauge" else ""
    buckets = f" Buckets: {', '.join(f'{bound:.10g}' for bound in metric.buckets)}." if metric.buckets else ""
    return f"| `{metric.name}` | {metric.kind}{merge} | {labels} | {metric.help}{buckets} |"


def _values(metric: Metric, label: str) -> str:
    return f" ({', '.join(metric.filled[label])})" if label in metric.filled else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
