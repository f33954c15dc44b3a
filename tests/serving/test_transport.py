"""The transport's limits, each at its bound and one beyond, and its rules on one connection."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.protocol.limits import Limits
from gateway.serving.inference import Inference
from gateway.settings import LimitSettings
from tests.serving.fronts import ROW, Door, door, get, post, read_answer

GOOD = json.dumps({"inputs": [ROW]}).encode()
FEEDBACK = "/v2/models/m/feedback"


async def ask(d: Door, *pieces: bytes, pause: float = 0.0) -> tuple[int, dict[str, str], Any]:
    [answer] = await d.send(*pieces, pause=pause, read=1)
    return answer


def head_of(size: int, *, target: str = "/v2/health/live") -> bytes:
    """A head of exactly so many bytes."""
    bare = get(target, headers="X: \r\n")
    return get(target, headers=f"X: {'a' * (size - len(bare))}\r\n")


def padded(size: int) -> bytes:
    """A good body of exactly so many bytes."""
    return GOOD[:-1] + b" " * (size - len(GOOD)) + b"}"


def test_the_decoders_limits_are_the_settings() -> None:
    assert msgspec.convert(LimitSettings(), Limits, from_attributes=True) == Limits()  # type: ignore[call-arg]


@pytest.mark.parametrize("target", ["/v2/health/live", "/v2/models/m"])
@pytest.mark.parametrize("cut", [0, 700], ids=["at once", "in pieces"])
async def test_a_head_may_have_16_kib_and_no_byte_more(tmp_path: Path, target: str, cut: int) -> None:
    async with door(tmp_path) as d:
        for size, expected in ((16_384, 200), (16_385, 431)):
            raw = head_of(size, target=target)
            pieces = [raw[start : start + cut] for start in range(0, size, cut)] if cut else [raw]
            status, _, body = await ask(d, *pieces)
            assert status == expected and ("limits.max_head_bytes" in str(body)) == (expected == 431)


async def test_a_head_behind_another_request_is_measured_by_itself(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"max_head_bytes": 2048}) as d:
        large = post({"inputs": [ROW], "parameters": {"note": "n" * 9000}})
        answers = await d.send(large + head_of(2048) + head_of(2049))
        assert [status for status, _, _ in answers] == [200, 200, 431]
        # Of the second head a part comes along with the first request.
        half = head_of(2048)
        answers = await d.send(large + half[:1500], half[1500:], pause=0.05, read=2)
        assert [status for status, _, _ in answers] == [200, 200]


async def test_a_head_may_have_100_fields_and_no_more(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        assert (await ask(d, get("/v2", headers="X: a\r\n" * 99)))[0] == 200
        status, _, body = await ask(d, get("/v2", headers="X: a\r\n" * 100))
        assert status == 431 and "more than 100 fields" in body["error"]


async def test_a_lower_limit_of_fields_is_kept_too(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"max_head_fields": 8}) as d:
        assert (await ask(d, get("/v2", headers="X: a\r\n" * 7)))[0] == 200
        assert (await ask(d, get("/v2", headers="X: a\r\n" * 8)))[0] == 431


@pytest.mark.parametrize("path", ["/v2/models/m/infer?", "/v2/health/live?"])
async def test_a_target_may_have_4_kib_and_no_byte_more(tmp_path: Path, path: str) -> None:
    async with door(tmp_path) as d:
        for size, expected in ((4096, 200), (4097, 414)):
            target = path + "q" * (size - len(path))
            raw = post(path=target) if "infer" in path else get(target)
            assert (await ask(d, raw))[0] == expected


async def test_a_target_with_scheme_and_host_is_that_of_its_path(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        for host in ("http://a", "HTTPS://gateway.example:8000", "http://[::1]:8000"):
            upgrade = post(path=f"{host}/v2/models/m/infer", headers="Connection: upgrade\r\nUpgrade: h2c\r\n")
            whole = post(path=f"{host}/v2/models/m/versions/1/infer?a=b")
            for raw in (whole, upgrade, whole * 3, post() + whole + post()):
                answers = await d.send(raw, read=raw.count(b"POST"))
                assert [(status, body["outputs"][0]["data"]) for status, _, body in answers] == [
                    (200, [2.0, 4.0, 6.0])
                ] * raw.count(b"POST")
            for path in ("/v2/models/m", "/v2/models/m?a=http://b"):
                assert (await ask(d, get(host + path)))[2] == (await ask(d, get(path)))[2]
            for path in ("", "?a", "/v2/nothing"):
                assert (await ask(d, get(host + path)))[0] == 404
        assert (await ask(d, get("http://a/v2".ljust(4097, "/"))))[0] == 414


async def test_rtsp_is_no_http_wherever_its_head_is_cut(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        rtsp = get("/v2/models/m").replace(b"HTTP/1.1", b"RTSP/1.1")
        for cut in range(1, len(rtsp), 3):
            status, headers, body = await ask(d, rtsp[:cut], rtsp[cut:], pause=0.005)
            assert (status, headers["connection"]) == (505, "close") and "RTSP" in body["error"]
        rtsp = post().replace(b"HTTP/1.1", b"RTSP/1.1")
        for before in (post(), post() * 2):
            answers = await d.send(before + rtsp[:15], rtsp[15:] + get("/v2"), pause=0.02)
            assert [status for status, _, _ in answers] == [200] * before.count(b"POST") + [505]
        assert (await ask(d, b"GET  /v2   RTSP/1.0\r\nHost: a\r\n\r\n"))[0] == 505


async def test_a_header_that_speaks_of_rtsp_is_a_header(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        raw = post(headers="User-Agent: player RTSP/1.0\r\n")
        answers = await d.send(raw + raw + raw[:30], raw[30:], pause=0.02, read=3)
        assert [status for status, _, _ in answers] == [200, 200, 200]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("path", "taken"), [("/v2/models/m/infer", 200), (FEEDBACK, 400)])
async def test_a_body_may_have_its_limit_as_it_is_sent(tmp_path: Path, path: str, taken: int, chunked: bool) -> None:
    async with door(tmp_path, limits={"max_body_bytes": 2048}) as d:
        for size, expected in ((2048, taken), (2049, 413)):
            status, headers, _ = await ask(d, post(padded(size), path=path, chunked=chunked))
            assert status == expected and (headers.get("connection") == "close") == (expected == 413)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_body_may_have_its_limit_as_it_is_inflated(tmp_path: Path, coding: str) -> None:
    import zlib

    compress = gzip.compress if coding == "gzip" else zlib.compress
    async with door(tmp_path, limits={"max_body_bytes": 2048}) as d:
        for size, expected in ((2048, 200), (2049, 413)):
            raw = post(compress(padded(size)), headers=f"Content-Encoding: {coding}\r\n")
            assert (await ask(d, raw))[0] == expected


def chunks(count: int) -> bytes:
    """A good body in so many chunks, the last of which has most of it."""
    spaces = b"1\r\n \r\n" * (count - 1)
    return post(b"", headers="Transfer-Encoding: chunked\r\n").replace(b"Content-Length: 0\r\n", b"") + (
        spaces + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    )


@pytest.mark.parametrize("path", ["/v2/models/m/infer", FEEDBACK])
async def test_a_body_may_have_65536_chunks_and_no_more(tmp_path: Path, path: str) -> None:
    async with door(tmp_path) as d:
        for count, refused in ((65_536, False), (65_537, True)):
            status, _, body = await ask(d, chunks(count).replace(b"/v2/models/m/infer", path.encode()))
            assert ("more than 65536 chunks" in str(body)) == refused
            assert status == 400 if refused or path == FEEDBACK else status == 200


async def test_chunks_may_carry_16_kib_beside_their_content_and_no_byte_more(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        head = post(chunked=True).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        for extension, expected in ((16_384, 200), (16_385, 400)):
            # The size, its line's end and the content's are what each chunk is granted 16 bytes for.
            line = b"%08x;" % len(GOOD)
            content = GOOD + b"\r\n" + b"0\r\n\r\n"
            first = line + b"e" * (extension - len(line) + 14) + b"\r\n" + content[:40]
            status, _, body = await ask(d, head, first, content[40:], pause=0.1)
            assert status == expected and ("beside" in str(body)) == (expected == 400)


async def test_a_front_has_so_many_connections_and_no_more(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"max_connections": 3}) as d:
        held = [await d.connect() for _ in range(3)]
        for reader, writer in held:
            writer.write(get("/v2/health/live"))
            assert (await read_answer(reader))[0] == 200
        status, headers, body = await ask(d)
        assert (status, headers["connection"]) == (503, "close") and "connections" in body["error"]
        held[0][1].close()
        while len(d.server.server_state.connections) > 2:
            await asyncio.sleep(0.01)
        assert (await ask(d, post()))[0] == 200
        for _, writer in held:
            writer.close()


async def test_more_requests_than_may_be_pipelined_are_all_answered(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"max_pipelined": 2}) as d:
        answers = await d.send(*[post() + get("/v2")] * 20, read=40)
        assert [status for status, _, _ in answers] == [200] * 40


@pytest.mark.parametrize(
    ("limits", "changes", "text"),
    [
        ({"max_rank": 1}, {}, "at most 1 integers"),
        ({"max_dimension": 2}, {}, "from 0 to 2"),
        ({"max_elements": 2}, {"shape": [1, 3], "data": [[1, 2, 3]]}, "more than 2"),
        ({"max_json_elements": 2}, {}, "more than 2 elements in JSON"),
    ],
)
async def test_limits_of_tensors_reach_the_decoder(
    tmp_path: Path, limits: dict[str, int], changes: dict[str, Any], text: str
) -> None:
    async with door(tmp_path, limits=limits) as d:
        # An output asked for by name takes the thorough way, which every request but the usual one takes.
        status, _, body = await ask(d, post({"inputs": [ROW | changes], "outputs": [{"name": "y"}]}))
        assert status == 400 and text in body["error"]


@pytest.mark.parametrize(
    "host", ["a", "a.example:8000", "127.0.0.1:8000", "[::1]", "[::1]:8000", "a_b", "%41", "", "a:"]
)
async def test_a_host_that_can_be_is_taken(tmp_path: Path, host: str) -> None:
    async with door(tmp_path) as d:
        assert (await ask(d, f"GET /v2 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()))[0] == 200


async def test_http_1_0_needs_no_host_and_gets_no_100(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        raw = post(version="1.0", headers="Expect: 100-continue\r\n").replace(b"Host: gateway\r\n", b"")
        [(status, headers, _)] = await d.send(raw)
        assert (status, headers["connection"]) == (200, "close")


async def test_a_client_that_waits_for_100_continue_gets_it_from_the_app_too(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        head, _, content = post({"feedback": []}, path=FEEDBACK, headers="Expect: 100-continue\r\n").partition(
            b"\r\n\r\n"
        )
        writer.write(head + b"\r\n\r\n")
        assert (await read_answer(reader))[0] == 100
        writer.write(content)
        assert (await read_answer(reader))[0] == 200
        writer.close()


@pytest.mark.parametrize("cut", [0, 9])
async def test_wishes_for_another_protocol_are_passed_over_one_after_the_other(tmp_path: Path, cut: int) -> None:
    wish = "Connection: Upgrade\r\nUpgrade: h2c\r\n"
    raw = post(headers=wish) + get("/v2/health/live", headers=wish) + post(headers=wish, chunked=True) + post()
    async with door(tmp_path) as d:
        pieces = [raw[start : start + cut] for start in range(0, len(raw), cut)] if cut else [raw]
        answers = await d.send(*pieces, read=4)
        assert [(status, "live" in body) for status, _, body in answers] == [
            (200, False), (200, True), (200, False), (200, False)
        ]  # fmt: skip
        assert len(d.log()) == 3


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_the_last_request_of_a_connection_may_wish_for_another_protocol(tmp_path: Path, version: str) -> None:
    raw = post(headers="Connection: upgrade, close\r\nUpgrade: h2c\r\n", version=version)
    async with door(tmp_path) as d:
        assert [(status, headers["connection"]) for status, headers, _ in await d.send(raw)] == [(200, "close")]


async def test_a_wish_for_another_protocol_lifts_no_rule(tmp_path: Path) -> None:
    wish = "Connection: Upgrade\r\nUpgrade: h2c\r\n"
    async with door(tmp_path, limits={"max_body_bytes": 2048}) as d:
        assert (await ask(d, post(b"x" * 3000, headers=wish)))[0] == 413
        assert (await ask(d, post(headers=wish + "Host: b\r\n")))[0] == 400
        assert (await ask(d, post(headers=wish + "X: a\r\n" * 100)))[0] == 431


async def test_a_refusal_waits_for_the_answers_before_it_and_nothing_waits_for_ever(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        d.engine.hold.clear()
        bad = post(path=FEEDBACK, chunked=True).replace(b"\r\n\r\n7\r\n", b"\r\n\r\nzz\r\n")
        asked = asyncio.create_task(d.send(post() + get("/v2/health/live") + bad))
        await asyncio.sleep(0.2)
        assert not asked.done()
        d.engine.hold.set()
        assert [status for status, _, _ in await asked] == [200, 200, 400]


async def test_a_trailer_is_no_header_for_the_app_either(tmp_path: Path) -> None:
    async with door(tmp_path, admin={"token": "secret"}) as d:
        raw = post(b"{}", path="/v2/logging", chunked=True)
        trailer = raw.replace(b"0\r\n\r\n", b"0\r\nAuthorization: Bearer secret\r\n\r\n")
        assert (await ask(d, trailer))[0] == 401
        header = raw.replace(b"Host:", b"Authorization: Bearer secret\r\nHost:")
        assert (await ask(d, header))[0] == 200


async def test_nothing_is_answered_after_the_last_answer(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        d.engine.hold.clear()
        closing = post(headers="Connection: close\r\n")
        asked = asyncio.create_task(d.send(post() + closing + post() + get("/v2")))
        await asyncio.sleep(0.1)
        d.engine.hold.set()
        assert [status for status, _, _ in await asked] == [200, 200]


async def test_after_a_body_that_is_too_large_nothing_more_is_run(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"max_body_bytes": 2048}) as d:
        d.engine.hold.clear()
        asked = asyncio.create_task(d.send(post() + post(b"x" * 3000) + post() + get("/v2")))
        await asyncio.sleep(0.1)
        d.engine.hold.set()
        assert [status for status, _, _ in await asked] == [200, 413]
        assert sorted(record["status"] for record in d.log()) == [200, 413]


async def test_a_client_is_not_blamed_for_the_time_it_was_not_read_from(tmp_path: Path) -> None:
    limits = {"max_pipelined": 1, "head_timeout_seconds": 0.2, "body_timeout_seconds": 0.2}
    async with door(tmp_path, limits=limits) as d:
        d.engine.hold.clear()
        raw = post()
        asked = asyncio.create_task(d.send(raw * 3 + raw[:-10], raw[-10:], pause=0.05, read=4))
        await asyncio.sleep(0.6)
        d.engine.hold.set()
        assert [status for status, _, _ in await asked] == [200] * 4


async def test_a_fault_of_ours_is_logged_and_answered_with_500(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with door(tmp_path) as d:

        def fail(inference: Any) -> None:
            raise RuntimeError("a fault")

        d.front.accept = fail  # type: ignore[method-assign]
        with caplog.at_level(logging.ERROR):
            status, headers, body = await ask(d, post())
        assert (status, headers["connection"]) == (500, "close") and body["error"]
        assert "a fault" not in body["error"] and len(caplog.records) == 1
        assert (await ask(d, get("/v2/health/live")))[0] == 200


@pytest.mark.parametrize("cut", [-1, None], ids=["half", "whole"])
async def test_behind_the_answer_that_says_close_nothing_more_is_run(tmp_path: Path, cut: int | None) -> None:
    raw = post()
    async with door(tmp_path) as d:
        d.engine.hold.clear()
        reader, writer = await d.connect()
        writer.write(raw[:cut])
        await asyncio.sleep(0.1)
        (connection,) = d.server.server_state.connections
        connection.shutdown()
        writer.write(raw[len(raw[:cut]) :] + raw)
        await asyncio.sleep(0.1)
        d.engine.hold.set()
        status, headers, _ = await read_answer(reader)
        assert (status, headers["connection"]) == (200, "close") and await reader.read() == b""
        assert d.engine.batches == [1] and len(d.log()) == 1
        writer.close()


async def test_a_stop_lets_half_a_request_to_the_app_come_whole(tmp_path: Path) -> None:
    async with door(tmp_path) as d:
        reader, writer = await d.connect()
        raw = post({"feedback": []}, path=FEEDBACK)
        writer.write(raw[:-5])
        await asyncio.sleep(0.1)
        d.server.should_exit = True
        await asyncio.sleep(0.2)
        writer.write(raw[-5:])
        status, headers, _ = await read_answer(reader)
        assert (status, headers["connection"]) == (200, "close")
        assert await reader.read() == b""
        writer.close()


LARGE = 300 * 1024
INFER, LABELS = "/v2/models/m/infer", "/v2/models/m/feedback"


@pytest.mark.promise("P7")
@pytest.mark.parametrize("path", [INFER, LABELS])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_front_holds_so_many_bytes_of_bodies_and_no_more(tmp_path: Path, path: str, chunked: bool) -> None:
    async with door(tmp_path, limits={"max_held_body_bytes": 2**20}) as d:
        raw = post(padded(LARGE), path=path, chunked=chunked)
        slow = [await d.connect() for _ in range(3)]
        for _, writer in slow:
            writer.write(raw[:-20])
        while d.front.bodies.held_bytes < 3 * (LARGE - 20):
            await asyncio.sleep(0.01)
        status, headers, body = await ask(d, raw)
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert "limits.max_held_body_bytes" in body["error"]
        assert (await ask(d, post()))[0] == 200  # what is small is not counted
        slow[0][1].write(raw[-20:])
        assert (await read_answer(slow[0][0]))[0] == (200 if path == INFER else 400)
        assert (await ask(d, raw))[0] == (200 if path == INFER else 400)
        for _, writer in slow:
            writer.transport.abort()
        async with asyncio.timeout(5):
            while d.front.bodies.held_bytes:
                await asyncio.sleep(0.01)


@pytest.mark.promise("P7")
async def test_bodies_are_held_until_they_are_answered(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"max_held_body_bytes": 2**20}) as d:
        d.engine.hold.clear()
        waiting = [await d.connect() for _ in range(3)]
        for _, writer in waiting:
            writer.write(post(padded(LARGE)))
        while d.front.bodies.held_bytes < 3 * LARGE:
            await asyncio.sleep(0.01)
        status, _, body = await ask(d, post(padded(LARGE)))
        assert status == 503 and "limits.max_held_body_bytes" in body["error"]
        d.engine.hold.set()
        for reader, writer in waiting:
            assert (await read_answer(reader))[0] == 200
            writer.close()
        assert d.front.bodies.held_bytes == 0
        assert (await ask(d, post(padded(LARGE))))[0] == 200


async def test_a_refused_body_is_held_no_longer(tmp_path: Path) -> None:
    async with door(tmp_path, limits={"max_body_bytes": LARGE}) as d:
        for body in (padded(LARGE)[:-1] + b"x", padded(LARGE + 1)):
            for headers in ("", "Content-Encoding: gzip\r\n"):
                assert (await ask(d, post(body, headers=headers, chunked=True)))[0] in (400, 413)
        assert d.front.bodies.held_bytes == 0


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v2/models/m/versions/x/infer", "/v2/models/nobody/infer"])
async def test_nothing_of_a_refused_request_waits_for_the_collector_of_cycles(tmp_path: Path, path: str) -> None:
    async with door(tmp_path) as d:
        gc.collect()
        gc.disable()
        try:
            # A test before may have left some, which a thread of its front still had.
            others = {id(each): each for each in gc.get_objects() if isinstance(each, Inference)}
            assert (await ask(d, post(path=path, headers="Gateway-Version: x\r\n")))[0] in (400, 404)
            assert not [each for each in gc.get_objects() if isinstance(each, Inference) and id(each) not in others]
        finally:
            gc.enable()
