"""Ten times the capacity: what is answered, how fast the rest is refused, what it costs, how soon it is over.

One whole gateway serves one model. First its capacity is found: as many requests a second as a closed loop gets
answered. Then ten times as many are sent, whether answers come or not (an open loop, each request on a connection of
its own), and after that half the capacity, until answers come as they did at first. Every answer is compared.

    python -m benchmarks.overload [--model slow] [--seconds 30] [--times 10]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from benchmarks.models import model_file
from benchmarks.ours import add_model, logged, running_gateway
from benchmarks.processes import cpu_seconds, memory_bytes, title
from benchmarks.servers import Running
from benchmarks.workloads import Workload, expected

ROOT = Path(__file__).parents[1]
CAPACITY_CONNECTIONS = 64
CAPACITY_SECONDS = 5.0
MAX_CONNECTIONS = 4000
"""More than a fast machine answers within limits.max_queue_wait_ms: the rest must be refused."""
AFTER_SECONDS = 10.0
STEP_SECONDS = 0.002


class Answer(NamedTuple):
    """One answer; `sent` in seconds of `time.perf_counter()`."""

    sent: float
    seconds: float
    status: int
    right: bool
    retry_after: bool


class Caller(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._sent = 0.0
        self.asking = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self) -> None:
        self.asking = True
        self._sent = time.perf_counter()
        self.transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        start = head.index(b"content-length: ") + 16
        if len(body) < int(head[start:].split(b"\r\n", 1)[0]):
            return
        self._received = b""
        if not self.asking:
            return  # it was idle too long
        self.asking = False
        status = int(head[9:12])
        right = status != 200 or self._load.is_right(body)
        self._load.answered(
            self, Answer(self._sent, time.perf_counter() - self._sent, status, right, b"retry-after" in head)
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.closed(self)


class Load:
    """Requests at a rate, or as fast as they are answered."""

    def __init__(self, url: str, body: bytes, wanted: np.ndarray) -> None:
        host, _, path = url.removeprefix("http://").partition("/")
        self._host, _, port = host.partition(":")
        self._port = int(port)
        head = f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.answers: list[Answer] = []
        self.lost = 0
        self.unsent = 0
        self._free: deque[Caller] = deque()
        self._opened = 0
        self._closed_loop = False
        self._wanted = wanted

    def is_right(self, body: bytes) -> bool:
        return bool(np.allclose(orjson.loads(body)["outputs"][0]["data"], self._wanted, rtol=1e-4, atol=1e-6))

    def answered(self, caller: Caller, answer: Answer) -> None:
        self.answers.append(answer)
        if self._closed_loop:
            caller.ask()
        else:
            self._free.append(caller)

    def closed(self, caller: Caller) -> None:
        self.lost += caller.asking
        self._opened -= 1
        with contextlib.suppress(ValueError):
            self._free.remove(caller)

    async def ask(self) -> None:
        """Send one request, on a connection that is free or a new one."""
        if self._free:
            self._free.pop().ask()
        elif self._opened < MAX_CONNECTIONS:
            await self.open()
            self._free.pop().ask()
        else:
            self.unsent += 1

    async def open(self) -> None:
        self._opened += 1
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(lambda: Caller(self), self._host, self._port)
        self._free.append(caller)

    async def as_fast_as_answered(self, connections: int, seconds: float) -> list[Answer]:
        self._closed_loop, before = True, len(self.answers)
        for _ in range(connections):
            await self.ask()
        await asyncio.sleep(seconds)
        self._closed_loop = False
        await self.settle()
        return self.answers[before:]

    async def at_rate(self, rate: float, seconds: float) -> list[Answer]:
        before, began, sent = len(self.answers), time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds:
            due = int(elapsed * rate) - sent
            sent += due
            for _ in range(due):
                await self.ask()
            await asyncio.sleep(STEP_SECONDS)
        return self.answers[before:]

    async def settle(self) -> None:
        for _ in range(3000):
            if len(self._free) >= self._opened:
                return
            await asyncio.sleep(0.01)


async def measure(server: Running, load: Load, *, seconds: float, times: float) -> None:
    processes = {title(pid): pid for pid in server.served()}
    await load.as_fast_as_answered(CAPACITY_CONNECTIONS, 1.0)
    used = {name: cpu_seconds([pid]) for name, pid in processes.items()}
    before = await load.as_fast_as_answered(CAPACITY_CONNECTIONS, CAPACITY_SECONDS)
    at_capacity = {name: cpu_seconds([pid]) - used[name] for name, pid in processes.items()}
    capacity = good(before) / CAPACITY_SECONDS
    calm = await load.at_rate(capacity / 2, 3.0)
    await load.settle()
    memory = {name: [memory_bytes([pid])] for name, pid in processes.items()}
    used = {name: cpu_seconds([pid]) for name, pid in processes.items()}

    async def watch() -> None:
        while True:
            await asyncio.sleep(1.0)
            for name, pid in processes.items():
                memory[name].append(memory_bytes([pid]))

    watching = asyncio.create_task(watch())
    began = time.perf_counter()
    during = await load.at_rate(capacity * times, seconds)
    watching.cancel()
    used = {name: cpu_seconds([pid]) - used[name] for name, pid in processes.items()}
    over = time.perf_counter()
    after = await load.at_rate(capacity / 2, AFTER_SECONDS)
    await load.settle()
    report(server, load, capacity, calm, during, [each for each in after if each.sent > over], over, times=times)
    for name, sizes in memory.items():
        sizes.append(memory_bytes([processes[name]]))
        shown = f"{sizes[0] / 2**20:.0f} MiB before, {max(sizes) / 2**20:.0f} at most, {sizes[-1] / 2**20:.0f} after"
        print(f"{name}: {shown}; {used[name] / (over - began):.0%} of a core during the overload")
        if "engine" in name:
            rates = good(before) / at_capacity[name], good(during) / used[name]
            print(
                f"  right answers for a second of its CPU: {rates[0]:.0f} at capacity, {rates[1]:.0f} in the overload"
            )
        else:
            print(f"  {used[name] / len(during) * 1e6:.0f} us of its CPU a request in the overload")


def good(answers: list[Answer]) -> int:
    return sum(answer.status == 200 and answer.right for answer in answers)


def report(
    server: Running,
    load: Load,
    capacity: float,
    calm: list[Answer],
    during: list[Answer],
    after: list[Answer],
    over: float,
    *,
    times: float,
) -> None:
    lasted = over - min(answer.sent for answer in during)
    offered = (len(during) + load.unsent) / lasted
    print(
        f"capacity {capacity:.0f} answers a second; offered {offered:.0f} a second for {lasted:.0f} s ({times:g} times)"
    )
    print(f"goodput {good(during) / lasted:.0f} a second: {good(during) / lasted / capacity:.2f} of the capacity")
    statuses = dict(Counter(answer.status for answer in load.answers))
    print(f"statuses {statuses}, wrong {sum(not answer.right for answer in load.answers)}")
    print(f"not sent for want of a connection {load.unsent}, connections lost {load.lost}")
    refused = [answer for answer in during if answer.status == 503]
    print(f"refused: {percentiles(refused)}; without Retry-After {sum(not answer.retry_after for answer in refused)}")
    print(f"answered during the overload: {percentiles([a for a in during if a.status == 200])}")
    print(f"answered before it: {percentiles(calm)}")
    usual = 3 * statistics.median(answer.seconds for answer in calm) + 0.005
    print(
        f"recovered {recovery(after, over, usual):.1f} s after it: nothing refused, half within {usual * 1000:.0f} ms"
    )
    if server.log is not None:
        print(f"answers {len(load.answers)}, logged {logged(server.log)}")


def recovery(after: list[Answer], over: float, usual: float) -> float:
    """Seconds from the end of the overload to the end of the last half second that was not as before."""
    late = 0.0
    for half in range(int(2 * AFTER_SECONDS)):
        answers = [each for each in after if half <= 2 * (each.sent - over) < half + 1]
        calm = answers and statistics.median(each.seconds for each in answers) <= usual
        if not calm or any(each.status != 200 for each in answers):
            late = (half + 1) / 2
    return late


def percentiles(answers: list[Answer]) -> str:
    if not answers:
        return "none"
    times = np.array([answer.seconds for answer in answers]) * 1000
    p50, p99, p999 = np.percentile(times, (50, 99, 99.9))
    return f"{len(answers)}, p50 {p50:.1f} ms, p99 {p99:.1f} ms, p99.9 {p999:.1f} ms, longest {times.max():.1f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="slow", choices=("slow", "tabular"))
    parser.add_argument("--seconds", type=float, default=30.0, help="of the overload")
    parser.add_argument("--times", type=float, default=10.0, help="the capacity")
    arguments = parser.parse_args()
    workload = Workload("overload", arguments.model)
    model = model_file(arguments.model, ROOT / ".cache" / "benchmarks")
    with tempfile.TemporaryDirectory(prefix="gateway-overload-") as folder:
        place = Path(folder)
        add_model(place / "models", arguments.model, model, place=place)
        body, _ = workload.body(0)
        wanted = expected(model, workload.inputs(0)).ravel()
        settings = {"GATEWAY_LIMITS__MAX_CONNECTIONS": str(MAX_CONNECTIONS + 100)}
        with running_gateway(place / "models", model=arguments.model, place=place, settings=settings) as [server]:
            load = Load(server.url, body, wanted)
            asyncio.run(measure(server, load, seconds=arguments.seconds, times=arguments.times))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
