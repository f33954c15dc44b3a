"""A front with models of many signatures, and the checks that follow every hostile input."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gateway.engine.wire import Hello
from gateway.predictions.spool import SpoolWriter
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.routing.table import Route
from gateway.serving.front import Front
from gateway.settings import load_settings
from gateway.telemetry.cells import CellFile
from tests.engines import FakeEngine
from tests.serving.fronts import Door, _serve, get, post, read_answer

LIVE_SECONDS = 1.0
ANSWER_SECONDS = 20.0
PIPELINED = 25
PIPELINED_BYTES = 2**20
STATUS_LINE = b"HTTP/1.1 "

INPUTS: dict[str, tuple[TensorSpec, ...]] = {
    "m": (TensorSpec("x", "FP32", (-1, 3)),),
    "pair": (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "FP32", (-1, 2))),
    "free": (TensorSpec("x", "FP32", (-1, -1, -1)),),
    "scalar": (TensorSpec("x", "FP32", ()),),
    "ints": (TensorSpec("x", "INT64", (-1,)),),
    "octets": (TensorSpec("x", "UINT8", (-1,)),),
    "flags": (TensorSpec("x", "BOOL", (-1,)),),
    "texts": (TensorSpec("x", "BYTES", (-1,)),),
    "half": (TensorSpec("x", "FP16", (-1,)),),
    "nan": (TensorSpec("x", "FP32", (-1,)),),
}
"""Inputs of the models; each answers with its first input as it came, but `m` doubles and `nan` knows only NaN."""


class World:
    """One front, its port, and what it has left behind."""

    def __init__(self, door: Door, lines: list[logging.LogRecord]) -> None:
        self.door = door
        self.lines = lines
        self.process = psutil.Process()

    @property
    def records(self) -> int:
        """Records in the log so far."""
        return self.door.front.spool.next_sequence

    @property
    def series(self) -> str:
        """The metric file and how many series it has."""
        return repr(self.door.front.cells)

    def resident_bytes(self) -> int:
        gc.collect()
        return int(self.process.memory_info().rss)

    async def check_serving(self) -> None:
        """Live within a second, and the next good request is answered right."""
        [(status, _, _)] = await asyncio.wait_for(self.door.send(get("/v2/health/live"), read=1), LIVE_SECONDS)
        assert status == 200
        [(status, _, body)] = await self.door.send(post(), read=1)
        assert status == 200 and body["outputs"][0]["data"] == [2.0, 4.0, 6.0]

    def check_quiet(self, *, most_lines: int = 1) -> None:
        """No traceback and at most one line in the process log."""
        lines, self.lines[:] = list(self.lines), []
        assert not any(line.exc_info for line in lines), [line.getMessage() for line in lines]
        assert len(lines) <= most_lines, [line.getMessage() for line in lines]


class Exchange:
    """One connection, kept as long as the front keeps it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, raw: bytes, answers: int, *, closes: bool) -> list[tuple[int, dict[str, str], Any]]:
        """Send bytes, read so many answers, and see that the front then closes, or that it does not say so."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await self._world.door.connect()
        reader, writer = self._reader, self._writer
        writer.write(raw)
        async with asyncio.timeout(ANSWER_SECONDS):
            got = [await read_answer(reader) for _ in range(answers)]
            if closes:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b"", "more was answered than was asked"
        said_close = got[-1][1].get("connection") == "close" if got else True
        assert said_close == closes
        if closes:
            self.close()
        return got

    async def repeat(self, raw: bytes, answers: int, *, times: int, closes: bool) -> None:
        """Send the same many times, pipelined where the connection goes on, and see that as many answers come."""
        if closes:
            for _ in range(times):
                reader, writer = await self._world.door.connect()
                writer.write(raw)
                await _heads(reader, answers)
                writer.transport.abort()
            return
        reader, writer = await self._world.door.connect()
        at_once = max(1, min(PIPELINED, PIPELINED_BYTES // len(raw)))
        while times > 0:
            count = min(times, at_once)
            writer.write(raw * count)
            await _heads(reader, count * answers)
            times -= count
        writer.transport.abort()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


async def _heads(reader: asyncio.StreamReader, count: int) -> None:
    # Bytes of the last answer may follow those of its head; the next answers' heads are told apart all the same.
    tail = b""
    async with asyncio.timeout(ANSWER_SECONDS):
        while count > 0:
            received = await reader.read(2**20)
            if not received:
                raise EOFError(f"{count} answers are missing")
            count -= (tail + received).count(STATUS_LINE)
            tail = received[-len(STATUS_LINE) + 1 :]


class _Lines(logging.Handler):
    def __init__(self, lines: list[logging.LogRecord]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record)


@contextlib.contextmanager
def _collected(lines: list[logging.LogRecord]) -> Iterator[None]:
    root, collector = logging.getLogger(), _Lines(lines)
    level = root.level
    root.addHandler(collector)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(collector)
        root.setLevel(level)


@contextlib.asynccontextmanager
async def hostile_world(tmp_path: Path, **sections: dict[str, Any]) -> AsyncIterator[World]:
    """A front before a fake engine of each model."""
    settings = load_settings(overrides={"state_dir": tmp_path, **sections})
    spool = SpoolWriter(settings.spool_dir / "front-0", slot=0, settings=settings.spool)
    cells = CellFile(tmp_path / "front.cells")
    lines: list[logging.LogRecord] = []
    async with contextlib.AsyncExitStack() as stack:
        for model, inputs in INPUTS.items():
            await _start_engine(stack, tmp_path, model, inputs)
        front = Front(
            settings,
            name="g",
            spool=spool,
            cells=cells,
            sockets=lambda model, version: [tmp_path / f"{model}-{version}.sock"],
        )
        front.follow(
            1, {model: Route(model, stable=1) for model in INPUTS}, {(model, 1): "sha256:01" for model in INPUTS}
        )
        for served in front.versions.values():
            await served.lane.connect()
        stack.enter_context(_collected(lines))
        server, port, tasks = await _serve(front, settings)
        while not all(served.lane.ready for served in front.versions.values()):
            await asyncio.sleep(0.001)
        world = World(Door(front, None, server, port, settings.spool_dir), lines)  # type: ignore[arg-type]
        await world.check_serving()
        lines.clear()
        try:
            yield world
        finally:
            server.should_exit = True
            front.close()
            await asyncio.gather(*tasks, return_exceptions=True)
            spool.close()
            cells.close()


async def _start_engine(
    stack: contextlib.AsyncExitStack, tmp_path: Path, model: str, inputs: tuple[TensorSpec, ...]
) -> None:
    outputs = (TensorSpec("y", inputs[0].datatype, inputs[0].shape),)
    engine = FakeEngine(tmp_path / f"{model}-1.sock")
    engine.hello = Hello(
        signature=Signature(inputs, outputs),
        pid=1,
        model=model,
        version=1,
        digest="sha256:01",
        batchable=model == "m",
        max_rows=8,
    )
    if model == "nan":
        engine.run = lambda arrays: [np.full_like(arrays[0], np.nan)]
    elif model != "m":
        engine.run = lambda arrays: [arrays[0]]
    server = await engine.serve()
    stack.callback(server.close)
    stack.callback(engine.die)


def infer(body: Any, *, model: str = "m", headers: str = "") -> bytes:
    """An inference request; a `str` is sent as it is."""
    content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    return post(content, path=f"/v2/models/{model}/infer", headers=headers)


def tensor(**changes: Any) -> dict[str, Any]:
    """An input of `m`, changed."""
    given = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]} | changes
    return {key: value for key, value in given.items() if value is not ...}


def inputs(*tensors: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request body."""
    return {"inputs": list(tensors) or [tensor()], **more}


def binary(document: Any, block: bytes = b"", *, length: int | str | None = None, model: str = "m") -> bytes:
    """A request with raw tensors behind its JSON."""
    head = json.dumps(document).encode() if not isinstance(document, bytes) else document
    said = len(head) if length is None else length
    return infer(head + block, model=model, headers=f"Inference-Header-Content-Length: {said}\r\n")


def raw_input(size: Any, **changes: Any) -> dict[str, Any]:
    """An input of `m` whose elements are raw."""
    return tensor(data=..., parameters={"binary_data_size": size}, **changes)
