"""One table of every metric: what exists, what it counts, in which unit, with which labels.

Names and labels are held on to by dashboards and alerts. Values of the labels come from loaded models and from closed
sets, never from what a caller wrote, so the number of series is bounded. `docs/metrics.md` is written from this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ("BATCH_ROWS", "CATALOG", "STAGES", "Metric", "MetricError", "metric_named", "series_labels")

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max", "last"]

MAX_LABEL_CHARACTERS = 128


class MetricError(ValueError):
    """Raised when a metric, a label or a label's value is not as the catalog says."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Parameters
    ----------
    help : str
        What it tells, with its unit.
    labels : tuple of str
        Label names, in the order they are shown.
    values : mapping of label name to tuple of str
        The labels whose values are a closed set.
    filled : mapping of one label name to tuple of str
        Values that are shown from the start, with 0, so that a rate misses no first event and no panel is empty.
    buckets : tuple of float
        Upper bounds of a histogram, rising, without infinity.
    merge : "sum", "max" or "last"
        How a gauge set by several processes becomes one.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    filled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    merge: Merge = "sum"

    @property
    def cells(self) -> int:
        """Floats one series takes: a counter its count, a gauge value and time, a histogram its buckets and sum."""
        return {"counter": 1, "gauge": 2, "histogram": len(self.buckets) + 2}[self.kind]


_ARMS = ("stable", "canary", "shadow", "pinned")
_OUTCOMES = ("ok", "client_error", "model_error", "unavailable", "timeout")
_FEEDBACK_STATES = ("received", "dropped", "joined", "repeated", "unmatched")
_EVENT_STATES = (
    "spooled",
    "sampled_out",
    "shipped",
    "dropped",
    "refused",
    "unsynced",
    "dead_letter",
    "discarded",
    "corrupt",
    "missing",
    "archived",
)
_DECISIONS = (
    "version_approved",
    "version_rejected",
    "digest_refused",
    "route_set",
    "route_removed",
    "rollout_started",
    "rollout_advanced",
    "rollout_paused",
    "rollout_frozen",
    "rollout_promoted",
    "rollback",
    "warning",
    "drift_alarm",
    "harm",
    "world_changed",
    "retrain_requested",
)
STAGES = ("input", "queue", "inference", "output")
"""Where the time of an answered request goes, in order."""
BATCH_ROWS = (*(str(rows) for rows in range(1, 33)), *(str(2**power) for power in range(6, 17)))
"""Sizes of runs that are told apart: each up to 32, then by doubling, so that no caller mints series."""
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_DELAY_SECONDS = (1.0, 10.0, 60.0, 600.0, 3600.0, 14400.0, 86400.0, 259200.0, 604800.0, 2592000.0)


def _table(metrics: Iterable[Metric]) -> Mapping[str, Metric]:
    return {metric.name: metric for metric in metrics}


CATALOG: Mapping[str, Metric] = _table(
    (
        Metric(
            "gateway_requests_total",
            "counter",
            "Inference requests answered, by how they ended.",
            ("model", "version", "arm", "outcome"),
            {"arm": _ARMS, "outcome": _OUTCOMES},
            filled={"outcome": _OUTCOMES},
        ),
        Metric(
            "gateway_request_duration_seconds",
            "histogram",
            "Seconds from the last byte of a request to its answer.",
            ("model", "version", "arm"),
            {"arm": _ARMS},
            buckets=_SECONDS,
        ),
        Metric(
            "gateway_inference_duration_seconds",
            "histogram",
            "Seconds a batch spent in the model.",
            ("model", "version"),
            buckets=_SECONDS,
        ),
        Metric(
            "gateway_queue_duration_seconds",
            "histogram",
            "Seconds a request waited for its engine.",
            ("model", "version"),
            buckets=_SECONDS,
        ),
        Metric(
            "gateway_batch_rows",
            "histogram",
            "Rows in one batch.",
            ("model", "version"),
            buckets=_ROWS,
        ),
        Metric(
            "gateway_rows_total",
            "counter",
            "Rows of the requests that a model answered.",
            ("model", "version"),
        ),
        Metric(
            "gateway_stage_seconds_total",
            "counter",
            "Seconds that answered requests spent being read (input), waiting, in the model, on the way back (output).",
            ("model", "version", "stage"),
            {"stage": STAGES},
            filled={"stage": STAGES},
        ),
        Metric(
            "gateway_batches_total",
            "counter",
            "Runs of a model that gave an answer, by their rows: exact up to 32, then up to the next power of two.",
            ("model", "version", "rows"),
            {"rows": BATCH_ROWS},
        ),
        Metric(
            "gateway_batch_seconds_total",
            "counter",
            "Seconds those runs took.",
            ("model", "version", "rows"),
            {"rows": BATCH_ROWS},
        ),
        Metric(
            "gateway_last_inference_timestamp_seconds",
            "gauge",
            "When a model answered last, in seconds since 1970.",
            ("model", "version"),
            merge="max",
        ),
        Metric(
            "gateway_route_weight",
            "gauge",
            "Percent of a model's traffic that the route gives to a version.",
            ("model", "version", "arm"),
            {"arm": _ARMS},
            merge="last",
        ),
        Metric(
            "gateway_rollout_phase",
            "gauge",
            "1 for the phase a model's rollout is in, 0 for the others.",
            ("model", "phase"),
            merge="last",
        ),
        Metric(
            "gateway_judge_evidence",
            "gauge",
            "Evidence about the canary as a share of what decides, on the scale of logarithms: 1 is a verdict.",
            ("model", "metric", "direction"),
            merge="last",
        ),
        Metric(
            "gateway_drift_evidence",
            "gauge",
            "Evidence that a feature has left its reference as a share of the alarm line, on the scale of logarithms.",
            ("model", "version", "feature"),
            merge="last",
        ),
        Metric(
            "gateway_drift_alarms_total",
            "counter",
            "Alarms raised, by detector.",
            ("model", "version", "detector"),
        ),
        Metric(
            "gateway_quality",
            "gauge",
            "Quality of a version on the labels that have arrived (miss_rate: share of missed rows; mean_loss).",
            ("model", "version", "metric"),
            merge="last",
        ),
        Metric(
            "gateway_feedback_total",
            "counter",
            "Labels: received by a front, dropped by a full log; joined, repeated, or unmatched by the monitor.",
            ("model", "state"),
            {"state": _FEEDBACK_STATES},
            filled={"state": _FEEDBACK_STATES},
        ),
        Metric(
            "gateway_feedback_delay_seconds",
            "histogram",
            "Seconds between a prediction and its label.",
            ("model",),
            buckets=_DELAY_SECONDS,
        ),
        Metric(
            "gateway_log_events_total",
            "counter",
            "Events of the log: written to the spool, of these without their tensors, acknowledged by Kafka, "
            "dropped as the spool was full, refused with their requests for the same reason, "
            "written while the disk refused to sync, set aside as Kafka refused them, of these discarded for want of "
            "room, places of the spool that do not check and numbers that are not there, as shipper, monitor and "
            "archiver each found them, moved to the archive.",
            ("state",),
            {"state": _EVENT_STATES},
            filled={"state": _EVENT_STATES},
        ),
        Metric(
            "gateway_log_lag_events",
            "gauge",
            "Events in the log that a reader has still to read.",
            ("reader",),
            {"reader": ("shipper", "monitor")},
        ),
        Metric("gateway_spool_bytes", "gauge", "Bytes the spool takes on disk.", merge="max"),
        Metric(
            "gateway_engine_restarts_total",
            "counter",
            "Engines that ended by a crash, a hang or too much memory; they are started again until a circuit opens.",
            ("model", "version"),
        ),
        Metric(
            "gateway_engine_resident_bytes",
            "gauge",
            "Bytes of memory that a version's engine holds; of its largest instance, with what they share.",
            ("model", "version"),
        ),
        Metric(
            "gateway_decisions_total",
            "counter",
            "Decisions of the system or of a person.",
            ("kind",),
            filled={"kind": _DECISIONS},
        ),
        Metric("gateway_build_info", "gauge", "1, with the version of the gateway.", ("version",), merge="max"),
        Metric(
            "gateway_process_up",
            "gauge",
            "1 while a process of the gateway lives, 0 when it has ended and was not taken off.",
            ("process",),
            merge="max",
        ),
        Metric(
            "gateway_process_resident_bytes",
            "gauge",
            "Bytes of memory that a process of the gateway holds.",
            ("process",),
            merge="max",
        ),
        Metric(
            "gateway_metric_files_damaged",
            "gauge",
            "Metric files left out of this page because they do not check.",
            merge="max",
        ),
        Metric(
            "gateway_metric_series_unpublished",
            "gauge",
            "Series that had no room on disk and are missing from this page.",
        ),
    )
)


def metric_named(name: str, kind: Kind | None = None) -> Metric:
    """Return the catalog's entry for `name`, which must be of `kind` where that is given.

    Raises
    ------
    MetricError
        If there is no such metric, or it is of another kind.
    """
    metric = CATALOG.get(name)
    if metric is None:
        raise MetricError(f"unknown metric {name!r}; the catalog has {', '.join(sorted(CATALOG))}")
    if kind is not None and metric.kind != kind:
        raise MetricError(f"{name} is a {metric.kind}, not a {kind}")
    return metric


def series_labels(metric: Metric, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Check `labels` against the catalog and return their values in the catalog's order.

    Raises
    ------
    MetricError
        If a label is missing or unknown, or a value is not printable text of at most 128 characters, or not in the
        label's closed set.

    >>> series_labels(CATALOG["gateway_feedback_total"], {"state": "joined", "model": "bike-demand"})
    ('bike-demand', 'joined')
    """
    if labels.keys() != set(metric.labels):
        raise MetricError(f"{metric.name} has the labels {list(metric.labels)}, got {sorted(map(repr, labels))}")
    return tuple(_checked(metric, name, labels[name]) for name in metric.labels)


def _checked(metric: Metric, name: str, value: str) -> str:
    if not isinstance(value, str):
        raise MetricError(f"{metric.name}: label {name} must be text, got {type(value).__name__}")
    if len(value) > MAX_LABEL_CHARACTERS:
        raise MetricError(f"{metric.name}: label {name} has {len(value)} characters, at most {MAX_LABEL_CHARACTERS}")
    if not value.isprintable():
        raise MetricError(f"{metric.name}: label {name} must be printable text, got {value!r}")
    if name in metric.values and value not in metric.values[name]:
        raise MetricError(f"{metric.name}: label {name} is one of {list(metric.values[name])}, got {value!r}")
    return value
