"""Large bodies that are received where they stay."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop

from gateway.engine.arena import ALIGNMENT, Arena
from gateway.protocol.binary import Octets
from gateway.serving import receiver
from gateway.serving.protocol import GatewayProtocol
from gateway.serving.receiver import FIRST_BYTES, FIRST_JSON_BYTES, JSON_GROWTH, SCRATCH_BYTES, Receiver
from tests.serving.fronts import Door, door, get, post, read_answer

ROWS = 60_000
NUMBERS = np.arange(ROWS * 3, dtype="<f4") / 8
Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Run:
    def run_on(test: Callable[[], Awaitable[None]]) -> None:
        with caplog.at_level(logging.WARNING), asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]
        assert caplog.records == []

    return run_on


def in_json(**more: Any) -> bytes:
    tensor = {"name": "x", "shape": [ROWS, 3], "datatype": "FP32", "data": NUMBERS.tolist()}
    return post(json.dumps({"inputs": [tensor], **more}).encode())


def in_binary(numbers: Any = NUMBERS, *, headers: str = "", **more: Any) -> bytes:
    block = numbers.tobytes()
    tensor = {"name": "x", "shape": [len(numbers) // 3, 3], "datatype": "FP32"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(block)}}], **more}).encode()
    return post(head + block, headers=f"{headers}Inference-Header-Content-Length: {len(head)}\r\n")


BODIES = {"json": in_json(id="1"), "binary": in_binary(id="1")}


def doubled(answer: Any) -> bool:
    return bool(np.array_equal(answer["outputs"][0]["data"], 2 * NUMBERS))


class Behind:
    """A protocol that remembers what it is told."""

    def __init__(self, arena: Arena | None = None) -> None:
        self.heard: list[bytes | int | str] = []
        self.receiver = Receiver(self, arena=arena)
        self.begins = True

    def data_received(self, data: bytes) -> None:
        self.heard.append(data)

    def begin_again(self, length: int) -> bool:
        self.heard.append("again")
        return self.begins

    def body_grew(self, size: int) -> None:
        self.heard.append(size)

    def eof_received(self) -> bool | None:
        self.heard.append("eof")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.heard.append("lost")

    def pause_writing(self) -> None:
        self.heard.append("pause")

    def resume_writing(self) -> None:
        self.heard.append("resume")

    def bring(self, data: bytes) -> int:
        """As a loop would; returns the reads it took."""
        reads = 0
        while data:
            buffer = self.receiver.get_buffer(-1)
            taken = data[: len(buffer)]
            buffer[: len(taken)] = taken
            self.receiver.buffer_updated(len(taken))
            data = data[len(taken) :]
            reads += 1
        return reads


@pytest.mark.parametrize("json_length", [None, 0, 7, 32])
@pytest.mark.parametrize("first", [0, 1000])
@pytest.mark.parametrize("size", [100_000, FIRST_BYTES, FIRST_BYTES + 1, 3 * FIRST_BYTES])
def test_a_body_comes_whole_and_what_is_behind_it_apart(json_length: int | None, first: int, size: int) -> None:
    behind, content = Behind(), np.random.default_rng(size).bytes(size)
    behind.receiver.begin(size, json_length=json_length, pieces=[content[:first]])
    behind.bring(content[first:])
    assert sum(part for part in behind.heard if isinstance(part, int)) == size - first
    body: Octets = behind.receiver.finish()
    assert body == content and isinstance(body, bytearray if json_length is None else memoryview)
    behind.bring(b"next")
    assert behind.heard[-1] == b"next" and not behind.receiver.is_receiving


@pytest.mark.parametrize(("arena", "alignment"), [(None, 16), (Arena(2**24), ALIGNMENT)])
@pytest.mark.parametrize("json_length", range(0, 100, 7))
@pytest.mark.parametrize("size", [100_000, FIRST_BYTES + 9])
def test_the_first_tensor_lies_where_numbers_are_read_at_once(
    json_length: int, size: int, arena: Arena | None, alignment: int
) -> None:
    behind = Behind(arena)
    behind.receiver.begin(size, json_length=json_length, pieces=[])
    behind.bring(bytes(size))
    tensor = np.frombuffer(behind.receiver.finish(), "u1", offset=json_length)
    assert tensor.ctypes.data % alignment == 0
    assert arena is None or arena.offset_of(tensor) is not None


@pytest.mark.parametrize("size", [100_000, FIRST_BYTES + 9])
@pytest.mark.parametrize("json_length", range(0, 100, 7))
def test_the_body_behind_a_head_that_is_expected_is_received_where_it_stays(json_length: int, size: int) -> None:
    arena = Arena(2**24)
    behind, head, content = Behind(arena), b"head" * 40, np.random.default_rng(1).bytes(size)
    behind.receiver.expect(head, len(content), json_length=json_length)
    for _ in range(2):
        behind.bring(head + content)
        first = SCRATCH_BYTES - len(head)
        assert behind.heard[:2] == ["again", first]
        assert sum(part for part in behind.heard[1:] if isinstance(part, int)) == size
        body = behind.receiver.finish()
        assert body == content
        assert np.frombuffer(body, "u1", offset=json_length).ctypes.data % ALIGNMENT == 0
        del body
        assert arena.lent_bytes == 0
        behind.heard.clear()
    behind.bring(head)
    behind.bring(content[:7])
    assert behind.heard == ["again", 0, 7]
    behind.bring(content[7:])
    assert behind.receiver.finish() == content


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("read", [b"hea", b"heat and more", b"head and more"])
def test_what_is_not_expected_or_must_not_begin_is_handed_on(read: bytes, begins: bool) -> None:
    behind = Behind()
    behind.begins = begins
    behind.receiver.expect(b"head", 100_000, json_length=0)
    behind.bring(read)
    if begins and read.startswith(b"head"):
        assert behind.heard == ["again", len(read) - 4] and behind.receiver.is_receiving
    else:
        assert [part for part in behind.heard if part != "again"] == [read] and not behind.receiver.is_receiving


def test_what_is_handed_on_comes_in_small_pieces_whatever_is_expected() -> None:
    behind, content = Behind(), bytes(range(256)) * 400
    behind.receiver.expect(b"head", 2**21, json_length=0)
    behind.bring(content)
    assert b"".join(part for part in behind.heard if isinstance(part, bytes)) == content
    assert max(len(part) for part in behind.heard if isinstance(part, bytes)) == SCRATCH_BYTES


def test_who_only_speaks_of_many_bytes_holds_few() -> None:
    behind = Behind()
    behind.receiver.begin(2**40, json_length=None, pieces=[bytes(10)])
    assert len(behind.receiver.get_buffer(-1)) == FIRST_JSON_BYTES - 10
    behind.bring(bytes(FIRST_JSON_BYTES - 10))
    assert behind.receiver.cleared_bytes == JSON_GROWTH * FIRST_JSON_BYTES


def test_what_is_in_memory_for_a_body_counts_whether_it_has_come_or_not(tmp_path: Path, run: Run) -> None:
    async def test() -> None:
        async with door(tmp_path, limits={"max_held_body_bytes": 4 * FIRST_JSON_BYTES}) as d:
            writers = []
            for held in (1, 2, 3, 4, 4):
                reader, writer = await d.connect()
                writers.append(writer)
                writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: g\r\nContent-Length: 16000000\r\n\r\n[")
                if len(writers) == 5:
                    status, _, body = await read_answer(reader)
                    assert status == 503 and "limits.max_held_body_bytes" in body["error"]
                while d.front.bodies.held_bytes != held * FIRST_JSON_BYTES:
                    await asyncio.sleep(0.005)
            for writer in writers:
                writer.transport.abort()

    run(test)


def test_what_is_no_large_body_is_handed_on() -> None:
    behind, content = Behind(), bytes(range(256)) * 200
    assert behind.bring(content) == -(-len(content) // SCRATCH_BYTES)
    assert b"".join(part for part in behind.heard if isinstance(part, bytes)) == content
    behind.heard.clear()
    behind.receiver.eof_received()
    behind.receiver.pause_writing()
    behind.receiver.resume_writing()
    behind.receiver.connection_lost(None)
    assert behind.heard == ["eof", "pause", "resume", "lost"]


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("cut", ["whole", "in the head", "behind the head", "one byte left"])
def test_a_large_body_is_answered_however_it_is_cut(tmp_path: Path, run: Run, kind: str, cut: str) -> None:
    raw = BODIES[kind]
    head = raw.index(b"\r\n\r\n") + 4
    at = {"whole": 0, "in the head": head - 9, "behind the head": head, "one byte left": len(raw) - 1}[cut]

    async def test() -> None:
        async with door(tmp_path) as d:
            # Behind them on the same connection: small ones, for the app too, and another large one.
            pieces = [raw[:at], raw[at:], post() + get("/v2/health/live"), raw + post(), get("/v2") + raw]
            answers = await d.send(*[piece for piece in pieces if piece], pause=0.02, read=7)
            assert [status for status, _, _ in answers] == [200] * 7
            assert all(doubled(answers[place][2]) for place in (0, 3, 6))
            assert answers[1][2]["outputs"][0]["data"] == answers[4][2]["outputs"][0]["data"] == [2.0, 4.0, 6.0]
            counts = [record["inputs"][0].get("summary", {}).get("count", 3) for record in d.log()]
            assert sorted(counts) == [3, 3, ROWS * 3, ROWS * 3, ROWS * 3]
            assert d.front.bodies.held_bytes == 0

    run(test)


@pytest.mark.parametrize("kind", BODIES)
def test_many_large_bodies_may_stand_behind_one_another(tmp_path: Path, run: Run, kind: str) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            reader, writer = await d.connect()
            writer.write(BODIES[kind] * 9)  # a client that reads only when all is sent waits for ever
            answers = [await read_answer(reader) for _ in range(9)]
            assert [status for status, _, _ in answers] == [200] * 9 and all(doubled(answer[2]) for answer in answers)
            writer.close()

    run(test)


def test_a_body_longer_than_its_first_place_is_received_whole(tmp_path: Path, run: Run) -> None:
    numbers = np.arange(FIRST_BYTES * 3 // 2, dtype="<f4") % 1000

    async def test() -> None:
        async with door(tmp_path) as d:
            [(status, _, _)] = await d.send(in_binary(numbers), read=1)
            assert status == 200
            (record,) = d.log()
            assert record["inputs"][0]["summary"]["max"] == 999.0

    run(test)


def test_a_raw_tensor_is_received_too(tmp_path: Path, run: Run) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            raw = post(NUMBERS.tobytes(), headers="Inference-Header-Content-Length: 0\r\n")
            [(status, headers, body)] = await d.send(raw, read=1)
            assert status == 200
            assert body[int(headers["inference-header-content-length"]) :] == (NUMBERS * 2).tobytes()

    run(test)


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize(
    ("limits", "status", "text"),
    [
        ({"body_timeout_seconds": 0.2}, 408, "did not arrive within"),
        ({"body_grace_seconds": 0.1, "min_bytes_per_second": 2**24}, 408, "slower than"),
    ],
)
def test_the_limits_of_bodies_hold_on_the_way(
    tmp_path: Path, run: Run, kind: str, limits: dict[str, Any], status: int, text: str
) -> None:
    raw = BODIES[kind]

    async def test() -> None:
        async with door(tmp_path, limits=limits) as d:
            before = post() + raw[:90_000]
            rest = raw[90_000:300_000], raw[300_000:] + bytes(99)
            (first, _, _), (second, headers, body) = await d.send(before, *rest, pause=0.4)
            assert (first, second, headers["connection"]) == (200, status, "close") and text in body["error"]
            while d.server.server_state.connections or d.front.bodies.held_bytes:
                await asyncio.sleep(0.01)
            assert [status for status, _, _ in await d.send(post(), read=1)] == [200]
            assert len(d.log()) == 2

    run(test)


@pytest.mark.parametrize("kind", BODIES)
def test_a_body_for_which_there_is_no_room_is_refused_on_the_way(tmp_path: Path, run: Run, kind: str) -> None:
    raw = BODIES[kind]

    async def test() -> None:
        async with door(tmp_path, limits={"max_held_body_bytes": 2**20}) as d:
            reader, writer = await d.connect()
            writer.write(raw[:600_000])
            while d.front.bodies.held_bytes < 500_000:
                await asyncio.sleep(0.005)
            (first, _, _), (second, headers, body) = await d.send(
                post() + raw[:300_000], raw[300_000:] + bytes(99), pause=0.1
            )
            assert (first, second, headers["connection"]) == (200, 503, "close")
            assert "limits.max_held_body_bytes" in body["error"]
            writer.write(raw[600_000:])
            assert (await read_answer(reader))[0] == (200 if kind == "binary" else 503)  # 1.4 MB is never taken
            writer.close()
            while d.server.server_state.connections or d.front.bodies.held_bytes:
                await asyncio.sleep(0.005)

    run(test)


@pytest.mark.parametrize("kind", BODIES)
def test_a_client_that_leaves_in_the_middle_leaves_nothing(tmp_path: Path, run: Run, kind: str) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            for abort in (True, False):
                _, writer = await d.connect()
                writer.write(BODIES[kind][:400_000])
                await writer.drain()
                while d.front.bodies.held_bytes < 300_000:
                    await asyncio.sleep(0.005)
                writer.transport.abort() if abort else writer.close()
                while d.server.server_state.connections or d.front.bodies.held_bytes:
                    await asyncio.sleep(0.005)
            assert d.log() == [] and d.engine.batches == []

    run(test)


@pytest.mark.parametrize("kind", BODIES)
def test_a_stop_lets_half_a_body_come_whole(tmp_path: Path, run: Run, kind: str) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            reader, writer = await d.connect()
            writer.write(BODIES[kind][:400_000])
            await asyncio.sleep(0.1)
            d.server.should_exit = True
            await asyncio.sleep(0.2)
            writer.write(BODIES[kind][400_000:])
            status, headers, answer = await read_answer(reader)
            assert (status, headers["connection"]) == (200, "close") and doubled(answer)
            writer.close()

    run(test)


async def test_a_body_that_is_too_large_is_refused_before_it_is_received(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"max_body_bytes": 100_000}) as d:
        for raw in BODIES.values():
            ((status, headers, body),) = await d.send(raw[:90_000])
            assert (status, headers["connection"]) == (413, "close") and "limits.max_body_bytes" in body["error"]


@pytest.mark.parametrize("headers", ["Connection: close\r\n", "Expect: 100-continue\r\n"])
async def test_other_wishes_of_a_client_hold_for_large_bodies(tmp_path: Path, headers: str) -> None:
    async with door(tmp_path) as d:
        *before, (status, got, answer) = await d.send(in_binary(headers=headers), read=1 + headers.startswith("Expect"))
        assert [each[0] for each in before] == [100] * len(before)
        assert status == 200 and doubled(answer) and ("connection" in got) is headers.startswith("Connection")


async def test_who_sends_a_large_body_is_not_idle_whatever_was_answered_meanwhile(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        d.server.config.timeout_keep_alive = 0
        for raw in BODIES.values():
            answers = await d.send(get("/v2") + raw[:90_000], raw[90_000:], pause=0.2, read=2)
            assert [status for status, _, _ in answers] == [200, 200] and doubled(answers[1][2])


async def test_what_is_wrong_with_a_large_body_is_said_and_the_next_is_read(tmp_path: Path) -> None:
    wrong = {
        "expecting 4 additional bytes": in_binary().replace(
            b'"binary_data_size": 720000', b'"binary_data_size": 720004'
        ),
        "Expected 720000, got 719999": in_binary().replace(
            b'"binary_data_size": 720000', b'"binary_data_size": 719999'
        ),
        "no FP32": in_json().replace(b" 0.125,", b" false,", 1),
        "no datatype holds": in_json().replace(b" 0.125,", b" 1e400,", 1),
        "is not valid JSON": in_json().replace(b" 0.125,", b" 0.1.5,", 1),
        "inference header size": in_binary().replace(b"Content-Length: 1", b"Content-Length: 99999991"),
    }
    async with door(tmp_path) as d:
        for text, raw in wrong.items():
            answers = await d.send(raw, in_binary(), read=2)
            assert [status for status, _, _ in answers] == [400, 200], text
            assert text in answers[0][2]["error"] and doubled(answers[1][2])


async def test_only_large_bodies_that_are_read_as_they_are_go_past_the_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    begin = Receiver.begin

    def counted(self: Receiver, length: int, **named: Any) -> None:
        begun.append(length)
        begin(self, length, **named)

    monkeypatch.setattr(receiver.Receiver, "begin", counted)

    async def ask(d: Door, raw: bytes) -> int:
        ((status, _, _),) = await d.send(raw[:-1], raw[-1:], pause=0.02, read=1)
        return status

    small = np.arange(15_000, dtype="<f4")  # 60 KB
    async with door(tmp_path) as d:
        for raw in (post(), in_binary(small), in_json().replace(b"Content-Length", b"X-Length"), post(chunked=True)):
            if b"Content-Length" in raw or b"chunked" in raw:
                assert await ask(d, raw) == 200
        assert await ask(d, post(b" " * 200_000 + post().split(b"\r\n\r\n")[1])) == 200  # JSON that is read at once
        assert begun == []
        assert await ask(d, in_binary()) == await ask(d, in_json()) == 200
        assert len(begun) == 2


@pytest.fixture()
def again(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request began that was received from its first byte on."""
    began: list[bool] = []
    begin = GatewayProtocol.begin_again

    def noted(self: GatewayProtocol, length: int) -> bool:
        began.append(begin(self, length))
        return began[-1]

    monkeypatch.setattr(GatewayProtocol, "begin_again", noted)
    return began


async def one_by_one(d: Door, *requests: bytes) -> list[tuple[int, dict[str, str], Any]]:
    """Each is sent when the one before is answered, all on one connection."""
    reader, writer = await d.connect()
    answers = []
    for request in requests:
        writer.write(request)
        answers.append(await read_answer(reader))
    writer.close()
    return answers


def test_the_body_of_a_large_request_that_comes_again_goes_past_the_parser(
    tmp_path: Path, run: Run, again: list[bool]
) -> None:
    raw, other, keyed = (
        BODIES["binary"],
        in_binary(NUMBERS + 1, id="1"),
        in_binary(headers="Gateway-Routing-Key: a\r\n"),
    )
    head = raw.index(b"\r\n\r\n") + 4

    async def test() -> None:
        async with door(tmp_path) as d:
            # The first shows that large ones come, the second that this one comes again; then it stays known.
            answers = await one_by_one(d, raw, raw, raw, raw, other, keyed, raw, raw, raw)
            assert [status for status, _, _ in answers] == [200] * 9 and again == [True] * 6
            assert all(doubled(answer) for place, (_, _, answer) in enumerate(answers) if place != 4)
            assert answers[4][2]["outputs"][0]["data"][-1] == 2 * (NUMBERS[-1] + 1)
            again.clear()
            pieces = [raw, raw, raw[:head], raw[head:], raw[:-1], raw[-1:], raw + post(), post() + raw]
            answers = await d.send(*pieces, pause=0.2, read=8)
            assert [status for status, _, _ in answers] == [200] * 8 and all(again) and len(again) >= 2
            assert [len(answer["outputs"][0]["data"]) for _, _, answer in answers].count(3) == 2
            assert all(doubled(answer) for _, _, answer in answers if len(answer["outputs"][0]["data"]) > 3)
            records = d.log()
            assert len(records) == 17 and sum("key" in record for record in records) == 1
            assert len({record["inputs"][0].get("digest") for record in records}) == 3
            while d.front.bodies.held_bytes:
                await asyncio.sleep(0.005)

    run(test)


@pytest.mark.parametrize("cut", [0, 300_000])
def test_a_client_that_is_idle_holds_no_memory(tmp_path: Path, run: Run, again: list[bool], cut: int) -> None:
    raw = BODIES["binary"]

    async def test() -> None:
        async with door(tmp_path) as d:
            reader, writer = await d.connect()
            for number in range(1, 5):
                writer.write(raw[:cut])
                await asyncio.sleep(0.02)
                writer.write(raw[cut:])
                assert (await read_answer(reader))[0] == 200
                while d.front.bodies.held_bytes or (d.front.arena is not None and d.front.arena.lent_bytes):
                    await asyncio.sleep(0.005)
                assert len(again) == max(0, number - 2)
            writer.close()

    run(test)


def test_a_head_that_is_refused_is_refused_each_time(tmp_path: Path, run: Run, again: list[bool]) -> None:
    raw = in_binary(headers="Gateway-Version: x\r\n")

    async def test() -> None:
        async with door(tmp_path) as d:
            assert [status for status, _, _ in await one_by_one(d, raw, raw, raw, raw)] == [400] * 4
            assert again == []

    run(test)


def test_a_head_that_is_expected_is_not_taken_behind_the_last_request(
    tmp_path: Path, run: Run, again: list[bool]
) -> None:
    raw = BODIES["binary"]

    async def test() -> None:
        async with door(tmp_path) as d:
            reader, writer = await d.connect()
            for _ in range(3):
                writer.write(raw)
                assert (await read_answer(reader))[0] == 200
            d.engine.hold.clear()
            for request in (post(headers="Connection: close\r\n"), raw):
                writer.write(request)
                await asyncio.sleep(0.2)
            d.engine.hold.set()
            assert (await read_answer(reader))[0] == 200 and await reader.read() == b""
            assert again == [True, False] and len(d.log()) == 4
            writer.close()

    run(test)


def test_the_limits_of_bodies_hold_for_a_head_that_is_expected(tmp_path: Path, run: Run, again: list[bool]) -> None:
    raw = BODIES["binary"]

    async def test() -> None:
        async with door(tmp_path, limits={"body_timeout_seconds": 0.3, "max_held_body_bytes": 2**20}) as d:
            answers = await one_by_one(d, raw, raw, raw, raw[:90_000])
            assert [status for status, _, _ in answers] == [200, 200, 200, 408]
            reader, writer = await d.connect()
            for _ in range(3):
                writer.write(raw)
                assert (await read_answer(reader))[0] == 200
            _, holder = await d.connect()
            holder.write(raw[:600_000])
            while d.front.bodies.held_bytes < 500_000:
                await asyncio.sleep(0.005)
            writer.write(raw)
            status, headers, _ = await read_answer(reader)
            assert (status, headers["connection"]) == (503, "close")
            holder.transport.abort()
            writer.close()
            while d.server.server_state.connections or d.front.bodies.held_bytes:
                await asyncio.sleep(0.005)
            assert again == [True] * 4

    run(test)
