"""What a front spends on one request, in CPU time of its process: Python only, no socket of a client.

Requests are given to real connections' protocol objects as bytes, in passes of the loop as a socket would bring them;
a real engine process runs them, a real spool logs them. The clients' transports only count what is written. So what is
measured is reading the head, decoding, routing, batching, the engine's socket, records, metrics and the answers.

    python -m benchmarks.front_cost [--rows 1] [--pass 32] [--rounds 9] [--profile]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import functools
import gc
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from benchmarks.models import model_file
from benchmarks.workloads import rows_of
from gateway.predictions.spool import SpoolWriter
from gateway.repository.policy import BatchingPolicy
from gateway.routing.table import Route
from gateway.serving.front import Front
from gateway.serving.protocol import GatewayProtocol
from gateway.settings import Settings
from gateway.telemetry.cells import CellFile

DIGEST = ""
ENGINE_SOCKET = "engine.sock"
CACHE = Path(__file__).parents[1] / ".cache" / "benchmarks"


class CountingTransport(asyncio.Transport):
    """Takes answers and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0
        self.last = b""
        self.wanted = -1
        self.arrived = asyncio.get_running_loop().create_future()

    def write(self, data: Any) -> None:
        self.answers += 1
        self.last = data
        if self.answers == self.wanted:
            self.arrived.set_result(None)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 9) if name in ("peername", "sockname") else default


async def measure(arguments: argparse.Namespace, place: Path) -> None:
    settings = Settings(state_dir=place / "state")
    engine_socket = place / ENGINE_SOCKET
    cells = CellFile(place / "front.cells")
    spool = SpoolWriter(place / "spool" / "front-0", slot=0, settings=settings.spool)
    try:
        front = Front(
            settings, name="bench", spool=spool, cells=cells, sockets=lambda _model, _version: [engine_socket]
        )
        front.follow(1, {"tabular": Route("tabular", stable=1)}, {("tabular", 1): DIGEST})
        lane = front.versions["tabular", 1].lane
        for _ in range(200):
            if await lane.connect() and lane.ready:
                break
            await asyncio.sleep(0.05)
        # The engine was started bare, without a manifest that says so.
        assert lane.hello is not None
        lane.hello = msgspec.structs.replace(lane.hello, batchable=True, max_rows=BatchingPolicy().max_rows)
        lane.line.join_up_to(lane.hello.max_rows, free_axes=False)
        front.versions["tabular", 1].greeted(lane.hello)
        connections = [connect(front) for _ in range(arguments.per_pass)]
        body = rows_of(arguments.rows).body(0)[0]
        head = b"POST /v2/models/tabular/infer HTTP/1.1\r\nHost: 127.0.0.1:8000\r\ncontent-type: application/json\r\n"
        wire = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        await passes(connections, wire, 50)
        gc.collect()
        profile = cProfile.Profile() if arguments.profile else None
        costs = []
        for _ in range(arguments.rounds):
            if profile:
                profile.enable()
            started = time.process_time()
            await passes(connections, wire, arguments.passes)
            costs.append((time.process_time() - started) / (arguments.passes * arguments.per_pass) * 1e6)
            if profile:
                profile.disable()
        print(
            f"{arguments.rows} row(s), {arguments.per_pass} requests a pass: "
            f"{min(costs):.1f} us a request at best, {statistics.median(costs):.1f} at the median"
        )
        if profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    finally:
        spool.close()


def connect(front: Front) -> tuple[GatewayProtocol, CountingTransport]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("only inferences are sent")

    config = Config(app, http=functools.partial(GatewayProtocol, front=front, targets={}), log_config=None)  # type: ignore[arg-type]
    config.load()
    protocol = GatewayProtocol(config, ServerState(), {}, asyncio.get_running_loop(), front=front, targets={})
    transport = CountingTransport()
    protocol.connection_made(transport)
    return protocol, transport


async def passes(connections: list[tuple[GatewayProtocol, CountingTransport]], wire: bytes, count: int) -> None:
    last, loop = connections[-1][1], asyncio.get_running_loop()
    for _ in range(count):
        last.wanted, last.arrived = last.answers + 1, loop.create_future()
        for protocol, _ in connections:
            protocol.data_received(wire)
        await last.arrived


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--pass", dest="per_pass", type=int, default=32)
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="where the time goes, function by function")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        place = Path(folder)
        command = [
            sys.executable,
            "-m",
            "gateway.engine",
            str(model_file("tabular", CACHE)),
            str(place / ENGINE_SOCKET),
            "1",
        ]
        engine = subprocess.Popen(command)
        try:
            uvloop.run(measure(arguments, place))
        finally:
            engine.terminate()
            engine.wait(10)
    return 0


if __name__ == "__main__":
    sys.exit(main())
