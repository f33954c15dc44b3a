from __future__ import annotations

import math
import struct
import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.binary import SLICE_STRINGS, pack_strings, tensor_to_bytes, texts_of
from gateway.protocol.datatypes import NUMPY_OF, Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.encode import encode_tensor, encode_tensor_in_binary, tensor_head
from gateway.protocol.errors import CallerError
from gateway.protocol.request import InferRequest, RequestedOutput
from tests.tensors import SHAPES, same, tensors

Array = np.ndarray[Any, Any]
DATATYPES = st.sampled_from(list(NUMPY_OF))
OUTPUTS = (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("h", "FP16", (-1,)))


def spec_of(name: str, datatype: str, array: Array) -> TensorSpec:
    return TensorSpec(name, datatype, (-1,) * array.ndim)


def described(spec: TensorSpec, shape: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(shape)} | changes


def request(specs: list[TensorSpec], arrays: list[Array], **more: Any) -> tuple[bytes, int]:
    """A request with every input in binary, and the length of its JSON."""
    blocks = [bytes(tensor_to_bytes(array)) for array in arrays]
    inputs = [
        described(spec, array.shape, parameters={"binary_data_size": len(block)})
        for spec, array, block in zip(specs, arrays, blocks, strict=True)
    ]
    head = orjson.dumps({"inputs": inputs, "outputs": [{"name": "y"}], **more})
    return head + b"".join(blocks), len(head)


def decoder(*inputs: tuple[str, str, tuple[int, ...]], batchable: bool = False) -> RequestDecoder:
    return RequestDecoder("m", Signature(tuple(TensorSpec(*each) for each in inputs), OUTPUTS), batchable=batchable)


def one(datatype: str, shape: tuple[int, ...], block: bytes, given: list[int], **changes: Any) -> InferRequest:
    """Decode `block` as the input x of a model of one input."""
    tensor = {"name": "x", "datatype": datatype, "shape": given, "parameters": {"binary_data_size": len(block)}}
    head = orjson.dumps({"inputs": [tensor | changes], "outputs": [{"name": "y"}]})
    return decoder(("x", datatype, shape)).decode(head + block, len(head))


@given(st.lists(DATATYPES.flatmap(lambda name: st.tuples(st.just(name), tensors(name))), min_size=1, max_size=5))
def test_every_datatype_comes_back_bit_for_bit(sent: list[tuple[str, Array]]) -> None:
    specs = [spec_of(f"i{place}", datatype, array) for place, (datatype, array) in enumerate(sent)]
    body, length = request(specs, [array for _, array in sent])
    decoded = RequestDecoder("m", Signature(tuple(specs), OUTPUTS)).decode(body, length)
    assert all(same(array, got) for (_, array), got in zip(sent, decoded.inputs, strict=True))


@given(DATATYPES.filter(lambda name: name not in ("FP16", "BF16")).flatmap(lambda n: st.tuples(st.just(n), tensors(n))))
def test_what_an_answer_says_in_json_is_read_back_bit_for_bit(sent: tuple[str, Array]) -> None:
    datatype, array = sent
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.array(math.nan, array.dtype), array).reshape(array.shape)
    spec = spec_of("x", datatype, array)
    body = b'{"inputs":[%b],"outputs":[{"name":"y"}]}' % encode_tensor(tensor_head(spec), array)
    got = RequestDecoder("m", Signature((spec,), OUTPUTS)).decode(body).inputs[0]
    assert same(array, got)


@given(DATATYPES.flatmap(lambda name: st.tuples(st.just(name), tensors(name))))
def test_what_an_answer_gives_in_binary_is_read_back_bit_for_bit(sent: tuple[str, Array]) -> None:
    datatype, array = sent
    spec = spec_of("x", datatype, array)
    tensor, block = encode_tensor_in_binary(tensor_head(spec), array)
    head = b'{"inputs":[%b],"outputs":[{"name":"y"}]}' % tensor
    got = RequestDecoder("m", Signature((spec,), OUTPUTS)).decode(head + bytes(block), len(head)).inputs[0]
    assert same(array, got)


def test_numbers_are_not_copied() -> None:
    array = np.arange(1000, dtype="f4").reshape(1, 1000)
    spec = spec_of("x", "FP32", array)
    body, length = request([spec], [array])
    got = RequestDecoder("m", Signature((spec,), OUTPUTS)).decode(body, length).inputs[0]
    assert np.shares_memory(got, np.frombuffer(body, "u1"))


def test_inputs_in_json_and_in_binary_go_together_in_any_order() -> None:
    chosen = decoder(("a", "FP32", (-1, 2)), ("b", "INT64", (-1,)), ("c", "BYTES", (2,)))
    inputs = [
        {"name": "c", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 10}},
        {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2]},
        {"name": "b", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
    ]
    head = orjson.dumps({"inputs": inputs, "outputs": [{"name": "y"}]})
    body = head + b"\x02\0\0\0\xc3\xa9\0\0\0\0" + struct.pack("<q", 2**62 + 1)
    got = chosen.decode(body, len(head))
    assert [array.tolist() for array in got.inputs] == [[[1.5, 2.0]], [2**62 + 1], ["é", ""]]


def test_numbers_that_are_not_finite_are_taken_as_they_are() -> None:
    bits = struct.pack("<4I", 0x7FC00001, 0x7F800000, 0xFF800000, 1)
    assert one("FP32", (-1,), bits, [4]).inputs[0].tobytes() == bits


def test_outputs_are_answered_in_binary_as_asked_one_by_one_and_for_all() -> None:
    spec = TensorSpec("x", "FP32", (-1,))
    chosen = RequestDecoder("m", Signature((spec,), OUTPUTS))

    def outputs(asked: Any, **parameters: Any) -> Any:
        body = {"inputs": [described(spec, (1,), data=[1.0])], "outputs": asked, "parameters": parameters}
        return chosen.decode(orjson.dumps(body)).outputs

    assert outputs([], binary_data_output=True) == (RequestedOutput(0, True), RequestedOutput(1, True))
    assert outputs([{"name": "h", "parameters": {"binary_data": True}}, {"name": "y"}]) == (
        RequestedOutput(1, True),
        RequestedOutput(0),
    )
    mixed = [{"name": "y", "parameters": {"binary_data": False, "classification": 2}}, {"name": "h"}]
    assert outputs(mixed, binary_data_output=True) == (RequestedOutput(0, False, 2), RequestedOutput(1, True))


@pytest.mark.parametrize("asked", [[], [{"name": "h"}], [{"name": "h", "parameters": {"binary_data": False}}]])
def test_an_output_in_fp16_is_not_answered_in_json(asked: Any) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}], "outputs": asked}
    with pytest.raises(CallerError, match="sending FP16 data via JSON is not supported. Please use the binary data"):
        decoder(("x", "FP32", (-1,))).decode(orjson.dumps(body))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_an_input_in_two_bytes_a_float_is_not_read_from_json(datatype: str) -> None:
    body = {"inputs": [{"name": "x", "datatype": datatype, "shape": [1], "data": [1.0]}]}
    with pytest.raises(CallerError, match=f"receiving {datatype} data via JSON is not supported"):
        decoder(("x", datatype, (-1,))).decode(orjson.dumps(body))


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"binary_data": 1}, "'binary_data' of an output must be a boolean"),
        ({"classification": -1}, "whole number of classes"),
        ({"classification": 1.0}, "whole number of classes"),
        ({"classification": True}, "whole number of classes"),
        ({"classification": 65_537}, "more than 65536"),
        ({"shared_memory_region": "r"}, "shared memory is not supported"),
    ],
    ids=str,
)
def test_an_output_that_cannot_be_given_so_is_refused(parameters: dict[str, Any], match: str) -> None:
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}],
        "outputs": [{"name": "y", "parameters": parameters}],
    }
    with pytest.raises(CallerError, match=match):
        decoder(("x", "FP32", (-1,))).decode(orjson.dumps(body))


def test_classes_of_an_output_that_is_no_number_are_refused() -> None:
    specs = (TensorSpec("x", "FP32", (-1,)),)
    chosen = RequestDecoder("m", Signature(specs, (TensorSpec("y", "BYTES", (-1,)),)))
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}],
        "outputs": [{"name": "y", "parameters": {"classification": 1}}],
    }
    with pytest.raises(CallerError, match="class result not available for output 'y' due to unsupported type 'BYTES'"):
        chosen.decode(orjson.dumps(body))


def test_inputs_of_different_length_are_refused_where_requests_share_a_run() -> None:
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [2], "data": [1, 2]},
        {"name": "b", "datatype": "FP32", "shape": [1], "data": [1]},
    ]
    body = orjson.dumps({"inputs": inputs, "outputs": [{"name": "y"}]})
    axes = ("a", "FP32", (-1,)), ("b", "FP32", (-1,))
    assert decoder(*axes).decode(body).rows == 2
    with pytest.raises(CallerError, match="input 'b' batch size does not match other inputs for 'm'"):
        decoder(*axes, batchable=True).decode(body)


@pytest.mark.parametrize(
    ("datatype", "shape", "given", "block", "match"),
    [
        (
            "FP32",
            (-1, 2),
            [4, 2],
            bytes(40),
            "input byte size mismatch for input 'x' for model 'm'. Expected 32, got 40",
        ),
        ("FP32", (-1, 2), [4, 2], bytes(33), "Expected 32, got 33"),
        ("FP32", (-1, 2), [4, 2], b"", "Expected 32, got 0"),
        ("FP32", (-1, 2), [2**31 - 1, 2], b"", "too many elements"),
        ("FP32", (-1, -1), [2**31 - 1, 0], b"", "too many elements"),
        ("BOOL", (-1,), [2], b"\x01\x02", "no BOOL"),
        ("BYTES", (-1,), [1], b"\xff\xff\xff\xff", "length of 4294967295 bytes, but 0 are left"),
        ("BYTES", (-1,), [1], b"\x05\0\0\0abcd", "length of 5 bytes, but 4 are left"),
        ("BYTES", (-1,), [1], b"\0\0\0", "too few for the 1 elements"),
        ("BYTES", (-1,), [2], b"\x04\0\0\0abcd", "has 1 elements, but its shape has 2"),
        ("BYTES", (-1,), [2**26], b"\0\0\0\0", "too few"),
        ("BYTES", (-1,), [1], b"\0\0\0\0\0\0\0\0", "4 bytes after the 1 elements"),
        ("BYTES", (-1,), [0], b"\0\0\0\0", "4 bytes after the 0 elements"),
        ("BYTES", (-1,), [1], b"\x01\0\0\0\xff", "not UTF-8"),
        ("BYTES", (-1,), [1], b"\x03\0\0\0\xed\xa0\x80", "not UTF-8"),
    ],
    ids=str,
)
def test_bytes_that_are_not_the_tensor_they_say_are_refused(
    datatype: str, shape: tuple[int, ...], given: list[int], block: bytes, match: str
) -> None:
    with pytest.raises(CallerError, match=match):
        one(datatype, shape, block, given)


@pytest.mark.parametrize("size", [-1, 2**63 - 1, 4.0, "4", True, 5, 3])
def test_a_size_that_is_none_or_not_there_is_refused(size: Any) -> None:
    with pytest.raises(CallerError, match="binary_data_size|additional bytes|size mismatch"):
        one("FP32", (-1,), bytes(4), [1], parameters={"binary_data_size": size})


@pytest.mark.parametrize(
    "changes",
    [
        {"data": [1.0]},
        {"parameters": {}},
        {"parameters": {"shared_memory_region": "r"}, "data": [1.0]},
        {"parameters": {"shared_memory_region": "r", "binary_data_size": 4}},
    ],
)
def test_an_input_must_come_in_one_way(changes: dict[str, Any]) -> None:
    with pytest.raises(CallerError, match="Input must set only one of the following fields"):
        one("FP32", (-1,), bytes(4), [1], **changes)


def test_shared_memory_is_refused() -> None:
    with pytest.raises(CallerError, match="shared memory is not supported"):
        one("FP32", (-1,), b"", [1], parameters={"shared_memory_region": "r"})


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    head = orjson.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]})
    with pytest.raises(CallerError, match="unexpected additional input data for model 'm': 3 trailing bytes"):
        decoder(("x", "FP32", (-1,))).decode(head + b"abc", len(head))


def test_a_size_without_the_header_is_refused_unless_it_is_nothing() -> None:
    empty = {"name": "x", "datatype": "FP32", "shape": [0], "parameters": {"binary_data_size": 0}}
    chosen = decoder(("x", "FP32", (-1,)))
    assert chosen.decode(orjson.dumps({"inputs": [empty], "outputs": [{"name": "y"}]})).rows == 0
    full = empty | {"shape": [1], "parameters": {"binary_data_size": 4}}
    with pytest.raises(CallerError, match="expecting 4 additional bytes for model 'm'"):
        chosen.decode(orjson.dumps({"inputs": [full]}))


@pytest.mark.parametrize("length", [1, 7, 2000])
def test_a_header_length_that_cuts_the_json_or_is_too_long_is_refused(length: int) -> None:
    with pytest.raises(CallerError, match="not valid JSON|in range"):
        decoder(("x", "FP32", (-1,))).decode(b'{"inputs":[],"a":"\xc3\xa9"}', length)


@pytest.mark.parametrize(
    ("datatype", "shape", "body", "expected"),
    [
        ("FP32", (-1, 2), bytes(16), [2, 2]),
        ("FP32", (3,), bytes(12), [3]),
        ("UINT8", (-1, -1), b"abc", [1, 3]),
        ("BOOL", (-1,), b"\x01\x00", [2]),
        ("BYTES", (1,), b"a \xc3\xa9", [1]),
        ("BYTES", (-1, 1), b"", [1, 1]),
        ("BF16", (-1,), b"ab", [1]),
    ],
)
def test_a_raw_request_is_its_one_tensor(
    datatype: str, shape: tuple[int, ...], body: bytes, expected: list[int]
) -> None:
    got = decoder(("x", datatype, shape)).decode(body, 0)
    assert list(got.inputs[0].shape) == expected and got.rows == expected[0]
    assert got.outputs == (RequestedOutput(0, True), RequestedOutput(1, True))
    if datatype == "BYTES":
        assert got.inputs[0].ravel().tolist() == [body.decode()]
    else:
        assert got.inputs[0].tobytes() == body


@pytest.mark.parametrize(
    ("inputs", "body", "match"),
    [
        ([("x", "FP32", (-1,)), ("z", "FP32", (-1,))], bytes(8), "must only have 1 input .* but got 2 inputs"),
        ([("x", "FP32", (-1, -1, -1))], bytes(8), "more than one variable-sized dimension"),
        ([("x", "FP32", (2, -1, -1))], bytes(8), "more than one variable-sized dimension"),
        ([("x", "FP32", (-1, 3))], bytes(8), "no multiple of 12"),
        ([("x", "FP32", (-1, 0))], bytes(8), "no multiple of 0"),
        ([("x", "FP32", (3,))], bytes(8), "Expected 12, got 8"),
        ([("x", "BYTES", (2,))], b"ab", "For BYTE datatype raw input 'x', the model must have input shape \\[1\\]"),
        ([("x", "BYTES", (1,))], b"\xff", "not UTF-8"),
        ([("x", "BOOL", (-1,))], b"\x02", "no BOOL"),
    ],
)
def test_a_raw_request_whose_tensor_cannot_be_told_is_refused(inputs: Any, body: bytes, match: str) -> None:
    with pytest.raises(CallerError, match=match):
        decoder(*inputs).decode(body, 0)


PARTS = st.sampled_from(
    ["inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "binary_data_size", "binary_data",
     "classification", "id", "timeout", "x0", "y", "FP32", "NaN", 0, 1, 4, -1, True, None, [], {}, 1e300, 2**63]
)  # fmt: skip


@given(
    st.lists(DATATYPES.flatmap(lambda name: st.tuples(st.just(name), tensors(name, SHAPES))), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(max_size=3) | PARTS.map(orjson.dumps), st.integers(0, 9))),
    st.integers(-9, 9),
)
def test_a_mutated_request_is_taken_or_refused_and_nothing_else_is_raised(
    sent: list[tuple[str, Array]], changes: list[tuple[int, bytes, int]], shift: int
) -> None:
    specs = [spec_of(f"x{place}", datatype, array) for place, (datatype, array) in enumerate(sent)]
    body, length = request(specs, [array for _, array in sent], id="7", parameters={"a": 1})
    for place, content, cut in changes:
        at = place % (len(body) + 1)
        body = body[:at] + content + body[at + cut :]
    chosen = RequestDecoder("m", Signature(tuple(specs), OUTPUTS), batchable=all(array.ndim for _, array in sent))
    for header in (max(0, length + shift), None, 0):
        try:
            got = chosen.decode(body, header)
        except CallerError as error:
            assert str(error).isprintable() and len(str(error)) < 4096
            continue
        assert [array.dtype for array in got.inputs] == [NUMPY_OF[datatype] for datatype, _ in sent]
    # Whatever it refused, the decoder still takes what is right.
    body, length = request(specs, [array for _, array in sent])
    if not all(array.ndim for _, array in sent) or len({len(array) for _, array in sent}) == 1:
        assert len(chosen.decode(body, length).inputs) == len(sent)


MORE = st.sampled_from(
    [{}, {"id": "7"}, {"parameters": {"a": 1}}, {"parameters": {"priority": 1}}, {"parameters": {"timeout": 5}},
     {"parameters": {"binary_data_output": True}}, {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}]
)  # fmt: skip


@given(DATATYPES.flatmap(lambda name: st.tuples(st.just(name), st.lists(tensors(name), min_size=1, max_size=3))), MORE)
def test_a_head_that_came_before_means_the_same_with_other_numbers(
    sent: tuple[str, list[Array]], more: dict[str, Any]
) -> None:
    datatype, arrays = sent
    decoders: dict[int, RequestDecoder] = {}
    for array in arrays * 2:
        other = array[::-1] if array.ndim else array
        for numbers in (array, np.ascontiguousarray(other)):
            spec = spec_of("x", datatype, numbers)
            body, length = request([spec], [numbers], **more)
            known = decoders.setdefault(numbers.ndim, RequestDecoder("m", Signature((spec,), OUTPUTS)))
            got, fresh = known.decode(body, length), known.again().decode(body, length)
            assert same(got.inputs[0], fresh.inputs[0]) and same(got.inputs[0], numbers)
            assert (got.id, got.rows, got.outputs, got.parameters, got.timeout_us, got.priority, got.fragments) == (
                fresh.id, fresh.rows, fresh.outputs, fresh.parameters, fresh.timeout_us, fresh.priority, fresh.fragments
            )  # fmt: skip


def test_a_head_that_came_before_lifts_no_rule() -> None:
    reads = decoder(("x", "FP32", (-1, 2)))
    body, length = request([TensorSpec("x", "FP32", (-1, 2))], [np.ones((3, 2), "f4")])
    for _ in range(2):
        assert reads.decode(body, length).rows == 3
    for wrong in (body[:-1], body + b"x", body[:-4], body[:length]):
        with pytest.raises(CallerError):
            reads.decode(wrong, length)
    assert reads.decode(memoryview(body), length).inputs[0].tolist() == [[1.0, 1.0]] * 3
    inputs = [described(TensorSpec("x", "FP32", (-1, 2)), (1, 2), data=[1, 2])]
    in_json = orjson.dumps({"inputs": inputs, "outputs": [{"name": "y"}]})
    for _ in range(2):
        assert reads.decode(in_json, len(in_json)).inputs[0].tolist() == [[1.0, 2.0]]
    flags = decoder(("x", "BOOL", (-1,)))
    body, length = request([TensorSpec("x", "BOOL", (-1,))], [np.ones(3, "?")])
    assert flags.decode(body, length).rows == 3
    with pytest.raises(CallerError, match="no BOOL"):
        flags.decode(body[:-1] + b"\x02", length)


def test_many_strings_are_packed_in_little_more_memory_than_they_take() -> None:
    # An engine has a bound, which millions of pieces of two letters each went beyond.
    words = np.array([f"{number % 100:02}" for number in range(8 * SLICE_STRINGS)], object)
    tracemalloc.start()
    try:
        packed = pack_strings(words)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(packed) == 6 * words.size and most < 8 * len(packed)


def test_parts_of_packed_strings_are_packed_for_themselves() -> None:
    texts = texts_of(["a", "bc", "d"])
    assert pack_strings(texts) is texts.packed and pack_strings(texts.reshape(3, 1)) is texts.packed
    for part in (texts[1:], texts[::-1], np.concatenate([texts, texts])):
        assert pack_strings(part) == pack_strings(np.array(part.tolist(), object))
