"""Large tensors that engines read in the front's memory: no place is used again too early, and none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.serving import front as front_module
from tests.engines import save_model
from tests.serving.fronts import Door, door, post, read_answer

WIDTH = 100_000
"""Numbers of a row: 400 KB."""
ROWS = Signature((TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("y", "FP32", (-1, 1)),))


def row(value: float, *, rows: int = 1) -> Any:
    return np.full((rows, WIDTH), value, "<f4")


def in_binary(array: Any, *, headers: str = "", **more: Any) -> bytes:
    tensor = {"name": "x", "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
    head = json.dumps({"inputs": [{**tensor, **more}]}).encode()
    return post(head + array.tobytes(), headers=f"{headers}Inference-Header-Content-Length: {len(head)}\r\n")


def in_json(array: Any, *, headers: str = "") -> bytes:
    tensor = {"name": "x", "shape": array.shape, "datatype": "FP32", "data": array.ravel().tolist()}
    return post(json.dumps({"inputs": [tensor]}).encode(), headers=headers)


@contextlib.asynccontextmanager
async def shared_door(tmp_path: Path, *, memory: bool = True, **sections: Any) -> AsyncIterator[Door]:
    """A front before a fake engine that answers with the mean of each row, when it is let."""
    options = {"signature": ROWS, "shared_memory": memory}
    async with door(tmp_path, engine_options=options, **sections) as d:
        assert d.front.arena is not None
        d.engine.memory = memoryview(d.front.arena._memory)
        d.engine.run = lambda inputs: [inputs[0].mean(axis=1, keepdims=True, dtype="f8").astype("f4")]
        yield d


def lent(d: Door) -> int:
    assert d.front.arena is not None
    return d.front.arena.lent_bytes


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def said(answer: tuple[int, dict[str, str], Any]) -> list[float]:
    assert answer[0] == 200, answer
    data: list[float] = answer[2]["outputs"][0]["data"]
    return data


@pytest.mark.parametrize("kind", [in_binary, in_json])
async def test_an_engine_reads_large_tensors_where_they_were_received(tmp_path: Path, kind: Any) -> None:
    async with shared_door(tmp_path) as d:
        answers = await asyncio.gather(*[d.send(kind(row(value, rows=3)) * 2, read=2) for value in range(5)])
        for value, pair in enumerate(answers):
            assert [said(answer) for answer in pair] == [[value] * 3] * 2
        assert max(d.engine.sizes) < 1000 and sum(d.engine.batches) == 30
        assert sorted(record["inputs"][0]["summary"]["max"] for record in d.log()) == sorted([*range(5)] * 2)
        await until(lambda: lent(d) == 0)


@pytest.mark.parametrize("kind", [in_binary, in_json])
async def test_a_real_engine_does_too(tmp_path: Path, kind: Any) -> None:
    nodes = [helper.make_node("ReduceMean", ["x", "axis"], ["y"], keepdims=1)]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    shapes = {"x": (TensorProto.FLOAT, ["n", WIDTH])}, {"y": (TensorProto.FLOAT, ["n", 1])}
    model = save_model(tmp_path / "m.onnx", nodes, inputs=shapes[0], outputs=shapes[1], weights=[axis])
    async with door(tmp_path, model_file=model) as d:
        answers = await asyncio.gather(*[d.send(kind(row(value, rows=2)) * 3, read=3) for value in range(4)])
        for value, three in enumerate(answers):
            assert [said(answer) for answer in three] == [[value] * 2] * 3
        # It has what it was not sent: the front wrote next to nothing to its socket.
        assert d.front.arena is not None and d.front.versions["m", 1].lane._link.shares  # type: ignore[union-attr]
        await until(lambda: lent(d) == 0)


async def test_what_an_engine_reads_stays_as_it_is_until_it_has_answered(tmp_path: Path) -> None:
    async with shared_door(tmp_path, limits={"request_timeout_ms": 200}, engine={"frames_in_flight": 1}) as d:
        d.engine.hold.clear()
        asked = asyncio.create_task(d.send(in_binary(row(7)), read=1))
        ((status, _, _),) = await asked
        assert status == 504 and lent(d) > 0  # its deadline is over, the engine's run is not
        for value in range(3):
            await d.send(in_binary(row(value)), read=1)
        seen: list[float] = []
        run = d.engine.run
        d.engine.run = lambda inputs: (seen.append(float(inputs[0].max())), run(inputs))[1]
        d.engine.hold.set()
        assert said((await d.send(in_binary(row(9)), read=1))[0]) == [9]
        assert seen[0] == 7
        await until(lambda: lent(d) == 0)


async def test_a_client_that_leaves_takes_no_place_with_it(tmp_path: Path) -> None:
    async with shared_door(tmp_path) as d:
        d.engine.hold.clear()
        for raw in (in_binary(row(7)), in_json(row(7))):
            _, writer = await d.connect()
            writer.write(raw)
            await until(lambda: d.front.versions["m", 1].lane._in_flight)
            before = lent(d)
            assert before > 0
            writer.transport.abort()
            await until(lambda: not d.server.server_state.connections)
            assert lent(d) == before
            d.engine.hold.set()
            await until(lambda: lent(d) == 0)
            d.engine.hold.clear()


async def test_a_client_that_leaves_within_a_body_takes_no_place_with_it(tmp_path: Path) -> None:
    async with shared_door(tmp_path) as d:
        _, writer = await d.connect()
        writer.write(in_binary(row(7, rows=3))[:-1])
        await until(lambda: lent(d) > 0)
        writer.transport.abort()
        await until(lambda: lent(d) == 0)


async def test_places_of_a_lost_engine_are_kept_as_long_as_it_might_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "ENGINE_GRACE_SECONDS", 2.0)
    async with shared_door(tmp_path, engine={"hang_seconds": 0.2}) as d:
        d.engine.hold.clear()
        reader, writer = await d.connect()
        writer.write(in_binary(row(7)))
        await until(lambda: d.engine.sizes)
        d.engine.die()
        assert (await read_answer(reader))[0] == 500
        writer.close()
        gc.collect()
        assert lent(d) > 0
        await asyncio.sleep(0.2)
        assert lent(d) > 0
        await until(lambda: lent(d) == 0)
        # The next engine is given the memory anew.
        d.engine.hold.set()
        await d.front.versions["m", 1].lane.connect()
        await until(lambda: d.front.versions["m", 1].lane.ready)
        assert said((await d.send(in_binary(row(8)), read=1))[0]) == [8] and d.engine.sizes[-1] < 1000


@pytest.mark.parametrize("kind", [in_binary, in_json])
async def test_what_finds_no_room_is_sent_as_before(tmp_path: Path, kind: Any) -> None:
    async with shared_door(tmp_path, engine={"shared_memory_bytes": 900_000}) as d:
        d.engine.hold.clear()
        asked = [asyncio.create_task(d.send(kind(row(value, rows=2)), read=1)) for value in range(6)]
        await until(lambda: len(d.server.server_state.connections) == 6)
        await asyncio.sleep(0.2)
        d.engine.hold.set()
        assert [said(answer) for (answer,) in await asyncio.gather(*asked)] == [[value] * 2 for value in range(6)]
        assert max(d.engine.sizes) > 800_000
        await until(lambda: lent(d) == 0)


@pytest.mark.parametrize("kind", [in_binary, in_json])
async def test_an_engine_that_reads_no_shared_memory_is_sent_everything(tmp_path: Path, kind: Any) -> None:
    async with shared_door(tmp_path, memory=False) as d:
        assert said((await d.send(kind(row(3)), read=1))[0]) == [3]
        assert d.engine.sizes[0] >= 400_000
        await until(lambda: lent(d) == 0)


async def test_without_shared_memory_all_is_as_before(tmp_path: Path) -> None:
    async with door(tmp_path, engine_options={"signature": ROWS}, engine={"shared_memory_bytes": 0}) as d:
        d.engine.run = lambda inputs: [inputs[0][:, :1]]
        assert d.front.arena is None
        assert [said((await d.send(kind(row(3)), read=1))[0]) for kind in (in_binary, in_json)] == [[3], [3]]


async def test_a_refused_request_holds_no_place(tmp_path: Path) -> None:
    wrong = [
        in_binary(row(1), datatype="FP64"),
        in_binary(row(1), shape=[1, 7]),
        in_binary(row(1), shape=[2, WIDTH]),
        in_json(row(1)).replace(b"1.0, 1.0]", b"1.0,null]"),
        in_json(row(1)).replace(b"1.0, 1.0]", b"1.0,1e39]"),
        in_json(row(1)).replace(b"1.0, 1.0]", b"1.0, 10]]"),
    ]
    async with shared_door(tmp_path) as d:
        gc.collect()
        gc.disable()
        try:
            for raw in wrong:
                answers = await d.send(raw, in_binary(row(2)), read=2)
                assert [status for status, _, _ in answers] == [400, 200], answers
            await until(lambda: lent(d) == 0)
        finally:
            gc.enable()


async def test_a_run_that_fails_gives_its_places_back(tmp_path: Path) -> None:
    async with shared_door(tmp_path) as d:

        def fail(inputs: Any) -> Any:
            raise ValueError("no")

        d.engine.run = fail
        answers = await asyncio.gather(*[d.send(in_binary(row(value)), read=1) for value in range(5)])
        assert [answer[0][0] for answer in answers] == [500] * 5
        await until(lambda: lent(d) == 0)


async def test_many_clients_at_once_lose_no_place_and_mix_no_rows(tmp_path: Path) -> None:
    async with shared_door(tmp_path, engine={"shared_memory_bytes": 2**21}) as d:

        async def ask(number: int) -> None:
            for turn in range(6):
                value = float(100 * number + turn)
                kind = (in_binary, in_json)[(number + turn) % 2]
                if (number * turn) % 5 == 4:
                    _, writer = await d.connect()
                    writer.write(kind(row(value)))
                    await asyncio.sleep(0.01)
                    writer.transport.abort()
                else:
                    assert said((await d.send(kind(row(value)), read=1))[0]) == [value]

        await asyncio.gather(*[ask(number) for number in range(12)])
        await until(lambda: lent(d) == 0)
