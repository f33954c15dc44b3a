"""The monitor as a process runs it: on the clock, behind its lock, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.control.errors import StoreAway, StoreError
from gateway.control.lock import held_lock
from gateway.control.outbox import DECISIONS_STREAM, Outbox, last_published, open_decisions
from gateway.control.store import Store
from gateway.events.encoding import decode
from gateway.events.records import KIND_DECISION, DecisionRecord
from gateway.predictions.reader import SpoolReader
from gateway.predictions.source import SpoolSource
from gateway.predictions.spool import SpoolFull, SpoolWriter
from gateway.settings import Settings, SpoolSettings


async def until(true: Any, *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.01)


def test_a_run_reads_flushes_checkpoints_and_stops(make_world: Any, tmp_path: Path) -> None:
    world = make_world(flush_seconds=0.02, checkpoint_seconds=0.05)
    for _ in range(50):
        world.label(world.predict(1), 0.0)

    async def run() -> None:
        stop = asyncio.Event()
        monitor = world.monitor()
        monitor._monotonic = time.monotonic
        running = asyncio.create_task(monitor.run(stop))
        await until(lambda: monitor.read == 100)
        await until((tmp_path / "monitor" / "checkpoint.msgpack").exists)
        await until((tmp_path / "monitor" / "status.json").exists)
        stop.set()
        await asyncio.wait_for(running, 20.0)
        assert world.source.closed
        assert world.source.committed == {"next": 100}

    before = gc.get_threshold()
    asyncio.run(run())
    assert gc.get_threshold() == before


def test_over_restarts_on_a_real_spool_every_record_counts_once(make_world: Any, tmp_path: Path) -> None:
    world = make_world(flush_seconds=0.02)
    fronts = [SpoolWriter(tmp_path / "spool" / f"front-{slot}", slot=slot, settings=SpoolSettings()) for slot in (0, 1)]

    async def open_source(position: Any, start: Any) -> SpoolSource:
        places = {stream: (segment, offset) for stream, (segment, offset) in (position or {}).items()}
        return SpoolSource(tmp_path / "spool", position=places or None, start=start, whole_blocks=True)

    async def run(expected: int) -> Any:
        stop, monitor = asyncio.Event(), world.monitor()
        monitor._monotonic, monitor._open_source = time.monotonic, open_source
        running = asyncio.create_task(monitor.run(stop))
        await until(lambda: monitor.read == expected)
        stop.set()
        await asyncio.wait_for(running, 20.0)
        return monitor

    for labelled in (40, 80, 120):
        for number in range(40):
            world.label(world.predict(1), 0.0)
            fronts[number % 2].append([(record.kind, record.payload) for record in world.records[-2:]])
        monitor = asyncio.run(run(80))
        assert monitor.models["m"].watches[1].quality.rows == labelled
    for front in fronts:
        front.close()


def test_a_checkpoint_of_another_log_gives_no_position_and_no_evidence(make_world: Any) -> None:
    world = make_world()
    for _ in range(100):
        world.label(world.predict(1), 0.0)
    world.source_name = "kafka"
    monitor = world.run()
    assert monitor.models["m"].watches[1].quality.rows == 100
    decisions_taken = monitor._following.trials.seq
    world.source_name = "spool"
    for _ in range(2):
        monitor = world.run()
        assert monitor.read == 0
        assert monitor._following.trials.seq == decisions_taken
    assert sum("read from spool now" in note for note in world.notes) == 1
    for _ in range(10):
        world.label(world.predict(1), 0.0)
    monitor = world.run()
    assert monitor.models["m"].watches[1].quality.rows == 10


def test_a_second_monitor_waits_until_the_first_is_gone(make_world: Any) -> None:
    world = make_world(flush_seconds=0.02)
    world.predict(1)

    async def run() -> None:
        stops, monitors = (asyncio.Event(), asyncio.Event()), (world.monitor(), world.monitor())
        for monitor in monitors:
            monitor._monotonic = time.monotonic
        first = asyncio.create_task(monitors[0].run(stops[0]))
        await until(lambda: monitors[0].read == 1)
        second = asyncio.create_task(monitors[1].run(stops[1]))
        await asyncio.sleep(0.1)
        assert monitors[1]._source is None
        stops[0].set()
        await asyncio.wait_for(first, 20.0)
        world.predict(1)
        await until(lambda: monitors[1].read == 1)
        stops[1].set()
        await asyncio.wait_for(second, 20.0)

    asyncio.run(run())


def test_who_is_stopped_while_waiting_for_the_lock_never_acts(tmp_path: Path) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        async with held_lock(tmp_path / "lock", stop) as first:
            assert first
            stop.set()
            async with held_lock(tmp_path / "lock", stop) as second:
                assert not second

    asyncio.run(run())


def outbox(world: Any, tmp_path: Path) -> tuple[Outbox, SpoolWriter]:
    writer = SpoolWriter(tmp_path / "spool" / DECISIONS_STREAM, slot=255, settings=SpoolSettings())
    return Outbox(world.store, writer, note=world.notes.append), writer


def published(tmp_path: Path) -> list[DecisionRecord]:
    reader = SpoolReader(tmp_path / "spool")
    found = []
    for record in reader.read(10_000):
        assert record.kind == KIND_DECISION
        decision = decode(record.kind, record.payload)
        assert isinstance(decision, DecisionRecord)
        found.append(decision)
    reader.close()
    return found


def test_every_decision_reaches_the_log_once_in_order_over_restarts(make_world: Any, tmp_path: Path) -> None:
    world = make_world()
    first, writer = outbox(world, tmp_path)
    first.publish()
    world.store.set_route("m", stable=2, actor="tester", reason="a change")
    first.publish()
    writer.close()
    world.store.set_route("m", stable=3, actor="tester", reason="another change")
    second, writer = outbox(world, tmp_path)
    second.publish()
    second.publish()
    writer.close()
    assert published(tmp_path) == world.store.decisions(limit=1_000)
    assert last_published(tmp_path / "spool" / DECISIONS_STREAM) == world.store.decisions(limit=1_000)[-1]


def test_another_stores_decisions_reach_the_log_from_the_first_one_on(make_world: Any, tmp_path: Path) -> None:
    world = make_world()
    box, writer = outbox(world, tmp_path)
    before = box.publish()
    writer.close()
    world.store = another_store(tmp_path)
    for _ in range(2):
        box, writer = outbox(world, tmp_path)
        box.publish()
        writer.close()
    assert published(tmp_path) == before + world.store.decisions(limit=1_000)
    assert len(world.notes) == 1


def test_a_trial_begins_in_another_store_whatever_was_known_of_the_one_before(make_world: Any, tmp_path: Path) -> None:
    world = make_world()
    world.store.start_rollout("m", 2, plan={}, actor="tester", reason="a trial")
    assert world.run().models["m"].trial is not None
    world.store = another_store(tmp_path)
    world.now[0] += 60
    world.store.start_rollout("m", 3, plan={}, actor="tester", reason="a trial in another store")
    trial = world.run().models["m"].trial
    assert trial is not None
    assert (trial.canary, trial.start.began) == (3, world.store.decisions(limit=1_000)[-1].time)


def another_store(tmp_path: Path) -> Store:
    store = Store(f"sqlite:///{tmp_path / 'another.db'}")
    store.create()
    for version in (1, 3):
        store.register("m", version, f"sha256:{version:064x}")
        store.approve("m", version, actor="tester", reason="it is a test")
    store.set_route("m", stable=1, actor="tester", reason="it is a test")
    return store


class FullWriter:
    """A stream without space."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def append(self, records: Any) -> None:
        raise SpoolFull("no space is left")

    def tick(self) -> None:
        pass


def test_decisions_wait_while_the_log_cannot_be_written(make_world: Any, tmp_path: Path) -> None:
    world = make_world()
    full: Any = FullWriter(tmp_path / "spool" / DECISIONS_STREAM)
    box = Outbox(world.store, full, note=world.notes.append)
    assert box.publish() == []
    assert box.publish() == []
    assert len([note for note in world.notes if "wait to be logged" in note]) == 1
    again, writer = outbox(world, tmp_path)
    again.publish()
    writer.close()
    assert published(tmp_path) == world.store.decisions(limit=1_000)


@pytest.mark.parametrize("fault", [StoreAway("the disk is gone"), StoreError("permission denied for table decisions")])
def test_decisions_wait_while_the_store_gives_none(
    make_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    world = make_world()

    def fail(**_: Any) -> Any:
        raise fault

    monkeypatch.setattr(world.store, "decisions", fail)
    box, writer = outbox(world, tmp_path)
    assert box.publish() == []
    assert [str(fault) in note for note in world.notes] == [True]
    monkeypatch.undo()
    assert box.publish() == world.store.decisions(limit=1_000)
    writer.close()


@pytest.mark.parametrize("full", ["block", "drop"])
def test_decisions_that_found_the_log_full_are_in_it_in_order_once_there_is_room(
    make_world: Any, tmp_path: Path, full: str
) -> None:
    world = make_world()
    settings = Settings.model_validate({"state_dir": tmp_path, "spool": {"max_bytes": 2**20, "full": full}})
    spool = settings.spool_dir
    writer = open_decisions(settings)
    box = Outbox(world.store, writer, note=world.notes.append, monotonic=lambda: world.now[0])
    assert box.publish() == world.store.decisions(limit=1_000)
    filler = SpoolWriter(spool / "front-0", slot=0, settings=SpoolSettings())
    filler.append([(KIND_DECISION, bytes(2**20))] * 2)
    filler.close()
    for stable in (2, 3):
        world.now[0] += 1.0
        world.store.set_route("m", stable=stable, actor="tester", reason="while the log is full")
        assert box.publish() == []
    assert len([note for note in world.notes if "wait to be logged" in note]) == 1
    for path in (spool / "front-0").glob("*.seg"):
        path.unlink()
    assert box.publish() == []
    world.now[0] += 1.0
    world.store.set_route("m", stable=1, actor="tester", reason="there is room")
    assert [decision.reason for decision in box.publish()] == ["while the log is full"] * 2 + ["there is room"]
    writer.close()
    assert published(tmp_path) == world.store.decisions(limit=1_000)
