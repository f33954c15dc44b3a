"""A small world for the monitor: one model with synthetic versions, a real store, a log that is a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gateway.control.compare import FixedRerun
from gateway.control.engines import EngineNotes
from gateway.control.monitor import Monitor
from gateway.control.store import Store
from gateway.control.versions import FixedVersions
from gateway.drift.profile import Profile, build_loss, build_profile
from gateway.events.records import (
    KIND_FEEDBACK,
    KIND_PREDICTION,
    DecisionRecord,
    FeedbackRecord,
    PredictionRecord,
    TensorRecord,
    Timings,
)
from gateway.predictions.segments import LogRecord
from gateway.predictions.source import ListSource
from gateway.repository.policy import ModelPolicy
from gateway.settings import MonitorSettings

MODEL = "m"
BOOT = "01a00000000000"
LABEL_BOOT = "01a00000000001"
EPOCH = 1_767_225_600.0  # 2026-01-01T00:00:00Z
EVENT_EPOCH = 1_325_376_000.0  # 2012-01-01T00:00:00Z, a Sunday


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def reference(*, shift: float = 0.0, error: float = 1.0, seed: int = 0) -> Profile:
    """Rows of x, temp ~ N(shift, 1); y = x + temp; losses |N(0, error)|, a miss above their 0.9 quantile."""
    random = np.random.default_rng(seed)
    x, temp = random.normal(shift, 1.0, 8_000), random.normal(shift, 1.0, 8_000)
    losses = np.abs(random.normal(0.0, error, 8_000))
    return build_profile(
        inputs={"x": x.reshape(-1, 1), "temp": temp.reshape(-1, 1)},
        outputs={"y": (x + temp).reshape(-1, 1)},
        columns={},
        loss=build_loss(output="y", loss="absolute_error", losses=losses, miss_above=1.645),
    )


@dataclass
class World:
    """The log, the store and the monitor of one test; time goes on by what is sent."""

    folder: Path
    store: Store
    versions: FixedVersions
    settings: MonitorSettings
    rerun: FixedRerun
    now: list[float]
    records: list[LogRecord] = field(default_factory=list)
    predictions: dict[str, PredictionRecord] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    source: ListSource | None = None
    metrics: Any = None
    looks_up: bool = True
    source_name: str = "list"

    def predict(self, version: int, *, arm: str = "stable", weight: float = 0.0, rows: int = 1, **changes: Any) -> str:
        """Log one prediction; `inputs` and `outputs` are N(0, 1) and their sum unless told."""
        number = len(self.records) + 1
        x = changes.pop("x", None)
        x = self.random.normal(0.0, 1.0, rows).tolist() if x is None else [x] * rows
        temp = changes.pop("temp", None)
        temp = self.random.normal(0.0, 1.0, rows).tolist() if temp is None else [temp] * rows
        y = changes.pop("y", None)
        y = [a + b for a, b in zip(x, temp, strict=True)] if y is None else [y] * rows
        event_hour = changes.pop("event_hour", None)
        fields: dict[str, Any] = {
            "id": f"{BOOT}-{number:010x}",
            "time": iso(self.now[0]),
            "gateway": "g",
            "seq": number,
            "model": MODEL,
            "version": version,
            "digest": "sha256:0",
            "arm": arm,
            "weight": weight,
            "reason": "weight",
            "status": 200,
            "rows": rows,
            "timings": Timings(),
            "inputs": [tensor("x", x), tensor("temp", temp)],
            "outputs": [tensor("y", y)],
            "parameters": {} if event_hour is None else {"event_time": iso(EVENT_EPOCH + 3600.0 * event_hour)},
        }
        record = PredictionRecord(**(fields | changes))
        self.predictions[record.id] = record
        self.records.append(LogRecord(KIND_PREDICTION, BOOT, number, msgspec.json.encode(record)))
        return record.id

    def label(self, prediction_id: str, value: float, *, row: int = 0) -> None:
        number = len(self.records) + 1
        record = FeedbackRecord(
            f"{LABEL_BOOT}-{number:010x}", iso(self.now[0]), "g", number, MODEL, prediction_id, row, value
        )
        self.records.append(LogRecord(KIND_FEEDBACK, LABEL_BOOT, number, msgspec.json.encode(record)))

    def answer_of(self, prediction_id: str, *, row: int = 0) -> float:
        data = self.predictions[prediction_id].outputs[0].data
        assert data is not None
        return float(data[row])

    def monitor(self) -> Monitor:
        async def open_source(position: dict[str, Any] | None, start: str) -> ListSource:
            self.source = ListSource(self.records, position=position)
            self.source.records = self.records
            if position is None and start == "latest":
                self.source = ListSource(self.records, position={"next": len(self.records)})
                self.source.records = self.records
            return self.source

        return Monitor(
            open_source,
            self.store,
            source=self.source_name,
            versions=self.versions,
            state_dir=self.folder,
            settings=self.settings,
            rerun=self.rerun,
            lookup=self.predictions.get if self.looks_up else lambda prediction_id: None,
            engines=EngineNotes(self.folder / "run", monotonic=lambda: self.now[0]),
            metrics=self.metrics,
            note=self.notes.append,
            clock=lambda: self.now[0],
            monotonic=lambda: self.now[0],
        )

    async def feed(self, monitor: Monitor, *, flush_every: int = 100) -> None:
        """Let the monitor read everything, with a flush each `flush_every` records."""
        assert self.source is not None
        while True:
            block = await self.source.read(flush_every, 0.0)
            if not block:
                break
            monitor.take(block)
            await monitor.flush()
            while monitor._beside.busy:
                await asyncio.sleep(0.001)
                await monitor.flush()

    def run(self, *, flush_every: int = 100) -> Monitor:
        """A monitor that has read everything there is, from its checkpoint on, and was closed."""

        async def all_of_it() -> Monitor:
            monitor = self.monitor()
            await monitor.start(asyncio.Event())
            await self.feed(monitor, flush_every=flush_every)
            await monitor.close()
            return monitor

        return asyncio.run(all_of_it())

    def kinds(self) -> list[str]:
        """Kinds of the decisions, without those that set the world up."""
        return [decision.kind for decision in self.decisions()]

    def decisions(self) -> list[DecisionRecord]:
        ours = self.store.decisions(limit=10_000)
        return [decision for decision in ours if decision.actor == "gateway monitor"]


def tensor(name: str, values: list[Any]) -> TensorRecord:
    return TensorRecord(name, "FP64", (len(values), 1), values)


MakeWorld = Callable[..., World]


@pytest.fixture
def make_profile() -> Callable[..., Profile]:
    return reference


@pytest.fixture
def make_world(tmp_path: Path) -> MakeWorld:
    """Builds a world of versions 1 to 3 that are all approved; version 1 is stable."""

    def build(
        profiles: dict[int, Profile] | None = None, *, policy: ModelPolicy | None = None, **settings: Any
    ) -> World:
        now = [EPOCH]
        store = Store(f"sqlite:///{tmp_path / 'store.db'}", clock=lambda: now[0])
        store.create()
        for version in (1, 2, 3):
            store.register(MODEL, version, f"sha256:{version:064x}")
            store.approve(MODEL, version, actor="tester", reason="it is a test")
        store.set_route(MODEL, stable=1, actor="tester", reason="it is a test")
        same = reference()
        known = profiles or {1: same, 2: same, 3: same}
        return World(
            tmp_path,
            store,
            FixedVersions({MODEL: policy or ModelPolicy()}, {(MODEL, v): each for v, each in known.items()}),
            MonitorSettings(**settings),
            FixedRerun({}),
            now,
        )

    return build
