"""A front on a real port in this process, before a fake engine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from uvicorn import Config

from gateway.control.store import Store
from gateway.predictions.commit import GroupCommit
from gateway.predictions.disk import Disk
from gateway.predictions.reader import SpoolReader
from gateway.predictions.spool import SpoolWriter
from gateway.routing.table import Route
from gateway.serving.front import Front
from gateway.serving.protocol import GatewayProtocol
from gateway.serving.server import FrontServer
from gateway.serving.web import create_web
from gateway.settings import Settings, load_settings
from gateway.telemetry.cells import CellFile
from tests.engines import FakeEngine, fake_engine

ROW = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}


class Door:
    """The front, its engine, and raw connections to it."""

    def __init__(self, front: Front, engine: Any, server: FrontServer, port: int, spool_dir: Path) -> None:
        self.front, self.engine, self.server, self.port = front, engine, server, port
        self._spool_dir = spool_dir

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(
        self, *pieces: bytes, pause: float = 0.0, read: int | None = None
    ) -> list[tuple[int, dict[str, str], Any]]:
        """Send pieces on one connection; return its answers until it closes, or `read` of them."""
        reader, writer = await self.connect()
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        answers: list[tuple[int, dict[str, str], Any]] = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while read is None or len(answers) < read:
                answers.append(await read_answer(reader))
        writer.close()
        return answers

    def log(self) -> list[dict[str, Any]]:
        reader = SpoolReader(self._spool_dir)
        records = [json.loads(record.payload) for record in reader.read(100_000)]
        reader.close()
        return records


async def read_answer(reader: asyncio.StreamReader, *, seconds: float = 10) -> tuple[int, dict[str, str], Any]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), seconds)).decode("latin-1")
    status_line, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    content = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", 0))), seconds)
    with contextlib.suppress(ValueError):
        return int(status_line.split()[1]), headers, json.loads(content)
    return int(status_line.split()[1]), headers, content


def post(
    body: Any = None,
    *,
    path: str = "/v2/models/m/infer",
    headers: str = "",
    version: str = "1.1",
    chunked: bool = False,
) -> bytes:
    content = json.dumps({"inputs": [ROW]} if body is None else body).encode() if not isinstance(body, bytes) else body
    head = f"POST {path} HTTP/{version}\r\nHost: gateway\r\n{headers}"
    if chunked:
        pieces = [content[start : start + 7] for start in range(0, len(content), 7)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode("latin-1") + content


def get(path: str, *, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: gateway\r\n{headers}\r\n".encode()


@contextlib.asynccontextmanager
async def real_engine(path: Path, model_file: Path) -> AsyncIterator[None]:
    """onnxruntime in a process of its own."""
    command = [sys.executable, "-m", "gateway.engine", str(model_file), str(path), "1", str(2**30)]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        async with asyncio.timeout(20):
            while not path.exists():
                assert process.returncode is None, "the engine ended"
                await asyncio.sleep(0.01)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def door(
    tmp_path: Path,
    *,
    route: Route | None = None,
    model_file: Path | None = None,
    engine_options: dict[str, Any] | None = None,
    disk: Disk | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[Door]:
    """A front before a fake engine, or before a real one of `model_file`; its spool is on `disk`."""
    settings = load_settings(overrides={"state_dir": tmp_path, **sections})
    waits, stream = settings.spool.fsync == "always", settings.spool_dir / "front-0"
    spool = SpoolWriter(stream, slot=0, settings=settings.spool, deferred=waits, disk=disk)
    loop, waiting = asyncio.get_running_loop(), settings.spool.max_waiting_answers
    commit = GroupCommit(spool, loop=loop, max_waiting=waiting, disk=disk) if waits else None
    cells = CellFile(tmp_path / "front.cells")
    path = tmp_path / "m-1.sock"
    async with (
        fake_engine(path, **(engine_options or {})) if model_file is None else real_engine(path, model_file)
    ) as engine:
        front = Front(
            settings,
            name="g",
            spool=spool,
            cells=cells,
            sockets=lambda model, version: [tmp_path / f"{model}-{version}.sock"],
            commit=commit,
        )
        digest = "sha256:01" if model_file is None else ""  # an engine of a bare file has none
        front.follow(1, {"m": route or Route("m", stable=1)}, {("m", 1): digest})
        for served in front.versions.values():
            await served.lane.connect()
        server, port, tasks = await _serve(front, settings)
        while not front.versions["m", 1].lane.ready:
            await asyncio.sleep(0.001)
        try:
            yield Door(front, engine, server, port, settings.spool_dir)
        finally:
            server.should_exit = True
            if isinstance(engine, FakeEngine):
                engine.hold.set()
            front.close()
            await asyncio.gather(*tasks, return_exceptions=True)
            if commit is not None:
                await commit.close()
            spool.close()
            cells.close()


async def _serve(front: Front, settings: Settings) -> tuple[FrontServer, int, list[Any]]:
    protocol = functools.partial(GatewayProtocol, front=front, targets={})
    config = Config(
        create_web(front, clock=time.time, store=Store(settings.store_url)),
        http=protocol,  # type: ignore[arg-type]
        port=0,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = FrontServer(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    sweeping = asyncio.create_task(_sweep(server, front))
    serving.add_done_callback(lambda _: sweeping.cancel())
    return server, server.servers[0].sockets[0].getsockname()[1], [serving, sweeping]


async def _sweep(server: FrontServer, front: Front) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(0.05)
        front.tick(time.perf_counter())
        for connection in list(server.server_state.connections):
            connection.sweep(loop.time())  # type: ignore[union-attr]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))
