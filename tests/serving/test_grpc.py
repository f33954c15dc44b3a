from __future__ import annotations

import asyncio
import gc
import gzip
import re
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.internal.encoder import _VarintBytes as varint
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.checks import SignatureChecks
from gateway.protocol.datatypes import NUMPY_OF, Signature, TensorSpec
from gateway.protocol.errors import GatewayError
from gateway.serving.answers import STATUS_OF
from gateway.serving.grpc import frames
from gateway.serving.grpc import inference_pb2 as messages
from gateway.serving.grpc.errors import CODE_OF
from gateway.serving.grpc.framing import framed
from gateway.serving.grpc.outgoing import MAX_STRIKES
from gateway.serving.grpc.requests import outline_of, read_request
from gateway.serving.grpc.service import STEPS_AT_ONCE
from gateway.serving.grpc.tensors import FIELD_OF, put_outputs
from tests.serving.callers import (
    SERVICE,
    Caller,
    TwoDoors,
    binary_outputs,
    binary_post,
    outputs_of,
    request_of,
    row,
    two_doors,
    until,
)
from tests.serving.fronts import get, post
from tests.serving.wire import Wire, wire
from tests.tensors import same, tensors

ROOT = Path(__file__).parents[2]
NUMBERS = {"UINT8": 255, "UINT16": 2**16 - 1, "UINT32": 2**32 - 1, "INT8": -128, "INT16": -(2**15), "INT32": -(2**31)}


def echo(*datatypes: str) -> Signature:
    specs = tuple(TensorSpec(f"x{number}", datatype, (-1, -1)) for number, datatype in enumerate(datatypes))
    return Signature(specs, specs)


async def http(two: TwoDoors, request: bytes) -> Any:
    (answer,) = await asyncio.wait_for(two.http.send(request, read=1), 10)
    return answer


async def test_raw_contents_are_answered_raw(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        answer = await two.call("ModelInfer", row(id="seven"))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "seven")
    assert answer.raw_output_contents[0] == np.array([2, 4, 6], "<f4").tobytes()
    assert not answer.outputs[0].HasField("contents")


async def test_typed_contents_are_answered_typed(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        answer = await two.call("ModelInfer", row(raw=False))
        asked = row(raw=False)
        asked.parameters["binary_data_output"].bool_param = True
        in_binary = await two.call("ModelInfer", asked)
    assert list(answer.outputs[0].contents.fp32_contents) == [2, 4, 6]
    assert not answer.raw_output_contents
    assert in_binary.raw_output_contents[0] == np.array([2, 4, 6], "<f4").tobytes()


async def test_an_answer_and_its_trailers_name_the_logged_prediction(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        message = row(id="seven")
        message.parameters["campaign"].string_param = "spring"
        call = two.start("ModelInfer", message, metadata=(("gateway-routing-key", "ada"),))
        answer = await call
        trailers = dict(await call.trailing_metadata())
        (record,) = two.http.log()
    assert answer.parameters["prediction_id"].string_param == record["id"] == trailers["gateway-prediction-id"]
    assert answer.parameters["arm"].string_param == record["arm"] == trailers["gateway-arm"] == "stable"
    assert trailers["gateway-model-version"] == "1"
    assert (record["status"], record["request_id"], record["parameters"]) == (200, "seven", {"campaign": "spring"})
    assert record["inputs"][0]["data"] == [1, 2, 3] and record["outputs"][0]["data"] == [2, 4, 6]
    assert record["key"] not in ("", "ada")


async def test_both_protocols_share_counters_and_batches(tmp_path: Path) -> None:
    async with two_doors(tmp_path, engine={"frames_in_flight": 1}) as two:
        two.engine.hold.clear()
        calls = [asyncio.create_task(two.call("ModelInfer", row()))]
        await until(lambda: two.engine.batches)
        calls += [asyncio.create_task(two.call("ModelInfer", row())) for _ in range(3)]
        calls += [asyncio.create_task(http(two, post())) for _ in range(4)]
        await until(lambda: len(two.front.versions["m", 1].lane.line) == 7)
        two.engine.hold.set()
        await asyncio.gather(*calls)
        assert two.front.versions["m", 1].requests("stable", 200).value == 8
    assert two.engine.batches == [1, 7]


@pytest.mark.parametrize("datatype", NUMPY_OF)
def test_rest_and_grpc_agree_bit_for_bit(tmp_path: Path, datatype: str) -> None:
    shapes = st.tuples(st.integers(0, 3), st.integers(0, 3))
    with asyncio.Runner() as runner:
        world = two_doors(tmp_path, models={"echo": echo(datatype, "INT64")})
        two = runner.run(world.__aenter__())

        @settings(max_examples=15, deadline=None)
        @given(tensors(datatype, shapes), tensors("INT64", shapes))
        def check(first: Any, second: Any) -> None:
            runner.run(agree(two, {"x0": (datatype, first), "x1": ("INT64", second)}))

        try:
            check()
        finally:
            runner.run(world.__aexit__(None, None, None))


async def agree(two: TwoDoors, sent: dict[str, Any]) -> None:
    _, headers, content = await http(two, binary_post(sent, model="echo"))
    over_http = binary_outputs(headers, content)
    over_grpc = [outputs_of(await two.call("ModelInfer", request_of(sent, model="echo")))]
    if all(datatype in FIELD_OF for datatype, _ in sent.values()):
        over_grpc.append(outputs_of(await two.call("ModelInfer", request_of(sent, model="echo", raw=False))))
    for found in over_grpc:
        for name, (_, array) in sent.items():
            assert same(found[name], over_http[name])
            assert same(found[name], array) or array.dtype.kind == "f" and np.isnan(array).any()


@pytest.mark.parametrize("datatype", FIELD_OF)
async def test_typed_contents_of_every_datatype_pass_unchanged(tmp_path: Path, datatype: str) -> None:
    examples: dict[str, Any] = {
        "BOOL": [[True, False]],
        "BYTES": [["Größe", ""]],
        "FP32": [[0.1, float("-inf")]],
        "FP64": [[0.1, 1e300]],
        "INT64": [[2**63 - 1, -(2**63)]],
        "UINT64": [[2**64 - 1, 2**53 + 1]],
    }
    array = np.array(examples.get(datatype, [[0, NUMBERS.get(datatype, 0)]]), NUMPY_OF[datatype])
    async with two_doors(tmp_path, models={"echo": echo(datatype)}) as two:
        answer = await two.call("ModelInfer", request_of({"x0": (datatype, array)}, raw=False, model="echo"))
    assert not answer.raw_output_contents
    assert same(outputs_of(answer)["x0"], array)


async def test_where_one_output_has_no_typed_field_all_are_answered_raw(tmp_path: Path) -> None:
    async with two_doors(tmp_path, models={"echo": echo("FP32", "FP16")}) as two:
        sent = {"x0": ("FP32", np.ones((1, 1), "f4")), "x1": ("FP16", np.ones((1, 1), "f2"))}
        half = request_of(sent, model="echo")
        answer = await two.call("ModelInfer", half)
        del half.raw_input_contents[:]
        half.inputs[0].contents.fp32_contents.append(1)
        code, details = await two.refused("ModelInfer", half)
    assert len(answer.raw_output_contents) == 2
    assert (code, details) == ("INVALID_ARGUMENT", "input 'x1' is FP16, which must be sent in raw_input_contents")


def test_typed_outputs_become_raw_when_one_of_them_has_no_field() -> None:
    response = messages.ModelInferResponse()
    put_outputs(
        response,
        [(TensorSpec("a", "FP32", (1,)), np.ones(1, "f4")), (TensorSpec("b", "FP16", (1,)), np.ones(1, "f2"))],
        raw=False,
    )
    assert [len(content) for content in response.raw_output_contents] == [4, 2]
    assert not any(tensor.HasField("contents") for tensor in response.outputs)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.inputs[0].contents.int_contents.append(1), "takes fp32_contents, got int_contents"),
        (lambda m: m.inputs[0].contents.fp32_contents.append(1), "has 4 elements, but its shape [1, 3] has 3"),
        (lambda m: m.inputs[0].shape.__setitem__(0, -1), "must hold integers from 0"),
        (lambda m: m.inputs[0].shape.append(1), "unexpected shape for input 'x'"),
        (lambda m: m.inputs.add(name="x", datatype="FP32", shape=[1, 3]), "input 'x' is given twice"),
        (lambda m: m.inputs.add(name="z"), "unexpected inference input 'z' for model 'm', expected 'x'"),
        (lambda m: m.inputs.pop(), "missing required input(s) ['x']"),
        (lambda m: m.outputs.add(name="z"), "unexpected inference output 'z'"),
        (lambda m: m.parameters["p"].SetInParent(), "parameter 'p' must be a string, a number or a boolean"),
        (lambda m: setattr(m, "id", "a\nb"), "'id' must be a string of at most 128 printable ASCII"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP64"), "data-type is 'FP64', but model 'm' expects 'FP32'"),
        (lambda m: m.raw_input_contents.append(b"123456789012"), "only one of contents and raw_input_contents"),
        (lambda m: m.raw_input_contents.extend([b"", b""]), "has 2 tensors, but the request has 1 inputs"),
        (lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "r"), "shared memory"),
    ],
)
async def test_what_is_wrong_with_a_request_is_named(tmp_path: Path, change: Any, text: str) -> None:
    async with two_doors(tmp_path) as two:
        message = row(raw=False)
        change(message)
        code, details = await two.refused("ModelInfer", message)
        after = await two.call("ModelInfer", row())
        first, second = two.http.log()
    assert code == "INVALID_ARGUMENT" and text in details
    assert outputs_of(after)["y"].tolist() == [[2, 4, 6]]
    assert (first["status"], second["status"]) == (400, 200) and first["error"] == details


@pytest.mark.parametrize("size", [0, 11, 13])
async def test_raw_contents_of_a_wrong_length_are_refused(tmp_path: Path, size: int) -> None:
    async with two_doors(tmp_path) as two:
        message = row()
        message.raw_input_contents[0] = bytes(size)
        assert await two.refused("ModelInfer", message) == (
            "INVALID_ARGUMENT",
            f"input byte size mismatch for input 'x' for model 'm'. Expected 12, got {size}",
        )


@pytest.mark.parametrize(("datatype", "element"), [("INT8", 128), ("INT16", -(2**15) - 1), ("UINT8", 256)])
async def test_an_element_beyond_its_datatype_is_refused(tmp_path: Path, datatype: str, element: int) -> None:
    async with two_doors(tmp_path, models={"echo": echo(datatype)}) as two:
        wide = np.array([[element]], "i8")
        code, details = await two.refused("ModelInfer", request_of({"x0": (datatype, wide)}, raw=False, model="echo"))
    assert (code, details) == (
        "INVALID_ARGUMENT",
        f"{FIELD_OF[datatype]} of input 'x0' has a number out of range for {datatype}",
    )


async def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    async with two_doors(tmp_path, models={"echo": echo("BYTES")}) as two:
        message = messages.ModelInferRequest(model_name="echo")
        message.inputs.add(name="x0", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"\xff")
        typed = await two.refused("ModelInfer", message)
        message.inputs[0].ClearField("contents")
        message.raw_input_contents.append(b"\1\0\0\0\xff")
        assert typed == await two.refused("ModelInfer", message)
    assert typed[0] == "INVALID_ARGUMENT" and "not UTF-8" in typed[1]


@pytest.mark.promise("P16")
@pytest.mark.parametrize("raw", [True, False])
async def test_many_rows_are_taken_only_with_elements_in_them(tmp_path: Path, raw: bool) -> None:
    async with two_doors(tmp_path, models={"echo": echo("FP32")}) as two:
        for rows in (0, 1, 5, 1024):
            tensors = {"x0": ("FP32", np.zeros((rows, 0), "f4"))}
            response = await two.call("ModelInfer", request_of(tensors, raw=raw, model="echo"))
            assert list(response.outputs[0].shape) == [rows, 0]
        tensors = {"x0": ("FP32", np.zeros((60_000_000, 0), "f4"))}
        code, details = await two.refused("ModelInfer", request_of(tensors, raw=raw, model="echo"))
    assert code == "INVALID_ARGUMENT" and "60000000 rows without elements in them, more than 1024" in details


async def test_errors_are_the_same_over_both_protocols(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        for model, version in (("nope", ""), ("m", "9"), ("m", "x"), ("m", "0")):
            path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
            status, _, answer = await http(two, post(path=path))
            code, details = await two.refused("ModelInfer", row(model=model, model_version=version))
            assert (status, code, answer["error"]) == (404, "NOT_FOUND", details)


async def test_a_name_too_long_for_a_model_is_not_found_and_not_repeated(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        code, details = await two.refused("ModelInfer", row(model="m" * 100_000))
    assert code == "NOT_FOUND" and len(details) < 200


async def test_metadata_pins_a_version_and_must_be_right(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        call = two.start("ModelInfer", row(), metadata=(("gateway-version", "1"),))
        await call
        assert dict(await call.trailing_metadata())["gateway-arm"] == "pinned"
        for metadata, code in (
            (("gateway-version", "2"), "NOT_FOUND"),
            (("gateway-version", "one"), "INVALID_ARGUMENT"),
            (("gateway-timeout-ms", "soon"), "INVALID_ARGUMENT"),
            (("gateway-routing-key", "k" * 1025), "INVALID_ARGUMENT"),
        ):
            assert (await two.refused("ModelInfer", row(), metadata=(metadata,)))[0] == code


async def test_two_versions_are_refused_whichever_way_they_are_asked_for(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        refused = await two.refused("ModelInfer", row(model_version="1"), metadata=(("gateway-version", "2"),))
    assert refused == ("INVALID_ARGUMENT", "the request asks for version 1 and Gateway-Version for 2")


async def test_wrong_metadata_hides_nothing_of_what_stands_beside_it(tmp_path: Path) -> None:
    metadata = (("gateway-timeout-ms", "soon"), ("gateway-version", "one"), ("gateway-routing-key", "ada"))
    headers = "".join([f"{name}: {value}\r\n" for name, value in metadata]).encode()
    async with two_doors(tmp_path) as two:
        _, details = await two.refused("ModelInfer", row(), metadata=metadata)
        _, _, answer = await http(two, post().replace(b"\r\n", b"\r\n" + headers, 1))
        over_grpc, over_http = two.http.log()
    assert details == answer["error"] == over_grpc["error"] and "Gateway-Timeout-Ms" in details
    assert over_grpc["key"] == over_http["key"]


async def test_a_timeout_in_metadata_ends_a_call_and_is_logged(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        two.engine.hold.clear()
        code, _ = await two.refused("ModelInfer", row(), metadata=(("gateway-timeout-ms", "50"),))
        (record,) = two.http.log()
    assert (code, record["status"]) == ("DEADLINE_EXCEEDED", 504)


async def test_a_request_whose_client_has_gone_is_not_run(tmp_path: Path) -> None:
    async with two_doors(tmp_path, engine={"frames_in_flight": 1}) as two:
        two.engine.hold.clear()
        first = asyncio.create_task(two.call("ModelInfer", row()))
        await until(lambda: two.engine.batches)
        lane = two.front.versions["m", 1].lane
        gone = [two.start("ModelInfer", row()), two.start("ModelInfer", row(), timeout=0.2)]
        await until(lambda: len(lane.line) >= 2)
        gone[0].cancel()
        for call in gone:
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await call
        # The front may be the one to notice that the deadline is past: then the call is a record, with 504.
        await until(lambda: all(job.abandoned for job in lane.line))
        two.engine.hold.set()
        await first
        await two.call("ModelInfer", row())
        statuses = [record["status"] for record in two.http.log()]
    assert statuses in ([200, 200], [504, 200, 200])
    assert two.engine.batches == [1, 1]


async def test_a_message_beyond_the_limit_is_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with two_doors(tmp_path, limits={"max_body_bytes": 4096}) as two:
        rows = np.zeros((1000, 3), "f4")
        code, details = await two.refused("ModelInfer", request_of({"x": ("FP32", rows)}))
        await two.call("ModelInfer", row())
    assert code == "RESOURCE_EXHAUSTED" and "4096" in details


async def test_large_messages_that_wait_are_bounded_together(tmp_path: Path) -> None:
    async with two_doors(tmp_path, limits={"max_held_body_bytes": 2**20}) as two:
        large = request_of({"x": ("FP32", np.ones((60_000, 3), "f4"))})
        two.engine.hold.clear()
        first = asyncio.create_task(two.call("ModelInfer", large))
        await until(lambda: two.front.bodies.held_bytes > 720_000)
        code, details = await two.refused("ModelInfer", large)
        assert code == "UNAVAILABLE" and "limits.max_held_body_bytes" in details
        two.engine.hold.set()
        assert len((await first).raw_output_contents[0]) == 720_000
        await until(lambda: not two.front.bodies.held_bytes)


@pytest.mark.parametrize(
    ("model", "version", "columns", "metadata"),
    [("m", "", 4, ()), ("m", "x", 3, ()), ("nobody", "", 3, ()), ("m", "", 3, (("gateway-version", "x"),))],
    ids=["a wrong shape", "no version", "no model", "wrong metadata"],
)
async def test_a_refused_message_is_held_no_longer(
    tmp_path: Path, model: str, version: str, columns: int, metadata: Any
) -> None:
    rows = {"x": ("FP32", np.ones((60_000, columns), "f4"))}
    async with two_doors(tmp_path) as two:
        gc.disable()  # nor until the collector of cycles comes
        try:
            await two.refused("ModelInfer", request_of(rows, model=model, model_version=version), metadata=metadata)
            await until(lambda: not two.front.bodies.held_bytes)
        finally:
            gc.enable()


async def test_metadata_beyond_the_limit_of_heads_is_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with two_doors(tmp_path, limits={"max_head_bytes": 4096}) as two:
        await two.call("ModelInfer", row(), metadata=(("x", "y" * 3000),))
        code, _ = await two.refused("ModelInfer", row(), metadata=(("x", "y" * 5000),))
        await two.call("ModelInfer", row())
    assert code == "RESOURCE_EXHAUSTED"


async def test_a_full_queue_is_unavailable(tmp_path: Path) -> None:
    async with two_doors(tmp_path, limits={"max_queue_requests": 1}, engine={"frames_in_flight": 1}) as two:
        two.engine.hold.clear()
        calls = [asyncio.create_task(two.call("ModelInfer", row()))]
        await until(lambda: two.engine.batches)
        calls.append(asyncio.create_task(two.call("ModelInfer", row())))
        await until(lambda: two.front.versions["m", 1].lane.line)
        code, details = await two.refused("ModelInfer", row())
        assert code == "UNAVAILABLE" and details.startswith("the queue of model 'm' version 1 is full")
        assert (await two.call("ServerReady", messages.ServerReadyRequest())).ready
        two.engine.hold.set()
        await asyncio.gather(*calls)


async def test_a_model_that_fails_is_an_internal_error_without_its_own_words(tmp_path: Path) -> None:
    def fail(inputs: Any) -> Any:
        raise ValueError("/secret/path")

    async with two_doors(tmp_path) as two:
        two.engine.run = fail
        assert await two.refused("ModelInfer", row()) == (
            "INTERNAL",
            "model 'm' version 1 failed on this request",
        )


async def test_a_message_that_does_not_arrive_ends_its_call(tmp_path: Path) -> None:
    async def never() -> Any:
        await asyncio.sleep(30)
        yield row()

    async with two_doors(tmp_path, limits={"body_timeout_seconds": 0.1}) as two:
        send = two.channel.stream_unary(SERVICE + "ModelInfer", request_serializer=lambda m: m.SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError, match="did not arrive in time"):
            await asyncio.wait_for(send(never()), 10)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_a_call_fail_otherwise_than_by_its_own_error(content: bytes) -> None:
    message = messages.ModelInferRequest()
    try:
        message.ParseFromString(content)
    except Exception:  # what is no message never reaches the service
        return
    signature = echo("FP32")
    try:
        read_request(message, model="m", signature=signature, checks=SignatureChecks("m", signature))
    except GatewayError:
        return


async def test_bytes_that_are_no_message_end_only_their_call(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        for name in ("ModelInfer", "ServerLive"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asyncio.wait_for(two.channel.unary_unary(SERVICE + name)(b"\xff\xff\xff"), 10)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        stream = two.channel.stream_stream(SERVICE + "ModelStreamInfer")()
        await stream.write(row().SerializeToString())
        await stream.write(b"\xff")
        assert await asyncio.wait_for(stream.read(), 10)
        with pytest.raises(grpc.aio.AioRpcError, match="the message is no ModelInferRequest"):
            await asyncio.wait_for(stream.read(), 10)
        await two.call("ModelInfer", row())


async def test_what_nobody_foresaw_is_an_internal_error_that_tells_nothing(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        seen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: seen.append(context))
        two.front.version = lambda *arguments: 1 / 0  # type: ignore[method-assign, assignment]
        refused = await two.refused("ModelMetadata", messages.ModelMetadataRequest(name="m"))
    assert refused == ("INTERNAL", "the gateway failed on this request")
    assert isinstance(seen[0]["exception"], ZeroDivisionError)


async def test_classes_of_an_output_come_as_text(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        message = row()
        asked = message.outputs.add(name="y")
        asked.parameters["classification"].int64_param = 2
        answer = await two.call("ModelInfer", message)
    assert outputs_of(answer)["y"].tolist() == [["6.000000:2", "4.000000:1"]]


async def test_only_the_outputs_asked_for_are_answered(tmp_path: Path) -> None:
    async with two_doors(tmp_path, models={"echo": echo("FP32", "INT64")}) as two:
        sent = {"x0": ("FP32", np.ones((1, 1), "f4")), "x1": ("INT64", np.array([[7]], "i8"))}
        message = request_of(sent, model="echo")
        message.outputs.add(name="x1")
        answer = await two.call("ModelInfer", message)
    assert {name: array.tolist() for name, array in outputs_of(answer).items()} == {"x1": [[7]]}


async def test_a_stream_answers_in_order_and_outlives_an_error(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        stream = two.channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages.ModelStreamInferResponse.FromString,
        )()
        for name in ("a", "b"):
            await stream.write(row(id=name))
        await stream.write(row(model="nope", id="c"))
        await stream.write(row(id="d"))
        await stream.done_writing()
        answers = [answer async for answer in stream]
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d"]
    assert [answer.error_message for answer in answers] == [
        "",
        "",
        "Request for unknown model: 'nope' is not found",
        "",
    ]


async def test_a_stream_whose_client_has_gone_runs_nothing_more(tmp_path: Path) -> None:
    async with two_doors(tmp_path, engine={"frames_in_flight": 1}) as two:
        two.engine.hold.clear()
        stream = two.channel.stream_stream(
            SERVICE + "ModelStreamInfer", request_serializer=lambda message: message.SerializeToString()
        )()
        lane = two.front.versions["m", 1].lane
        await stream.write(row())
        await until(lambda: two.engine.batches)
        for _ in range(3):
            await stream.write(row())
        await until(lambda: len(lane.line) >= 3)
        stream.cancel()
        await until(lambda: all(job.abandoned for job in lane.line))
        two.engine.hold.set()
        await two.call("ModelInfer", row())
    assert two.engine.batches == [1, 1]


async def test_a_stream_on_which_nothing_comes_is_ended(tmp_path: Path) -> None:
    async with two_doors(tmp_path, limits={"keep_alive_seconds": 0.2}) as two:
        stream = two.channel.stream_stream(SERVICE + "ModelStreamInfer")()
        with pytest.raises(grpc.aio.AioRpcError, match="no request came for too long"):
            await asyncio.wait_for(stream.read(), 10)


async def test_metadata_says_over_grpc_what_it_says_over_http(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        _, _, server = await http(two, get("/v2"))
        answer = await two.call("ServerMetadata", messages.ServerMetadataRequest())
        assert (answer.name, answer.version, list(answer.extensions)) == tuple(server.values())
        _, _, model = await http(two, get("/v2/models/m"))
        metadata = await two.call("ModelMetadata", messages.ModelMetadataRequest(name="m"))
        assert (metadata.name, list(metadata.versions), metadata.platform) == ("m", ["1"], model["platform"])
        assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 3])]
        assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [("y", "FP32", [-1, 3])]
        unknown = await two.refused("ModelMetadata", messages.ModelMetadataRequest(name="m", version="7"))
    assert unknown == ("NOT_FOUND", "Request for unknown model: 'm' version 7 is not found")


async def test_readiness_of_server_and_models_is_told(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        assert (await two.call("ServerLive", messages.ServerLiveRequest())).live
        assert (await two.call("ServerReady", messages.ServerReadyRequest())).ready
        ready = {}
        for name, version in (("m", ""), ("m", "1"), ("m", "2"), ("nope", "")):
            message = messages.ModelReadyRequest(name=name, version=version)
            ready[name, version] = (await two.call("ModelReady", message)).ready
        two.front.draining = True
        assert not (await two.call("ServerReady", messages.ServerReadyRequest())).ready
    assert ready == {("m", ""): True, ("m", "1"): True, ("m", "2"): False, ("nope", ""): False}


async def test_configuration_and_statistics_are_those_of_http(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        await two.call("ModelInfer", row())
        _, _, config = await http(two, get("/v2/models/m/config"))
        answer = (await two.call("ModelConfig", messages.ModelConfigRequest(name="m"))).config
        assert (answer.name, answer.max_batch_size, answer.backend) == ("m", config["max_batch_size"], "onnxruntime")
        assert [(t.name, t.data_type, list(t.dims)) for t in answer.input] == [("x", messages.TYPE_FP32, [3])]
        for name, version in (("", ""), ("m", ""), ("m", "1")):
            message = messages.ModelStatisticsRequest(name=name, version=version)
            (statistics,) = (await two.call("ModelStatistics", message)).model_stats
            assert (statistics.name, statistics.version) == ("m", "1")
            assert (statistics.inference_count, statistics.execution_count) == (1, 1)
            assert statistics.inference_stats.success.count == 1


async def test_the_repository_is_listed_and_changed_only_with_the_admin_token(tmp_path: Path) -> None:
    async with two_doors(tmp_path, admin={"token": "secret"}) as two:
        index = await two.call("RepositoryIndex", messages.RepositoryIndexRequest())
        assert list(index.models) == []  # no version is in this store
        load = messages.RepositoryModelLoadRequest(model_name="nope")
        assert (await two.refused("RepositoryModelLoad", load))[0] == "UNAUTHENTICATED"
        metadata = (("authorization", "Bearer secret"),)
        code, details = await two.refused("RepositoryModelLoad", load, metadata=metadata)
        assert (code, details) == ("NOT_FOUND", "failed to load 'nope', failed to poll from model repository")
        load.parameters["file:1/model.onnx"].bytes_param = b"\0"
        code, details = await two.refused("RepositoryModelLoad", load, metadata=metadata)
        assert code == "INVALID_ARGUMENT" and "file:1/model.onnx" in details
        unload = messages.RepositoryModelUnloadRequest(model_name="nope")
        assert (await two.refused("RepositoryModelUnload", unload, metadata=metadata))[0] == "NOT_FOUND"


async def test_load_and_unload_are_off_without_an_admin_token(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        load = messages.RepositoryModelLoadRequest(model_name="m")
        assert (await two.refused("RepositoryModelLoad", load))[0] == "PERMISSION_DENIED"


async def test_log_settings_are_told_and_not_changed(tmp_path: Path) -> None:
    async with two_doors(tmp_path, admin={"token": "secret"}) as two:
        answer = await two.call("LogSettings", messages.LogSettingsRequest())
        message = messages.LogSettingsRequest()
        message.settings["log_verbose_level"].uint32_param = 1
        metadata = (("authorization", "Bearer secret"),)
        code, details = await two.refused("LogSettings", message, metadata=metadata)
    assert answer.settings["log_info"].bool_param is True
    assert answer.settings["log_format"].string_param == "ISO8601"
    assert code == "INVALID_ARGUMENT" and "log_verbose_level" in details


async def test_calls_that_mean_nothing_here_say_so(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        for name in ("SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting"):
            code, details = await two.refused(name, messages.ServerLiveRequest())
            assert code == "UNIMPLEMENTED" and "is not offered" in details


async def test_health_is_the_readiness_of_the_front(tmp_path: Path) -> None:
    statuses = health_pb2.HealthCheckResponse.ServingStatus
    async with two_doors(tmp_path) as two:
        check = two.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        watch = two.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for name in ("", "inference.GRPCInferenceService"):
            answer = await asyncio.wait_for(check(health_pb2.HealthCheckRequest(service=name)), 10)
            assert answer.status == statuses.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await asyncio.wait_for(check(health_pb2.HealthCheckRequest(service="nope")), 10)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watching = watch(health_pb2.HealthCheckRequest())
        assert (await asyncio.wait_for(watching.read(), 10)).status == statuses.SERVING
        two.front.draining = True
        assert (await asyncio.wait_for(watching.read(), 10)).status == statuses.NOT_SERVING
        watching.cancel()


async def test_draining_lets_calls_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        two.engine.hold.clear()
        under_way = asyncio.create_task(two.call("ModelInfer", row()))
        await until(lambda: two.engine.batches)
        stopping = asyncio.create_task(two.server.drain(10))
        await asyncio.sleep(0.05)
        late = await two.refused("ModelInfer", row())
        two.engine.hold.set()
        assert outputs_of(await under_way)["y"].tolist() == [[2, 4, 6]]
        await asyncio.wait_for(stopping, 10)
    assert late == ("UNAVAILABLE", "the gateway is shutting down")


async def test_draining_ends_streams_and_watches_after_their_answers(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        two.engine.hold.clear()
        streams = [two.channel.stream_stream(SERVICE + "ModelStreamInfer")() for _ in range(2)]
        await streams[0].write(row().SerializeToString())
        await until(lambda: two.engine.batches and len(two.server._service.streams) == 2)
        watching = two.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        assert await asyncio.wait_for(watching.read(), 10)
        draining = asyncio.create_task(two.server.drain(10))
        await asyncio.sleep(0)
        two.engine.hold.set()
        assert b"stable" in await asyncio.wait_for(streams[0].read(), 10)
        await asyncio.wait_for(draining, 5)
        for stream in streams:
            with pytest.raises(grpc.aio.AioRpcError, match="the gateway is shutting down"):
                await asyncio.wait_for(stream.read(), 10)
        assert await asyncio.wait_for(watching.read(), 10) is grpc.aio.EOF


async def test_connections_are_bounded_by_the_limit(tmp_path: Path) -> None:
    async with two_doors(tmp_path, limits={"max_connections": 2}) as two:
        await two.call("ModelInfer", row())
        silent = [await asyncio.open_connection("127.0.0.1", two.server.port) for _ in range(2)]
        assert await asyncio.wait_for(silent[1][0].read(1), 10) == b""
        await two.call("ModelInfer", row())
        for _, writer in silent:
            writer.close()


async def test_a_connection_that_says_nothing_is_closed(tmp_path: Path) -> None:
    async with two_doors(tmp_path, limits={"head_timeout_seconds": 0.2}) as two:
        reader, writer = await asyncio.open_connection("127.0.0.1", two.server.port)
        received = b"."
        until = time.monotonic() + 10
        while received:
            received = await asyncio.wait_for(reader.read(4096), until - time.monotonic())
        writer.close()


@pytest.mark.parametrize("compression", grpc.Compression)
async def test_real_clients_are_answered_whatever_they_use(tmp_path: Path, compression: grpc.Compression) -> None:
    sizes = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
    async with two_doors(tmp_path) as two:
        address = f"127.0.0.1:{two.server.port}"
        async with grpc.aio.insecure_channel(address, compression=compression, options=sizes) as channel:
            caller = Caller(channel)
            metadata = (("x-long", "y" * 8000), ("x-bin", bytes(range(256))), ("gateway-routing-key", "ada"))
            answers = await asyncio.gather(
                *[caller.call("ModelInfer", row(id=str(number)), metadata=metadata, timeout=9) for number in range(64)]
            )
            assert [answer.id for answer in answers] == [str(number) for number in range(64)]
            large = await caller.call("ModelInfer", request_of({"x": ("FP32", np.ones((870_000, 3), "f4"))}))
            assert large.raw_output_contents[0] == np.full(870_000 * 3, 2, "<f4").tobytes()
        await until(lambda: not (two.front.bodies.held_bytes or two.front.answers.held_bytes))


async def test_refusing_large_messages_does_not_cost_small_ones_their_connection(tmp_path: Path) -> None:
    async with two_doors(tmp_path, limits={"max_body_bytes": 4096}) as two:
        large = request_of({"x": ("FP32", np.ones((300_000, 3), "f4"))})
        calls = [asyncio.create_task(two.refused("ModelInfer", large)) for _ in range(30)]
        calls += [asyncio.create_task(two.call("ModelInfer", row())) for _ in range(30)]
        found = await asyncio.gather(*calls)
    assert {code for code, _ in found[:30]} == {"RESOURCE_EXHAUSTED"}


def in_frames(number: int, content: bytes, *, ended: bool = False) -> bytes:
    """Content as frames of data."""
    pieces = [content[at : at + 2**14] for at in range(0, len(content), 2**14)]
    flags = [0] * (len(pieces) - 1) + [frames.END_STREAM if ended else 0]
    return b"".join([frames.frame(frames.DATA, flag, number, piece) for flag, piece in zip(flags, pieces, strict=True)])


async def ending(client: Wire) -> str:
    """The fields that end the call that was begun last."""
    number = client.next - 2
    came = await client.until(lambda frame: frame[0] == frames.HEADERS and frame[1] & 1 and frame[2] == number)
    return came[-1][3].decode()


GOOD = framed(row().SerializeToString())
BOMB = gzip.compress(bytes(2**25))


@pytest.mark.parametrize(
    ("content", "code", "text"),
    [
        (b"", 3, "the call has no message"),
        (b"\0", 3, "the message is not whole"),
        (bytes(4), 3, "the message is not whole"),
        (bytes(5), 5, "Request for unknown model: ''"),
        (b"\0\0\0\0\5abcd", 3, "the message is not whole"),
        (b"\2" + bytes(4), 3, "a message begins with 0, or with 1"),
        (b"\1" + bytes(4), 13, "grpc-encoding does not say how"),
        (b"\0\xff\xff\xff\xff", 8, "limits.max_body_bytes"),
        (GOOD + GOOD, 3, "the call takes one message"),
        (GOOD + b"\0", 3, "the call takes one message"),
        (framed(b"\xff" * 9), 3, "the message is no ModelInferRequest"),
    ],
)
async def test_what_is_no_message_ends_its_call_and_says_why(
    tmp_path: Path, content: bytes, code: int, text: str
) -> None:
    async with two_doors(tmp_path) as two, wire(two.server.port) as client:
        for pieces in ([content], [content[at : at + 1] for at in range(len(content))]):
            number = client.number()
            client.write(client.head(number, SERVICE + "ModelInfer"))
            for piece in pieces:
                client.write(frames.frame(frames.DATA, 0, number, piece))
            client.write(frames.frame(frames.DATA, frames.END_STREAM, number))
            fields = await ending(client)
            assert f"'grpc-status': '{code}'" in fields and text in fields
        client.write(client.request(SERVICE + "ModelInfer", GOOD))
        assert "'grpc-status': '0'" in await ending(client)


async def test_compressed_messages_are_bounded_and_must_be_whole(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two, wire(two.server.port) as client:
        found = []
        for packed in (BOMB, b"", b"abc", gzip.compress(bytes(9))[:-3], gzip.compress(row().SerializeToString())):
            number = client.number()
            client.write(client.head(number, SERVICE + "ModelInfer", ("grpc-encoding", "gzip")))
            client.write(in_frames(number, b"\1" + len(packed).to_bytes(4, "big") + packed, ended=True))
            found.append(re.findall(r"'grpc-status': '(\d+)'", await ending(client)))
    assert found == [["8"], ["3"], ["3"], ["3"], ["0"]]


LARGE = framed(request_of({"x": ("FP32", np.ones((60_000, 3), "f4"))}).SerializeToString())
UNKNOWN = framed(request_of({"x": ("FP32", np.ones((60_000, 3), "f4"))}, model="nope").SerializeToString())
PACKED = gzip.compress(np.random.default_rng(1).bytes(200_000) + bytes(14_000_000))
COMPRESSED = b"\1" + len(PACKED).to_bytes(4, "big") + PACKED


TENSOR = b"\x2a\x05\x0a\x01x\x1a\0"  # one input
NESTED = b"\x2a\xe0\x5d" + b"\x22\0" * 6000  # one with that many parameters


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ModelInfer", b"\x0a\1m" + b"\x2a\0" * 40_000),
        ("ModelInfer", b"\x0a\1m" + b"\x32\0" * 40_000),
        ("ModelInfer", b"\x0a\1m" + b"\x3a\0" * 40_000),
        ("ModelInfer", b"\x0a\1m" + TENSOR * 10_000),
        ("ModelInfer", b"\x0a\1m" + NESTED * 6),
        ("ModelInfer", b"\x0a\1m" + b"\x28\1" * 40_000),
        ("RepositoryModelLoad", b"\x1a\0" * 40_000),
    ],
)
@pytest.mark.promise("P7")
async def test_a_message_of_many_small_fields_is_refused_before_it_is_parsed(
    tmp_path: Path, name: str, content: bytes
) -> None:
    async with two_doors(tmp_path) as two:
        with pytest.raises(grpc.aio.AioRpcError, match="the message has more than 10000 fields") as refused:
            await asyncio.wait_for(two.channel.unary_unary(SERVICE + name)(content), 10)
        await two.call("ModelInfer", row())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@given(st.lists(st.tuples(st.sampled_from([1, 2, 3, 5, 7, 99]), st.binary(max_size=9))))
def test_the_outline_of_a_message_is_what_it_says_once_it_is_parsed(fields: list[tuple[int, bytes]]) -> None:
    content = b"".join([varint(number << 3 | 2) + varint(len(value)) + value for number, value in fields])
    try:
        message = messages.ModelInferRequest.FromString(content)
    except DecodeError:
        return
    said = message.model_name, message.model_version, message.id, bool(message.raw_input_contents)
    assert outline_of(content) == said


async def test_a_large_message_that_cannot_be_parsed_fails_like_any_other_request(tmp_path: Path) -> None:
    content = b"\x0a\1m\x2a\3\x0a\1\xff\x3a\xa0\x8d\6" + bytes(100_000)
    async with two_doors(tmp_path) as two:
        with pytest.raises(grpc.aio.AioRpcError, match="the message is no ModelInferRequest") as refused:
            await asyncio.wait_for(two.channel.unary_unary(SERVICE + "ModelInfer")(content), 10)
        (record,) = two.http.log()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (record["status"], record["error"]) == (400, "the message is no ModelInferRequest")


@pytest.mark.parametrize("name", ["ModelInfer", "ModelStreamInfer"])
@pytest.mark.parametrize("end", ["reset", "left", "answered"])
async def test_what_was_held_for_a_call_is_let_go_with_it(tmp_path: Path, name: str, end: str) -> None:
    part, garbage = LARGE[:300_000], framed(b"\xff" * 100_000)
    async with two_doors(tmp_path, limits={"max_held_body_bytes": 2**20}) as two:
        gc.disable()
        try:
            for sent in (part, LARGE, UNKNOWN, COMPRESSED, garbage, LARGE + LARGE, LARGE + garbage):
                if end != "answered":
                    two.engine.hold.clear()
                async with wire(two.server.port, settings={frames.Setting.INITIAL_WINDOW_SIZE: 2**30}) as client:
                    client.write(frames.window_update(0, 2**30))
                    client.write(client.head(client.number(), SERVICE + name, ("grpc-encoding", "gzip")))
                    client.write(in_frames(1, sent, ended=sent != part))
                    await client.settled()
                    if end == "answered" and sent != part:
                        await until(lambda: not any(each._streams for each in two.server.connections))
                    elif end == "reset":
                        client.write(frames.frame(frames.RST_STREAM, 0, 1, bytes(4)))
                        await client.settled()
                await until(lambda: not two.server.connections)
                two.engine.hold.set()
                await until(lambda: not (two.front.bodies.held_bytes or two.front.answers.held_bytes))
                assert not two.server._service.streams and not two.server._calls.held_bytes
        finally:
            gc.enable()


async def test_a_call_that_is_reset_in_the_read_that_brought_it_leaves_nothing(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two, wire(two.server.port) as client:
        for name, content in (("ServerLive", bytes(5)), ("ModelInfer", COMPRESSED), ("ModelStreamInfer", COMPRESSED)):
            number = client.number()
            head = client.head(number, SERVICE + name, ("grpc-encoding", "gzip"))
            end = frames.frame(frames.RST_STREAM, 0, number, bytes(4))
            await client.settled()
            (connection,) = two.server.connections
            connection.data_received(head + in_frames(number, content, ended=True) + end)
        await client.settled()
        assert not two.front.bodies.held_bytes


async def test_a_stream_whose_client_pings_with_each_answer_goes_on(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two, wire(two.server.port) as client:
        client.write(frames.window_update(0, 2**30), client.head(client.number(), SERVICE + "ModelStreamInfer"))
        client.write(frames.window_update(1, 2**30))
        for _ in range(2 * MAX_STRIKES // 50):
            client.write(in_frames(1, GOOD * 50))
            answered = 0
            while answered < 50:
                answered += (await client.frame())[0] == frames.DATA
            client.write(frames.frame(frames.PING, 0, 0, bytes(8)) * 49)
            await client.settled()
        client.write(frames.frame(frames.DATA, frames.END_STREAM, 1))
        assert "'grpc-status': '0'" in await ending(client)


async def test_a_stream_that_is_stopped_while_a_message_is_inflated_in_vain_ends(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two, wire(two.server.port) as client:
        await client.settled()
        (connection,) = two.server.connections
        head = client.head(client.number(), SERVICE + "ModelStreamInfer", ("grpc-encoding", "gzip"))
        connection.data_received(head + in_frames(1, b"\1\0\0\0\3abc"))
        two.server._service.close()
        assert "the gateway is shutting down" in await ending(client)


async def test_requests_of_a_stream_wait_as_they_came_and_count_together(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two, wire(two.server.port) as client:
        two.engine.hold.clear()
        client.write(client.head(client.number(), SERVICE + "ModelStreamInfer"), in_frames(1, GOOD * 64))
        await client.settled()
        tracemalloc.start()
        try:
            client.write(in_frames(1, bytes(5) * 190_000))
            await client.settled()
            assert tracemalloc.get_traced_memory()[0] < 5_000_000
        finally:
            tracemalloc.stop()
        assert two.front.bodies.held_bytes == 950_000
        client.write(frames.frame(frames.RST_STREAM, 0, 1, bytes(4)))
        await client.settled()
        assert not two.front.bodies.held_bytes


async def test_thousands_of_requests_that_are_refused_at_once_let_others_run_between(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        passes, loop = 0, asyncio.get_running_loop()
        taken: list[int] = []
        accept = two.server._service.accept

        def count(*arguments: Any, **options: Any) -> None:
            taken.append(passes)
            accept(*arguments, **options)

        def turn() -> None:
            nonlocal passes
            passes += 1
            if len(taken) < 5000:
                loop.call_soon(turn)

        two.server._service.accept = count  # type: ignore[method-assign]
        turn()
        async with wire(two.server.port, settings={frames.Setting.INITIAL_WINDOW_SIZE: 2**30}) as client:
            client.write(frames.window_update(0, 2**30))
            client.write(client.head(client.number(), SERVICE + "ModelStreamInfer"))
            client.write(in_frames(1, bytes(5) * 5000, ended=True))
            answers = await client.answer(1)
    assert answers.count(b"is not found") == 5000 and max(Counter(taken).values()) <= STEPS_AT_ONCE


async def test_a_stream_that_waits_for_its_answers_is_not_ended_for_its_silence(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two, wire(two.server.port) as client:
        two.engine.hold.clear()
        client.write(client.head(client.number(), SERVICE + "ModelStreamInfer"), in_frames(1, GOOD))
        await client.settled()
        (stream,) = two.server._service.streams
        stream.check(asyncio.get_running_loop().time() + 1000)
        two.engine.hold.set()
        client.write(in_frames(1, GOOD, ended=True))
        assert (await client.answer(1)).count(b"stable") == 2


async def test_the_deadline_of_a_stream_is_that_of_each_of_its_requests(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two, wire(two.server.port) as client:
        two.engine.hold.clear()
        client.write(client.head(client.number(), SERVICE + "ModelStreamInfer", ("grpc-timeout", "100S")))
        await client.settled()
        (stream,) = two.server._service.streams
        stream.opened -= 99.9
        client.write(in_frames(1, GOOD))
        answer = await asyncio.wait_for(client.until(lambda frame: frame[0] == frames.DATA), 5)
        assert b"did not answer in time" in answer[-1][3]


async def test_calls_at_a_time_are_bounded_over_all_connections(tmp_path: Path) -> None:
    async with two_doors(tmp_path, limits={"max_queue_requests": 1}) as two:
        async with wire(two.server.port) as first, wire(two.server.port) as second:
            for _ in range(100):
                first.write(first.head(first.number(), SERVICE + "ModelInfer"))
            await first.settled()
            second.write(second.head(second.number(), SERVICE + "ModelInfer"))
            second.write(second.request(SERVICE + "ServerLive", bytes(5)))
            assert "too many calls at a time" in await ending(second)
            first.write(frames.frame(frames.RST_STREAM, 0, 1, bytes(4)))
            await first.settled()
            second.write(second.request(SERVICE + "ServerLive", bytes(5)))
            assert "'grpc-status': '0'" in await ending(second)
        await until(lambda: not two.server.connections)
        assert not two.server._calls.held_bytes


async def test_a_watcher_more_costs_the_others_nothing_and_one_who_leaves_is_forgotten(tmp_path: Path) -> None:
    async with two_doors(tmp_path) as two:
        health, told = two.server._health, 0
        status_of = health.status_of

        def count(service: str) -> Any:
            nonlocal told
            told += 1
            return status_of(service)

        health.status_of = count  # type: ignore[method-assign]
        async with wire(two.server.port) as client:
            name = framed(health_pb2.HealthCheckRequest(service="n" * 100_000).SerializeToString())
            client.write(client.head(client.number(), "/grpc.health.v1.Health/Watch"), in_frames(1, name, ended=True))
            for _ in range(90):
                client.write(client.request("/grpc.health.v1.Health/Watch", bytes(5)))
            await client.settled()
            assert len(health.watchers) == 91 and told < 20 * 91 and not two.front.bodies.held_bytes
        await until(lambda: not health.watchers)


async def test_a_connection_that_fails_at_its_clock_does_not_stop_those_of_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_doors(tmp_path, limits={"body_timeout_seconds": 0.1}) as two:
        async with wire(two.server.port) as broken:
            await broken.settled()
            (connection,) = two.server.connections
            connection.check = lambda now: 1 / 0  # type: ignore[method-assign, assignment]
            async with wire(two.server.port) as client:
                client.write(client.head(client.number(), SERVICE + "ModelInfer"))
                assert "did not arrive in time" in await ending(client)
            await broken.end()
    assert "a connection over gRPC failed" in caplog.text


def test_every_error_has_a_status() -> None:
    assert CODE_OF.keys() == STATUS_OF.keys()


def test_the_generated_code_is_what_the_script_writes(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts" / "protos", tmp_path], check=True, env={"PYTHON": sys.executable}, timeout=60)
    for name in ("inference_pb2.py", "inference_pb2.pyi", "health_pb2.py", "health_pb2.pyi"):
        place = Path("gateway/serving/grpc") / name
        assert (tmp_path / place).read_text() == (ROOT / place).read_text(), "run: scripts/protos"
