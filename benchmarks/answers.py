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
from benchmarks.workloads import Workload, expected

__all__ = ("Checked", "check_answers")

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
    wanted = [expected(model, workload.inputs(number)) for number in range(len(bodies))]
    got = asyncio.run(_ask(url, bodies, workload.content_type, requests=requests, connections=connections))
    equal, largest = 0, 0.0
    for number, body in got:
        right = wanted[number]
        values = _values(body, url)
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
