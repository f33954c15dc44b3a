"""A call like an earlier one is told by its bytes: what it gets, and what the log gets, is the same as without."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.protocol.request import InferRequest
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.inference import MAX_USUAL, GrpcInference, UsualMessages
from gateway.serving.grpc.tensors import FIELD_OF
from tests.serving.callers import TwoDoors, outputs_of, request_of, row, two_doors
from tests.tensors import same, tensors

SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 3))
FORGOTTEN = {"id", "time", "seq", "queue_us", "inference_us", "total_us"}


def echo(datatype: str) -> Signature:
    specs = (TensorSpec("x0", datatype, (-1, -1)),)
    return Signature(specs, specs)


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what differs from one prediction to the next."""
    kept = {name: value for name, value in record.items() if name not in FORGOTTEN}
    kept.pop("timings", None)
    return kept


async def ask(two: TwoDoors, message: messages.ModelInferRequest) -> messages.ModelInferResponse:
    """The answer, without its id, which its trailers have too."""
    call = two.start("ModelInfer", message)
    answer: messages.ModelInferResponse = await asyncio.wait_for(call, 10)
    said = dict(await call.trailing_metadata())["gateway-prediction-id"]
    assert said == answer.parameters["prediction_id"].string_param
    answer.parameters["prediction_id"].string_param = ""
    return answer


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "BF16", "INT8", "INT64", "UINT16", "BOOL", "BYTES"])
def test_the_second_call_of_a_kind_is_answered_and_logged_like_the_first(tmp_path: Path, datatype: str) -> None:
    with asyncio.Runner() as runner:
        world = two_doors(tmp_path, models={"echo": echo(datatype)})
        two = runner.run(world.__aenter__())

        @settings(max_examples=20, deadline=None)
        @given(tensors(datatype, SHAPES))
        def check(array: Any) -> None:
            message = request_of({"x0": (datatype, array)}, model="echo")
            two.server._service.usual = UsualMessages()
            first, second, third = (runner.run(ask(two, message)) for _ in range(3))
            assert first == second == third
            assert same(outputs_of(third)["x0"], array) or np.isnan(array).any()
            typed = request_of({"x0": (datatype, array)}, model="echo", raw=datatype not in FIELD_OF)
            runner.run(ask(two, typed))  # what is typed is never taken for usual
            records = [comparable(record) for record in two.http.log()[-4:]]
            assert records[0] == records[1] == records[2] == records[3]

        try:
            check()
        finally:
            runner.run(world.__aexit__(None, None, None))


async def test_calls_of_one_batch_each_get_their_own_tensor(tmp_path: Path) -> None:
    async with two_doors(tmp_path, engine={"frames_in_flight": 1}) as two:
        await two.call("ModelInfer", row())
        two.engine.hold.clear()
        arrays = [np.full((1 + number % 2, 3), number, "f4") for number in range(20)]
        calls = [asyncio.create_task(two.call("ModelInfer", request_of({"x": ("FP32", each)}))) for each in arrays]
        await asyncio.sleep(0.05)
        two.engine.hold.set()
        answers = await asyncio.gather(*calls)
        ids = [answer.parameters["prediction_id"].string_param for answer in answers]
        logged = {record["id"]: record for record in two.http.log()}
    for array, answer, prediction_id in zip(arrays, answers, ids, strict=True):
        assert outputs_of(answer)["y"].tolist() == (2 * array).tolist()
        assert logged[prediction_id]["inputs"][0]["data"] == array.ravel().tolist()
        assert logged[prediction_id]["outputs"][0]["data"] == (2 * array).ravel().tolist()
    assert len(set(ids)) == len(ids)


async def test_a_raw_answer_is_not_written_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr("gateway.serving.batch.encode_rows", written.append)
    async with two_doors(tmp_path) as two:
        for _ in range(2):
            assert outputs_of(await two.call("ModelInfer", row()))["y"].tolist() == [[2, 4, 6]]
        large = np.ones((90_000, 3), "f4")
        assert same(outputs_of(await two.call("ModelInfer", request_of({"x": ("FP32", large)})))["y"], 2 * large)
        assert [record["status"] for record in two.http.log()] == [200, 200, 200]
    assert not written


async def test_numbers_that_are_not_finite_are_answered_and_null_in_the_log(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        await two.call("ModelInfer", row())
        answer = await two.call("ModelInfer", request_of({"x": ("FP32", np.array([[1, np.nan, np.inf]], "f4"))}))
        record = two.http.log()[-1]
    assert outputs_of(answer)["y"].tobytes() == np.array([[2, np.nan, np.inf]], "<f4").tobytes()
    assert record["inputs"][0]["data"] == [1, None, None]


async def test_a_version_with_another_signature_checks_what_an_earlier_one_took(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        await two.call("ModelInfer", row())
        served = two.front.versions["m", 1]
        hello = served.lane.hello
        assert hello is not None
        narrow = Signature((TensorSpec("x", "FP32", (-1, 2)),), hello.signature.outputs)
        served.greeted(msgspec.structs.replace(hello, signature=narrow))
        code, details = await two.refused("ModelInfer", row())
    assert code == "INVALID_ARGUMENT" and "unexpected shape for input 'x'" in details


async def test_what_stands_beside_the_tensor_is_never_taken_for_usual(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        plain = row()
        size = len(plain.SerializeToString())
        await two.call("ModelInfer", plain)
        other = row()
        other.inputs[0].name = "z"
        assert len(other.SerializeToString()) == size
        assert (await two.refused("ModelInfer", other))[0] == "INVALID_ARGUMENT"
        named = row(id="seven")
        assert (await two.call("ModelInfer", named)).id == "seven"
        assert (await two.call("ModelInfer", named)).id == "seven"


def test_no_more_kinds_are_remembered_than_there_is_room_for() -> None:
    class Nobody:
        def answered(self, inference: object) -> None:
            raise AssertionError

    usual = UsualMessages()
    decoder: Any = object()
    for number in range(1, 3 * MAX_USUAL):
        array = np.zeros((number, 3), "f4")
        content = request_of({"x": ("FP32", array)}).SerializeToString()
        message = messages.ModelInferRequest.FromString(content)
        usual.learn(message, InferRequest(inputs=[array], rows=number, plain=True), content, decoder)
        assert usual.find(content) is not None
        assert len(usual._known) <= MAX_USUAL
    assert GrpcInference(Nobody(), content, usual=usual).model == "m"


async def test_other_bytes_under_the_same_number_are_answered_with_their_own_names(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        for _ in range(2):
            assert list(outputs_of(await two.call("ModelInfer", row()))) == ["y"]
        served = two.front.versions["m", 1]
        hello = served.lane.hello
        assert hello is not None
        renamed = Signature(hello.signature.inputs, (TensorSpec("z", "FP32", (-1, 3)),))
        served.digest = "sha256:02"
        assert served.greeted(msgspec.structs.replace(hello, digest="sha256:02", signature=renamed))
        for _ in range(2):
            assert list(outputs_of(await two.call("ModelInfer", row()))) == ["z"]
