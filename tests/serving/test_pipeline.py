"""Requests behind one another on a connection: order, clients that do not take their answers, what is owed to them."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from uvicorn.server import ServerState

from tests.serving.fronts import Door, door, get, post, read_answer

SINGLY: dict[str, Any] = {"batchable": False}
ROWS = 500_000
"""Of an answer that no system's buffers take: some 6 MB in JSON."""


async def until(condition: Callable[[], object], *, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def answer_at_length(d: Door) -> None:
    d.engine.run = lambda inputs: [np.zeros((ROWS, 3), "f4")]


async def connect_without_reading(d: Door) -> socket.socket:
    """A client that has sent nothing yet and will read only when it is told to."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", d.port))
    return client


@pytest.mark.parametrize(
    "refused",
    [post(path="/v2/models/unknown/infer"), post({"inputs": []}), post(b"{")],
    ids=["unknown model", "no inputs", "no JSON"],
)
async def test_any_number_of_refusals_behind_one_request_is_answered_and_the_connection_goes_on(
    tmp_path: Path, refused: bytes
) -> None:
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        writer.write(get("/v2/health/live") + refused * 700 + post())
        answers = [await read_answer(reader) for _ in range(702)]
        assert {status for status, _, _ in answers[1:-1]} <= {400, 404}
        assert answers[0][0] == answers[-1][0] == 200
        writer.write(post())
        assert (await read_answer(reader))[0] == 200
        assert not any(connection.busy for connection in d.server.server_state.connections)
        writer.close()


async def test_nothing_more_is_run_for_a_client_that_does_not_take_its_answer(tmp_path: Path) -> None:
    async with door(tmp_path, engine_options=SINGLY) as d:
        answer_at_length(d)
        client = await connect_without_reading(d)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, post() + get("/v2/health/live") + post() + get("/v2"))
        await until(lambda: d.front.answers.held_bytes > 2**20)
        await asyncio.sleep(0.2)
        assert d.engine.batches == [1], "the second waits for the client"
        reader, writer = await asyncio.open_connection(sock=client, limit=2**24)
        answers = [await read_answer(reader) for _ in range(4)]
        assert [status for status, _, _ in answers] == [200] * 4
        assert ["outputs" in content if content else False for _, _, content in answers] == [True, False, True, False]
        assert d.engine.batches == [1, 1]
        writer.close()
        await until(lambda: not d.front.answers.held_bytes)


def has_answered(state: ServerState, count: int) -> bool:
    """Whether the app has answered so many requests."""
    return state.total_requests == count


async def test_an_answer_of_the_app_lets_nobody_go_on_who_does_not_take_it(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        client, state = await connect_without_reading(d), d.server.server_state
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, post())
        await until(lambda: d.engine.batches)
        (connection,), asked = state.connections, 0
        transport = connection.transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        paused = False
        while not paused:
            while not connection.flow.write_paused:
                asked += 1
                # So that it is the page that is too much, and not the head before it.
                transport.set_write_buffer_limits(high=transport.get_write_buffer_size() + 1024)
                await loop.sock_sendall(client, get("/v2/docs"))
                await until(functools.partial(has_answered, state, asked))
            await asyncio.sleep(0.2)  # the system's own buffers may still take more
            paused = connection.flow.write_paused
        await loop.sock_sendall(client, post())  # with this head it would be run at once
        await asyncio.sleep(0.2)
        assert d.engine.batches == [1] and not connection.busy
        reader, writer = await asyncio.open_connection(sock=client)
        assert [(await read_answer(reader))[0] for _ in range(asked + 2)] == [200] * (asked + 2)
        assert d.engine.batches == [1, 1]
        writer.close()


async def test_a_client_that_takes_answers_of_the_app_slowly_is_no_client_that_takes_none(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"write_timeout_seconds": 0.5}) as d:
        client, connections = await connect_without_reading(d), d.server.server_state.connections
        await until(lambda: connections)
        (connection,) = connections
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        reader, writer = await asyncio.open_connection(sock=client, limit=2048)
        writer.write(get("/v2/docs") * 200)
        loop = asyncio.get_running_loop()
        until_then = loop.time() + 3
        while loop.time() < until_then:
            assert await asyncio.wait_for(reader.read(2048), 10)
            await asyncio.sleep(0.05)
        assert connections
        await until(lambda: not connections)  # now it takes nothing more
        writer.close()


def test_nothing_is_written_to_a_client_that_has_gone_while_the_app_answered_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            gone = asyncio.Event()
            reader, writer = await d.connect()
            await until(lambda: d.server.server_state.connections)
            (connection,) = d.server.server_state.connections
            app = connection.app

            async def slow(*given: Any) -> None:
                await gone.wait()
                await app(*given)

            connection.app = slow
            writer.write(get("/v2") * 2)
            await until(lambda: len(connection.pipeline) == 1)
            connection.transport.abort()  # as when an answer before could not be written
            assert await reader.read() == b""
            gone.set()
            await until(lambda: not d.server.server_state.tasks)
            writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test())
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_client_goes_that_leaves_more_of_its_answers_than_a_front_may_hold(tmp_path: Path) -> None:
    async with door(tmp_path, engine_options=SINGLY, limits={"max_held_answer_bytes": 2**20}) as d:
        d.engine.run = lambda inputs: [np.zeros((20_000, 3), "f4")]  # written at once, as it is not large
        client = await connect_without_reading(d)
        await asyncio.get_running_loop().sock_sendall(client, post() * 60)
        await until(lambda: d.engine.batches)
        await until(lambda: not d.server.server_state.connections)
        client.close()
        d.engine.run = lambda inputs: [inputs[0] * 2]
        [(status, _, _)] = await d.send(post(), read=1)
        assert status == 200 and d.front.answers.held_bytes == 0


async def test_who_waits_for_a_100_behind_another_request_gets_it_when_its_turn_comes(tmp_path: Path) -> None:
    limits = {"body_grace_seconds": 0.2, "head_timeout_seconds": 0.2, "body_timeout_seconds": 0.5}
    async with door(tmp_path, limits=limits) as d:
        head, _, content = post(headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        for before in (post(), get("/v2") + post()):
            d.engine.hold.clear()
            reader, writer = await d.connect()
            writer.write(before + head + b"\r\n\r\n")
            await asyncio.sleep(1.0)  # it is not the client who is slow
            d.engine.hold.set()
            statuses = [(await read_answer(reader))[0] for _ in range(1 + before.count(b"HTTP/1.1"))]
            assert statuses == [200] * (len(statuses) - 1) + [100]
            writer.write(content)
            assert (await read_answer(reader))[0] == 200
            writer.close()


async def test_who_waits_for_a_100_behind_a_request_to_the_app_gets_it_when_that_is_answered(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        head, _, content = post(headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        answers = await d.send(get("/v2") + head + b"\r\n\r\n", content, pause=0.2, read=3)
        assert [status for status, _, _ in answers] == [200, 100, 200]


@pytest.mark.parametrize("before", [post(), get("/v2")], ids=["inference", "app"])
async def test_nothing_is_written_behind_the_refusal_of_a_body_that_a_100_is_owed_for(
    tmp_path: Path, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: gateway\r\nExpect: 100-continue\r\n"
    async with door(tmp_path) as d:
        for rest in ("Transfer-Encoding: chunked\r\n\r\nno size\r\n", "Content-Length: 99999999\r\n\r\n"):
            statuses = [status for status, _, _ in await d.send(before + (head + rest).encode())]
            assert statuses == [200, 413 if "99" in rest else 400]
    assert not [record for record in caplog.records if record.exc_info]


async def test_who_sends_the_body_without_waiting_for_the_100_gets_none(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        d.engine.hold.clear()
        reader, writer = await d.connect()
        writer.write(post() + post(headers="Expect: 100-continue\r\n") + post())
        await asyncio.sleep(0.1)
        d.engine.hold.set()
        assert [(await read_answer(reader))[0] for _ in range(3)] == [200] * 3
        writer.close()


@pytest.mark.parametrize("raw", [post(version="1.0", headers="Connection: keep-alive\r\n")])
async def test_a_client_of_http_1_0_is_told_that_the_connection_ends(tmp_path: Path, raw: bytes) -> None:
    async with door(tmp_path) as d:
        [(status, headers, _)] = await d.send(raw)
        assert (status, headers["connection"]) == (200, "close")
