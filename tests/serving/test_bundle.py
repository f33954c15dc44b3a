"""Requests that go as one job: each gets its own answer, and whatever is not as usual with one costs no other."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.engine.errors import RunStopped
from gateway.engine.waiting import WaitingLine
from gateway.events.blocks import MAX_BLOCK
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
    monkeypatch.setattr("gateway.serving.bundle.OPEN_SHARE", 60.0)


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


async def waiting(d: Door, those: Clients, requests: Sequence[bytes], *, held: bytes | None = None) -> Bundle:
    """Requests of the first of them, in a bundle that waits behind one which the engine holds."""
    lane = d.front.versions["m", 1].lane
    d.engine.hold.clear()
    those.blocker.writer.write(row(0) if held is None else held)
    await until(lambda: lane._in_flight)
    for client, request in zip(those, requests, strict=False):
        before = len(lane.line)
        client.writer.write(request)
        await until(partial(_has_grown, lane.line, before))
    bundle = lane.line.newest
    assert isinstance(bundle, Bundle) and bundle.requests == len(requests)
    return bundle


def _came(line: WaitingLine, before: int, client: Client) -> bool:
    """Whether a request waits, or has been refused already."""
    return len(line) > before or bool(client.reader._buffer)  # type: ignore[attr-defined]


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
        logged = len(d.log())
        bundle = await waiting(d, those, [row(1), row(2), row(3)])
        await until(lambda: d.engine.batches[-1:] == [1])
        d.engine.run = _held(d)
        d.engine.hold.set()
        await until(lambda: bundle.run is not None)
        those[1].writer.transport.abort()
        await until(lambda: bundle.likes[1].abandoned)
        d.engine.hold.set()
        assert [doubled(await those[place].answer()) for place in (0, 2)] == [1.0, 3.0]
        assert [record["inputs"][0]["data"][0] for record in d.log()[logged:]] == [0.0, 1.0, 2.0, 3.0]


def _held(d: Door) -> Any:
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
        those = [Client(*await d.connect()) for _ in range(2)]
        for client in those:
            for _ in range(2):
                client.writer.write(post(body, headers=headers))
                assert doubled(await client.answer()) == 1.0
        d.engine.hold.clear()
        those[0].writer.write(post(body, headers=headers))
        await until(lambda: lane._in_flight)
        those[1].writer.write(post(body, headers=headers))
        await until(lambda: len(lane.line) == 1)
        assert not isinstance(lane.line.newest, Bundle)
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == [1.0, 1.0]
        assert all(("key" in record) == ("Key" in headers) for record in d.log())
        for client in those:
            client.writer.close()


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


async def test_callers_who_have_gone_leave_the_line(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 3) as those:
        lane = d.front.versions["m", 1].lane
        bundle = await waiting(d, those, [row(1), row(2), row(3)])
        for client in those[:2]:
            client.writer.transport.abort()
        await until(lambda: [like.abandoned for like in bundle.likes] == [True, True, False])
        d.front.tick(time.perf_counter())
        assert (len(lane.line), lane.line.rows) == (1, 1)
        d.engine.hold.set()
        assert doubled(await those[2].answer()) == 3.0


async def test_what_stood_for_one_request_says_nothing_of_it_of_the_next(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 1) as those:
        [client] = those
        await waiting(d, those, [row(1)])
        client.writer.write(post(b"{"))  # refused at once, behind one that waits
        await until(lambda: not client.reader._buffer)  # type: ignore[attr-defined]
        await asyncio.sleep(0.02)
        client.writer.write(row(3))
        await until(lambda: len(d.front.versions["m", 1].lane.line) == 2)
        d.engine.hold.set()
        first, refused, last = [await client.answer() for _ in range(3)]
        assert (doubled(first), refused[0], doubled(last)) == (1.0, 400, 3.0)


async def test_of_two_that_a_connection_sends_one_after_the_other_one_is_bundled(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 2) as those:
        lane = d.front.versions["m", 1].lane
        bundle = await waiting(d, those, [row(1), row(2)])
        for value in (3, 4):
            before = len(lane.line)
            those[0].writer.write(row(value))
            await until(partial(_has_grown, lane.line, before))
        assert bundle.requests == 2
        d.engine.hold.set()
        assert [doubled(await those[0].answer()) for _ in range(3)] == [1.0, 3.0, 4.0]


async def test_requests_of_other_shapes_are_not_of_it(tmp_path: Path) -> None:
    two = post(
        b'{"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [9, 0.5, 0.25, 8, 0.5, 0.25]}]}'
    )
    async with door(tmp_path) as d, clients(d, 4) as those:
        bundle = await waiting(d, those, [row(1), row(2)])
        line = d.front.versions["m", 1].lane.line
        for client, request in ((those[2], two), (those[3], two)):
            before = len(line)
            client.writer.write(request)
            await until(partial(_has_grown, line, before))
        assert bundle.requests == 2
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those[:2]] == [1.0, 2.0]
        for client in those[2:]:
            _, _, content = await client.answer()
            assert content["outputs"][0]["data"] == [18.0, 1.0, 0.5, 16.0, 1.0, 0.5]


async def test_a_new_route_begins_another(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 4) as those:
        bundle = await waiting(d, those, [row(1), row(2)])
        d.front.follow(2, {"m": Route("m", stable=1, canary=2, weight=0.0, salt="s")}, {("m", 1): "sha256:01"})
        line = d.front.versions["m", 1].lane.line
        for value, client in ((3, those[2]), (4, those[3])):
            before = len(line)
            client.writer.write(row(value))
            await until(partial(_has_grown, line, before))
        newest = line.newest
        assert isinstance(newest, Bundle) and (bundle.requests, newest.requests) == (2, 2)
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == [1.0, 2.0, 3.0, 4.0]
        assert [record["reason"] for record in d.log()[-4:]] == ["stable", "stable", "weight", "weight"]


async def test_of_each_the_record_has_the_weight_that_it_was_drawn_by(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 3) as those:
        for revision, weight in ((2, 0.0), (3, 1e-9)):
            route = Route("m", stable=1, canary=2, weight=weight, salt="s")
            d.front.follow(revision, {"m": route}, {("m", 1): "sha256:01"})
            if revision == 2:
                await waiting(d, those, [row(1), row(2)])
        line = d.front.versions["m", 1].lane.line
        those[2].writer.write(row(3))
        await until(lambda: len(line) == 3)
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == [1.0, 2.0, 3.0]
        assert [record["weight"] for record in d.log()[-3:]] == [0.0, 0.0, 1e-9]


async def test_one_that_comes_later_is_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.serving.bundle.OPEN_SECONDS", 0.0)
    async with door(tmp_path) as d, clients(d, 2) as those:
        line = d.front.versions["m", 1].lane.line
        await waiting(d, those, [row(1)])
        those[1].writer.write(row(2))
        await until(lambda: len(line) == 2)
        newest = line.newest
        assert isinstance(newest, Bundle) and newest.requests == 1
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == [1.0, 2.0]


def test_it_is_open_for_a_small_share_of_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    given: Any = None
    hasty, usual = (Bundle(given, given, given, given, now=1.0, seconds=seconds) for seconds in (0.004, 10.0))
    assert hasty.open_until == pytest.approx(1.0002)
    assert usual.open_until - usual.queued_at <= 0.05 * 10


async def test_where_batches_are_held_back_for_company_requests_go_by_themselves(tmp_path: Path) -> None:
    async with door(tmp_path, engine_options={"logging": {"max_delay_us": 20_000}}) as d, clients(d, 2) as those:
        assert not d.front.versions["m", 1].takes_bundles
        for client in those:
            client.writer.write(row(1))
        assert [doubled(await client.answer()) for client in those] == [1.0, 1.0]


async def test_a_canary_is_drawn_once_for_one_that_cannot_be_bundled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    async with door(tmp_path, route=Route("m", stable=1, canary=2, weight=0.0, salt="s")) as d, clients(d, 1) as those:
        monkeypatch.setattr(d.front, "_draw", lambda: drawn.append(1) or 0.5)
        those[0].writer.write(row(0, text="[1.0,    0.5, [0.25]]"))
        assert (await those[0].answer())[0] == 400
        assert drawn == [1]


async def test_while_the_engine_will_not_come_back_they_are_told_so(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 2) as those:
        lane = d.front.versions["m", 1].lane
        d.engine.die()
        await until(lambda: not lane.ready)
        lane.refuse_waiting("it crashed again and again")
        for client in those:
            client.writer.write(row(1))
            status, _, content = await client.answer()
            assert status == 503 and "again and again" in content["error"]


async def test_while_the_log_is_full_they_are_told_so(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 2) as those:
        for client in those:
            d.front.spool.full = True
            client.writer.write(row(1))
            status, _, content = await client.answer()
            assert status == 503 and "prediction log" in content["error"]


async def test_of_rows_that_are_taken_apart_each_gets_its_own(tmp_path: Path) -> None:
    def asked(value: int) -> bytes:
        data = b"[%d, 0, 0, %d, 0, 0]" % (value, value + 1)
        return post(b'{"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": %b}]}' % data)

    async with door(tmp_path) as d, clients(d, 3) as those:
        for client in those:
            for _ in range(2):
                client.writer.write(asked(0))
                await client.answer()
        bundle = await waiting(d, those, [asked(10 * place) for place in range(3)], held=asked(0))
        await until(lambda: d.engine.batches[-1:] == [2])
        d.engine.run = _held(d)
        d.engine.hold.set()
        await until(lambda: bundle.run is not None)
        bundle.likes[1].keep_alive = False  # as when a front shuts down
        d.engine.hold.set()
        for place, client in enumerate(those):
            _, _, content = await client.answer()
            assert content["outputs"][0]["data"] == [20 * place, 0, 0, 20 * place + 2, 0, 0]
        assert [record["inputs"][0]["data"][0] for record in d.log()[-3:]] == [0, 10, 20]


@pytest.mark.parametrize("with_others", [False, True])
async def test_it_stays_one_beside_others_in_its_run(tmp_path: Path, with_others: bool) -> None:
    key = "Gateway-Routing-Key: rider-7\r\n"
    requests = [post(row(value).partition(b"\r\n\r\n")[2], headers=key) for value in (7, 8)]
    if with_others:  # which are not read together with these
        requests += [
            post(
                {"id": "nine", "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [9, 0.5, 0.25]}]}
            ),
            post(b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [7, 0.5]}]}'),
        ]
    async with door(tmp_path) as d, clients(d, 3 + len(requests)) as those:
        served = d.front.versions["m", 1]
        line, runs, rows = served.lane.line, served.batch_rows.count, served.batch_rows.sum
        bundle = await waiting(d, those, [row(1), row(2), row(3)])
        for client, request in zip(those[3:], requests, strict=True):
            before = len(line)
            client.writer.write(request)
            await until(partial(_came, line, before, client))
        before = len(d.engine.batches)
        d.engine.hold.set()
        values = [1.0, 2.0, 3.0, 7.0, 8.0, 9.0][: 6 if with_others else 5]
        assert [doubled(await client.answer()) for client in those[: len(values)]] == values
        if with_others:
            assert (await those[-1].answer())[0] == 400
        assert d.engine.batches[before:] == [len(values)] and bundle._parts is None
        await until(lambda: served.batch_rows.count == runs + 2)
        assert served.batch_rows.sum == rows + 1 + len(values)
        records = {record["inputs"][0]["data"][0]: record for record in d.log()[-7:] if record["status"] == 200}
        assert records[8.0]["key"] and "key" not in records[1.0]
        assert all(record["outputs"][0]["data"][0] == 2 * value for value, record in records.items())


async def test_taken_apart_each_has_the_time_that_it_came_with(tmp_path: Path) -> None:
    async with door(tmp_path) as d, clients(d, 2) as those:
        bundle = await waiting(d, those, [row(1), row(2)])
        first, second = bundle.apart()
        assert bundle.apart() == [first, second]
        assert first.arrived < second.arrived
        assert [part.deadline - part.arrived for part in (first, second)] == pytest.approx([10.0, 10.0])
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == [1.0, 2.0]


async def test_where_the_disk_does_not_keep_up_they_are_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    disk = SlowDisk(tmp_path / "spool")
    disk.gate.set()
    spool = {"fsync": "always", "max_waiting_answers": 2}
    async with door(tmp_path, disk=disk, spool=spool) as d, clients(d, 3) as those:
        disk.gate.clear()
        for client in those[:2]:
            client.writer.write(row(1))
        await until(lambda: d.front.commit is not None and d.front.commit.waiting == 2)
        those[2].writer.write(row(3))
        status, _, content = await those[2].answer()
        assert status == 503 and "does not keep up" in content["error"]
        disk.gate.set()
        assert [doubled(await client.answer()) for client in those[:2]] == [1.0, 1.0]


async def test_a_disk_that_refuses_to_sync_answers_none(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    disk = SlowDisk(tmp_path / "spool")
    disk.gate.set()
    async with door(tmp_path, disk=disk, spool={"fsync": "always"}) as d, clients(d, 2) as those:
        await waiting(d, those, [row(1), row(2)])
        disk.gate.clear()
        d.engine.hold.set()
        await until(lambda: d.front.commit is not None and d.front.commit.waiting == 3)
        disk.fault = Fault(disk.steps + 1, errno.EIO, steps=1_000_000)
        disk.gate.set()
        answers = [await client.answer() for client in those]
        assert [status for status, _, _ in answers] == [503] * 2
        assert d.front.versions["m", 1].requests("stable", 503).value >= 2
        disk.fault = None


async def test_more_than_a_block_of_the_log_holds_are_several_blocks(tmp_path: Path) -> None:
    async with door(tmp_path, engine_options={"max_rows": 1024}) as d, clients(d, MAX_BLOCK + 9) as those:
        lane = d.front.versions["m", 1].lane
        lane.line.pace.add(rows=8, run_seconds=1e-6, seconds=1e-6, pressed=False)
        bundle = await waiting(d, those, [row(value) for value in range(MAX_BLOCK + 9)])
        before = len(d.engine.batches)
        d.engine.hold.set()
        assert [doubled(await client.answer()) for client in those] == list(range(MAX_BLOCK + 9))
        assert d.engine.batches[before:] == [MAX_BLOCK + 9] and bundle._parts is None
        assert [record["inputs"][0]["data"][0] for record in d.log()[-MAX_BLOCK - 9 :]] == list(range(MAX_BLOCK + 9))


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
