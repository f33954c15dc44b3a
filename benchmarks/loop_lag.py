"""How long a front's loop is held while the largest requests are read and answered.

A front and real engines, over HTTP and gRPC; a client process sends one request and takes its answer. Meanwhile a
callback runs every millisecond, and what is reported is the most CPU time of the front's process between two of its
runs: what the loop would have waited for on a machine with nothing else to do. Work that lets go of the interpreter's
lock does not count twice, since the callback runs beside it.

    python benchmarks/loop_lag.py [--body-bytes 16000000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[1]
HTTP_CLIENT = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=120)
connection.request("POST", "/v2/models/m/infer", open(sys.argv[2], "rb").read(), dict(eval(sys.argv[3])))
answer = connection.getresponse()
print(answer.status, len(answer.read()))
"""
GRPC_CLIENT = """
import grpc, sys
options = [("grpc.max_receive_message_length", -1)]
with grpc.insecure_channel("127.0.0.1:" + sys.argv[1], options=options) as channel:
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        print("OK", len(call(open(sys.argv[2], "rb").read(), timeout=120)))
    except grpc.RpcError as error:
        print(error.code().name)
"""


class Request(NamedTuple):
    """What is sent, with its headers over HTTP."""

    body: bytes
    headers: dict[str, str] | None = None


def in_json(elements: list[object], *, in_rows: bool = False, datatype: str = "FP32") -> bytes:
    rows = len(elements) // 3
    data = [elements[start : start + 3] for start in range(0, 3 * rows, 3)] if in_rows else elements[: 3 * rows]
    tensor = {"name": "x", "shape": [rows, 3], "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def in_binary(block: bytes, rows: int, *, datatype: str = "FP32", **more: object) -> Request:
    tensor = {"name": "x", "shape": [rows, 3], "datatype": datatype, "parameters": {"binary_data_size": len(block)}}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return Request(head + block, {"Inference-Header-Content-Length": str(len(head))})


def over_grpc(elements: list[object], *, datatype: str = "FP32", raw: bytes = b"") -> Request:
    from gateway.serving.grpc import inference_pb2 as messages
    from gateway.serving.grpc.tensors import FIELD_OF

    rows = len(elements) // 3
    message = messages.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[rows, 3])
    if raw:
        message.raw_input_contents.append(raw)
    else:
        getattr(tensor.contents, FIELD_OF[datatype]).extend(elements[: 3 * rows])
    return Request(message.SerializeToString())


def of_numbers(body_bytes: int) -> dict[str, Request]:
    """By name: requests for a model of FP32."""
    floats: list[object] = np.random.default_rng(1).normal(size=body_bytes // 21).astype("f4").tolist()
    short: list[object] = [1, 2, 3] * min(1_333_333, body_bytes // 6)
    in_floats = in_json(floats)
    rows = body_bytes // 12 - 100
    block = np.ones((rows, 3), "<f4").tobytes()
    coded = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    ones: list[object] = [1.0] * (3 * rows)
    return {
        "small": Request(in_json([1, 2, 3]), {}),
        "JSON, one digit each": Request(in_json(short), {}),
        "JSON, in rows": Request(in_json(short[: 3 * (body_bytes // 9)], in_rows=True), {}),
        "JSON, 18 digits each": Request(in_floats, {}),
        "the same with gzip": Request(gzip.compress(in_floats, 1), coded),
        "binary, JSON back": in_binary(block, rows),
        "gRPC, raw": over_grpc(ones, raw=block),
        "gRPC, typed": over_grpc(ones),
    }


def of_strings(body_bytes: int) -> dict[str, Request]:
    """By name: requests for a model of BYTES, two letters each."""
    from gateway.protocol.binary import pack_strings

    words: list[object] = ["ab"] * (3 * (body_bytes // 18))
    packed = bytes(pack_strings(np.array(words, object)))
    few = words[: 3 * 4000]
    return {
        "strings, a small body": Request(in_json(few, datatype="BYTES"), {}),
        "strings in JSON": Request(in_json(words, datatype="BYTES"), {}),
        "strings in binary": in_binary(
            packed, len(words) // 3, datatype="BYTES", parameters={"binary_data_output": True}
        ),
        "gRPC, raw strings": over_grpc(words, datatype="BYTES", raw=packed),
        "gRPC, typed strings": over_grpc([b"ab" for _ in words], datatype="BYTES"),
    }


async def longest_hold(ports: tuple[int, int], request: Request, folder: Path) -> tuple[float, str]:
    """Milliseconds, and what the client saw."""
    (folder / "request").write_bytes(request.body)
    http, grpc = ports
    arguments = [str(grpc), str(folder / "request")]
    if request.headers is not None:
        arguments = [str(http), str(folder / "request"), repr(request.headers)]
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", GRPC_CLIENT if request.headers is None else HTTP_CLIENT, *arguments, stdout=-1
    )
    holds: list[float] = []

    async def run_often() -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            holds.append(now - last)
            last = now

    running = asyncio.create_task(run_often())
    said, _ = await client.communicate()
    running.cancel()
    return 1e3 * max(holds), said.decode().strip()


async def measure(kind: int, requests: dict[str, Request], rounds: int) -> None:
    """Of requests for a model that gives back what it is given, of this kind of ONNX tensors."""
    from gateway.control.store import Store
    from gateway.serving.grpc.server import GrpcServer
    from tests.engines import save_model
    from tests.serving.fronts import door

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        node = helper.make_node("Identity", ["x"], ["y"])
        shape = (kind, ["n", 3])
        model = save_model(folder / "model.onnx", [node], inputs={"x": shape}, outputs={"y": shape})
        async with door(folder, model_file=model) as front:
            store = Store(front.front.settings.store_url)
            grpc = GrpcServer(front.front, store)
            await grpc.start(0)
            for what, request in requests.items():
                held = [await longest_hold((front.port, grpc.port), request, folder) for _ in range(rounds)]
                print(f"{what:22} {len(request.body):>10} bytes  {held[-1][1]:>14}  ", end="")
                print("longest hold (ms)", *[f"{hold:.0f}" for hold, _ in held], flush=True)
            await grpc.drain(1.0)
            store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--body-bytes", type=int, default=16_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(measure(TensorProto.FLOAT, of_numbers(arguments.body_bytes), arguments.rounds))
    asyncio.run(measure(TensorProto.STRING, of_strings(arguments.body_bytes), arguments.rounds))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
