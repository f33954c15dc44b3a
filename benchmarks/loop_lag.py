"""How long a front's loop is held while the largest requests are read and answered.

A front and a real engine; a client process sends one request and takes its answer. Meanwhile a callback runs every
millisecond, and what is reported is the most CPU time of the front's process between two of its runs: what the loop
would have waited for on a machine with nothing else to do. Work that lets go of the interpreter's lock does not count
twice, since the callback runs beside it.

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

import numpy as np
from onnx import TensorProto, helper

ROOT = Path(__file__).parents[1]
CLIENT = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=120)
connection.request("POST", "/v2/models/m/infer", open(sys.argv[2], "rb").read(), dict(eval(sys.argv[3])))
answer = connection.getresponse()
print(answer.status, len(answer.read()))
"""

Request = tuple[bytes, dict[str, str]]


def in_json(numbers: list[object], *, in_rows: bool = False) -> bytes:
    rows = len(numbers) // 3
    data = [numbers[start : start + 3] for start in range(0, 3 * rows, 3)] if in_rows else numbers[: 3 * rows]
    tensor = {"name": "x", "shape": [rows, 3], "datatype": "FP32", "data": data}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def requests(body_bytes: int) -> dict[str, Request]:
    """By name: what is sent, with its headers."""
    floats: list[object] = np.random.default_rng(1).normal(size=body_bytes // 21).astype("f4").tolist()
    short: list[object] = [1, 2, 3] * min(1_333_333, body_bytes // 6)
    in_floats = in_json(floats)
    block = np.ones((body_bytes // 12 - 100, 3), "<f4").tobytes()
    tensor = {"name": "x", "shape": [len(block) // 12, 3], "datatype": "FP32"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(block)}}]}).encode()
    coded = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    return {
        "small": (in_json([1, 2, 3]), {}),
        "JSON, one digit each": (in_json(short), {}),
        "JSON, in rows": (in_json(short[: 3 * (body_bytes // 9)], in_rows=True), {}),
        "JSON, 18 digits each": (in_floats, {}),
        "the same with gzip": (gzip.compress(in_floats, 1), coded),
        "binary, JSON back": (head + block, {"Inference-Header-Content-Length": str(len(head))}),
    }


async def longest_hold(port: int, request: Request, folder: Path) -> tuple[float, str]:
    """Milliseconds, and what the client saw."""
    (folder / "request").write_bytes(request[0])
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, str(port), str(folder / "request"), repr(request[1]), stdout=-1
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


async def measure(body_bytes: int, rounds: int) -> None:
    from tests.engines import save_model
    from tests.serving.fronts import door

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes = {"x": (TensorProto.FLOAT, ["n", 3])}, {"y": (TensorProto.FLOAT, ["n", 3])}
        node = helper.make_node("Identity", ["x"], ["y"])
        model = save_model(folder / "model.onnx", [node], inputs=shapes[0], outputs=shapes[1])
        async with door(folder, model_file=model) as front:
            for kind, request in requests(body_bytes).items():
                held = [await longest_hold(front.port, request, folder) for _ in range(rounds)]
                print(f"{kind:22} {len(request[0]):>10} bytes  {held[-1][1]:>14}  ", end="")
                print("longest hold (ms)", *[f"{hold:.0f}" for hold, _ in held], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--body-bytes", type=int, default=16_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.body_bytes, arguments.rounds))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
