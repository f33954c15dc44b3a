"""Large bodies and answers, which are read and written beside the loop, or in turns with it."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.protocol import classification
from gateway.protocol.errors import CallerError, Overloaded
from gateway.protocol.slices import CutTensor
from gateway.serving import aside
from gateway.serving.inference import Inference
from gateway.serving.records import Kept
from tests.serving.fronts import Door, door, post, read_answer

ROWS = 60_000
FLAT = [float(number % 1000) / 8 for number in range(ROWS * 3)]


def body(data: list[Any], *, rows: int = ROWS, **more: Any) -> bytes:
    return json.dumps(
        {"inputs": [{"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": data}], **more}
    ).encode()


LARGE = body(FLAT)
GZIPPED = post(gzip.compress(LARGE), headers="Content-Encoding: gzip\r\n")


class Gate:
    """Holds what reads a large body, the thread beside the loop or the turns on it, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.content, self.headers = LARGE, ""
        self.way, self.begun = way, 0
        read, turns = aside.read_aside, aside.reading_in_turns

        def held(*given: Any, **named: Any) -> Any:
            self.begun += 1
            self.reached.set()
            assert self.open.wait(20)
            return read(*given, **named)

        def held_turns(*given: Any, **named: Any) -> Any:
            steps = turns(*given, **named)
            return None if steps is None else self._wait_and(steps)

        monkeypatch.setattr("gateway.serving.front.read_aside", held)
        monkeypatch.setattr("gateway.serving.front.reading_in_turns", held_turns)
        if way == "thread":
            self.content, self.headers = gzip.compress(LARGE), "Content-Encoding: gzip\r\n"

    def post(self, headers: str = "") -> bytes:
        """A large body that is read in this way."""
        return post(self.content, headers=self.headers + headers)

    def _wait_and(self, steps: Generator[None, None, Any]) -> Generator[None, None, Any]:
        self.begun += 1
        self.reached.set()
        while not self.open.is_set():
            yield
        return (yield from steps)


@pytest.fixture(params=["thread", "turns"])
def gate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch, request.param)


async def started(gate: Gate) -> None:
    async with asyncio.timeout(10):
        while not gate.reached.is_set():
            await asyncio.sleep(0.005)


async def ask(d: Door, raw: bytes) -> tuple[int, dict[str, str], Any]:
    [answer] = await d.send(raw, read=1)
    return answer


async def gone(d: Door, writer: asyncio.StreamWriter) -> None:
    """The connection is aborted, and the front has seen it."""
    connections = d.server.server_state.connections
    count = len(connections)
    writer.transport.abort()
    async with asyncio.timeout(10):
        while len(connections) == count:
            await asyncio.sleep(0.005)


def waiting(d: Door, gate: Gate) -> int:
    """How many large bodies wait behind the one that is read."""
    return len((d.front._side if gate.way == "thread" else d.front._turns).unread)


async def reached(d: Door, gate: Gate, count: int) -> None:
    async with asyncio.timeout(10):
        while waiting(d, gate) != count:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
async def test_a_large_request_is_answered_and_logged_as_any_other(tmp_path: Path, encoding: str) -> None:
    async with door(tmp_path) as d:
        content = {"": LARGE, "gzip": gzip.compress(LARGE), "deflate": zlib.compress(LARGE)}[encoding]
        headers = f"Content-Encoding: {encoding}\r\nAccept-Encoding: {encoding}\r\n" if encoding else ""
        status, got, answer = await ask(d, post(content, headers=headers))
        assert status == 200 and got.get("content-encoding", "") == encoding
        if encoding:
            answer = json.loads(gzip.decompress(answer) if encoding == "gzip" else zlib.decompress(answer))
        assert answer["outputs"][0]["data"] == [2 * number for number in FLAT]
        (record,) = d.log()
        assert (record["id"], record["rows"]) == (got["gateway-prediction-id"], ROWS)
        for tensor, factor in ((record["inputs"][0], 1), (record["outputs"][0], 2)):
            assert tensor["summary"]["count"] == 3 * ROWS and tensor["summary"]["max"] == factor * max(FLAT)


async def test_others_are_answered_while_a_large_body_is_read(tmp_path: Path, gate: Gate) -> None:
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(gate.post() + post())
        await started(gate)
        assert (await ask(d, post()))[0] == 200
        gate.open.set()
        first, second = await read_answer(reader), await read_answer(reader)
        assert (first[0], second[0]) == (200, 200)  # in their order
        assert (len(first[2]["outputs"][0]["data"]), second[2]["outputs"][0]["data"]) == (3 * ROWS, [2.0, 4.0, 6.0])
        writer.close()


async def test_a_caller_who_leaves_meanwhile_is_not_served(tmp_path: Path, gate: Gate) -> None:
    async with door(tmp_path) as d:
        _, writer = await d.connect()
        writer.write(gate.post())
        await started(gate)
        writer.transport.abort()
        while d.server.server_state.connections:
            await asyncio.sleep(0.005)
        gate.open.set()
        assert (await ask(d, gate.post()))[0] == 200
        assert d.engine.batches == [ROWS] and len(d.log()) == 1
        assert d.front.bodies.held_bytes == 0


async def test_a_version_that_is_taken_away_meanwhile_answers_what_was_taken_for_it(tmp_path: Path, gate: Gate) -> None:
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(gate.post())
        await started(gate)
        d.front.follow(2, {}, {})
        await asyncio.sleep(0.3)  # in which the front looks several times whether it may let go of the engine
        gate.open.set()
        assert (await read_answer(reader))[0] == 200
        writer.close()
        async with asyncio.timeout(10):
            while d.front._leaving:
                await asyncio.sleep(0.01)
        assert not d.front._reading


async def test_the_time_it_took_counts_towards_the_deadline(tmp_path: Path, gate: Gate) -> None:
    async with door(tmp_path) as d:
        d.engine.hold.clear()
        reader, writer = await d.connect()
        writer.write(gate.post(headers="Gateway-Timeout-Ms: 300\r\n"))  # who is late before is not read at all
        await started(gate)
        await asyncio.sleep(0.3)
        gate.open.set()
        assert (await read_answer(reader))[0] == 504
        writer.close()


async def test_nobody_reads_what_waits_for_callers_who_have_gone(tmp_path: Path, gate: Gate) -> None:
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(gate.post())
        await started(gate)
        _, leaving = await d.connect()
        leaving.write(3 * gate.post())
        await reached(d, gate, 3)
        await gone(d, leaving)
        gate.open.set()
        assert (await ask(d, gate.post()))[0] == (await read_answer(reader))[0] == 200
        assert gate.begun == len(d.log()) == 2 and d.front.bodies.held_bytes == 0
        writer.close()


async def test_what_waits_to_be_read_beyond_its_deadline_is_told_in_time(tmp_path: Path, gate: Gate) -> None:
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(gate.post())
        await started(gate)
        status, _, answer = await ask(d, gate.post(headers="Gateway-Timeout-Ms: 20\r\n"))
        assert status == 504 and "was not read in time" in answer["error"]
        assert gate.begun == 1 and waiting(d, gate) == 0
        gate.open.set()
        assert (await read_answer(reader))[0] == 200
        assert sorted(record["status"] for record in d.log()) == [200, 504]
        writer.close()


async def test_what_is_late_when_its_turn_comes_is_not_read(tmp_path: Path, gate: Gate) -> None:
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(gate.post())
        await started(gate)
        d.front.tick = lambda now: None  # type: ignore[method-assign]
        late_reader, late = await d.connect()
        late.write(gate.post(headers="Gateway-Timeout-Ms: 1\r\n"))
        await reached(d, gate, 1)
        await asyncio.sleep(0.01)
        gate.open.set()
        assert (await read_answer(late_reader))[0] == 504 and (await read_answer(reader))[0] == 200
        assert gate.begun == 1 and len(d.log()) == 2
        writer.close()
        late.close()


async def test_who_would_wait_too_long_to_be_read_is_refused_at_once(tmp_path: Path, gate: Gate) -> None:
    # A body is taken to last 10 ms before one has been read.
    async with door(tmp_path, limits={"max_queue_wait_ms": 25}) as d:
        asked = [await d.connect() for _ in range(4)]
        for _, writer in asked:
            writer.write(gate.post())
            await started(gate)
        await reached(d, gate, 3)
        status, headers, answer = await ask(d, gate.post())
        assert status == 503 and "retry-after" in headers and "limits.max_queue_wait_ms" in answer["error"]
        assert (await ask(d, post()))[0] == 200  # what is small does not wait there
        await gone(d, asked.pop()[1])
        asked.append(await d.connect())
        asked[-1][1].write(gate.post())
        await reached(d, gate, 3)
        gate.open.set()
        assert [(await read_answer(reader))[0] for reader, _ in asked] == [200] * 4
        assert sorted(record["status"] for record in d.log()) == [200] * 5 + [503]
        for _, writer in asked:
            writer.close()


async def test_what_is_small_only_since_it_is_compressed_counts_while_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, "thread")
    gate.content = gzip.compress(LARGE + b" " * 2**20)
    assert len(gate.content) < 2**16
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(2 * gate.post())
        await started(gate)
        await reached(d, gate, 1)
        assert d.front.bodies.held_bytes == 2 * len(gate.content)
        d.front.bodies.max_bytes = 2 * len(gate.content)
        status, headers, answer = await ask(d, gate.post())
        assert status == 503 and "retry-after" in headers and "limits.max_held_body_bytes" in answer["error"]
        gate.open.set()
        assert [(await read_answer(reader))[0] for _ in range(2)] == [200, 200]
        assert d.front.bodies.held_bytes == 0 and len(d.log()) == 3
        writer.close()


async def test_answers_of_finished_runs_are_written_before_bodies_are_read_and_none_is_refused() -> None:
    side, opened, order = aside.SideThread(max_wait_seconds=0.025), threading.Event(), []
    side.write(opened.wait, lambda done: None)
    inference = Inference(None, "m")  # type: ignore[arg-type]
    inference.deadline = math.inf
    for _ in range(3):
        side.read(inference, lambda: order.append("body"), lambda done: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(Overloaded, match="3 large requests"):
        side.read(inference, lambda: order.append("body"), lambda done: None)  # type: ignore[arg-type,return-value]
    last: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    for number in range(1000):
        side.write(lambda: order.append("answer"), last.set_result if number == 999 else lambda done: None)
    opened.set()
    await asyncio.wait_for(last, 10)
    while len(order) < 1003:
        await asyncio.sleep(0.005)
    assert order == ["answer"] * 1000 + ["body"] * 3


async def test_what_a_run_without_rows_gives_is_large_all_the_same(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"max_held_answer_bytes": 2**20}) as d:
        d.engine.run = lambda inputs: [np.ones((2**18, 3), "f4")]
        empty = {"name": "x", "shape": [0, 3], "datatype": "FP32", "data": []}
        status, _, answer = await ask(d, post({"inputs": [empty]}))
        assert (status, d.front.answers.held_bytes) == (503, 0)
        assert "limits.max_held_answer_bytes" in answer["error"]


async def test_a_stopping_front_answers_what_is_read_beside_it(tmp_path: Path, gate: Gate) -> None:
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(gate.post())
        await started(gate)
        d.server.should_exit = True
        await asyncio.sleep(0.1)
        gate.open.set()
        status, headers, _ = await read_answer(reader)
        assert (status, headers["connection"]) == (200, "close")
        writer.close()


@pytest.mark.parametrize(
    ("content", "headers", "status", "text"),
    [
        (LARGE[:-9], "", 400, "JSON"),
        (LARGE.replace(b"0.125", b"null", 1), "", 400, "no FP32"),
        (LARGE.replace(b"0.125", b"1e400", 1), "", 400, "no datatype holds"),
        (body(FLAT, rows=ROWS - 1), "", 400, "more elements than its shape"),
        (body(FLAT, rows=ROWS + 1), "", 400, "but its shape"),
        (gzip.compress(LARGE)[:-8] + bytes(8), "Content-Encoding: gzip\r\n", 400, "gzip"),
        (gzip.compress(LARGE + b"x"), "Content-Encoding: gzip\r\n", 400, "JSON"),
        (gzip.compress(bytes(2**25)), "Content-Encoding: gzip\r\n", 413, "inflates to more"),
    ],
    ids=["cut off", "null", "1e400", "too many", "too few", "checksum", "trailing text", "bomb"],
)
async def test_what_is_wrong_with_a_large_body_is_named(
    tmp_path: Path, content: bytes, headers: str, status: int, text: str
) -> None:
    async with door(tmp_path) as d:
        got = await ask(d, post(content, headers=headers))
        assert got[0] == status and text in got[2]["error"]
        assert (await ask(d, post()))[0] == 200
        assert [record["status"] for record in d.log()] == [status, 200]


async def test_not_finite_numbers_of_a_large_answer_are_tokens_there_and_counted_in_the_log(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        status, _, answer = await ask(d, post(LARGE.replace(b"0.125", b"NaN", 1).replace(b"0.25", b"-Infinity", 1)))
        found = np.array(answer["outputs"][0]["data"])
        assert status == 200 and np.isnan(found).sum() == 1 and np.isneginf(found).sum() == 1
        (record,) = d.log()
        assert record["inputs"][0]["summary"]["not_finite"] == record["outputs"][0]["summary"]["not_finite"] == 2


async def test_a_large_binary_request_is_read_beside_the_loop_too(tmp_path: Path) -> None:
    rows = 400_000
    block = np.arange(rows * 3, dtype="<f4").tobytes()
    tensor = {"name": "x", "shape": [rows, 3], "datatype": "FP32", "parameters": {"binary_data_size": len(block)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    async with door(tmp_path) as d:
        raw = post(head + block, headers=f"Inference-Header-Content-Length: {len(head)}\r\n")
        status, headers, answer = await ask(d, raw)
        length = int(headers["inference-header-content-length"])
        assert status == 200 and answer[length:] == (np.frombuffer(block, "<f4") * 2).tobytes()
        (record,) = d.log()
        assert record["inputs"][0]["summary"]["max"] == rows * 3 - 1


async def test_the_largest_elements_of_a_large_output_are_looked_for_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def classify(*given: Any, **named: Any) -> Any:
        threads.append(threading.current_thread().name)
        return classification.classify(*given, **named)

    monkeypatch.setattr("gateway.serving.inference.classify", classify)
    async with door(tmp_path) as d:
        for rows in (20_000, 2):
            asked = {"name": "y", "parameters": {"classification": 1}}
            status, _, answer = await ask(d, post(body(FLAT[: rows * 3], rows=rows, outputs=[asked])))
            assert status == 200 and answer["outputs"][0]["data"][:2] == ["0.500000:2", "1.250000:2"]
    assert [name.startswith("aside") for name in threads] == [True, False]


async def test_a_fault_beside_the_loop_fails_its_request_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with door(tmp_path) as d:
        for broken in ("front.read_aside", "aside.tensor_records", "delivery.prepare_answers"):
            with monkeypatch.context() as patch:
                patch.setattr(f"gateway.serving.{broken}", lambda *given, **named: 1 / 0)
                status, _, answer = await ask(d, GZIPPED if broken == "front.read_aside" else post(LARGE))
                assert status == 500 and "ZeroDivisionError" in answer["error"]
        assert (await ask(d, post(LARGE)))[0] == 200
        with monkeypatch.context() as patch:
            refused = CallerError("no")
            patch.setattr("gateway.serving.front.read_aside", lambda *given, **named: (_ for _ in ()).throw(refused))
            assert (await ask(d, GZIPPED))[0] == 400


async def test_others_run_between_the_slices_of_a_large_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.protocol.slices.SLICE_BYTES", 2**14)
    passes = slices = 0
    read = CutTensor._read_slice

    def counted(*given: Any, **named: Any) -> int:
        nonlocal slices
        slices += 1
        return read(*given, **named)

    monkeypatch.setattr(CutTensor, "_read_slice", counted)
    async with door(tmp_path) as d:
        loop = asyncio.get_running_loop()
        most = 0

        def look() -> None:
            nonlocal passes, most
            most = max(most, slices - passes)
            passes = slices
            if slices * 2**14 < len(LARGE):
                loop.call_soon(look)

        loop.call_soon(look)
        assert (await ask(d, post(LARGE)))[0] == 200
    assert slices > 50 and most == 1


async def test_large_bodies_are_read_one_after_another(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        answers = await asyncio.gather(*[ask(d, post(body(FLAT, id=str(number)))) for number in range(5)])
        assert [(status, answer["id"]) for status, _, answer in answers] == [(200, str(number)) for number in range(5)]
        assert len(d.log()) == 5 and d.front.bodies.held_bytes == 0


async def test_the_same_decoder_reads_on_after_a_body_that_was_wrong(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        for wrong in (LARGE.replace(b"0.125", b"null", 1), LARGE.replace(b"0.125", b"1e39", 1), LARGE[:-2]):
            assert (await ask(d, post(wrong)))[0] == 400
            assert (await ask(d, post(LARGE)))[0] == 200


async def test_nobody_reads_on_for_a_caller_who_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.protocol.slices.SLICE_BYTES", 2**14)
    async with door(tmp_path) as d:
        inference = Inference(None, "m")  # type: ignore[arg-type]
        inference.served, inference.body = d.front.version("m", None), [LARGE]
        steps = aside.reading_in_turns(inference, kept=Kept(4))
        assert steps is not None
        next(steps)
        inference.abandoned = True
        with pytest.raises(StopIteration) as end:
            next(steps)
        assert end.value.value is None
