"""What an engine spends on one frame, in CPU time of its process, and how long one who asks waits for it.

    python -m benchmarks.engine_cost [--beside CHECKOUT] [--rounds 9]

One engine process of the model `tabular` and one client, pinned to one core, as a front and an engine are on a small
machine. `warm` asks for one row at a time. `cold` is the same, but the client goes through `COLD_BYTES` of memory
between two questions, as a front's own work would: what the engine needs is no longer in the core's caches. `two in
flight` keeps two frames of 32 rows with the engine. With `--beside` the engine of another checkout is measured in turn
with this one's; their order changes each round. Median of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.models import FEATURES, model_file
from gateway.engine.wire import HEADER, encode_run

HERE = Path(__file__).parents[1]
CACHE = HERE / ".cache" / "benchmarks"
COLD_BYTES = 2**22
WAIT_SECONDS = 30.0
MANY_ROWS = 32


class Asker:
    """A blocking client that knows the answers' size, and so does next to nothing itself."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._place = memoryview(bytearray(2**20))
        self._receive(self._frame_bytes())  # the greeting

    def close(self) -> None:
        self._socket.close()

    def measure(self, rows: int, *, count: int, in_flight: int = 1, cold: bool = False) -> list[float]:
        """Ask `count` times; returns the seconds that each answer took."""
        features = np.random.default_rng(rows).uniform(-1.0, 1.0, (rows, FEATURES)).astype("f4")
        frame = b"".join(encode_run(1, [[features]]))
        elsewhere = np.ones(COLD_BYTES // 8)
        self._socket.sendall(frame)
        size = self._frame_bytes()
        self._receive(size)
        for _ in range(in_flight - 1):
            self._socket.sendall(frame)
        waited = []
        for _ in range(count):
            if cold:
                elsewhere.sum()
            began = time.perf_counter()
            self._socket.sendall(frame)
            self._receive(size)
            waited.append(time.perf_counter() - began)
        for _ in range(in_flight - 1):
            self._receive(size)
        return waited

    def _frame_bytes(self) -> int:
        header = self._socket.recv(HEADER.size, socket.MSG_PEEK | socket.MSG_WAITALL)
        return HEADER.size + int(HEADER.unpack(header)[0])

    def _receive(self, size: int) -> None:
        while size:
            size -= self._socket.recv_into(self._place[:size])


@contextlib.contextmanager
def engine_of(checkout: Path, core: int) -> Iterator[tuple[Asker, int]]:
    """A client of a running engine of this checkout, and the engine's process id."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        path = Path(folder) / "engine.sock"
        command = [sys.executable, "-m", "gateway.engine", str(model_file("tabular", CACHE)), str(path), "1"]
        engine = subprocess.Popen(command, cwd=checkout)
        try:
            until = time.monotonic() + WAIT_SECONDS
            while not path.exists() and engine.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            for thread in os.listdir(f"/proc/{engine.pid}/task"):
                os.sched_setaffinity(int(thread), {core})
            asker = Asker(path)
            yield asker, engine.pid
            asker.close()
        finally:
            engine.terminate()
            engine.wait(WAIT_SECONDS)


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond (clock_getcpuclockid(3) on Linux)."""
    return time.clock_gettime(~pid << 3 | 2)


def cost(asker: Asker, pid: int, kind: str, count: int) -> tuple[float, float]:
    """CPU microseconds of the engine a frame, and the median wall time of a question."""
    before = cpu_seconds(pid)
    if kind == "two in flight":
        waited = asker.measure(MANY_ROWS, count=count, in_flight=2)
    else:
        waited = asker.measure(1, count=count, cold=kind == "cold")
    return (cpu_seconds(pid) - before) / count * 1e6, statistics.median(waited) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="another checkout of the gateway")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=1000, help="questions a round")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    checkouts = [HERE] + ([arguments.beside.resolve()] if arguments.beside else [])
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(engine_of(checkout, arguments.core)) for checkout in checkouts]
        for asker, _ in engines:
            asker.measure(1, count=arguments.count)
        print(f"{'':>14} {'engine':<24} {'cpu us a frame':>15} {'wall us':>8}")
        for kind in ("warm", "cold", "two in flight"):
            costs: list[list[tuple[float, float]]] = [[] for _ in engines]
            for number in range(arguments.rounds):
                order = list(enumerate(engines))
                for index, (asker, pid) in order if number % 2 else reversed(order):
                    costs[index].append(cost(asker, pid, kind, arguments.count))
            for checkout, rounds in zip(checkouts, costs, strict=True):
                cpu, wall = (statistics.median(values) for values in zip(*rounds, strict=True))
                print(f"{kind:>14} {checkout.name:<24} {cpu:>15.1f} {wall:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
