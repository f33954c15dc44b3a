"""Whatever a model does with its first axis: under concurrent load each answer is that of its request alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from typer.testing import CliRunner

from gateway.cli.models import app
from gateway.engine.notes import EnginePaths
from gateway.engine.supervision import EngineSupervision
from gateway.predictions.spool import SpoolWriter
from gateway.protocol.binary import tensor_to_bytes
from gateway.protocol.datatypes import datatype_of
from gateway.repository.manifest import Batching, ModelVersion, load_version
from gateway.routing.table import Route
from gateway.serving.front import Front
from gateway.settings import load_settings
from gateway.telemetry.cells import CellFile
from gateway.telemetry.log import ProcessLog
from tests.generated import FAMILIES, Drawn, drawn_models, save
from tests.serving.fronts import _serve, post, read_answer

Array = np.ndarray[Any, np.dtype[Any]]
Outputs = dict[str, Array]

MODELS = int(os.environ.get("GATEWAY_TEST_MODELS", "2"))
"""Models drawn of each family."""
CONNECTIONS = 6


def add(drawn: Drawn, folder: Path) -> ModelVersion:
    """`gateway models add`."""
    model, *reference = save(drawn, folder)
    arguments = ["add", "m", str(model), "--models", str(folder / "models")]
    done = CliRunner().invoke(app, arguments + [f"--reference={path}" for path in reference])
    assert done.exit_code == 0, done.output
    return load_version(folder / "models" / "m" / "1")


@contextlib.asynccontextmanager
async def port_of(version: ModelVersion, folder: Path) -> AsyncIterator[int]:
    """A front before the engine that the supervisor would start."""
    options = load_settings(overrides={"state_dir": folder / "state", "models": folder / "models"})
    options.run_dir.mkdir(parents=True)
    approved = {("m", 1): version.manifest.digest}
    spool = SpoolWriter(options.spool_dir / "front-0", slot=0, settings=options.spool)
    cells = CellFile(folder / "front.cells")
    engines = EngineSupervision(options, log=ProcessLog("test", json=False, stream=sys.stderr), cells=cells)
    front = Front(
        options,
        name="g",
        spool=spool,
        cells=cells,
        sockets=lambda model, number: EnginePaths(options.run_dir, model, number).sockets(0, 1),
    )
    engines.follow(approved, approved)
    front.follow(1, {"m": Route("m", stable=1)}, approved)
    lane = front.versions["m", 1].lane
    try:
        async with asyncio.timeout(60):
            while not lane.ready:
                await lane.connect()
                await asyncio.sleep(0.01)
        assert lane.hello is not None and lane.hello.batchable == version.manifest.batching.allows(exact=False)
        server, port, tasks = await _serve(front, options)
        yield port
        server.should_exit = True
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        lane.close()
        await engines.stop()
        spool.close()
        cells.close()


def request_in_json(inputs: dict[str, Array]) -> bytes:
    """An inference in JSON, both ways."""
    tensors = [
        {"name": name, "shape": array.shape, "datatype": datatype_of(array.dtype), "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    return post({"inputs": tensors})


def request_in_binary(inputs: dict[str, Array]) -> bytes:
    """An inference with inputs and outputs in binary."""
    blocks = [bytes(tensor_to_bytes(array)) for array in inputs.values()]
    tensors = [
        {
            "name": name,
            "datatype": datatype_of(array.dtype),
            "shape": list(array.shape),
            "parameters": {"binary_data_size": len(block)},
        }
        for (name, array), block in zip(inputs.items(), blocks, strict=True)
    ]
    head = orjson.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}})
    return post(head + b"".join(blocks), headers=f"Inference-Header-Content-Length: {len(head)}\r\n")


async def ask_all(port: int, requests: list[bytes]) -> list[tuple[int, dict[str, str], Any]]:
    """Everything at once over a few connections; the answers in order of the requests."""

    async def ask(mine: list[bytes]) -> list[Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(mine))
        answers = [await read_answer(reader) for _ in mine]
        writer.close()
        return answers

    parts = await asyncio.gather(*(ask(requests[start::CONNECTIONS]) for start in range(CONNECTIONS)))
    return [parts[place % CONNECTIONS][place // CONNECTIONS] for place in range(len(requests))]


def outputs_of(answer: tuple[int, dict[str, str], Any], expected: Outputs) -> Outputs:
    status, headers, content = answer
    assert status == 200, content
    offset = int(headers.get("inference-header-content-length", 0))
    read: Outputs = {}
    # What has no elements is all JSON, and has been read as that.
    document = content if isinstance(content, dict) else json.loads(content[:offset])
    for tensor in document["outputs"]:
        dtype = expected[tensor["name"]].dtype
        if "data" in tensor:
            flat = np.array(tensor["data"], dtype)
        else:
            size = tensor["parameters"]["binary_data_size"]
            block = content[offset : offset + size] if size else b""
            offset += size
            flat = _words(block) if dtype.kind == "O" else np.frombuffer(block, dtype)
        read[tensor["name"]] = flat.reshape(tensor["shape"])
    return read


def _words(block: bytes) -> Array:
    words, offset = [], 0
    while offset < len(block):
        size = int.from_bytes(block[offset : offset + 4], "little")
        words.append(block[offset + 4 : offset + 4 + size].decode())
        offset += 4 + size
    return np.array(words, dtype=object)


def check(answers: list[Outputs], expected: list[Outputs], batching: Batching) -> None:
    """Equal bit for bit, or within what the manifest says; the sign of a zero is nobody's answer."""
    for name in expected[0]:
        usual = np.median([_size(each[name]) for each in expected])
        for place, (answer, alone) in enumerate(zip(answers, expected, strict=True)):
            one, other = answer[name], alone[name]
            assert one.shape == other.shape, f"output {name} of request {place}"
            if one.dtype.kind != "f":
                assert one.tolist() == other.tolist(), f"output {name} of request {place}"
            elif batching.verdict == "within":
                allowed = batching.tolerance * max(_size(other), usual)
                assert np.abs(one - other).max(initial=0) <= allowed, f"output {name} of request {place}"
            else:
                assert (one + 0.0).tobytes() == (other + 0.0).tobytes(), f"output {name} of request {place}"


def _size(answers: Array) -> float:
    return float(np.abs(answers).max(initial=0)) if answers.dtype.kind in "fiu" else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_under_load_every_answer_is_that_of_its_request_alone(family: str) -> None:
    @settings(
        max_examples=MODELS,
        derandomize=MODELS < 10,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=drawn_models(family))
    def look_at(drawn: Drawn) -> None:
        session = ort.InferenceSession(drawn.model.SerializeToString(), _options(), ["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        expected = [dict(zip(names, session.run(names, each), strict=True)) for each in drawn.requests]
        with tempfile.TemporaryDirectory() as folder:
            version = add(drawn, Path(folder))

            async def test() -> None:
                async with port_of(version, Path(folder)) as port:
                    for form in (request_in_binary, request_in_json):
                        raw = await ask_all(port, [form(each) for each in drawn.requests])
                        answers = [outputs_of(each, alone) for each, alone in zip(raw, expected, strict=True)]
                        check(answers, expected, version.manifest.batching)

            asyncio.run(asyncio.wait_for(test(), 120))

    look_at()


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options
