from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.serving.grpc import frames
from gateway.serving.grpc.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PADDED,
    PREFACE,
    PRIORITIZED,
    ErrorCode,
    Setting,
    frame,
    settings_frame,
    window_update,
)
from gateway.serving.grpc.http2 import FRAMES_AT_ONCE
from gateway.serving.grpc.outgoing import MAX_FRAME_BYTES, MAX_STREAMS, MAX_STRIKES
from gateway.serving.grpc.stream import STREAM_WINDOW, Stream
from tests.serving.callers import until
from tests.serving.wire import EchoServer, Wire, echo_server, wire

CANCEL = int(ErrorCode.CANCEL).to_bytes(4, "big")
E = ErrorCode
OPEN = frame(frames.HEADERS, END_HEADERS, 1, b"\x83\x86\x84")


def reset(number: int) -> bytes:
    return frame(frames.RST_STREAM, 0, number, CANCEL)


def data(number: int, content: bytes, *, flags: int = 0) -> bytes:
    return frame(frames.DATA, flags, number, content)


def is_left_clean(echo: EchoServer) -> None:
    """Nothing stays behind a connection."""
    assert not echo.connections and not echo.answers.held_bytes


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(9, 0, 1), E.PROTOCOL_ERROR),
        (frame(frames.DATA, 0, 0, b"x"), E.PROTOCOL_ERROR),
        (frame(frames.DATA, 0, 1, b"x"), E.PROTOCOL_ERROR),
        (frame(frames.DATA, 0, 2, b"x"), E.PROTOCOL_ERROR),
        (OPEN + frame(frames.DATA, PADDED, 1, b"\x05abcd"), E.PROTOCOL_ERROR),
        (OPEN + frame(frames.DATA, PADDED, 1, b""), E.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END_HEADERS, 0, b"\x83"), E.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END_HEADERS, 2, b"\x83"), E.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END_HEADERS | PADDED, 1, b"\x09\x83"), E.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END_HEADERS | PRIORITIZED, 1, b"\0\0\0\1\0\x83"), E.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END_HEADERS | PRIORITIZED, 1, b"\0\0"), E.FRAME_SIZE_ERROR),
        (frame(frames.HEADERS, END_HEADERS, 1, b"\xff\xff\xff"), E.COMPRESSION_ERROR),
        (frame(frames.HEADERS, END_HEADERS, 1, b"\xbf"), E.COMPRESSION_ERROR),
        (frame(frames.HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\x03"), E.COMPRESSION_ERROR),
        (frame(frames.HEADERS, END_HEADERS, 1, b"\x20\x3f\xe1\x1f\x20\x83\x86\x84"), E.COMPRESSION_ERROR),
        (frame(frames.HEADERS, END_HEADERS, 1, b"\0\x7f" + b"\xff" * 60_000), E.COMPRESSION_ERROR),
        (frame(frames.HEADERS, 0, 1, b"\x83") + frame(frames.PING, 0, 0, bytes(8)), E.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 1, b"\x83") + frame(frames.CONTINUATION, END_HEADERS, 3, b""), E.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 1, b"\x83") + frame(frames.CONTINUATION, 0, 1) * 33, E.ENHANCE_YOUR_CALM),
        (frame(frames.HEADERS, 0, 1, b"") + frame(frames.CONTINUATION, 0, 1, bytes(65536)), E.ENHANCE_YOUR_CALM),
        (frame(frames.PRIORITY, 0, 0, bytes(5)), E.PROTOCOL_ERROR),
        (frame(frames.PRIORITY, 0, 1, bytes(4)), E.FRAME_SIZE_ERROR),
        (frame(frames.RST_STREAM, 0, 0, bytes(4)), E.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 1, bytes(4)), E.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 1, bytes(3)), E.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, 0, 1), E.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, 0, 0, bytes(5)), E.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, ACK, 0, bytes(6)), E.FRAME_SIZE_ERROR),
        (settings_frame({Setting.INITIAL_WINDOW_SIZE: 2**31}), E.FLOW_CONTROL_ERROR),
        (settings_frame({Setting.MAX_FRAME_SIZE: 2**14 - 1}), E.PROTOCOL_ERROR),
        (settings_frame({Setting.MAX_FRAME_SIZE: 2**24}), E.PROTOCOL_ERROR),
        (settings_frame({Setting.ENABLE_PUSH: 2}), E.PROTOCOL_ERROR),
        (frame(frames.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), E.PROTOCOL_ERROR),
        (frame(frames.PING, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
        (frame(frames.PING, 0, 0, bytes(7)), E.FRAME_SIZE_ERROR),
        (frame(frames.GOAWAY, 0, 1, bytes(8)), E.PROTOCOL_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 0, bytes(4)), E.PROTOCOL_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 0, bytes(5)), E.FRAME_SIZE_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 1, bytes(4)), E.PROTOCOL_ERROR),
        (window_update(0, 2**31 - 1), E.FLOW_CONTROL_ERROR),
        (frame(0x42, 0, 0, bytes(MAX_FRAME_BYTES + 1)), E.FRAME_SIZE_ERROR),
    ],
)
async def test_what_no_client_may_send_ends_the_connection_and_says_why(sent: bytes, code: ErrorCode) -> None:
    async with echo_server() as echo:
        async with wire(echo.port) as client:
            client.write(sent)
            assert (await client.end())[0] is code
        await until(lambda: not echo.connections)
        is_left_clean(echo)
        assert all(exchange.left for exchange in echo.exchanges)


@pytest.mark.parametrize(
    ("then", "code"),
    [
        (lambda client: frame(frames.WINDOW_UPDATE, 0, 1, bytes(4)), E.PROTOCOL_ERROR),
        (lambda client: window_update(1, 2**31 - 1), E.FLOW_CONTROL_ERROR),
        (lambda client: data(1, b"four five"), E.PROTOCOL_ERROR),
        (lambda client: data(1, b"3", flags=END_STREAM), E.PROTOCOL_ERROR),
        (lambda client: client.head(1), E.PROTOCOL_ERROR),
        (lambda client: client.head(1, flags=END_HEADERS | END_STREAM), E.PROTOCOL_ERROR),
    ],
)
async def test_what_is_wrong_with_one_stream_ends_that_stream(then: Callable[[Wire], bytes], code: ErrorCode) -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        client.write(client.head(client.number(), "/echo", ("content-length", "4")), then(client))
        assert await client.reset(1) is code
        client.write(client.request(content=b"after"))
        assert await client.answer(3) == b"after"
        assert echo.exchanges[0].left


@pytest.mark.parametrize(
    "fields",
    [
        [(":method", "POST")],
        [(":method", "POST"), (":path", "/echo")],
        [(":method", "POST"), (":scheme", "http"), (":path", "")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":path", "/b")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":status", "200")],
        [(":method", "POST"), (":scheme", "http"), ("te", "trailers"), (":path", "/a")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("Upper", "x")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("a b", "x")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("a:b", "x")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("", "x")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("x", "a\nb")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("connection", "close")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("te", "gzip")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("content-length", "-1")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a"), ("content-length", "5, 5")],
    ],
)
async def test_a_malformed_request_is_reset_and_the_next_is_answered(fields: Sequence[tuple[str, str]]) -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        client.write(frame(frames.HEADERS, END_HEADERS | END_STREAM, client.number(), client.encoder.encode(fields)))
        assert await client.reset(1) is E.PROTOCOL_ERROR
        client.write(client.request(content=b"after"))
        assert await client.answer(3) == b"after"


async def test_a_client_of_http1_is_told_what_this_port_speaks() -> None:
    async with echo_server() as echo:
        for sent, begin in ((b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 "), (b"\x16\x03\x01", b""), (b"PRI * X", b"")):
            async with wire(echo.port, begun=False) as client:
                client.write(sent)
                received = await asyncio.wait_for(client.reader.read(), 10)
                assert received.startswith(begin) and bool(received) == bool(begin)
        await until(lambda: not echo.connections)


async def test_a_connection_that_is_not_made_yet_can_be_asked_anything() -> None:
    echo = EchoServer()
    connection = echo.connection()
    connection.check(asyncio.get_running_loop().time() + 1000)
    connection.give_notice()
    connection.leave()
    connection.abort()
    transport = Mock(is_closing=lambda: False)
    connection.connection_made(transport)
    transport.write_eof.assert_called_once()


async def test_nothing_comes_before_settings() -> None:
    async with echo_server() as echo:
        for sent in (frame(frames.PING, 0, 0, bytes(8)), OPEN, frame(frames.SETTINGS, ACK, 0) + OPEN):
            async with wire(echo.port, begun=False) as client:
                client.write(PREFACE, sent)
                assert (await client.end())[0] is E.PROTOCOL_ERROR


FLOODS: dict[str, Callable[[Wire], bytes]] = {
    "pings": lambda client: frame(frames.PING, 0, 0, bytes(8)),
    "settings": lambda client: settings_frame({}),
    "settings acknowledged": lambda client: frame(frames.SETTINGS, ACK, 0),
    "priorities": lambda client: frame(frames.PRIORITY, 0, 99, bytes(5)),
    "what nobody knows": lambda client: frame(0x77, 0, 0),
    "empty data": lambda client: data(1, b""),
    "padding": lambda client: data(1, b"\0", flags=PADDED),
    "opened and reset": lambda client: client.head(client.number(), "/never") + reset(client.next - 2),
    "complete and reset": lambda client: client.request("/never") + reset(client.next - 2),
    "reset by a window": lambda client: client.request("/never") + frame(8, 0, client.next - 2, bytes(4)),
    "reset by trailers": lambda client: client.head(client.number(), "/never") + client.head(client.next - 2),
    "malformed": lambda client: frame(frames.HEADERS, END_HEADERS, client.number(), b"\x83"),
    "many settings at once": lambda client: frame(frames.SETTINGS, 0, 0, b"\0\4\0\0\0\1" * 10_000),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_frames_that_carry_nothing_ends_the_connection(kind: str) -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        client.write(client.head(client.number(), "/never"))
        for _ in range(MAX_STRIKES + 50):
            client.write(FLOODS[kind](client))
        assert (await client.end())[0] is E.ENHANCE_YOUR_CALM


async def test_calls_that_are_answered_make_up_for_frames_that_carry_nothing() -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        for _ in range(3 * MAX_STRIKES // 50):
            for _ in range(50):
                client.write(client.request("/early"), frame(frames.PING, 0, 0, bytes(8)))
            await client.settled()
        client.write(client.request(content=b"after"))
        assert await client.answer(client.next - 2) == b"after"


async def test_each_frame_of_an_answer_makes_up_for_one_that_carries_nothing() -> None:
    # A client that measures its connection pings with each of them (grpc-go).
    async with echo_server() as echo, wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 2**30}) as client:
        client.write(window_update(0, 2**30))
        for _ in range(2 * MAX_STRIKES // 100):
            client.write(client.request(f"/{100 * 2**14}"))
            await client.answer(client.next - 2)
            client.write(frame(frames.PING, 0, 0, bytes(8)) * 99)
            await client.settled()
        client.write(client.request(content=b"after"))
        assert await client.answer(client.next - 2) == b"after"


async def test_an_answer_that_is_taken_byte_by_byte_makes_up_for_nothing() -> None:
    async with echo_server() as echo, wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 0}) as client:
        client.write(client.request("/9000"))
        for _ in range(MAX_STRIKES + 50):
            client.write(window_update(1, 1), frame(frames.PING, 0, 0, bytes(8)))
        assert (await client.end())[0] is E.ENHANCE_YOUR_CALM


async def test_content_on_its_way_to_a_call_that_was_answered_early_is_no_flood() -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        client.write(client.head(client.number(), "/early"))
        for _ in range(2 * MAX_STRIKES):
            client.write(data(1, b"some of it"))
        client.write(client.request(content=b"after"))
        assert await client.answer(3) == b"after"


async def test_more_streams_than_may_be_open_are_refused_and_the_others_are_answered() -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        for _ in range(MAX_STREAMS):
            client.write(client.head(client.number()))
        client.write(client.request(content=b"one too many"))
        assert await client.reset(2 * MAX_STREAMS + 1) is E.REFUSED_STREAM
        client.write(data(1, b"first", flags=END_STREAM))
        assert await client.answer(1) == b"first"
        client.write(client.request(content=b"after"))
        assert await client.answer(2 * MAX_STREAMS + 3) == b"after"


def conversation(client: Wire) -> bytes:
    """Everything that is allowed."""
    padded = bytes((7,)) + b"padded" + bytes(7)
    parts = [
        PREFACE,
        settings_frame({Setting.INITIAL_WINDOW_SIZE: 5}),
        client.request(content=b"one"),
        client.request(content=b"longer than the window is"),
        frame(frames.PING, 0, 0, b"12345678"),
        client.head(client.number()),
        data(5, b"a"),
        data(5, padded, flags=PADDED),
        frame(frames.PRIORITY, 0, 5, bytes(5)),
        frame(frames.HEADERS, END_HEADERS | END_STREAM, 5, client.encoder.encode([("trailer", "x")])),
        frame(frames.HEADERS, END_STREAM, client.number(), (continued := client.fields("/echo", ("x", "y" * 99)))[:10]),
        frame(frames.CONTINUATION, 0, 7),
        frame(frames.CONTINUATION, END_HEADERS, 7, continued[10:]),
        frame(0x99, 0xFF, 7, b"unknown"),
        settings_frame({Setting.INITIAL_WINDOW_SIZE: 50, Setting.MAX_FRAME_SIZE: 2**15}),
        window_update(0, 10),
        client.head(client.number(), "/never"),
        reset(9),
        client.request(content=b"last"),
    ]
    return b"".join(parts)


ANSWERS = {1: b"one", 3: b"longer than the window is", 5: b"apadded", 7: b"", 11: b"last"}


async def answers_to(pieces: Sequence[bytes]) -> dict[int, bytes]:
    async with echo_server() as echo, wire(echo.port, begun=False) as client:
        found: dict[int, bytes] = {}
        ended = set()
        for piece in pieces:
            client.write(piece)
            await asyncio.sleep(0)
        while len(ended) < len(ANSWERS):
            kind, flags, number, payload = await client.frame()
            assert kind not in (frames.GOAWAY, frames.RST_STREAM)
            if kind == frames.DATA:
                found[number] = found.get(number, b"") + payload
            if kind <= frames.HEADERS and flags & END_STREAM:
                ended.add(number)
        return {number: found.get(number, b"") for number in ended}


def stream_of_bytes() -> bytes:
    return conversation(Wire(None, None))  # type: ignore[arg-type]


async def test_bytes_that_come_one_by_one_are_answered_as_if_they_came_at_once() -> None:
    sent = stream_of_bytes()
    assert await answers_to([sent]) == ANSWERS
    assert await answers_to([bytes((byte,)) for byte in sent]) == ANSWERS


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(stream_of_bytes())), max_size=6))
def test_wherever_bytes_are_split_the_answers_are_the_same(places: list[int]) -> None:
    sent = stream_of_bytes()
    cuts = [0, *sorted(places), len(sent)]
    assert asyncio.run(answers_to([sent[a:b] for a, b in zip(cuts, cuts[1:], strict=False)])) == ANSWERS


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(stream_of_bytes())))
def test_a_client_that_leaves_anywhere_leaves_nothing_behind(place: int) -> None:
    async def leave() -> None:
        async with echo_server() as echo:
            async with wire(echo.port, begun=False) as client:
                client.write(stream_of_bytes()[:place])
                await client.writer.drain()
            await until(lambda: not echo.connections)
            is_left_clean(echo)

    asyncio.run(leave())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=20))))
def test_no_frames_are_a_fault_of_the_server(sent: list[tuple[int, int, int, bytes]]) -> None:
    async def send() -> None:
        async with echo_server() as echo:
            async with wire(echo.port) as client:
                client.write(b"".join([frame(*each) for each in sent]))
                client.writer.write_eof()
                code, text = await client.end()
                assert code is not E.INTERNAL_ERROR, text
            await until(lambda: not echo.connections)
            is_left_clean(echo)

    asyncio.run(send())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_no_block_is_a_fault_of_the_server(packed: bytes) -> None:
    async def send() -> None:
        echo = EchoServer()
        connection = echo.connection()
        connection._transport = type(  # type: ignore[assignment]
            "Nowhere", (), {"is_closing": lambda self: True, "get_write_buffer_size": lambda self: 0}
        )()
        connection.data_received(PREFACE + settings_frame({}))
        failed: list[ErrorCode] = []
        connection._say_goodbye = lambda last, code=E.NO_ERROR, text="": failed.append(code)  # type: ignore[method-assign]
        connection.data_received(frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, packed))
        assert E.INTERNAL_ERROR not in failed

    asyncio.run(send())


async def test_a_table_that_was_made_nothing_and_large_again_is_what_its_client_thinks_it_is() -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        numbers = iter(range(1, 99, 2))

        def ask(packed: bytes) -> bytes:
            return frame(frames.HEADERS, END_HEADERS | END_STREAM, next(numbers), packed)

        literal = b"\x83\x86\x04\x05/echo"  # method and scheme are in the static table, the path in none
        emptied, restored = b"\x20" + literal, b"\x3f\xe1\x1f" + literal
        client.write(ask(restored), ask(emptied), ask(restored))
        client.write(ask(literal + b"\x40\x04name\x05value"), ask(literal + b"\xbe"))
        assert await client.answer(9) == b""
        assert echo.exchanges[-1].head.metadata == ((b"name", b"value"),)


@pytest.mark.parametrize("path", ["/echo", "/early", "/9"])
async def test_a_client_that_keeps_a_smaller_table_is_told_that_none_is_used(path: str) -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        client.write(client.request())
        await client.answer(1)
        for size in (0, 4096, 10):
            client.write(settings_frame({Setting.HEADER_TABLE_SIZE: size, Setting.INITIAL_WINDOW_SIZE: 5}))
            await client.settled()
            client.decoder.max_allowed_table_size = size
            client.write(client.request(path), window_update(client.next - 2, 99))
            await client.answer(client.next - 2)


async def test_an_answer_waits_for_its_windows_and_holds_nothing_once_it_was_taken() -> None:
    async with echo_server() as echo, wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.write(client.request("/30000"))
        await client.settled()
        assert echo.answers.held_bytes >= 29_990
        client.write(window_update(1, 29_989))
        await client.settled()
        client.write(window_update(1, 1))
        await client.answer(1)
        assert not echo.answers.held_bytes
        client.write(client.request("/30000"))
        await client.settled()
        client.write(settings_frame({Setting.INITIAL_WINDOW_SIZE: 29_999}))
        await client.settled()
        client.write(settings_frame({Setting.INITIAL_WINDOW_SIZE: 0}), window_update(3, 1))
        await client.settled()
        client.write(window_update(3, 29_998), settings_frame({Setting.INITIAL_WINDOW_SIZE: 30_000}))
        await client.answer(3)
        assert not echo.answers.held_bytes


@pytest.mark.parametrize("end", [reset(1), window_update(1, 0), data(1, b"more")])
async def test_an_answer_whose_call_has_gone_holds_nothing(end: bytes) -> None:
    async with echo_server() as echo, wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.write(client.request("/30000"))
        await client.settled()
        assert echo.answers.held_bytes
        client.write(end)
        await client.settled()
        assert not echo.answers.held_bytes and echo.exchanges[0].left


async def test_answers_that_no_client_takes_are_bounded_together() -> None:
    async with echo_server(max_held_answer_bytes=2**20) as echo:
        async with wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 0}) as client:
            for _ in range(10):
                client.write(client.request("/200000"))
            await client.end()
        await until(lambda: not echo.connections)
        is_left_clean(echo)


async def test_a_flood_of_wider_windows_costs_no_look_at_answers_that_wait_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with echo_server() as echo, wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 0}) as client:
        for _ in range(MAX_STREAMS):
            client.write(client.request("/70000"))
        number = client.next - 2
        client.write(window_update(number, 70_000))
        await client.settled()
        (connection,) = echo.connections
        pushed, push = [], connection.push

        def count(stream: Stream) -> None:
            pushed.append(stream.number)
            push(stream)

        monkeypatch.setattr(connection, "push", count)
        client.write(*[window_update(0, 10)] * 1000)
        await client.answer(number)
        assert set(pushed) == {number} and len(pushed) < 1000
        client.write(window_update(1, 70_000), window_update(0, 70_000))
        assert await client.answer(1) == bytes(70_000)


async def test_more_content_than_a_window_takes_ends_its_stream() -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        client.write(client.head(client.number()))
        # The window is given back once half of it is taken, while the exchange takes what comes.
        for _ in range(STREAM_WINDOW // 2**14 * 3):
            client.write(data(1, bytes(2**14)))
        await client.settled()
        echo.exchanges[0].stream.pause()
        for _ in range(STREAM_WINDOW // 2**14 + 1):
            client.write(data(1, bytes(2**14)))
        assert await client.reset(1) is E.FLOW_CONTROL_ERROR
        assert echo.exchanges[0].left


async def test_a_connection_whose_client_reads_nothing_ends_even_after_a_fault() -> None:
    limits = {"write_timeout_seconds": 0.05, "min_bytes_per_second": 1000}
    async with echo_server(**limits) as echo, wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 2**30}) as client:
        client.writer.transport.pause_reading()
        client.write(window_update(0, 2**30))
        (connection,) = echo.connections
        for _ in range(2000):
            client.write(client.request("/4000"))
            await asyncio.sleep(0)
            if connection._transport.get_write_buffer_size():
                break
        client.write(OPEN)
        await until(lambda: connection._deaf)
        connection._transport.close()
        loop = asyncio.get_running_loop()
        for _ in range(4):
            connection.check(loop.time())
            await asyncio.sleep(0.06)
        assert not echo.connections


@pytest.mark.parametrize("others", [0, 20])
async def test_a_stream_whose_answer_is_not_taken_ends_and_its_connection_goes_on(others: int) -> None:
    limits = {"write_timeout_seconds": 10, "min_bytes_per_second": 100}
    async with echo_server(**limits) as echo, wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.write(window_update(0, 2**30), client.request("/30000"), client.request("/never"))
        await client.settled()
        (connection,) = echo.connections
        now = asyncio.get_running_loop().time()
        for seconds in range(12):
            assert not echo.exchanges[0].left
            connection.check(now + seconds)
            for _ in range(others):
                client.write(client.request("/1000"), window_update(client.next - 2, 1000))
            await client.settled()
        assert [exchange.left for exchange in echo.exchanges[:2]] == [True, False]
        client.write(client.request(content=b"after"))
        assert await client.answer(client.next - 2) == b"after"
        assert not echo.answers.held_bytes


async def test_a_stream_that_is_taken_slowly_goes_on_beside_others() -> None:
    limits = {"write_timeout_seconds": 10, "min_bytes_per_second": 100}
    async with echo_server(**limits) as echo, wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 10}) as client:
        client.write(client.request("/2000"), client.request("/30000"))
        await client.settled()
        (connection,) = echo.connections
        now = asyncio.get_running_loop().time()
        for seconds in range(25):
            connection.check(now + seconds)
            client.write(window_update(1, 10), window_update(3, 200))
            await client.settled()
        client.write(window_update(1, 2000))
        await client.answer(1)


async def test_a_client_that_takes_nothing_of_all_its_answers_is_cut_off() -> None:
    limits = {"write_timeout_seconds": 10}
    async with echo_server(**limits) as echo, wire(echo.port, settings={Setting.INITIAL_WINDOW_SIZE: 2**20}) as client:
        client.write(client.request("/70000"), client.request("/never"))
        await client.settled()
        (connection,) = echo.connections
        now = asyncio.get_running_loop().time()
        connection.check(now)
        assert not echo.exchanges[0].left
        connection.check(now + 11)
        await client.end()
        await until(lambda: not echo.connections)
        is_left_clean(echo)


async def test_thousands_of_frames_that_come_at_once_let_others_run_between() -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        loop, before, most = asyncio.get_running_loop(), 0, 0

        def turn() -> None:
            nonlocal before, most
            most, before = max(most, len(echo.exchanges) - before), len(echo.exchanges)
            if len(echo.exchanges) < 5000:
                loop.call_soon(turn)

        turn()
        client.write(b"".join([client.request("/early") for _ in range(5000)]))
        await client.answer(client.next - 2)
        assert len(echo.exchanges) == 5000 and most <= FRAMES_AT_ONCE


async def test_ten_thousand_calls_on_one_connection_are_answered() -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        for _ in range(100):
            for _ in range(100):
                client.write(client.request(content=b"x" * 100))
            await client.answer(client.next - 2)
            client.write(window_update(0, 10_000))
        assert len(echo.exchanges) == 10_000
        (connection,) = echo.connections
        assert not connection._streams and not connection._waiting


async def test_a_client_that_closes_its_sending_side_has_gone() -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        client.write(client.head(client.number()), client.request("/never"), client.request(content=b"answered"))
        client.writer.write_eof()
        assert await client.answer(5) == b"answered"
        await client.end()
        await until(lambda: not echo.connections)
        assert [exchange.left for exchange in echo.exchanges] == [True, True, False]


async def test_a_connection_that_leaves_answers_what_is_open_and_refuses_the_rest() -> None:
    async with echo_server() as echo, wire(echo.port) as client:
        client.write(client.head(client.number()))
        await client.settled()
        (connection,) = echo.connections
        connection.give_notice()
        client.write(client.request(content=b"on its way"))
        assert await client.answer(3) == b"on its way"
        connection.leave()
        client.write(client.request(content=b"late"))
        assert await client.reset(5) is E.REFUSED_STREAM
        client.write(data(1, b"first", flags=END_STREAM))
        assert await client.answer(1) == b"first"
        await client.end()
