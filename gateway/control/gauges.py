"""The monitor's metrics: what it knows of every model, written to its metric file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol, get_args

from gateway.control.alarm import Alarm
from gateway.control.model import ModelWatch
from gateway.events.records import DecisionRecord
from gateway.rollout.machine import Phase
from gateway.telemetry.catalog import MetricError
from gateway.telemetry.cells import CellFile

__all__ = ("CellMetrics", "Metrics", "NoMetrics")

_DETECTORS = ("inputs", "outputs", "quality")
"""Shown with 0 before their first alarm, so that a rate does not miss it."""

_FEEDBACK_STATES = {
    "joined": "joined",
    "repeated": "repeated",
    "corrected": "repeated",
    "orphan": "unmatched",
    "invalid": "unmatched",
}


class Metrics(Protocol):
    """Where the monitor counts."""

    def alarm(self, alarm: Alarm) -> None: ...

    def decision(self, decision: DecisionRecord) -> None: ...

    def feedback(self, model: str, state: str, labels: int) -> None: ...

    def delays(self, model: str, seconds: Sequence[float]) -> None: ...

    def show(self, models: Iterable[ModelWatch], *, lag_events: float) -> None: ...


class NoMetrics:
    """Counts nothing, for replays and tests."""

    def alarm(self, alarm: Alarm) -> None: ...

    def decision(self, decision: DecisionRecord) -> None: ...

    def feedback(self, model: str, state: str, labels: int) -> None: ...

    def delays(self, model: str, seconds: Sequence[float]) -> None: ...

    def show(self, models: Iterable[ModelWatch], *, lag_events: float) -> None: ...


class CellMetrics:
    """Metrics in a `CellFile`; a value that goes away is set to "no value" once.

    Parameters
    ----------
    cells : CellFile
    """

    def __init__(self, cells: CellFile) -> None:
        self._cells = cells
        self._shown: set[tuple[str, tuple[tuple[str, str], ...]]] = set()

    def __repr__(self) -> str:
        return f"<CellMetrics gauges={len(self._shown)}>"

    def alarm(self, alarm: Alarm) -> None:
        labels = {"model": alarm.model, "version": str(alarm.version), "detector": alarm.detector}
        self._cells.counter("gateway_drift_alarms_total", labels).inc()

    def decision(self, decision: DecisionRecord) -> None:
        self._cells.counter("gateway_decisions_total", {"kind": decision.kind}).inc()

    def feedback(self, model: str, state: str, labels: int) -> None:
        named = {"model": model, "state": _FEEDBACK_STATES[state]}
        self._cells.counter("gateway_feedback_total", named).inc(labels)

    def delays(self, model: str, seconds: Sequence[float]) -> None:
        self._cells.histogram("gateway_feedback_delay_seconds", {"model": model}).observe_many(seconds)

    def show(self, models: Iterable[ModelWatch], *, lag_events: float) -> None:
        """Set every gauge to what is known now."""
        before, self._shown = self._shown, set()
        self._gauge("gateway_log_lag_events", lag_events, reader="monitor")
        for model in models:
            self._show_model(model)
        for name, series in before - self._shown:
            self._cells.gauge(name, dict(series)).set(math.nan)

    def _show_model(self, model: ModelWatch) -> None:
        route, name = model.route, model.route.model
        canary_weight = route.weight if route.canary is not None else 0.0
        self._gauge("gateway_route_weight", 100.0 - canary_weight, model=name, version=str(route.stable), arm="stable")
        if route.canary is not None:
            self._gauge("gateway_route_weight", canary_weight, model=name, version=str(route.canary), arm="canary")
        if model.rollout is not None:
            for phase in get_args(Phase):
                value = float(phase == model.rollout.phase)
                self._gauge("gateway_rollout_phase", value, model=name, phase=phase)
        if model.trial is not None:
            for reading in model.trial.readings():
                named = {"metric": reading.metric, "direction": reading.direction}
                share = reading.log_evidence / reading.threshold if reading.threshold else 0.0
                self._gauge("gateway_judge_evidence", share, model=name, **named)
        for version, watch in model.watches.items():
            for detector in _DETECTORS:
                labels = {"model": name, "version": str(version), "detector": detector}
                self._cells.counter("gateway_drift_alarms_total", labels)
            for feature, evidence in watch.feature_evidence().items():
                share = max(evidence, 0.0) / watch.line if watch.line else 0.0
                self._gauge("gateway_drift_evidence", share, model=name, version=str(version), feature=feature)
            for metric, known in (("miss_rate", watch.miss_rate), ("mean_loss", watch.quality.mean_loss)):
                if known is not None:
                    self._gauge("gateway_quality", known, model=name, version=str(version), metric=metric)

    def _gauge(self, name: str, value: float, **labels: str) -> None:
        try:
            self._cells.gauge(name, labels).set(value)
        except MetricError:
            # A column's name in a profile need not be fit for a label; the status shows it all the same.
            return
        self._shown.add((name, tuple(sorted(labels.items()))))
