"""Tensors and encodings of the Open Inference Protocol, over a socket."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from gateway.protocol.datatypes import Signature, TensorSpec
from tests.engines import DOUBLER
from tests.serving.fronts import ROW, Door, door, get, post, run

Answer = tuple[int, dict[str, str], Any]

FLOATS = np.array([[1.5, -2.0, 3.25]], "f4")
TEXTS = Signature((TensorSpec("x", "BYTES", (-1,)),), (TensorSpec("y", "BYTES", (-1,)),))
FLAGS = Signature((TensorSpec("x", "BOOL", (-1,)),), (TensorSpec("y", "BOOL", (-1,)),))
PAIR = Signature((TensorSpec("x", "FP32", (-1,)), TensorSpec("z", "FP32", (-1,))), (TensorSpec("y", "FP32", (-1,)),))
WIDE = Signature((TensorSpec("x", "FP32", (-1, -1, -1)),), (TensorSpec("y", "FP32", (-1, -1, -1)),))


def tensor(size: object, **changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": size}} | changes


def binary(
    block: bytes, *inputs: dict[str, Any], length: object = None, headers: str = "", content: Any = None, **more: Any
) -> bytes:
    """A request whose JSON is followed by `block`."""
    head = orjson.dumps({"inputs": list(inputs), **more})
    shown = len(head) if length is None else length
    headers = f"Inference-Header-Content-Length: {shown}\r\n{headers}"
    return post((content or bytes)(head + block), headers=headers)


def good(signature: Signature = DOUBLER) -> bytes:
    """A request that the model takes."""
    spec = signature.inputs[0]
    block = b"\x01\0\0\0a" if spec.datatype == "BYTES" else bytes(12 if signature is DOUBLER else 1)
    if signature in (PAIR, WIDE):
        block = bytes(4)
    shape = [1, 3] if signature is DOUBLER else [1] * len(spec.shape)
    inputs = [tensor(len(block), name=each.name, datatype=each.datatype, shape=shape) for each in signature.inputs]
    return binary(block * len(inputs), *inputs)


def split(answer: Answer) -> tuple[dict[str, Any], bytes]:
    """The JSON and the bytes of a binary answer."""
    status, headers, content = answer
    assert status == 200 and headers["content-type"] == "application/octet-stream", content
    if isinstance(content, dict):
        return content, b""
    length = int(headers["inference-header-content-length"])
    return json.loads(content[:length]), content[length:]


async def check(d: Door, raw: bytes, status: int, text: str, *, signature: Signature = DOUBLER) -> None:
    """Send a bad request; it alone is refused, clearly, and everything else goes on."""
    loop, faults = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    d.engine.run = lambda inputs: [inputs[0]]
    await d.send(good(signature), read=1)
    logged = len(d.log())
    (got, headers, body), (live, _, _), (after, _, _) = await d.send(
        raw + get("/v2/health/live") + good(signature), read=3
    )
    assert (got, list(body)) == (status, ["error"]) and text in body["error"], body
    assert headers["content-type"] == "application/json" and (live, after) == (200, 200)
    assert [record["status"] for record in d.log()[logged:]] == [status, 200]
    assert not faults


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    ("signature", "raw", "text"),
    [
        # 76, 77, 78: the header's number
        (DOUBLER, binary(bytes(12), tensor(12), length=99999999999), "header size should be in range (0, 106), got: 9"),
        (DOUBLER, binary(bytes(12), tensor(12), length=10**30), "Unable to parse Inference-Header-Content-Length"),
        *(
            (DOUBLER, binary(bytes(12), tensor(12), length=length), "Unable to parse Inference-Header-Content-Length")
            for length in ("-5", "+5", "5.0", "0x5", "1_0", "5 5", "\xb2", "", "5, 5")
        ),
        (
            DOUBLER,
            binary(bytes(12), tensor(12), headers="Inference-Header-Content-Length: 5\r\n"),
            "Unable to parse Inference-Header-Content-Length",
        ),
        (DOUBLER, binary(b"", tensor(0), length=200), "in range"),
        (DOUBLER, binary(bytes(12), tensor(12), length=0), "no multiple of 12"),
        (DOUBLER, binary(b"", tensor(12), id="\xe9", length=12), "not valid JSON"),
        # 79, 81: bytes that are left over, or lacking
        (DOUBLER, binary(b"abc", ROW), "unexpected additional input data for model 'm': 3 trailing bytes"),
        (DOUBLER, binary(bytes(13), tensor(12)), "1 trailing bytes"),
        (DOUBLER, binary(bytes(11), tensor(12)), "unexpected size for input 'x', expecting 1 additional bytes"),
        (PAIR, binary(bytes(8), tensor(8, shape=[2]), tensor(8, name="z", shape=[2])), "expecting 8 additional bytes"),
        # 80: the size
        *(
            (DOUBLER, binary(bytes(12), tensor(size)), "parameter 'binary_data_size' of input 'x' must be a number")
            for size in (-1, 12.0, "12", True)
        ),
        (DOUBLER, binary(bytes(12), tensor(2**63)), "expecting 9223372036854775796 additional bytes"),
        (DOUBLER, binary(bytes(12), tensor(0) | {"parameters": {}}), "Input must set only one of the following fields"),
        # 82: the size and the shape
        (DOUBLER, binary(bytes(40), tensor(40)), "size mismatch for input 'x' for model 'm'. Expected 12, got 40"),
        (DOUBLER, binary(bytes(13), tensor(13)), "Expected 12, got 13"),
        # 83: both ways
        (DOUBLER, binary(bytes(12), tensor(12, data=[1, 2, 3])), "Input must set only one of the following fields"),
        # 84, 85: strings
        *(
            (TEXTS, binary(block, tensor(len(block), datatype="BYTES", shape=[count])), text)
            for block, count, text in (
                (b"\xff\xff\xff\xff", 1, "a length of 4294967295 bytes, but 0 are left"),
                (b"\x09\0\0\0abc", 1, "a length of 9 bytes, but 3 are left"),
                (b"\0\0\0", 1, "too few for the 1 elements"),
                (b"\x01\0\0\0a", 2, "too few for the 2 elements"),
                (b"\x05\0\0\0abcde", 2, "has 1 elements, but its shape has 2"),
                (b"\x01\0\0\0a\x01\0\0\0b", 1, "5 bytes after the 1 elements"),
                (b"\x01\0\0\0\xff", 1, "not UTF-8"),
            )
        ),
        # 86: booleans
        (FLAGS, binary(b"\x02", tensor(1, datatype="BOOL", shape=[1])), "a byte that is no BOOL"),
        # 87: raw requests
        (PAIR, post(bytes(8), headers="Inference-Header-Content-Length: 0\r\n"), "must only have 1 input"),
        (WIDE, post(bytes(8), headers="Inference-Header-Content-Length: 0\r\n"), "more than one variable-sized"),
    ],
)  # fmt: skip
def test_a_wrong_binary_request_is_refused_and_hurts_nobody(
    tmp_path: Path, signature: Signature, raw: bytes, text: str
) -> None:
    async def test() -> None:
        async with door(tmp_path, engine_options={"signature": signature}) as d:
            await check(d, raw, 400, text, signature=signature)

    run(test)


PACKED = gzip.compress(json.dumps({"inputs": [ROW]}).encode())


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    ("raw", "status", "text"),
    [
        # 31, 32, 37 to 39, 44, 45: what is no JSON object
        (post(b""), 400, "is empty"),
        (post(b" \n"), 400, "is empty"),
        (post(b'{"inputs":'), 400, "not valid JSON"),
        (post(b'{"inputs":[]}x'), 400, "not valid JSON"),
        *((post(body), 400, "must be a JSON object") for body in (b"[]", b"1", b'"a"', b"null")),
        (post(b'{"id":"\xff"}'), 400, "not valid JSON"),
        (post('{"inputs":[]}'.encode("utf-16")), 400, "not valid JSON"),
        (post(b'\xef\xbb\xbf{"inputs":[]}'), 400, "byte order mark"),
        (post(b'{"x":' + b"[" * 100 + b"]" * 100 + b"}"), 400, "nests too deeply"),
        (post(b"[" * 100_000), 400, "not valid JSON"),
        (post(b'{"inputs":%b}' % (b"9" * 5000)), 400, "a number that no datatype holds"),
        (post(b'{"inputs":[],"inputs":[]}'), 400, "key twice"),
        (post({str(key): 0 for key in range(100_000)}), 400, "keys, more than 1000"),
        (post(b'{"id":"\\ud800"}'), 400, "not valid JSON"),
        (post({"id": "a\nb", "inputs": [ROW]}), 400, "printable ASCII"),
        # 34 to 36, 88: encodings
        *(
            (post(headers=f"Content-Encoding: {value}\r\n"), 415, "content-encoding")
            for value in ("br", "gzip, gzip", "identity, gzip")
        ),
        (post(PACKED, headers="Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n"), 415, "content-encoding"),
        (post(gzip.compress(bytes(2**26)), headers="Content-Encoding: gzip\r\n"), 413, "inflates to more than"),
        (post(b"not gzip", headers="Content-Encoding: gzip\r\n"), 400, "not valid gzip"),
        (post(PACKED[:-3], headers="Content-Encoding: gzip\r\n"), 400, "ends too early"),
        (post(PACKED + b"x", headers="Content-Encoding: gzip\r\n"), 400, "bytes after the end"),
        (post(PACKED + PACKED, headers="Content-Encoding: gzip\r\n"), 400, "bytes after the end"),
        (post(PACKED, headers="Content-Encoding: deflate\r\n"), 400, "not valid deflate"),
        (
            binary(b"", ROW, length=9999999, headers="Content-Encoding: gzip\r\n", content=gzip.compress),
            400,
            "inference header size should be in range (0,",
        ),
        # 50 to 68: tensors
        *(
            (post({"inputs": [ROW | changes]}), 400, text)
            for changes, text in (
                ({"shape": "4"}, "must be an array"),
                ({"shape": [1.0, 3]}, "must hold integers"),
                ({"shape": [-1, 3]}, "got -1"),
                ({"shape": [2**32, 2**32], "data": []}, "must hold integers"),
                ({"shape": [2**62, 0], "data": []}, "must hold integers"),
                ({"shape": [1_000_000, 3]}, "has 3 elements, but its shape [1000000, 3] has 3000000"),
                ({"shape": [1] * 9}, "at most 8"),
                ({"data": [1, 2]}, "has 2 elements"),
                ({"data": [[1], [2, 3]]}, "nested otherwise"),
                ({"data": [1, 2, None]}, "no FP32"),
                ({"data": [1, 2, "1.5"]}, "no FP32"),
                ({"data": [1, 2, True]}, "no FP32"),
                ({"data": [1, 2, 1e39]}, "out of range for FP32"),
                ({"datatype": "FP31"}, "'FP31', but model 'm' expects 'FP32'"),
                ({"name": "q"}, "unexpected inference input 'q'"),
            )
        ),
        (post(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1e400]}]}'), 400, "no datatype holds"),
        (post({"inputs": []}), 400, "missing required input(s) ['x']"),
        (post({"inputs": {}}), 400, "must be an array"),
        (post({"inputs": [ROW] * 65}), 400, "65 inputs"),
        (post({"inputs": [ROW, ROW]}), 400, "given twice"),
        # 75: outputs
        (post({"inputs": [ROW], "outputs": [{"name": "q"}]}), 400, "unexpected inference output 'q'"),
        (post({"inputs": [ROW], "outputs": [{"name": "y"}] * 2}), 400, "asked for twice"),
        (post({"inputs": [ROW], "outputs": [{"name": "y"}] * 10_000}), 400, "at most 64"),
        # 96 and reserved parameters
        (post({"inputs": [ROW], "parameters": {"timeout": -1}}), 400, "'timeout' must be a whole number"),
        (post({"inputs": [ROW], "parameters": {"sequence_id": 1}}), 400, "'sequence_id' is not supported"),
        (post({"inputs": [ROW], "parameters": {"triton_a": 1}}), 400, "reserved for Triton"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_refused_and_hurts_nobody(tmp_path: Path, raw: bytes, status: int, text: str) -> None:
    async def test() -> None:
        async with door(tmp_path, limits={"max_body_bytes": 2**21}) as d:
            await check(d, raw, status, text)

    run(test)


def test_a_tensor_in_binary_is_answered_in_binary_and_logged_like_any_other(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            block = FLOATS.tobytes()
            raw = binary(block, tensor(12), id="a", parameters={"binary_data_output": True, "tenant": "b"})
            [answer] = await d.send(raw, read=1)
            head, tail = split(answer)
            [output] = head["outputs"]
            assert output == {"name": "y", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
            assert tail == (FLOATS * 2).tobytes() and head["id"] == "a"
            [record] = d.log()
            assert record["inputs"][0]["data"] == [1.5, -2.0, 3.25] and record["outputs"][0]["data"] == [3.0, -4.0, 6.5]
            assert record["parameters"] == {"tenant": "b"} and record["request_id"] == "a"

    run(test)


def test_a_body_in_pieces_and_chunks_is_one_body(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            rows = np.arange(60_000, dtype="f4").reshape(-1, 3)
            large = tensor(rows.nbytes, shape=list(rows.shape))
            raw = binary(rows.tobytes(), large, parameters={"binary_data_output": True})
            answers = await d.send(*[raw[start : start + 9973] for start in range(0, len(raw), 9973)], read=1)
            assert split(answers[0])[1] == (rows * 2).tobytes()
            head = orjson.dumps({"inputs": [tensor(12)], "parameters": {"binary_data_output": True}})
            headers = f"Inference-Header-Content-Length: {len(head)}\r\n"
            [answer] = await d.send(post(head + FLOATS.tobytes(), headers=headers, chunked=True), read=1)
            assert split(answer)[1] == (FLOATS * 2).tobytes()
            logged = d.log()[0]["inputs"][0]
            assert "data" not in logged and logged["summary"]["max"] == 59_999.0

    run(test)


def test_a_raw_request_is_answered_in_binary(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            raw = post(FLOATS.tobytes(), headers="Inference-Header-Content-Length: 0\r\n")
            [answer] = await d.send(raw, read=1)
            assert split(answer)[1] == (FLOATS * 2).tobytes()

    run(test)


def test_a_tensor_without_elements_is_a_tensor(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            empty = tensor(0, shape=[0, 3])
            for raw in (
                binary(b"", empty, parameters={"binary_data_output": True}),
                post({"inputs": [empty], "parameters": {"binary_data_output": True}}),
            ):
                [answer] = await d.send(raw, read=1)
                head, tail = split(answer)
                assert head["outputs"][0]["shape"] == [0, 3] and tail == b""
            [(status, _, body)] = await d.send(post({"inputs": [ROW | {"shape": [0, 3], "data": []}]}), read=1)
            assert status == 200 and body["outputs"][0]["data"] == []

    run(test)


def test_nan_and_infinities_are_taken_in_json_and_binary_and_answered_as_tokens(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            values = np.array([[np.nan, np.inf, -np.inf]], "f4")
            tokens = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[NaN,Infinity,-Infinity]}]}'
            for raw in (binary(values.tobytes(), tensor(12)), post(tokens)):
                [(status, _, body)] = await d.send(raw, read=1)
                assert status == 200 and np.array_equal(body["outputs"][0]["data"], values[0] * 2, equal_nan=True)
            assert [record["inputs"][0]["data"] for record in d.log()] == [[None] * 3] * 2

    run(test)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_goes_both_ways_on_inference_only(tmp_path: Path, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    unpack = gzip.decompress if encoding == "gzip" else zlib.decompress

    async def test() -> None:
        async with door(tmp_path) as d:
            accept = f"Accept-Encoding: {encoding}\r\n"
            headers = f"Content-Encoding: {encoding}\r\n{accept}"
            wants = {"binary_data_output": True}
            raw = binary(FLOATS.tobytes(), tensor(12), headers=headers, content=pack, parameters=wants)
            plain = post(headers=accept)
            refused = post({}, headers=accept)
            first, second, third, fourth, fifth = await d.send(
                raw + plain + refused + get("/v2/models/m", headers=accept) + post(), read=5
            )
            assert first[1]["content-encoding"] == second[1]["content-encoding"] == encoding
            head, tail = split((first[0], first[1], unpack(first[2])))
            assert head["outputs"][0]["name"] == "y" and tail == (FLOATS * 2).tobytes()
            assert json.loads(unpack(second[2]))["outputs"][0]["data"] == [2.0, 4.0, 6.0]
            assert "inference-header-content-length" not in second[1]
            assert all("content-encoding" not in headers for _, headers, _ in (third, fourth, fifth))
            assert (third[0], fourth[0], fifth[0]) == (400, 200, 200)

    run(test)


def test_what_is_not_spoken_is_told_with_what_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            [(status, headers, _)] = await d.send(post(headers="Content-Encoding: br\r\n"), read=1)
            assert status == 415 and headers["accept-encoding"] == "gzip, deflate"
            [(status, headers, _)] = await d.send(post(headers="Accept-Encoding: br, *\r\n"), read=1)
            assert status == 200 and "content-encoding" not in headers

    run(test)


def test_classes_stand_in_the_place_of_an_output(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.front.versions["m", 1].labels = {"y": ("a", "b")}
            wanted = {"name": "y", "parameters": {"classification": 2}}
            [(status, _, body)] = await d.send(post({"inputs": [ROW], "outputs": [wanted]}), read=1)
            [output] = body["outputs"]
            assert status == 200 and (output["datatype"], output["shape"]) == ("BYTES", [1, 2])
            assert output["data"] == ["6.000000:2", "4.000000:1:b"]
            wanted["parameters"] |= {"binary_data": True}
            [answer] = await d.send(post({"inputs": [ROW], "outputs": [wanted]}), read=1)
            assert split(answer)[1] == b"\x0a\0\0\x006.000000:2\x0c\0\0\x004.000000:1:b"
            assert d.log()[0]["outputs"][0]["data"] == [2.0, 4.0, 6.0]

    run(test)


def test_a_timeout_in_microseconds_is_a_deadline(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            d.engine.hold.clear()
            late = post({"inputs": [ROW], "parameters": {"timeout": 100_000}})
            [(status, _, body)] = await d.send(late, read=1)
            assert status == 504 and "in time" in body["error"]
            d.engine.hold.set()
            patient = post({"inputs": [ROW], "parameters": {"timeout": 10**12, "priority": 1}})
            assert (await d.send(patient, read=1))[0][0] == 200
            assert d.log()[-1]["parameters"] == {"timeout": 10**12, "priority": 1}

    run(test)


def test_strings_are_logged_by_their_size(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path, engine_options={"signature": TEXTS}, log={"max_tensor_bytes": 64}) as d:
            d.engine.run = lambda inputs: [inputs[0]]
            texts = ["short\x00\n", "long" * 100]
            for text in texts:
                block = struct.pack("<I", len(text)) + text.encode()
                raw = binary(block, tensor(len(block), datatype="BYTES", shape=[1]))
                [(status, _, body)] = await d.send(raw, read=1)
                assert status == 200 and body["outputs"][0]["data"] == [text]
            short, long = [record["inputs"][0] for record in d.log()]
            assert short["data"] == [texts[0]]
            assert "data" not in long and long["summary"] == {"count": 1} and len(long["digest"]) == 71

    run(test)


def test_a_hundred_lying_headers_cost_no_memory(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    raw = binary(b"", ROW, length=9999999, headers="Content-Encoding: gzip\r\n", content=gzip.compress)
    bomb = post(gzip.compress(bytes(2**26)), headers="Content-Encoding: gzip\r\n")

    async def test() -> None:
        async with door(tmp_path) as d:
            for round_number in range(3):
                if round_number == 1:
                    before = process.memory_info().rss
                assert {status for status, _, _ in await d.send(raw * 50, read=50)} == {400}
                assert {status for status, _, _ in await d.send(bomb * 3, read=3)} == {413}
            assert process.memory_info().rss - before < 32 * 2**20

    run(test)
