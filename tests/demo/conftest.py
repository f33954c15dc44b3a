"""Answers, records and a scene, each as small as can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.demo.hours import Hour
from gateway.demo.ledger import Answers
from gateway.demo.scene import Scene
from gateway.demo.traffic import Answer
from gateway.events.records import PredictionRecord, TensorRecord, Timings

BOOT = "01a2074f382400"


@pytest.fixture
def make_answer() -> Callable[..., Answer]:
    def make(number: int, **changes: Any) -> Answer:
        hour = Hour(f"2012-01-{2 + number // 24:02d}T{number % 24:02d}:00", (0.0,) * 6, rented=100.0)
        answer = Answer(f"{BOOT}-{number:010x}", 200, 1, "stable", 90.0, hour, 1_800_000_000.0 + number)
        return answer._replace(**changes)

    return make


@pytest.fixture
def make_record() -> Callable[[Answer], PredictionRecord]:
    def make(answer: Answer) -> PredictionRecord:
        outputs = [] if answer.value is None else [TensorRecord("count", "FP32", (1, 1), [answer.value])]
        return PredictionRecord(
            id=answer.prediction_id,
            time="2027-01-15T08:00:00Z",
            gateway="g",
            seq=int(answer.prediction_id[15:], 16),
            model="bike-demand",
            version=answer.version,
            digest="",
            arm=answer.arm,
            weight=0.0,
            reason="",
            status=answer.status,
            rows=1,
            timings=Timings(),
            inputs=[],
            outputs=outputs,
            parameters={},
        )

    return make


@pytest.fixture
def scene() -> Scene:
    return Scene(Answers(80.0), began=1_800_000_000.0)
