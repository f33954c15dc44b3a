"""A comparison with the previous version runs beside the watch."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.control import compare
from gateway.control.compare import EngineRerun, FixedRerun, RerunError
from gateway.engine.errors import EngineGone


def harmed_world(make_world: Any, rerun: Any) -> Any:
    """Version 2 is stable and wrong by 3; version 1, the previous one, knows it."""
    world = make_world()
    world.store.set_route("m", stable=2, actor="tester", reason="version 1 is the previous one")
    world.rerun = rerun
    for _ in range(400):
        found = world.predict(2)
        world.label(found, world.answer_of(found) + 3.0)
    return world


def knowing(inputs: Any) -> Any:
    return {"y": inputs["x"] + inputs["temp"] + 3.0}


def test_the_watch_goes_on_while_a_previous_version_is_slow(make_world: Any) -> None:
    go_on = threading.Event()

    def slow(inputs: Any) -> Any:
        assert go_on.wait(20.0)
        return knowing(inputs)

    world = harmed_world(make_world, FixedRerun({("m", 1): slow}))

    async def run() -> None:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        while await monitor.step(0.0):
            pass
        for _ in range(3):
            await asyncio.wait_for(monitor.flush(), 10.0)
        assert "rollback" not in world.kinds()
        world.label(world.predict(2), 0.0)
        assert await monitor.step(0.0) == 2
        go_on.set()
        while monitor._beside.busy:
            await asyncio.sleep(0.001)
            await monitor.flush()
        await monitor.close()

    asyncio.run(run())
    assert [kind for kind in world.kinds() if kind != "warning"] == ["rollback"]
    assert world.store.snapshot().routes["m"].stable == 1


def test_a_comparison_that_a_stop_cuts_short_begins_again_at_the_next_start(make_world: Any) -> None:
    go_on = threading.Event()

    def stuck(inputs: Any) -> Any:
        go_on.wait(20.0)
        raise RerunError("it was too late")

    world = harmed_world(make_world, FixedRerun({("m", 1): stuck}))

    async def stopped() -> None:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        while await monitor.step(0.0):
            pass
        await monitor.flush()
        assert monitor._beside.busy
        await monitor.close()
        go_on.set()

    asyncio.run(stopped())
    assert "rollback" not in world.kinds()
    world.rerun = FixedRerun({("m", 1): knowing})
    world.run()
    assert "rollback" in world.kinds()


def test_a_session_connects_once_and_again_after_the_engine_was_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[str] = []

    class Engine:
        ends = False

        def run(self, inputs: Any) -> Any:
            if Engine.ends:
                raise EngineGone("the engine ended")
            return inputs

        def close(self) -> None:
            connected.append("closed")

    def connect(path: Path, *, timeout_seconds: float) -> Engine:
        connected.append(path.name)
        return Engine()

    monkeypatch.setattr(compare, "connect_engine", connect)
    inputs = {"x": np.zeros(1)}
    with EngineRerun(Path("run")).session("m", 1) as run:
        for _ in range(5):
            assert run(inputs) is inputs
        assert connected == ["engine-m-1.sock"]
        Engine.ends = True
        with pytest.raises(RerunError, match="the engine ended"):
            run(inputs)
        Engine.ends = False
        run(inputs)
    assert connected == ["engine-m-1.sock", "closed"] * 2
