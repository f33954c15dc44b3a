"""Whether answers are right: many connections, every request another one, each answer held against onnxruntime."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.errors import WrongAnswer
from benchmarks.grpc_load import METHOD
from benchmarks.workloads import Workload, expected
from gateway.serving.grpc.framing import framed

__all__ = ("Checked", "check_answers", "check_grpc_answers", "grpc_answer_bytes")

Array = np.ndarray[Any, np.dtype[Any]]
_TOLERANCE = 1e-5
_ANSWER_SECONDS = 30.0
_KEPT_BODIES = 64


@dataclass(frozen=True)
class Checked:
    """How many answers were compared, how many were equal bit for bit, and the largest relative difference."""

    answers: int
    equal: int
    difference: float


def check_answers(url: str, workload: Workload, model: Path, *, requests: int, connections: int) -> Checked:
    """Ask for so many answers, on all connections at once, and compare each with onnxruntime run on it alone.

    Raises
    ------
    WrongAnswer
        An answer is no success, cannot be read, or differs by more than 1 in 100,000.
    """
    bodies = [workload.body(number) for number in range(min(requests, _KEPT_BODIES))]
    got = asyncio.run(_ask(url, bodies, workload.content_type, requests=requests, connections=connections))
    return _compare([(number, _values(body, url)) for number, body in got], workload, model, url)


def check_grpc_answers(
    address: str, workload: Workload, model: Path, *, served_as: str, requests: int, connections: int
) -> Checked:
    """As `check_answers`, over gRPC.

    Raises
    ------
    WrongAnswer
    """
    messages = [workload.message(number, served_as=served_as) for number in range(min(requests, _KEPT_BODIES))]
    got = asyncio.run(_call(address, messages, requests=requests, connections=connections))
    return _compare([(number, _raw_values(content, address)) for number, content in got], workload, model, address)


def grpc_answer_bytes(address: str, message: bytes) -> int:
    """How long one answer is, with its frame.

    Raises
    ------
    WrongAnswer
    """
    ((_, content),) = asyncio.run(_call(address, [message], requests=1, connections=1))
    return len(framed(content))


def _compare(got: list[tuple[int, Array]], workload: Workload, model: Path, url: str) -> Checked:
    wanted = {number: expected(model, workload.inputs(number)) for number in {number for number, _ in got}}
    equal, largest = 0, 0.0
    for number, values in got:
        right = wanted[number]
        if values.shape != right.ravel().shape:
            raise WrongAnswer(f"{url} answered {values.size} numbers, expected {right.size}")
        difference = float(np.max(np.abs(values - right.ravel()) / np.maximum(np.abs(right.ravel()), 1e-6)))
        if not difference <= _TOLERANCE:
            raise WrongAnswer(f"{url} answered {values[:3]}, onnxruntime {right.ravel()[:3]}")
        largest = max(largest, difference)
        equal += bool(np.array_equal(values, right.ravel()))
    return Checked(len(got), equal, largest)


def _values(body: bytes, url: str) -> Array:
    try:
        return np.array(json.loads(body)["outputs"][0]["data"], np.float64).astype("f4").ravel()
    except (ValueError, LookupError, TypeError):
        raise WrongAnswer(f"{url} answered {body[:200]!r}") from None


def _raw_values(content: bytes, address: str) -> Array:
    from google.protobuf.message import DecodeError

    from gateway.serving.grpc import inference_pb2 as messages

    try:
        answer = messages.ModelInferResponse.FromString(content)
        if answer.raw_output_contents:
            return np.frombuffer(answer.raw_output_contents[0], "<f4")
        return np.array(answer.outputs[0].contents.fp32_contents, "f4")
    except (DecodeError, ValueError, LookupError):
        raise WrongAnswer(f"{address} answered {content[:200]!r}") from None


async def _call(address: str, messages: list[bytes], *, requests: int, connections: int) -> list[tuple[int, bytes]]:
    import grpc

    waiting = list(range(requests))
    got: list[tuple[int, bytes]] = []

    async def connection() -> None:
        # Channels with the same options would share one connection.
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(METHOD)
            while waiting:
                number = waiting.pop() % len(messages)
                got.append((number, await call(messages[number], timeout=_ANSWER_SECONDS)))

    try:
        await asyncio.gather(*[connection() for _ in range(min(connections, requests))])
    except grpc.RpcError as error:
        raise WrongAnswer(f"{address}: {error.code().name} {error.details()}") from None
    return got


async def _ask(
    url: str, bodies: list[tuple[bytes, int | None]], content_type: str, *, requests: int, connections: int
) -> list[tuple[int, bytes]]:
    place = urlsplit(url)
    waiting = list(range(requests))
    got: list[tuple[int, bytes]] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            while waiting:
                number = waiting.pop() % len(bodies)
                body, json_length = bodies[number]
                head = f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: {content_type}\r\n"
                if json_length is not None:
                    head += f"Inference-Header-Content-Length: {json_length}\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                got.append((number, await asyncio.wait_for(_answer(reader, url), _ANSWER_SECONDS)))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    try:
        await asyncio.gather(*[connection() for _ in range(min(connections, requests))])
    except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
        raise WrongAnswer(f"{url}: {type(error).__name__} {error}") from None
    return got


async def _answer(reader: asyncio.StreamReader, url: str) -> bytes:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if fields.get("transfer-encoding") == "chunked":
        pieces = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readexactly(2)
        body = b"".join(pieces)
    else:
        body = await reader.readexactly(int(fields.get("content-length", 0)))
    if status.split()[1] != "200":
        raise WrongAnswer(f"{url} answered {status}: {body[:200]!r}")
    return body
