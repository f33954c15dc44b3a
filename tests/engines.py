"""A fake engine on a real Unix socket, and tiny ONNX models for real ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from gateway.engine.errors import RunStopped
from gateway.engine.wire import (
    ARENA,
    RUN,
    FrameReader,
    Hello,
    decode_run,
    encode_failure,
    encode_hello,
    encode_result,
    encode_stopped,
    join_parts,
)
from gateway.protocol.datatypes import Signature, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
DOUBLER = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))


class FakeEngine:
    """Answers frames as it is told; `batches` notes the rows of each, `sizes` the bytes.

    With `shared_memory` it reads in the front's, which has to be put into `memory`.
    """

    def __init__(
        self,
        path: Path,
        *,
        signature: Signature = DOUBLER,
        batchable: bool = True,
        max_rows: int = 8,
        logging: dict[str, Any] | None = None,
        shared_memory: bool = False,
    ) -> None:
        self.path = path
        self.batches: list[int] = []
        self.sizes: list[int] = []
        self.memory: memoryview | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.run: Callable[[list[Array]], list[Array]] = lambda inputs: [inputs[0] * 2]
        self.hello = Hello(
            signature=signature,
            pid=1,
            model="m",
            version=1,
            digest="sha256:01",
            batchable=batchable,
            max_rows=max_rows,
            shared_memory=shared_memory,
            **(logging or {}),
        )
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._client, path=str(self.path))

    def die(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        writer.write(encode_hello(self.hello))
        frames = FrameReader()
        with contextlib.suppress(ConnectionError):
            while received := await reader.read(1 << 16):
                for kind, count, frame_id, payload in list(frames.feed(received)):
                    if kind == ARENA and self.hello.shared_memory:
                        continue
                    assert kind == RUN
                    _, parts = decode_run(payload, count, self.memory)
                    inputs = [join_parts(each) for each in parts]
                    self.sizes.append(len(payload))
                    self.batches.append(len(inputs[0]) if inputs[0].ndim else 1)
                    await self.hold.wait()
                    try:
                        writer.write(b"".join(encode_result(frame_id, 1000, self.run(inputs))))
                    except ValueError as error:
                        writer.write(encode_failure(frame_id, str(error)))
                    except RunStopped:
                        writer.write(encode_stopped(frame_id))
        writer.close()


@contextlib.asynccontextmanager
async def fake_engine(path: Path, **options: Any) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(path, **options)
    server = await engine.serve()
    try:
        yield engine
    finally:
        engine.hold.set()
        engine.die()
        server.close()
        await server.wait_closed()


def save_model(
    path: Path,
    nodes: list[Any],
    *,
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    weights: Iterable[onnx.TensorProto] = (),
) -> Path:
    """An ONNX file of a few nodes; inputs and outputs are name -> (TensorProto type, shape)."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        initializer=list(weights),
    )
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), str(path))
    return path


def save_doubler(path: Path) -> Path:
    """y = x + x over rows of three."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    shape = (TensorProto.FLOAT, ["n", 3])
    return save_model(path, [node], inputs={"x": shape}, outputs={"y": shape})


def save_divider(path: Path) -> Path:
    """y = a / b in INT64: zero makes the run fail, the smallest number by -1 ends the process (SIGFPE)."""
    node = helper.make_node("Div", ["a", "b"], ["y"])
    shape = (TensorProto.INT64, ["n"])
    return save_model(path, [node], inputs={"a": shape, "b": shape}, outputs={"y": shape})


def save_adder(path: Path) -> Path:
    """y = a + b: the divider's signature, and never fails."""
    node = helper.make_node("Add", ["a", "b"], ["y"])
    shape = (TensorProto.INT64, ["n"])
    return save_model(path, [node], inputs={"a": shape, "b": shape}, outputs={"y": shape})


def save_looper(path: Path) -> Path:
    """y = n, counted up to one by one: 2**62 takes for ever."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["sum", "one"], ["next"])],
        "step",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.INT64, [1]),
        ],
        initializer=[helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    nodes = [
        helper.make_node("Squeeze", ["n"], ["turns"]),
        helper.make_node("Constant", [], ["go"], value=helper.make_tensor("go", TensorProto.BOOL, [], [True])),
        helper.make_node("Sub", ["n", "n"], ["zero"]),
        helper.make_node("Loop", ["turns", "go", "zero"], ["y"], body=step),
    ]
    shape = (TensorProto.INT64, [1])
    return save_model(path, nodes, inputs={"n": shape}, outputs={"y": shape})


def save_filler(path: Path) -> Path:
    """y = the sum of n[0] x n[1] zeros, which are all made in memory, four bytes each."""
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["z"]), helper.make_node("ReduceSum", ["z"], ["y"])]
    return save_model(path, nodes, inputs={"n": (TensorProto.INT64, [2])}, outputs={"y": (TensorProto.FLOAT, [1, 1])})
