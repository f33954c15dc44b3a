"""A canary whose engine is out of service goes as the policy for errors says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.control.engines import EngineNotes, Fault
from gateway.repository.policy import ModelPolicy, RolloutPolicy


def note(world: Any, version: int, state: str, *, reason: str = "it ended 5 times") -> None:
    folder = world.folder / "run"
    folder.mkdir(exist_ok=True)
    (folder / f"engine-m-{version}.json").write_text(json.dumps({"state": state, "reason": reason}))


def watch_for(world: Any, seconds: float) -> None:
    """A monitor that looks twice, this far apart, and is closed."""

    async def run() -> None:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        await monitor.flush()
        world.now[0] += seconds
        await monitor.flush()
        await monitor.flush()
        await monitor.close()

    asyncio.run(run())


def rolling_out(make_world: Any, errors: Any) -> Any:
    world = make_world(policy=ModelPolicy(rollout=RolloutPolicy(errors=errors)))
    actions = {"errors": errors}
    world.store.start_rollout("m", 2, plan={"actions": actions}, actor="tester", reason="a rollout")
    note(world, 1, "ready", reason="")
    return world


@pytest.mark.parametrize(("state", "guard"), [("circuit_open", "crash_loop"), ("failed", "load_failure")])
def test_a_canary_out_of_service_is_taken_back(make_world: Any, state: str, guard: str) -> None:
    world = rolling_out(make_world, "rollback")
    note(world, 2, state)
    watch_for(world, 4.0)
    [rollback] = world.decisions()
    assert (rollback.kind, rollback.evidence["metric"]) == ("rollback", guard)
    assert "it ended 5 times" in rollback.reason
    assert rollback.evidence["certificate"]["guards"] == {guard: "it ended 5 times"}
    assert world.store.snapshot().routes["m"].canary is None


@pytest.mark.promise("P12")
@pytest.mark.parametrize("reason", ["cannot read \x1b[31mx\x00\u202e", "node " + "x" * 5_000])
def test_a_canary_is_taken_back_whatever_words_its_engine_fails_with(make_world: Any, reason: str) -> None:
    world = rolling_out(make_world, "rollback")
    note(world, 2, "failed", reason=reason)
    watch_for(world, 4.0)
    [rollback] = world.decisions()
    assert rollback.reason.isprintable() and len(rollback.reason) <= 2_000
    assert reason in rollback.evidence["whole_reason"]
    assert world.store.snapshot().routes["m"].canary is None
    assert world.store.audit().first_bad is None


@pytest.mark.parametrize(
    ("errors", "kinds", "phase"),
    [("alert", ["drift_alarm"], "running"), ("pause", ["drift_alarm", "rollout_paused"], "paused")],
)
def test_the_policy_for_errors_says_what_becomes_of_it(make_world: Any, errors: str, kinds: Any, phase: str) -> None:
    world = rolling_out(make_world, errors)
    note(world, 2, "circuit_open")
    watch_for(world, 4.0)
    watch_for(world, 4.0)
    assert world.kinds() == kinds
    assert world.store.rollout("m").phase == phase


def test_a_note_of_a_moment_and_an_outage_of_both_take_nothing_back(make_world: Any) -> None:
    world = rolling_out(make_world, "rollback")
    note(world, 2, "circuit_open")
    watch_for(world, 1.0)
    note(world, 1, "circuit_open")
    watch_for(world, 10.0)
    note(world, 1, "ready")
    note(world, 2, "ready")
    watch_for(world, 10.0)
    assert world.kinds() == []


@pytest.mark.parametrize("before", ["failed", "starting"])
def test_a_canary_that_comes_back_a_little_after_stable_is_not_taken_back(make_world: Any, before: str) -> None:
    world = rolling_out(make_world, "rollback")
    note(world, 1, before)
    note(world, 2, "failed")

    async def run() -> None:
        monitor = world.monitor()
        await monitor.start(asyncio.Event())
        for stable, seconds in ((before, 60.0), ("ready", 2.9), ("starting", 0.1), ("ready", 2.9)):
            note(world, 1, stable)
            await monitor.flush()
            world.now[0] += seconds
            await monitor.flush()
        assert world.kinds() == []
        world.now[0] += 0.2
        await monitor.flush()
        await monitor.flush()
        await monitor.close()

    asyncio.run(run())
    assert world.kinds() == ["rollback"]


def test_what_is_no_note_is_no_fault(tmp_path: Path) -> None:
    engines = EngineNotes(tmp_path)
    (tmp_path / "engine-m-1.json").write_text('{"state": "ready"}')
    assert engines.fault("m", 2, beside=1) is None
    for text in ("", "{}", "[]", '{"state": "ready"}', '{"state": 5}', '{"state": "starting", "reason": "x"}'):
        (tmp_path / "engine-m-2.json").write_text(text)
        assert engines.fault("m", 2, beside=1) is None
    (tmp_path / "engine-m-2.json").write_text('{"state": "failed", "reason": "no such operator"}')
    assert engines.fault("m", 2, beside=1) == Fault("load_failure", "no such operator")
    (tmp_path / "engine-m-1.json").unlink()
    assert engines.fault("m", 2, beside=1) is None
