"""Clients that are slow, silent, many, or gone: rows 1 to 6, 29 and 30 of the hostile table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest

from tests.hostile.world import World, hostile_world, infer, inputs, tensor
from tests.serving.fronts import post, read_answer

HALF = post()[:-20]
QUICK = {
    "head_timeout_seconds": 0.4,
    "body_timeout_seconds": 0.4,
    "body_grace_seconds": 0.1,
    "min_bytes_per_second": 0,
    "write_timeout_seconds": 0.4,
}


async def refused_in_time(world: World, drops: list[bytes], text: str) -> None:
    """Send drop after drop until the front answers; it must, with 408, and close. Others are served meanwhile."""
    before = world.records
    reader, writer = await world.door.connect()

    async def drip() -> None:
        for drop in drops:
            writer.write(drop)
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    await world.check_serving()
    status, headers, body = await read_answer(reader)
    dripping.cancel()
    assert (status, headers["connection"]) == (408, "close") and text in body["error"]
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.transport.abort()
    await world.check_serving()
    world.check_quiet(most_lines=0)
    assert world.records == before + 2  # those of the others


async def test_a_silent_client_is_closed_after_the_time_for_a_head(tmp_path: Path) -> None:
    async with hostile_world(tmp_path, limits=QUICK) as world:
        await refused_in_time(world, [], "head did not arrive")


async def test_a_head_in_drops_is_closed_after_the_time_for_a_head(tmp_path: Path) -> None:
    async with hostile_world(tmp_path, limits=QUICK) as world:
        await refused_in_time(world, [b"GET /v2 HTTP/1.1\r\nX: "] + [b"a"] * 200, "head did not arrive")


async def test_line_ends_before_a_head_do_not_prolong_it(tmp_path: Path) -> None:
    async with hostile_world(tmp_path, limits=QUICK) as world:
        await refused_in_time(world, [b"\r\n"] * 200, "head did not arrive")


async def test_half_a_body_is_given_up_after_the_time_for_a_body(tmp_path: Path) -> None:
    async with hostile_world(tmp_path, limits=QUICK) as world:
        await refused_in_time(world, [HALF], "body did not arrive")


async def test_half_a_body_of_feedback_is_given_up_too(tmp_path: Path) -> None:
    async with hostile_world(tmp_path, limits=QUICK) as world:
        await refused_in_time(world, [post(path="/v2/models/m/feedback")[:-20]], "body did not arrive")


@pytest.mark.parametrize("headers", ["Content-Length: 5000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n1388;"])
async def test_a_body_in_drops_is_given_up_for_its_rate(tmp_path: Path, headers: str) -> None:
    limits = QUICK | {"body_timeout_seconds": 60.0, "min_bytes_per_second": 1024}
    async with hostile_world(tmp_path, limits=limits) as world:
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\n{headers}".encode()
        await refused_in_time(world, [head] + [b"a"] * 200, "slower than 1024 bytes a second")


async def test_a_body_at_the_least_rate_is_taken(tmp_path: Path) -> None:
    limits = QUICK | {"body_timeout_seconds": 60.0, "min_bytes_per_second": 10}
    async with hostile_world(tmp_path, limits=limits) as world:
        raw = post()
        answers = await world.door.send(
            *[raw[start : start + 20] for start in range(0, len(raw), 20)], pause=0.05, read=1
        )
        assert [status for status, _, _ in answers] == [200]


@pytest.mark.parametrize("close", ["", "Connection: close\r\n"], ids=["kept alive", "closing"])
async def test_a_client_that_does_not_read_is_dropped_after_the_time_to_take_answers(
    tmp_path: Path, close: str
) -> None:
    limits = QUICK | {"min_bytes_per_second": 1024}
    async with hostile_world(tmp_path, limits=limits) as world:
        client = socket.create_connection(("127.0.0.1", world.door.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader, writer = await asyncio.open_connection(sock=client)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        numbers = 2_100_000  # more than the buffers of both sockets
        body = json.dumps(inputs(tensor(shape=[numbers // 3, 3], data=[1.5] * numbers))).encode()
        writer.write(infer(body, headers=close))
        connections = world.door.server.server_state.connections
        async with asyncio.timeout(15):
            while not any(connection.transport.get_write_buffer_size() for connection in connections):  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
            await world.check_serving()
            while any(connection.transport.get_write_buffer_size() for connection in connections):  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
        writer.transport.abort()
        await world.check_serving()
        world.check_quiet(most_lines=0)


async def test_a_client_that_reads_slowly_but_fast_enough_gets_all(tmp_path: Path) -> None:
    limits = QUICK | {"min_bytes_per_second": 1024, "head_timeout_seconds": 10.0, "body_timeout_seconds": 10.0}
    async with hostile_world(tmp_path, limits=limits) as world:
        numbers = 900_000
        body = json.dumps(inputs(tensor(shape=[numbers // 3, 3], data=[1.5] * numbers))).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", world.door.port, limit=2**16)
        writer.write(infer(body) + infer(body))
        received = 0
        async with asyncio.timeout(20):
            while received < 2 * numbers * 4:
                piece = await reader.read(2**18)
                assert piece, "dropped"
                received += len(piece)
                await asyncio.sleep(0.03)
        writer.transport.abort()


async def test_more_connections_than_may_be_are_refused_and_the_others_are_served(tmp_path: Path) -> None:
    async with hostile_world(tmp_path, limits={"max_connections": 50}) as world:
        idle = [await world.door.connect() for _ in range(48)]
        await world.check_serving()
        idle += [await world.door.connect() for _ in range(2)]
        late = await world.door.send(b"", read=1)
        assert [(status, headers["connection"]) for status, headers, _ in late] == [(503, "close")]
        for _, writer in idle:
            writer.transport.abort()
        while world.door.server.server_state.connections:
            await asyncio.sleep(0.01)
        await world.check_serving()
        world.check_quiet(most_lines=0)


async def test_clients_that_leave_before_the_answer_leave_nothing(tmp_path: Path) -> None:
    async with hostile_world(tmp_path) as world:
        series = world.series
        for times in (100, 300):
            before = world.resident_bytes()
            for _ in range(times):
                _, writer = await world.door.connect()
                writer.write(post())
                await writer.drain()
                writer.transport.abort()
            async with asyncio.timeout(10):
                while world.door.server.server_state.connections:
                    await asyncio.sleep(0.01)
        assert world.resident_bytes() - before < 8 * 2**20
        assert all(served.lane.idle for served in world.door.front.versions.values())
        assert world.series == series
        await world.check_serving()
        world.check_quiet(most_lines=0)


async def test_clients_that_reset_within_a_body_are_in_no_log(tmp_path: Path) -> None:
    async with hostile_world(tmp_path) as world:
        before = world.records
        for path in ("/v2/models/m/infer", "/v2/models/m/feedback"):
            for _ in range(50):
                _, writer = await world.door.connect()
                writer.write(post(path=path)[:-20])
                await writer.drain()
                await asyncio.sleep(0)
                writer.transport.abort()
        assert world.records == before
        await world.check_serving()
        world.check_quiet(most_lines=0)
