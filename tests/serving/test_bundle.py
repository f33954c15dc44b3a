"""Requests that go as one job: each gets its own answer, and whatever is not as usual with one costs no other."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.engine.errors import RunStopped
from gateway.engine.waiting import WaitingLine
from gateway.predictions.disk import FakeDisk, Fault
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.routing.table import Route
from gateway.serving.batch import BatchWriter
from gateway.serving.bundle import Bundle
from gateway.serving.front import Front
from tests.predictions.test_commit import SlowDisk
from tests.serving.fronts import Door, door, post, read_answer

Answer = tuple[int, dict[str, str], Any]


def row(value: float, *, text: str | None = None) -> bytes:
    data = text or f"[{value}, 0.5, 0.25]"
    return post(b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": %b}]}' % data.encode())


def doubled(answer: Answer) -> float:
    status, _, content = answer
    assert status == 200, content
    first, *rest = content["outputs"][0]["data"]
    assert rest == [1.0, 0.5]
    return float(first) / 2


class Client:
    """A connection that has sent this head before."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> Answer:
        return await read_answer(self.reader)


class Clients(list[Client]):
    """Some connections, and one whose request the engine holds."""

    blocker: Client


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.serving.bundle.OPEN_SECONDS", 60.0)


@contextlib.asynccontextmanager
async def clients(d: Door, count: int) -> AsyncIterator[Clients]:
    connected = Clients([Client(*await d.connect()) for _ in range(count)])
    connected.blocker = Client(*await d.connect())
    for client in connected:
        for _ in range(2):
            client.writer.write(row(0))
            await client.answer()
    try:
        yield connected
    finally:
        for client in (*connected, connected.blocker):
            client.writer.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def waiting(d: Door, those: Clients, requests: Sequence[bytes]) -> Bundle:
    """Their requests, in a bundle that waits behind one which the engine holds."""
    lane = d.front.versions["m", 1].lane
    d.engine.hold.clear()
    those.blocker.writer.write(row(0))
    await until(lambda: lane._in_flight)
    for client, request in zip(those, requests, strict=True):
        before = len(lane.line)
        client.writer.write(request)
        await until(partial(_has_grown, lane.line, before))
    bundle = lane.line.newest
    assert isinstance(bundle, Bundle) and bundle.requests == len(requests)
    return bundle


def _has_grown(line: WaitingLine, before: int) -> bool:
    return len(line) > before


async def test_each_gets_its_own_answer_and_its_own_record(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 4) as those:
        for turn in range(3):
            values = [float(10 * turn + place) for place in range(4)]
            await waiting(d, those, [row(value) for value in values])
            before = len(d.engine.batches)
            d.engine.hold.set()
            answers = [await client.answer() for client in those]
            assert [doubled(answer) for answer in answers] == values
            assert d.engine.batches[before:] == [4]
        records = {record["id"]: record for record in d.log()}
        assert len(records) == len(d.log()) == 8 + 3 * 5
        for answer, value in zip(answers, values, strict=True):
            record = records[answer[2]["parameters"]["prediction_id"]]
            assert record["inputs"][0]["data"] == [value, 0.5, 0.25]
            assert record["outputs"][0]["data"] == answer[2]["outputs"][0]["data"]
            assert answer[1]["gateway-prediction-id"] == record["id"]
        requests = d.front.versions["m", 1].requests("stable", 200)
        assert requests.value == len(records)


async def test_it_is_logged_and_answered_as_requests_by_themselves_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for apart in (False, True):
        if apart:
            monkeypatch.setattr(BatchWriter, "write_bundle", lambda *given, **named: None)
        async with door(tmp_path / str(apart)) as d, clients(d, 3) as those:
            await waiting(d, those, [row(value) for value in (1, 2, 3)])
            d.engine.hold.set()
            answers = [await client.answer() for client in those]
            boot = d.front.spool.boot
            shown = str(answers).replace(boot, "boot")
            records = [{**record, "time": "", "timings": {}} for record in d.log()]
            served = d.front.versions["m", 1]
            counted = [served.queue_seconds.count, served.durations("stable").count, served.batch_rows.sum]
            seen.append((shown, str(records).replace(boot, "boot"), counted))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("text", ["[7.0, 0.5]", "[7.0, 0.5, 0.25, 1.0]", "[7.0, 1e39, 0.25]", "[7.0, nul, 0.25]"])
async def test_one_that_cannot_be_read_is_refused_alone(tmp_path: Path, text: str) -> None:
    async with door(tmp_path) as d, clients(d, 3) as those:
        await waiting(d, those, [row(1), row(0, text=text), row(3)])
        before = len(d.engine.batches)
        d.engine.hold.set()
        first, odd, last = [await client.answer() for client in those]
        assert (doubled(first), odd[0], doubled(last)) == (1.0, 400, 3.0)
        assert d.engine.batches[before:] == [2]
        assert sorted(record["status"] for record in d.log()[-3:]) == [200, 200, 400]
        those[1].writer.write(row(5))
        assert doubled(await those[1].answer()) == 5.0


async def test_what_one_and_the_next_have_too_much_and_too_few_is_nobodys(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 2) as those:
        await waiting(d, those, [row(0, text="[1.0, 0.5, 0.25, 9.0]"), row(0, text="[0.5, 0.25]")])
        d.engine.hold.set()
        assert [(await client.answer())[0] for client in those] == [400, 400]


async def test_one_whose_caller_has_gone_costs_no_run(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 3) as those:
        bundle = await waiting(d, those, [row(1), row(2), row(3)])
        before = len(d.engine.batches)
        those[1].writer.transport.abort()
        await until(lambda: bundle.likes[1].abandoned)
        d.engine.hold.set()
        assert [doubled(await those[place].answer()) for place in (0, 2)] == [1.0, 3.0]
        assert d.engine.batches[before:] == [2]


async def test_one_whose_caller_leaves_while_it_runs_is_logged_and_the_others_are_answered(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 3) as those:
        lane, logged = d.front.versions["m", 1].lane, len(d.log())
        bundle = await waiting(d, those, [row(1), row(2), row(3)])
        await until(lambda: d.engine.batches[-1:] == [1])
        d.engine.run = _held(d, lane)
        d.engine.hold.set()
        await until(lambda: bundle.run is not None)
        those[1].writer.transport.abort()
        await until(lambda: bundle.likes[1].abandoned)
        d.engine.hold.set()
        assert [doubled(await those[place].answer()) for place in (0, 2)] == [1.0, 3.0]
        assert [record["inputs"][0]["data"][0] for record in d.log()[logged:]] == [0.0, 1.0, 2.0, 3.0]


def _held(d: Door, lane: Any) -> Any:
    """The engine's work, which holds what comes behind the next run."""

    def run(inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        d.engine.hold.clear()
        return [inputs[0] * 2]

    return run


async def test_of_a_run_that_fails_only_the_guilty_one_fails(tmp_path: Path) -> None:
    def run(inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        if (inputs[0][:, 0] == 3).any():
            raise ValueError("three")
        return [inputs[0] * 2]

    async with door(tmp_path) as d, clients(d, 4) as those:
        d.engine.run = run
        await waiting(d, those, [row(value) for value in (1, 2, 3, 4)])
        before = len(d.engine.batches)
        d.engine.hold.set()
        answers = [await client.answer() for client in those]
        assert [answer[0] for answer in answers] == [200, 200, 500, 200]
        assert [doubled(answers[place]) for place in (0, 1, 3)] == [1.0, 2.0, 4.0]
        assert d.engine.batches[before:] == [4, 2, 2, 1, 1]
        for value, client in enumerate(those):
            client.writer.write(row(10 + value))
            assert doubled(await client.answer()) == 10 + value


async def test_of_a_run_that_is_stopped_each_is_run_again(tmp_path: Path) -> None:
    def run(inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        if len(inputs[0]) > 1:
            raise RunStopped
        return [inputs[0] * 2]

    async with door(tmp_path) as d, clients(d, 3) as those:
        d.engine.run = run
        await waiting(d, those, [row(1), row(2), row(3)])
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == [1.0, 2.0, 3.0]


async def test_a_run_that_mixes_their_rows_answers_none_with_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with door(tmp_path) as d, clients(d, 3) as those:
        d.engine.run = lambda inputs: [inputs[0][:1] * 2]
        await waiting(d, those, [row(1), row(2), row(3)])
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == [1.0, 2.0, 3.0]
        assert "mixes the rows" in caplog.text
        for client in those:
            client.writer.write(row(4))
        assert [doubled(await client.answer()) for client in those] == [4.0] * 3


async def test_those_that_are_late_get_their_504_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"request_timeout_ms": 300}) as d, clients(d, 2) as those:
        await waiting(d, those, [row(1), row(2)])
        answers = [await client.answer() for client in those]
        assert [answer[0] for answer in answers] == [504, 504]
        d.engine.hold.set()
        await until(lambda: d.front.versions["m", 1].lane.idle)
        assert [record["status"] for record in d.log()[-3:]] == [504] * 3
        for value, client in enumerate(those):
            client.writer.write(row(value))
            assert doubled(await client.answer()) == value


async def test_when_the_engine_ends_those_that_ran_fail_and_those_that_wait_go_to_the_next(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 2) as those:
        lane = d.front.versions["m", 1].lane
        await waiting(d, those, [row(1), row(2)])
        d.engine.die()
        await until(lambda: not lane.ready)
        d.engine.hold.set()
        await lane.connect()
        assert [doubled(await client.answer()) for client in those] == [1.0, 2.0]


async def test_what_is_sent_behind_one_is_answered_behind_it(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 2) as those:
        lane = d.front.versions["m", 1].lane
        await waiting(d, those, [row(1), row(2)])
        those[0].writer.write(row(3) + row(4))
        await until(lambda: len(lane.line) == 4)
        d.engine.hold.set()
        assert [doubled(await those[0].answer()) for _ in range(3)] == [1.0, 3.0, 4.0]
        assert doubled(await those[1].answer()) == 2.0


async def test_a_front_that_shuts_down_answers_and_says_that_it_closes(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 2) as those:
        await waiting(d, those, [row(1), row(2)])
        for connection in list(d.server.server_state.connections):
            connection.shutdown()
        d.engine.hold.set()
        for value, client in enumerate(those, start=1):
            answer = await client.answer()
            assert (doubled(answer), answer[1]["connection"]) == (value, "close")
            assert await client.reader.read() == b""


@pytest.mark.parametrize("fsync", ["never", "always"])
async def test_without_a_record_none_is_answered(tmp_path: Path, fsync: str) -> None:
    (tmp_path / "spool").mkdir()
    disk = FakeDisk(tmp_path / "spool")
    async with door(tmp_path, disk=disk, spool={"fsync": fsync}) as d, clients(d, 3) as those:
        await waiting(d, those, [row(1), row(2), row(3)])
        disk.fault = Fault(disk.steps + 1, errno.EIO, steps=1_000_000)
        d.engine.hold.set()
        assert [(await client.answer())[0] for client in those] == [503] * 3
        disk.fault = None
        while d.front.spool.full:
            d.front.spool.tick()
        for value, client in enumerate(those):
            client.writer.write(row(value))
            assert doubled(await client.answer()) == value


async def test_answers_wait_for_the_disk_where_they_must(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    disk = SlowDisk(tmp_path / "spool")
    disk.gate.set()
    async with door(tmp_path, disk=disk, spool={"fsync": "always"}) as d, clients(d, 3) as those:
        await waiting(d, those, [row(1), row(2), row(3)])
        disk.gate.clear()
        asked = [asyncio.ensure_future(client.answer()) for client in those]
        d.engine.hold.set()
        await until(lambda: d.front.commit is not None and d.front.commit.waiting == 4)
        assert not any(each.done() for each in asked)
        disk.gate.set()
        assert [doubled(await each) for each in asked] == [1.0, 2.0, 3.0]


async def test_a_canary_has_bundles_of_its_own(tmp_path: Path) -> None:
    route = Route("m", stable=1, canary=2, weight=0.0, salt="s")
    async with door(tmp_path, route=route) as d, clients(d, 3) as those:
        bundle = await waiting(d, those, [row(1), row(2), row(3)])
        assert bundle.choice.arm == "stable" and bundle.route is d.front.routes["m"]
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == [1.0, 2.0, 3.0]
        assert {(record["arm"], record["reason"]) for record in d.log()} == {("stable", "weight")}


@pytest.mark.parametrize(
    "headers", ["Gateway-Routing-Key: rider-7\r\n", "Gateway-Version: 1\r\n", "Gateway-Timeout-Ms: 5000\r\n"]
)
async def test_one_that_asks_for_more_than_the_model_goes_by_itself(tmp_path: Path, headers: str) -> None:
    body = row(1).partition(b"\r\n\r\n")[2]
    async with door(tmp_path) as d:
        lane = d.front.versions["m", 1].lane
        reader, writer = await d.connect()
        for _ in range(2):
            writer.write(post(body, headers=headers))
            assert doubled(await read_answer(reader)) == 1.0
        d.engine.hold.clear()
        writer.write(post(body, headers=headers))
        await until(lambda: lane._in_flight)
        writer.write(post(body, headers=headers))
        await until(lambda: len(lane.line) == 1)
        assert not isinstance(lane.line.newest, Bundle)
        d.engine.hold.set()
        assert [doubled(await read_answer(reader)) for _ in range(2)] == [1.0, 1.0]
        writer.close()


async def test_what_is_redacted_or_sampled_goes_by_itself(tmp_path: Path) -> None:
    async with door(tmp_path, engine_options={"logging": {"redact": ["x"]}}) as d, clients(d, 2) as those:
        lane = d.front.versions["m", 1].lane
        d.engine.hold.clear()
        those[0].writer.write(row(1))
        await until(lambda: lane._in_flight)
        those[1].writer.write(row(1))
        await until(lambda: len(lane.line) == 1)
        assert not isinstance(lane.line.newest, Bundle)
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == [1.0, 1.0]
        assert all(record["inputs"][0]["redacted"] for record in d.log())


async def test_many_rows_each_are_told_apart(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))

    def asked(value: int) -> bytes:
        data = f"[{value}, {value + 0.5}, {value + 1}, {value + 1.5}]".encode()
        return post(b'{"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": %b}]}' % data)

    async with door(tmp_path, engine_options={"signature": signature}) as d:
        connected = [Client(*await d.connect()) for _ in range(3)]
        lane = d.front.versions["m", 1].lane
        for client in connected:
            client.writer.write(asked(1))
            await client.answer()
        d.engine.hold.clear()
        for value, client in enumerate(connected):
            client.writer.write(asked(10 * value))
        await until(lambda: len(lane.line) + sum(run.rows // 2 for run in lane._in_flight.values()) == 3)
        d.engine.hold.set()
        for value, client in enumerate(connected):
            answer = await client.answer()
            assert answer[2]["outputs"][0]["shape"] == [2, 2]
            assert answer[2]["outputs"][0]["data"] == [20 * value + number for number in range(4)]
            client.writer.close()
        assert [record["rows"] for record in d.log()] == [2] * 6


async def test_a_fault_on_the_way_in_fails_its_own_request_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(front: Front, like: Any, read: bytes, start: int) -> None:
        if b"[7.0" in read:
            raise ZeroDivisionError
        return take(front, like, read, start)  # type: ignore[return-value]

    take = Front.take_along
    monkeypatch.setattr(Front, "take_along", fails)
    async with door(tmp_path) as d, clients(d, 2) as those:
        those[0].writer.write(row(7.0))
        status, headers, _ = await those[0].answer()
        assert (status, headers["connection"]) == (500, "close")
        those[1].writer.write(row(8))
        assert doubled(await those[1].answer()) == 8.0
        assert "could not be taken" in caplog.text
