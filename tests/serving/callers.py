"""A front that answers HTTP and gRPC, and callers of both."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from gateway.control.store import Store
from gateway.protocol.binary import tensor_from_bytes, tensor_to_bytes
from gateway.protocol.datatypes import NUMPY_OF, Signature, TensorSpec
from gateway.routing.table import Route
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.server import GrpcServer
from gateway.serving.grpc.tensors import FIELD_OF
from tests.engines import fake_engine
from tests.serving.fronts import Door, door, post

Array = np.ndarray[Any, np.dtype[Any]]
SERVICE = "/inference.GRPCInferenceService/"


class Caller:
    """Calls one gRPC port."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def start(self, name: str, message: Any, **options: Any) -> Any:
        """Start a call: `await` it for the answer."""
        return self._method(name)(message, **options)

    async def call(self, name: str, message: Any, **options: Any) -> Any:
        return await asyncio.wait_for(self._method(name)(message, **options), 10)

    async def refused(self, name: str, message: Any, **options: Any) -> tuple[str, str]:
        """Code and text of a call that must fail."""
        try:
            answer = await self.call(name, message, **options)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()
        raise AssertionError(f"{name} was answered: {answer}")

    def _method(self, name: str) -> Any:
        response = getattr(messages, f"{name}Response", None)
        return self.channel.unary_unary(
            SERVICE + name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString if response else None,
        )


class TwoDoors(Caller):
    """Both ports of one front."""

    def __init__(self, channel: grpc.aio.Channel, server: GrpcServer, http: Door) -> None:
        super().__init__(channel)
        self.server, self.http = server, http
        self.front, self.engine = http.front, http.engine


@contextlib.asynccontextmanager
async def two_doors(
    tmp_path: Path, *, models: Mapping[str, Signature] | None = None, **sections: dict[str, Any]
) -> AsyncIterator[TwoDoors]:
    """A front before the doubler "m", and before `models`, each of which answers with its inputs."""
    async with contextlib.AsyncExitStack() as held:
        http = await held.enter_async_context(door(tmp_path, **sections))
        for name, signature in (models or {}).items():
            engine = await held.enter_async_context(
                fake_engine(tmp_path / f"{name}-1.sock", signature=signature, batchable=False)
            )
            engine.run = list
        names = ["m", *(models or {})]
        front = http.front
        front.follow(
            2, {**{n: Route(n, stable=1) for n in names}, **front.routes}, {(n, 1): "sha256:01" for n in names}
        )
        for served in front.versions.values():
            await served.lane.connect()
        await until(lambda: all(served.lane.ready for served in front.versions.values()))
        store = Store(front.settings.store_url)
        store.create()
        server = GrpcServer(front, store)
        await server.start(0)
        held.push_async_callback(server.drain, 0.0)
        channel = await held.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=[("grpc.max_receive_message_length", -1)])
        )
        yield TwoDoors(channel, server, http)
        store.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait, but not for ever."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def request_of(
    tensors: Mapping[str, tuple[str, Array]], *, raw: bool = True, model: str = "m", **fields: Any
) -> messages.ModelInferRequest:
    """A request for tensors, each a datatype and its array, in raw or typed contents."""
    message = messages.ModelInferRequest(model_name=model, **fields)
    for name, (datatype, array) in tensors.items():
        tensor = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            message.raw_input_contents.append(bytes(tensor_to_bytes(array)))
        else:
            elements = [e.encode() if isinstance(e, str) else e for e in array.ravel().tolist()]
            getattr(tensor.contents, FIELD_OF[datatype]).extend(elements)
    return message


def row(*, raw: bool = True, **fields: Any) -> messages.ModelInferRequest:
    """One row for the doubler."""
    return request_of({"x": ("FP32", np.array([[1, 2, 3]], "f4"))}, raw=raw, **fields)


def outputs_of(response: messages.ModelInferResponse) -> dict[str, Array]:
    """The tensors of an answer, whichever way they came."""
    found = {}
    for position, tensor in enumerate(response.outputs):
        spec, shape = TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)), tuple(tensor.shape)
        if response.raw_output_contents:
            content = response.raw_output_contents[position]
        else:
            elements = getattr(tensor.contents, FIELD_OF[tensor.datatype])
            if tensor.datatype == "BYTES":
                content = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
            else:
                content = _bytes_of(elements, tensor.datatype)
        found[tensor.name] = tensor_from_bytes(memoryview(content), spec, shape, model="m")
    return found


def binary_post(tensors: Mapping[str, tuple[str, Array]], *, model: str) -> bytes:
    """The same request over HTTP, in binary both ways."""
    blocks = [bytes(tensor_to_bytes(array)) for _, array in tensors.values()]
    head = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": name,
                    "shape": list(array.shape),
                    "datatype": datatype,
                    "parameters": {"binary_data_size": len(block)},
                }
                for (name, (datatype, array)), block in zip(tensors.items(), blocks, strict=True)
            ],
        }
    ).encode()
    return post(
        head + b"".join(blocks),
        path=f"/v2/models/{model}/infer",
        headers=f"Inference-Header-Content-Length: {len(head)}\r\n",
    )


def binary_outputs(headers: Mapping[str, str], content: Any) -> dict[str, Array]:
    """The tensors of an answer in binary."""
    answer, tail, found = content, b"", {}
    if isinstance(content, bytes):  # else all tensors are empty, and it was read as JSON
        length = int(headers["inference-header-content-length"])
        answer, tail = json.loads(content[:length]), content[length:]
    for tensor in answer["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        spec = TensorSpec(tensor["name"], tensor["datatype"], tuple(tensor["shape"]))
        found[spec.name] = tensor_from_bytes(memoryview(tail)[:size], spec, spec.shape, model="m")
        tail = tail[size:]
    return found


def _bytes_of(elements: Sequence[Any], datatype: str) -> bytes:
    return np.array(list(elements), NUMPY_OF[datatype]).tobytes()
