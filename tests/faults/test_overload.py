"""More requests than an engine can run: each is answered right or refused at once, and every one is in the log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.engines import save_doubler
from tests.gateways import RunningGateway, eventually, running_gateway
from tests.serving.fronts import post, read_answer

pytestmark = pytest.mark.fault

QUEUE = 20
ROW = {"name": "x", "shape": [1, 3], "datatype": "FP32"}
Answer = tuple[int, dict[str, str], Any]
Waiting = dict[int, "asyncio.Task[Answer]"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    place = tmp_path_factory.mktemp("overload")
    models = place / "models"
    models.mkdir()
    settings = {"GATEWAY_LIMITS__MAX_QUEUE_REQUESTS": str(QUEUE), "GATEWAY_ENGINE__HANG_SECONDS": "60"}
    settings["GATEWAY_LIMITS__REQUEST_TIMEOUT_MS"] = "60000"
    with running_gateway(place, models=models, environment=settings) as running:
        model = save_doubler(place / "doubler.onnx")
        for name in ("frozen", "other"):
            running.add(name, model)
            running.set_route(name, 1)
            eventually(lambda name=name: ask(running, name, 1)[0] == 200, what="an answer")
        yield running


def request(model: str, number: int, *, headers: str = "") -> bytes:
    tensor = {**ROW, "data": [number, 0.5, -number]}
    return post({"id": str(number), "inputs": [tensor]}, path=f"/v2/models/{model}/infer", headers=headers)


def ask(gateway: RunningGateway, model: str, number: int) -> Answer:
    async def once() -> Answer:
        async with connected(gateway) as (reader, writer):
            writer.write(request(model, number))
            return await read_answer(reader)

    return asyncio.run(once())


@contextlib.asynccontextmanager
async def connected(gateway: RunningGateway) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.http_port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@contextlib.contextmanager
def frozen(gateway: RunningGateway) -> Iterator[None]:
    [engine] = gateway.children("engine frozen/1")
    os.kill(engine, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine, signal.SIGCONT)


def check(number: int, answer: Answer) -> int:
    """Right, or refused with a word on when to come again."""
    status, headers, body = answer
    if status == 200:
        assert body["id"] == str(number)
        assert body["outputs"][0]["data"] == [2 * number, 1.0, -2 * number]
    else:
        assert status == 503 and "is full" in body["error"], body
        assert int(headers["retry-after"]) >= 1
    return status


def logged(gateway: RunningGateway) -> Counter[int]:
    """Records of the frozen model by status."""
    return Counter(record.status for record in gateway.predictions() if record.model == "frozen")


async def overfill(gateway: RunningGateway, held: contextlib.AsyncExitStack) -> Waiting:
    """Ask the frozen model more and more until somebody is refused."""
    waiting: Waiting = {}
    while not any(task.done() for task in waiting.values()):
        assert len(waiting) < 40 * QUEUE, "nobody is refused"
        for number in range(len(waiting), len(waiting) + QUEUE):
            reader, writer = await held.enter_async_context(connected(gateway))
            writer.write(request("frozen", number))
            waiting[number] = asyncio.create_task(read_answer(reader, seconds=60))
        await asyncio.sleep(0.2)
    return waiting


async def test_a_full_queue_refuses_at_once_and_the_rest_is_answered(gateway: RunningGateway) -> None:
    before = logged(gateway)
    async with contextlib.AsyncExitStack() as held:
        with frozen(gateway):
            waiting = await overfill(gateway, held)
            early = [check(number, task.result()) for number, task in waiting.items() if task.done()]
            assert set(early) == {503}
        statuses = Counter([check(number, await task) for number, task in waiting.items()])
    assert statuses[200] > 0 and statuses[503] >= len(early)
    assert logged(gateway) - before == statuses


async def test_another_model_is_answered_while_one_has_a_full_queue(gateway: RunningGateway) -> None:
    async with contextlib.AsyncExitStack() as held:
        with frozen(gateway):
            waiting = await overfill(gateway, held)
            reader, writer = await held.enter_async_context(connected(gateway))
            for number in range(20):
                writer.write(request("other", number))
                assert check(number, await read_answer(reader)) == 200
            assert not all(task.done() for task in waiting.values())
        for number, task in waiting.items():
            check(number, await task)


async def test_in_a_full_queue_a_high_priority_takes_the_place_of_another(gateway: RunningGateway) -> None:
    async with contextlib.AsyncExitStack() as held:
        with frozen(gateway):
            waiting = await overfill(gateway, held)
            refused = sum(task.done() for task in waiting.values())
            reader, writer = await held.enter_async_context(connected(gateway))
            writer.write(request("frozen", 4000, headers="Gateway-Priority: 1\r\n"))
            high = asyncio.create_task(read_answer(reader, seconds=60))
            async with asyncio.timeout(30):
                while sum(task.done() for task in waiting.values()) <= refused:
                    await asyncio.sleep(0.01)
            assert not high.done()
        assert check(4000, await high) == 200
        for number, task in waiting.items():
            check(number, await task)


async def test_a_flood_is_answered_or_refused_in_bounded_memory_with_a_record_of_each(gateway: RunningGateway) -> None:
    process = psutil.Process(gateway.children("front")[0])
    connections, each = 40, 50

    async def flood(first: int) -> list[int]:
        async with connected(gateway) as (reader, writer):
            writer.write(b"".join(request("frozen", number) for number in range(first, first + each)))
            return [check(number, await read_answer(reader, seconds=60)) for number in range(first, first + each)]

    before, resident = logged(gateway), []
    statuses: Counter[int] = Counter()
    for _ in range(4):
        for found in await asyncio.gather(*(flood(first) for first in range(0, connections * each, each))):
            statuses.update(found)
        resident.append(process.memory_info().rss)
    assert statuses.total() == 4 * connections * each and statuses[200] > 0 and set(statuses) <= {200, 503}
    assert logged(gateway) - before == statuses
    assert resident[-1] - resident[0] < 8 * 2**20
    assert check(1, await asyncio.to_thread(ask, gateway, "frozen", 1)) == 200
