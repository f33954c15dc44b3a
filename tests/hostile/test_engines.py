"""Valid requests that end or overwhelm a real engine: rows 71 to 74 of the hostile table."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from gateway.engine.memory import resident_bytes
from tests.engines import save_divider, save_filler, save_looper, save_model
from tests.serving.fronts import door, get, post


def ints(*, headers: str = "", **values: list[int]) -> bytes:
    tensors = [{"name": name, "shape": [len(data)], "datatype": "INT64", "data": data} for name, data in values.items()]
    return post({"inputs": tensors}, headers=headers)


@pytest.mark.promise("P5")
async def test_an_input_that_crashes_the_runtime_fails_that_request_only(tmp_path: Path) -> None:
    async with door(tmp_path, model_file=save_divider(tmp_path / "model.onnx")) as d:
        [(status, _, body)] = await d.send(ints(a=[6], b=[3]), read=1)
        assert status == 200 and body["outputs"][0]["data"] == [2]
        [(status, _, body)] = await d.send(ints(a=[-(2**63)], b=[-1]), read=1)
        assert status == 500 and "ended while running" in body["error"]
        [(status, _, _)] = await d.send(get("/v2/health/live"), read=1)
        assert status == 200


async def test_an_output_of_a_tebibyte_is_a_failed_model_and_the_next_request_is_answered(tmp_path: Path) -> None:
    node = helper.make_node("ConstantOfShape", ["n"], ["y"])
    model_file = save_model(
        tmp_path / "model.onnx",
        [node],
        inputs={"n": (TensorProto.INT64, [2])},
        outputs={"y": (TensorProto.FLOAT, ["rows", "columns"])},
    )
    async with door(tmp_path, model_file=model_file) as d:
        for shape in ([2**20, 2**20], [2**31, 2**31], [-5, 3]):
            [(status, _, body)] = await d.send(ints(n=shape), read=1)
            assert status == 500 and body["error"] == "model 'm' version 1 failed on this request"
        [(status, _, body)] = await d.send(ints(n=[1, 2]), read=1)
        assert status == 200 and body["outputs"][0]["data"] == [0.0, 0.0]


@pytest.mark.promise("P5")
async def test_a_value_that_makes_a_loop_run_for_hours_is_answered_at_the_deadline_and_the_engine_goes_on(
    tmp_path: Path,
) -> None:
    async with door(tmp_path, model_file=save_looper(tmp_path / "model.onnx")) as d:
        hello = d.front.versions["m", 1].lane.hello
        for _ in range(2):
            [(status, _, body)] = await d.send(ints(n=[2**62], headers="Gateway-Timeout-Ms: 300\r\n"), read=1)
            assert status == 504 and body["error"] == "model 'm' version 1 did not answer in time"
            [(status, _, body)] = await d.send(ints(n=[7]), read=1)
            assert status == 200 and body["outputs"][0]["data"] == [7]
        assert d.front.versions["m", 1].lane.hello is hello, "the engine that was reached first answers still"


@pytest.mark.promise("P5")
@pytest.mark.promise("P7")
async def test_a_run_that_asks_for_two_gibibytes_fails_alone_and_the_engine_stays_within_its_memory(
    tmp_path: Path,
) -> None:
    model_file = save_filler(tmp_path / "model.onnx")
    async with door(tmp_path, model_file=model_file) as d:
        hello = d.front.versions["m", 1].lane.hello
        assert hello is not None
        for _ in range(3):
            [(status, _, body)] = await d.send(ints(n=[2**19, 2**10]), read=1)
            assert status == 500 and body["error"] == "model 'm' version 1 failed on this request"
            [(status, _, body)] = await d.send(ints(n=[2**10, 2**10]), read=1)
            assert status == 200 and body["outputs"][0]["data"] == [0.0]
            assert 0 < resident_bytes(hello.pid) < 2**30
        assert d.front.versions["m", 1].lane.hello is hello, "the engine that was reached first answers still"
