"""The table of metrics is well formed, and refuses what would break a page."""

from __future__ import annotations

import re

import pytest

from gateway.telemetry.catalog import CATALOG, MetricError, metric_named, series_labels

REQUESTS = CATALOG["gateway_requests_total"]
GOOD = {"model": "bike-demand", "version": "1", "arm": "stable", "outcome": "ok"}


@pytest.mark.parametrize("metric", CATALOG.values(), ids=lambda metric: metric.name)
def test_every_metric_is_named_by_the_conventions_of_prometheus(metric):
    assert re.fullmatch(r"gateway_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help.endswith(".") and len(metric.help) > 10
    assert all(re.fullmatch(r"[a-z]+", label) for label in metric.labels)
    assert "le" not in metric.labels and "quantile" not in metric.labels
    assert set(metric.values) <= set(metric.labels)


@pytest.mark.parametrize("metric", CATALOG.values(), ids=lambda metric: metric.name)
def test_buckets_belong_to_histograms_and_rise(metric):
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize("metric", CATALOG.values(), ids=lambda metric: metric.name)
def test_one_label_of_a_counter_is_filled_at_most_and_with_what_it_may_hold(metric):
    assert len(metric.filled) <= (metric.kind == "counter")
    for label, values in metric.filled.items():
        assert label in metric.labels
        assert set(values) <= set(metric.values.get(label, values))


def test_labels_come_back_in_the_order_of_the_catalog():
    assert series_labels(REQUESTS, dict(reversed(GOOD.items()))) == ("bike-demand", "1", "stable", "ok")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "\ud800"},
        {"model": "two\nlines"},
        {"model": "x" * 129},
        {"model": "\x00"},
        {"model": "\u202e"},
        {"version": 1},
        {"outcome": "splendid"},
        {"colour": "red"},
    ],
    ids=repr,
)
def test_a_label_that_could_break_a_page_is_refused(change):
    with pytest.raises(MetricError):
        series_labels(REQUESTS, {**GOOD, **change})


def test_a_missing_label_is_refused_by_name():
    with pytest.raises(MetricError, match="'model', 'version', 'arm', 'outcome'"):
        series_labels(REQUESTS, {"model": "bike-demand"})


def test_an_unknown_metric_is_refused():
    with pytest.raises(MetricError, match="unknown metric 'requests_total'"):
        metric_named("requests_total")


def test_a_metric_of_another_kind_is_refused():
    with pytest.raises(MetricError, match="is a counter, not a gauge"):
        metric_named("gateway_requests_total", "gauge")
