from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from gateway.predictions.commit import GroupCommit
from gateway.predictions.disk import FakeDisk, Fault
from gateway.predictions.segments import list_segments
from gateway.predictions.spool import SpoolError, SpoolWriter
from gateway.settings import SpoolSettings


class SlowDisk(FakeDisk):
    """Holds every sync up until `gate` is set; counts them and knows what they covered."""

    def __init__(self, root: Path) -> None:
        self.gate = threading.Event()
        self.syncs = 0
        super().__init__(root, delay_seconds=1.0, sleep=lambda seconds: self.gate.wait(10) or None)

    def sync(self, file: int, /) -> None:
        super().sync(file)
        self.syncs += 1


class World:
    """A writer, its group commit and what it has told."""

    def __init__(self, folder: Path, *, max_waiting: int = 100, every_seconds: float = 60.0) -> None:
        self.disk = SlowDisk(folder)
        settings = SpoolSettings(fsync="always", segment_bytes=4096)
        self.writer = SpoolWriter(folder / "front-0", slot=0, settings=settings, deferred=True, disk=self.disk)
        loop = asyncio.get_running_loop()
        self.commit = GroupCommit(
            self.writer, loop=loop, max_waiting=max_waiting, every_seconds=every_seconds, disk=self.disk
        )
        self.told: list[tuple[int, str]] = []

    def append(self, number: int, *, size: int = 10) -> None:
        self.writer.append([(1, b"%d" % number * size)])
        self.commit.after(lambda error: self.told.append((number, "" if error is None else str(error))))

    async def until(self, told: int) -> None:
        async with asyncio.timeout(10):
            while len(self.told) < told:
                await asyncio.sleep(0.001)

    async def end(self) -> None:
        self.disk.gate.set()
        await self.commit.close()
        self.writer.close()


async def test_what_comes_during_one_sync_shares_the_next_and_is_told_in_order(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(1)
    await asyncio.sleep(0.02)
    for number in range(2, 8):
        world.append(number)
        await asyncio.sleep(0.001)
    assert (world.told, world.commit.waiting) == ([], 7)
    world.disk.gate.set()
    await world.until(7)
    assert world.told == [(number, "") for number in range(1, 8)]
    assert (world.disk.syncs, world.commit.syncs, world.commit.waiting) == (2, 2, 0)
    await world.end()


async def test_what_one_pass_of_the_loop_appends_shares_a_sync(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.disk.gate.set()
    for number in range(5):
        world.append(number)
    await world.until(5)
    assert world.commit.syncs == 1
    await world.end()


async def test_segments_closed_meanwhile_are_synced_before_anybody_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(0)
    await asyncio.sleep(0.02)
    for number in range(1, 5):
        world.append(number, size=3000)
    assert len(list_segments(tmp_path / "front-0")) == 4
    world.disk.gate.set()
    await world.until(5)
    assert world.disk.syncs == 1 + 4
    world.disk.lose_unsynced()
    assert [path.stat().st_size for path in sorted((tmp_path / "front-0").glob("*.seg"))] == [27 + 3017, *[3017] * 3]
    await world.end()


async def test_a_failed_sync_is_told_to_all_who_wait_and_the_next_file_is_trusted_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(1)
    await asyncio.sleep(0.02)
    world.append(2)
    world.disk.fault = Fault(world.disk.steps + 1, errno.EIO)
    world.disk.gate.set()
    await world.until(2)
    assert [number for number, why in world.told if "Input/output error" in why] == [1, 2]
    assert world.writer.full and world.writer.unsure
    world.append(3)
    assert len(list_segments(tmp_path / "front-0")) == 2
    await world.until(3)
    assert world.told[-1] == (3, "")
    assert not world.writer.full
    await world.end()


async def test_a_disk_that_refused_is_tried_again_while_nobody_asks(tmp_path: Path) -> None:
    world = World(tmp_path, every_seconds=0.01)
    world.disk.gate.set()
    world.append(1)
    world.disk.fault = Fault(world.disk.steps + 1, errno.EROFS, steps=4)
    await world.until(1)
    assert "Read-only" in world.told[0][1]
    async with asyncio.timeout(10):
        while world.writer.full:
            await asyncio.sleep(0.005)
    await world.end()


async def test_what_nobody_waits_for_is_synced_at_its_time(tmp_path: Path) -> None:
    world = World(tmp_path, every_seconds=0.01)
    world.disk.gate.set()
    world.writer.append([(1, b"x")])
    async with asyncio.timeout(10):
        while world.writer.owes:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    assert world.commit.syncs == 1, "and not again"
    await world.end()


async def test_more_waiting_than_may_is_full_until_the_disk_has_caught_up(tmp_path: Path) -> None:
    world = World(tmp_path, max_waiting=2)
    world.append(1)
    assert not world.commit.full
    world.append(2)
    assert world.commit.full
    world.disk.gate.set()
    await world.until(2)
    assert not world.commit.full
    assert repr(world.commit) == "<GroupCommit waiting=0 syncs=1>"
    await world.end()


async def test_durable_returns_or_raises_with_the_disk(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.disk.gate.set()
    world.writer.append([(1, b"x")])
    await world.commit.durable()
    world.writer.append([(1, b"y")])
    world.disk.fault = Fault(world.disk.steps + 1, errno.EIO)
    with pytest.raises(SpoolError, match="Input/output error"):
        await world.commit.durable()
    await world.end()


async def test_closing_waits_for_the_disk_and_not_for_ever(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.append(1)
    await asyncio.sleep(0.02)
    await world.commit.close(seconds=0.02)
    assert world.told == []
    world.disk.gate.set()
    await world.until(1)
    await world.end()
