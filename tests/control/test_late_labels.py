"""Labels whose prediction must be looked up never hold up what the monitor is there for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.events.records import PredictionRecord


def label_invented_ids(world: Any, count: int) -> None:
    for number in range(count):
        world.label(f"01b00000000000-{number + 1:010x}", 0.0)


@pytest.mark.promise("P12")
def test_invented_prediction_ids_cost_a_flush_little_and_come_after_the_decisions(make_world: Any) -> None:
    world = make_world()
    label_invented_ids(world, 200)
    asked: list[tuple[str, list[str]]] = []

    def slow_lookup(prediction_id: str) -> PredictionRecord | None:
        asked.append((prediction_id, world.kinds()))
        world.now[0] += 0.02
        return None

    async def run() -> None:
        monitor = world.monitor()
        monitor._lookup = slow_lookup
        await monitor.start(asyncio.Event())
        await monitor.step(0.0)
        world.now[0] += 6.0
        for _ in range(1_000):
            found = world.predict(1)
            world.label(found, world.answer_of(found) + world.random.normal(0.0, 4.0))
        while await monitor.step(0.0):
            pass
        await monitor.flush()
        assert 1 <= len(asked) <= 5
        assert "harm" in asked[0][1]
        await monitor.flush()
        assert len(asked) <= 10
        assert len({prediction_id for prediction_id, _ in asked}) == len(asked)

    asyncio.run(run())


def test_a_label_whose_prediction_is_only_in_the_log_counts_and_a_restart_does_not_lose_it(make_world: Any) -> None:
    world = make_world()
    found = world.predict(1)
    world.label(found, 0.0)
    del world.records[0]

    async def run(flushes: int) -> Any:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        await monitor.step(0.0)
        world.now[0] += 6.0
        for _ in range(flushes):
            await monitor.flush()
        monitor.checkpoint()
        return monitor

    asyncio.run(run(1))
    monitor = asyncio.run(run(2))
    assert monitor.models["m"].watches[1].quality.rows == 1
    assert monitor._join.counts["m"]["joined"] == 1
