"""Large bodies and answers, which are read and written beside the loop."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.protocol.errors import CallerError
from gateway.serving import aside
from tests.serving.fronts import Door, door, post, read_answer

ROWS = 60_000
FLAT = [float(number % 1000) / 8 for number in range(ROWS * 3)]


def body(data: list[Any], *, rows: int = ROWS, **more: Any) -> bytes:
    return json.dumps(
        {"inputs": [{"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": data}], **more}
    ).encode()


LARGE = body(FLAT)


class Gate:
    """Holds the thread beside the loop until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        read = aside.read_aside

        def held(*given: Any, **named: Any) -> Any:
            self.reached.set()
            assert self.open.wait(20)
            return read(*given, **named)

        monkeypatch.setattr("gateway.serving.front.read_aside", held)


async def started(gate: Gate) -> None:
    async with asyncio.timeout(10):
        while not gate.reached.is_set():
            await asyncio.sleep(0.005)


async def ask(d: Door, raw: bytes) -> tuple[int, dict[str, str], Any]:
    [answer] = await d.send(raw, read=1)
    return answer


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


async def test_others_are_answered_while_a_large_body_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(post(LARGE) + post())
        await started(gate)
        assert (await ask(d, post()))[0] == 200
        gate.open.set()
        first, second = await read_answer(reader), await read_answer(reader)
        assert (first[0], second[0]) == (200, 200)  # in their order
        assert (len(first[2]["outputs"][0]["data"]), second[2]["outputs"][0]["data"]) == (3 * ROWS, [2.0, 4.0, 6.0])
        writer.close()


async def test_a_caller_who_leaves_meanwhile_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    async with door(tmp_path) as d:
        _, writer = await d.connect()
        writer.write(post(LARGE))
        await started(gate)
        writer.transport.abort()
        while d.server.server_state.connections:
            await asyncio.sleep(0.005)
        gate.open.set()
        assert (await ask(d, post(LARGE)))[0] == 200
        assert d.engine.batches == [ROWS] and len(d.log()) == 1
        assert d.front.bodies.held_bytes == 0


async def test_the_time_it_took_counts_towards_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    async with door(tmp_path) as d:
        d.engine.hold.clear()
        reader, writer = await d.connect()
        writer.write(post(LARGE, headers="Gateway-Timeout-Ms: 1\r\n"))
        await started(gate)
        gate.open.set()
        assert (await read_answer(reader))[0] == 504
        writer.close()


async def test_a_stopping_front_answers_what_is_read_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(post(LARGE))
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
    rows = 120_000
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


async def test_a_fault_beside_the_loop_fails_its_request_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with door(tmp_path) as d:
        for broken in ("front.read_aside", "delivery.prepare_answers"):
            with monkeypatch.context() as patch:
                patch.setattr(f"gateway.serving.{broken}", lambda *given, **named: 1 / 0)
                status, _, answer = await ask(d, post(LARGE))
                assert status == 500 and "ZeroDivisionError" in answer["error"]
        assert (await ask(d, post(LARGE)))[0] == 200
        with monkeypatch.context() as patch:
            refused = CallerError("no")
            patch.setattr("gateway.serving.front.read_aside", lambda *given, **named: (_ for _ in ()).throw(refused))
            assert (await ask(d, post(LARGE)))[0] == 400
