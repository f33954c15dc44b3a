"""A head that was read before is taken at its bytes; whatever follows it must be read as if it were not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.serving.known_head import MAX_HELD_BYTES, known_head
from gateway.serving.protocol import GatewayProtocol
from tests.serving.fronts import Door, door, get, post, run

KEY = "Gateway-Routing-Key: rider-7\r\n"


def body(*numbers: float) -> dict[str, Any]:
    shape = [len(numbers) // 3, 3]
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": numbers}]}


def shown(answer: tuple[int, dict[str, str], Any]) -> tuple[int, Any]:
    status, _, content = answer
    return status, content["outputs"][0]["data"] if "outputs" in content else content


@pytest.fixture()
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The reads that were taken at their bytes."""
    reads: list[bytes] = []
    take = GatewayProtocol._take_again

    def noted(self: GatewayProtocol, read: bytes, *known: bytes) -> bool:
        done = take(self, read, *known)
        if done:
            reads.append(read)
        return done

    monkeypatch.setattr(GatewayProtocol, "_take_again", noted)
    return reads


async def ask(d: Door, *pieces: bytes, read: int) -> list[tuple[int, Any]]:
    return [shown(answer) for answer in await d.send(*pieces, read=read, pause=0.01)]


@pytest.mark.parametrize("headers", ["", KEY, "Connection: keep-alive\r\n"])
def test_the_same_head_with_another_length_is_the_same_request_with_another_body(
    tmp_path: Path, taken: list[bytes], headers: str
) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            requests = [post(body(*range(3 * rows)), headers=headers) for rows in (1, 2, 1, 5)]
            answers = await ask(d, *requests, read=4)
            assert answers == [(200, [2.0 * n for n in range(3 * rows)]) for rows in (1, 2, 1, 5)]
            assert taken == requests[1:]
            assert len({record.get("key") for record in d.log()}) == 1

    run(test)


def test_two_heads_in_turn_are_each_read_as_they_are(tmp_path: Path, taken: list[bytes]) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            plain, keyed, pinned = post(), post(headers=KEY), post(headers="Gateway-Version: 9\r\n")
            answers = await ask(d, plain, keyed, plain, pinned, plain, plain, get("/v2/health/live"), plain, read=8)
            assert [status for status, _ in answers] == [200, 200, 200, 404, 200, 200, 200, 200]
            keys = [record.get("key") for record in d.log()]
            assert [key is not None for key in keys] == [False, True, False, False, False, False]
            assert taken == [plain, plain]

    run(test)


@pytest.mark.parametrize("cut", [1, 20, 60, 90, 130, 200])
def test_a_request_with_a_known_head_may_come_in_pieces_and_two_in_one(
    tmp_path: Path, taken: list[bytes], cut: int
) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            one, two, three = post(body(1, 2, 3)), post(body(4, 5, 6)), post(body(7, 8, 9, 10, 11, 12))
            stream = two + three
            answers = await ask(d, one, stream[:cut], stream[cut:], one, stream, one, read=7)
            numbers = [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0], [14.0, 16.0, 18.0, 20.0, 22.0, 24.0]]
            first, second, third = ((200, each) for each in numbers)
            assert answers == [first, second, third, first, second, third, first]

    run(test)


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Content-Length: ", b"Content-Length: +", 400),
        (b"Content-Length: ", b"Content-Length: -", 400),
        (b"Content-Length: ", b"Content-Length: 1_", 400),
        (b"Content-Length: ", b"Content-Length: 99999999999", 413),
        (b"HTTP/1.1", b"RTSP/1.1", 505),
        (b"Host: gateway\r\n", b"", 400),
        (b"POST", b"post", 400),
    ],
)
def test_what_only_looks_like_a_known_head_is_refused_as_ever(
    tmp_path: Path, taken: list[bytes], old: bytes, new: bytes, status: int
) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            answers = await ask(d, post(), post(), post().replace(old, new), read=3)
            assert [answer[0] for answer in answers] == [200, 200, status]
            assert len(taken) == 1

    run(test)


def test_a_body_beyond_the_limit_is_refused_behind_a_known_head_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path, limits={"max_body_bytes": 1024}) as d:
            answers = await ask(d, post(), post(), post(b" " * 1025), read=3)
            assert [status for status, _ in answers] == [200, 200, 413]

    run(test)


def test_nothing_known_is_taken_after_a_request_that_closes_the_connection(tmp_path: Path, taken: list[bytes]) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            reader, writer = await d.connect()
            writer.write(post())
            await reader.readuntil(b"]}]}")
            d.engine.hold.clear()
            for request in (post(headers="Connection: close\r\n"), post()):
                writer.write(request)
                await asyncio.sleep(0.05)
            d.engine.hold.set()
            assert (await reader.read()).count(b"HTTP/1.1 ") == 1
            assert taken == [] and len(d.log()) == 2
            writer.close()

    run(test)


def test_nothing_known_is_taken_once_the_front_is_told_to_stop(tmp_path: Path, taken: list[bytes]) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            reader, writer = await d.connect()
            for _ in range(2):
                writer.write(post())
                await reader.readuntil(b"]}]}")
            d.server.should_exit = True
            assert await reader.read() == b""
            assert len(taken) == 1
            writer.close()

    run(test)


def test_heads_of_many_lengths_are_told_and_few_are_kept() -> None:
    known = known_head(b"POST / HTTP/1.1\r\nContent-Length: 1\r\nHost: a\r\n\r\n")
    assert known is not None
    for length in [*range(1200), 9_999, 10_000, 99_999_999]:
        head = b"POST / HTTP/1.1\r\nContent-Length: %d\r\nHost: a\r\n\r\n" % length
        assert known[len(head) + length] == head
        assert sum(map(len, known.values())) <= MAX_HELD_BYTES
    assert known[0] == known[len(b"POST / HTTP/1.1\r\n")] == b""


def test_connections_with_the_same_head_share_what_is_kept_of_it() -> None:
    first, second, another = (
        known_head(b"POST / HTTP/1.1\r\nContent-Length: %d\r\nHost: %b\r\n\r\n" % each)
        for each in ((1, b"a"), (20, b"a"), (1, b"b"))
    )
    assert first is second and first is not another
