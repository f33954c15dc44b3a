"""With `fsync = "always"` an answer leaves when its record is on the disk, and nothing else waits for that."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from gateway.predictions.disk import Fault
from tests.predictions.test_commit import SlowDisk
from tests.serving.fronts import Door, door, get, post

ALWAYS = {"fsync": "always"}


def spool_of(tmp_path: Path) -> SlowDisk:
    (tmp_path / "spool").mkdir()
    return SlowDisk(tmp_path / "spool")


async def waiting(d: Door, number: int) -> None:
    assert d.front.commit is not None
    async with asyncio.timeout(10):
        while d.front.commit.waiting < number:
            await asyncio.sleep(0.001)


async def test_answers_wait_for_the_disk_and_other_requests_do_not(tmp_path: Path) -> None:
    disk = spool_of(tmp_path)
    async with door(tmp_path, disk=disk, spool=ALWAYS) as d:
        asked = [asyncio.ensure_future(d.send(post(), read=1)) for _ in range(5)]
        await waiting(d, 5)
        assert len(d.log()) == 5, "written, and not yet on the disk"
        assert (await d.send(get("/v2/health/ready"), read=1))[0][0] == 200
        assert not any(each.done() for each in asked)
        disk.gate.set()
        answers = [(await each)[0] for each in asked]
        assert [status for status, _, _ in answers] == [200] * 5
        assert {headers["gateway-prediction-id"] for _, headers, _ in answers} == {record["id"] for record in d.log()}
        assert disk.syncs <= 5


async def test_pipelined_answers_keep_their_order(tmp_path: Path) -> None:
    disk = spool_of(tmp_path)
    async with door(tmp_path, disk=disk, spool=ALWAYS) as d:
        asked = asyncio.ensure_future(d.send(post(), get("/v2/health/live"), post(), read=3))
        await waiting(d, 1)
        disk.gate.set()
        first, live, last = await asked
        assert first[2]["parameters"]["prediction_id"] < last[2]["parameters"]["prediction_id"]
        assert live[2]["live"] is True


async def test_what_the_disk_cannot_keep_up_with_is_refused_at_once(tmp_path: Path) -> None:
    disk = spool_of(tmp_path)
    async with door(tmp_path, disk=disk, spool=ALWAYS | {"max_waiting_answers": 2}) as d:
        asked = [asyncio.ensure_future(d.send(post(), read=1)) for _ in range(2)]
        await waiting(d, 2)
        ((status, headers, answer),) = await d.send(post(), read=1)
        assert (status, answer["error"]) == (503, "the disk of the prediction log does not keep up")
        assert "retry-after" in headers
        assert len(d.log()) == 2
        disk.gate.set()
        assert [(await each)[0][0] for each in asked] == [200, 200]
        assert (await d.send(post(), read=1))[0][0] == 200


@pytest.mark.promise("P4")
@pytest.mark.parametrize(("policy", "status"), [("block", 503), ("drop", 200)])
async def test_a_disk_that_refuses_to_sync_does_what_was_chosen_and_recovers(
    tmp_path: Path, policy: str, status: int
) -> None:
    disk = spool_of(tmp_path)
    disk.gate.set()
    async with door(tmp_path, disk=disk, spool=ALWAYS | {"full": policy}) as d:
        assert (await d.send(post(), read=1))[0][0] == 200
        disk.fault = Fault(disk.steps + 2, errno.EIO, steps=1_000_000)
        ((got, _, answer),) = await d.send(post(), read=1)
        assert got == status, answer
        assert d.front.cells.counter("gateway_log_events_total", {"state": "unsynced"}).value == 1
        ready = (await d.send(get("/v2/health/ready"), read=1))[0][0]
        assert ready == {"block": 503, "drop": 200}[policy]
        disk.fault = None
        async with asyncio.timeout(10):
            while (await d.send(post(), read=1))[0][0] != 200 or d.front.not_ready:
                await asyncio.sleep(0.01)


async def test_feedback_is_accepted_when_it_is_on_the_disk(tmp_path: Path) -> None:
    disk = spool_of(tmp_path)
    label = post({"prediction_id": "0196f0c5d2a100-0000000001", "row": 0, "label": 1.0}, path="/v2/models/m/feedback")
    async with door(tmp_path, disk=disk, spool=ALWAYS) as d:
        asked = asyncio.ensure_future(d.send(label, read=1))
        await waiting(d, 1)
        assert not asked.done()
        disk.gate.set()
        assert (await asked)[0][0] == 200
        disk.fault = Fault(disk.steps + 2, errno.EIO)
        assert (await d.send(label, read=1))[0][0] == 503
