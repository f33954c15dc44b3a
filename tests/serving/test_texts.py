"""Large tensors of strings, and large messages over gRPC: what takes long with them is done beside the loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper

from gateway.control.store import Store
from gateway.protocol.binary import texts_of
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.server import GrpcServer
from gateway.serving.records import Kept, tensor_records
from tests.engines import save_model
from tests.serving.callers import SERVICE, TwoDoors, binary_outputs, binary_post, outputs_of, request_of
from tests.serving.fronts import door, post

WORDS = np.array([f"word {number}" for number in range(30_000)], object)
NUMBERS = np.arange(600_000, dtype="<f4").reshape(-1, 3)
BESIDE = {"aside_0"}


@contextlib.asynccontextmanager
async def echo(tmp_path: Path, kind: int, shape: list[Any]) -> AsyncIterator[TwoDoors]:
    """Both ports of a front before a real engine, of a model that gives back what it is given."""
    node = helper.make_node("Identity", ["x"], ["y"])
    model = save_model(tmp_path / "m.onnx", [node], inputs={"x": (kind, shape)}, outputs={"y": (kind, shape)})
    async with door(tmp_path, model_file=model) as http:
        store = Store(http.front.settings.store_url)
        server = GrpcServer(http.front, store)
        await server.start(0)
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
            yield TwoDoors(channel, server, http)
        await server.drain(0.0)
        store.close()


def threads_of(patch: pytest.MonkeyPatch, *names: str) -> dict[str, set[str]]:
    """By the name of each function, the threads that call it from now on."""
    threads: dict[str, set[str]] = {}

    def note(name: str) -> None:
        module, _, function = name.rpartition(".")
        called = getattr(__import__(module, fromlist=[function]), function)

        def noted(*given: Any, **named: Any) -> Any:
            threads.setdefault(function, set()).add(threading.current_thread().name)
            return called(*given, **named)

        patch.setattr(name, noted)

    for name in names:
        note(name)
    return threads


@pytest.mark.parametrize("way", ["JSON", "binary"])
async def test_many_strings_are_packed_and_read_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    tensor = {"name": "x", "shape": WORDS.shape, "datatype": "BYTES", "data": WORDS.tolist()}
    raw = post({"inputs": [tensor]}) if way == "JSON" else binary_post({"x": ("BYTES", WORDS)}, model="m")
    async with echo(tmp_path, TensorProto.STRING, ["n"]) as two:
        with monkeypatch.context() as patch:
            threads = threads_of(patch, "gateway.protocol.binary._pack", "gateway.protocol.binary._strings")
            [(status, headers, answer)] = await two.http.send(raw, read=1)
        assert status == 200 and threads["_strings"] == BESIDE
        assert threads.get("_pack") == (BESIDE if way == "JSON" else None)  # in binary they came packed
        words = answer["outputs"][0]["data"] if way == "JSON" else binary_outputs(headers, answer)["y"].tolist()
        assert words == WORDS.tolist()
        (record,) = two.http.log()
        assert record["inputs"][0]["digest"] == record["outputs"][0]["digest"]


@pytest.mark.parametrize("raw", [True, False])
async def test_many_strings_over_grpc_are_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bool) -> None:
    message = request_of({"x": ("BYTES", WORDS)}, raw=raw)
    async with echo(tmp_path, TensorProto.STRING, ["n"]) as two:
        with monkeypatch.context() as patch:
            threads = threads_of(
                patch,
                "gateway.protocol.binary._pack",
                "gateway.protocol.binary._strings",
                "gateway.serving.grpc.inference.read_request",
                "gateway.serving.grpc.inference.put_outputs",
            )
            answer = await two.call("ModelInfer", message)
        assert all(each == BESIDE for each in threads.values()) and {"read_request", "put_outputs"} <= set(threads)
        assert outputs_of(answer)["y"].tolist() == WORDS.tolist()
        assert len(two.http.log()) == 1 and two.front.bodies.held_bytes == 0


async def test_a_large_typed_message_is_read_and_answered_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("gateway.serving.grpc.inference.read_request", "gateway.serving.grpc.inference.put_outputs")
    threads = threads_of(monkeypatch, *names)
    async with echo(tmp_path, TensorProto.FLOAT, ["n", 3]) as two:
        small, large = (request_of({"x": ("FP32", rows)}, raw=False) for rows in (NUMBERS[:2], NUMBERS))
        assert np.array_equal(outputs_of(await two.call("ModelInfer", large))["y"], NUMBERS)
        assert threads == {"read_request": BESIDE, "put_outputs": BESIDE}
        threads.clear()
        assert np.array_equal(outputs_of(await two.call("ModelInfer", small))["y"], NUMBERS[:2])
        assert threads == {"read_request": {"MainThread"}, "put_outputs": {"MainThread"}}


async def test_a_stream_answers_large_messages_in_their_order(tmp_path: Path) -> None:
    async with echo(tmp_path, TensorProto.FLOAT, ["n", 3]) as two:
        stream = two.channel.stream_stream(
            f"{SERVICE}ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages.ModelStreamInferResponse.FromString,
        )()
        for number, rows in enumerate((NUMBERS, NUMBERS[:1])):
            await stream.write(request_of({"x": ("FP32", rows)}, raw=False, id=str(number)))
        await stream.done_writing()
        answers = [answer.infer_response async for answer in stream]
        assert [(answer.id, len(outputs_of(answer)["y"])) for answer in answers] == [("0", len(NUMBERS)), ("1", 1)]


async def test_who_leaves_while_a_large_message_waits_is_not_read_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, threads = threading.Event(), threads_of(monkeypatch, "gateway.serving.grpc.inference.read_request")
    async with echo(tmp_path, TensorProto.FLOAT, ["n", 3]) as two:
        two.front._side.write(lambda: opened.wait(20), lambda done: None)
        call = two.start("ModelInfer", request_of({"x": ("FP32", NUMBERS)}, raw=False))
        line = two.front._side.unread
        async with asyncio.timeout(10):
            while not len(line):
                await asyncio.sleep(0.005)
            call.cancel()
            while len(line):
                await asyncio.sleep(0.005)
        opened.set()
        await two.call("ModelInfer", request_of({"x": ("FP32", NUMBERS[:1])}))
        assert threads == {"read_request": {"MainThread"}} and len(two.http.log()) == 1


async def test_strings_of_an_engine_that_are_none_fail_their_own_request(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "BYTES", (-1,)),))
    async with door(tmp_path, engine_options={"signature": signature}) as d:
        texts = texts_of(WORDS.tolist())
        texts.packed = b"\xff" * 2**17
        d.engine.run = lambda inputs: [texts]
        [(status, _, answer)] = await d.send(post(), read=1)
        assert status == 500 and "cannot be written down" in answer["error"]
        d.engine.run = lambda inputs: [texts_of(["good"])]
        [(status, _, answer)] = await d.send(post(), read=1)
        assert (status, answer["outputs"][0]["data"]) == (200, ["good"])
        assert [record["status"] for record in d.log()] == [500, 200]


def test_a_record_of_packed_strings_is_that_of_any_others() -> None:
    for most in (10, 10**6):
        plain, packed = (
            tensor_records([b'{"name":"x","datatype":"BYTES","shape":['], [texts], [None], kept=Kept(most))
            for texts in (WORDS, texts_of(WORDS.tolist()))
        )
        assert plain == packed and json.loads(plain)
