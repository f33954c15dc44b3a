from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.datatypes import NUMPY_OF, Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.errors import CallerError
from gateway.protocol.json_tensor import MAX_TOKEN_BYTES
from gateway.protocol.request import InferRequest, RequestedOutput

MODEL = Signature(
    (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)), TensorSpec("z", "INT64", (-1,)))
)


def decoder(*inputs: tuple[str, str, tuple[int, ...]]) -> RequestDecoder:
    return RequestDecoder("m", Signature(tuple(TensorSpec(*each) for each in inputs), MODEL.outputs))


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.0]} | changes


def body(**changes: Any) -> bytes:
    return orjson.dumps({"inputs": [tensor(**changes)]})


def refused(raw: bytes, match: str, *, by: RequestDecoder | None = None) -> None:
    chosen = by or RequestDecoder("m", MODEL)
    with pytest.raises(CallerError, match=match) as caught:
        chosen.decode(raw)
    # A refusal leaves the decoder as it was, even while the error is kept to be answered.
    if by is None:
        assert chosen.decode(body()).inputs[0].tolist() == [[1.5, 2.0]]
    del caught


def test_a_request_becomes_arrays_of_the_signatures_dtype() -> None:
    request = RequestDecoder("m", MODEL).decode(body(shape=[2, 2], data=[1, 2.5, -3, 1e-3]))
    assert request.inputs[0].dtype == np.float32 and request.rows == 2
    assert request.inputs[0].tolist() == np.array([[1, 2.5], [-3, 1e-3]], "f4").tolist()


def test_nested_and_flat_data_are_the_same_tensor() -> None:
    flat = RequestDecoder("m", MODEL).decode(body(shape=[2, 2], data=[1, 2, 3, 4]))
    nested = RequestDecoder("m", MODEL).decode(body(shape=[2, 2], data=[[1, 2], [3, 4]]))
    assert np.array_equal(flat.inputs[0], nested.inputs[0])


def test_id_parameters_and_outputs_are_read() -> None:
    raw = orjson.dumps(
        {"id": "a-1", "parameters": {"event_time": "2012-01-01T00:00:00Z", "n": 1, "b": True}, "inputs": [tensor()],
         "outputs": [{"name": "z"}, {"name": "y"}]}
    )  # fmt: skip
    request = RequestDecoder("m", MODEL).decode(raw)
    assert (request.id, request.outputs) == ("a-1", (RequestedOutput(1), RequestedOutput(0)))
    assert request.parameters == {"event_time": "2012-01-01T00:00:00Z", "n": 1, "b": True}


def parameters(**given: Any) -> InferRequest:
    return RequestDecoder("m", MODEL).decode(orjson.dumps({"inputs": [tensor()], "parameters": given}))


def test_parameters_are_kept_but_for_what_says_nothing_about_the_prediction() -> None:
    request = parameters(priority=1, timeout=2_500_000, headers="h", mine=-1.5, binary_data_output=False, sequence_id=0)
    assert request.parameters == {"priority": 1, "timeout": 2_500_000, "headers": "h", "mine": -1.5, "sequence_id": 0}
    assert request.timeout_us == 2_500_000 and request.outputs is None


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"triton_enable_empty_final_response": True}, "reserved for Triton usage"),
        ({"sequence_id": 7}, "no model here keeps state"),
        ({"sequence_id": "a"}, "no model here keeps state"),
        ({"sequence_start": True}, "'sequence_start' is not supported"),
        ({"timeout": -1}, "'timeout' must be a whole number"),
        ({"timeout": "abc"}, "got 'abc'"),
        ({"timeout": 1.5}, "whole number"),
        ({"timeout": True}, "whole number"),
        ({"priority": -1}, "'priority' must be a whole number"),
        ({"binary_data_output": 1}, "must be a boolean"),
        ({"a": None}, "a string, a number or a boolean"),
        ({"a": {}}, "a string, a number or a boolean"),
        ({str(key): 0 for key in range(65)}, "at most 64"),
        ({"a": "x" * 16_384}, "more than 16384"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_parameter_that_is_reserved_or_impossible_is_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(CallerError, match=match):
        parameters(**given)


def test_a_model_without_inputs_takes_a_request_without_inputs() -> None:
    request = RequestDecoder("m", Signature((), MODEL.outputs)).decode(b'{"inputs":[]}')
    assert (request.inputs, request.rows) == ([], 1)


def test_nesting_of_a_hundred_is_taken_where_nobody_reads_it() -> None:
    deep = b'{"x":%b,"inputs":[%b]}' % (b"[" * 99 + b'"[{"' + b"]" * 99, orjson.dumps(tensor()))
    assert RequestDecoder("m", MODEL).decode(deep).rows == 1


@pytest.mark.promise("P7")
@pytest.mark.parametrize("before", ["11111,22,333,4,5,6", "1,22222,3,44,5,6", '{"a":'])
def test_a_refusal_tells_nothing_of_the_request_before(before: str) -> None:
    chosen = decoder(("x", "FP32", (-1,)))
    for length in range(7, 120):
        with contextlib.suppress(CallerError):
            chosen.decode(f'{{"inputs":[{{"name":"x","shape":[6],"datatype":"FP32","data":[{before}]}}]}}'.encode())
        for unclosed in (b'{"":[{}', b"[[]", b'{"a":1'):
            refused(unclosed.ljust(length), "^the request body is not valid JSON$", by=chosen)


def test_text_that_is_not_unicode_is_refused_beside_a_token_too() -> None:
    chosen = decoder(("x", "BYTES", (-1,)), ("y", "FP32", (-1,)))
    inputs = b'{"name":"x","shape":[1],"datatype":"BYTES","data":["\\ud800"]}'
    refused(b'{"inputs":[%b,{"name":"y","shape":[1],"datatype":"FP32","data":[NaN]}]}' % inputs, "Unicode", by=chosen)


def test_tokens_are_read_in_so_much_json_as_pythons_parser_takes_a_moment_for_and_no_more() -> None:
    chosen = decoder(("x", "FP32", (-1, 2, 2)))
    for matrices, fits in ((50_000, True), (150_000, False)):
        data = b"[[NaN,1.5],[2.5,3]]" + b",[[0.5,1.5],[2.5,3]]" * (matrices - 1)
        body = b'{"inputs":[{"name":"x","shape":[%d,2,2],"datatype":"FP32","data":[%b]}]}' % (matrices, data)
        assert (len(body) <= MAX_TOKEN_BYTES) == fits
        if fits:
            assert np.isnan(chosen.decode(body).inputs[0]).sum() == 1
        else:
            refused(body, "not valid JSON; NaN and Infinity are read in up to 2097152 bytes", by=chosen)
            assert chosen.decode(body.replace(b"NaN", b"7.5")).rows == matrices


def test_a_name_that_is_not_unicode_is_shown_escaped() -> None:
    with pytest.raises(CallerError, match=r"unexpected inference input '\\ud800'") as caught:
        RequestDecoder("m", MODEL).decode(b'{"inputs":[{"name":"\\ud800","data":[NaN]}]}')
    assert orjson.dumps({"error": str(caught.value)})


def test_idle_spaces_and_digits_do_not_reach_the_log() -> None:
    raw = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,%b2.0]}]}' % (b" " * 200)
    assert RequestDecoder("m", MODEL).decode(raw).fragments == [None]


def test_unknown_keys_are_passed_over() -> None:
    assert RequestDecoder("m", MODEL).decode(orjson.dumps({"inputs": [tensor()], "extra": 1})).rows == 1


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "is empty"),
        (b"   ", "is empty"),
        (b"{", "not valid JSON"),
        (b'{"inputs":[]} x', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"3", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"[" * 100_000, "not valid JSON|too deeply"),
        (b'{"a":' * 100_000 + b"NaN", "not valid JSON|too deeply"),
        (b'{"inputs":[1e400]}', "no datatype holds"),
        (b'{"inputs":[' + b"9" * 5000 + b"]}", "no datatype holds"),
        (b'{"id":"\\ud800","inputs":[]}', "not valid JSON"),
        (b'{"inputs":[],"inputs":[]}', "key twice"),
        (b"{}", "has no 'inputs'"),
        (b'{"inputs":{}}', "must be an array"),
        (b'{"inputs":[]}', "missing required input\\(s\\) \\['x'\\]"),
        (b'{"inputs":[1]}', "must be an object"),
        (b'\xef\xbb\xbf{"inputs":[]}', "byte order mark"),
        ('{"inputs":[]}'.encode("utf-16"), "not valid JSON"),
        (b'{"inputs":[],"x":' + b"[" * 100 + b"]" * 100 + b"}", "nests too deeply, more than 100"),
        (b'{"inputs":[NaN],"x":' + b"[" * 100 + b"]" * 100 + b"}", "nests too deeply, more than 100"),
        (b'{"inputs":[NaN],"x":"\xff"}', "not valid JSON"),
        (b'{"inputs":[NaN,1e400]}', "no datatype holds"),
        (b'{"inputs":[NaN,18446744073709551616]}', "no datatype holds"),
        (b'{"inputs":[NaN,-9223372036854775809]}', "no datatype holds"),
        (b'{"inputs":[NaN,' + b"9" * 5000 + b"]}", "no datatype holds"),
        (b'{"inputs":[NaN],"inputs":[]}', "not valid JSON"),
        (orjson.dumps({str(key): 0 for key in range(100_000)}), "100000 keys, more than 1000"),
        (b'{"inputs":[],"parameters":{"a":NaN}}', "string, a number or a boolean"),
        (b'{"inputs":[NaN],"parameters":{"a":' + b"9" * 30 + b"}}", "no datatype holds"),
        (b'{"inputs":[NaN],"parameters":{"a":"\\ud800"}}', "not Unicode"),
        (b'{"inputs":[],"parameters":{"a":1,"a":2}}', "key twice"),
        (b'{"inputs":[],"parameters":[]}', "must be an object"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else None,
)
def test_a_body_that_is_no_request_is_refused(raw: bytes, match: str) -> None:
    refused(raw, match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "q"}, "unexpected inference input 'q'"),
        ({"name": 1}, "needs a 'name'"),
        ({"datatype": "FP64"}, "'FP64', but model 'm' expects 'FP32'"),
        ({"datatype": None}, "expects 'FP32'"),
        ({"shape": [1, 3]}, "Expected \\[-1, 2\\], got \\[1, 3\\]"),
        ({"shape": [2]}, "unexpected shape"),
        ({"shape": [-1, 2]}, "got -1"),
        ({"shape": [1.0, 2]}, "got 1.0"),
        ({"shape": [True, 2]}, "got True"),
        ({"shape": "4"}, "must be an array"),
        ({"shape": [2**32, 2]}, "integers from 0"),
        ({"shape": [1] * 9}, "at most 8"),
        ({"shape": [1_000_000, 2]}, "has 2 elements"),
        ({"data": [1.0]}, "has 1 elements"),
        ({"data": [[1.0], [2.0]]}, "nested otherwise"),
        ({"data": [[1.0, 2.0], 3]}, "nested otherwise"),
        ({"data": [[[1.0, 2.0]]]}, "nested otherwise"),
        ({"data": [1.0, [2.0]]}, "begins flat and then nests"),
        ({"data": [[1.0, [2.0]]]}, "nested otherwise"),
        ({"shape": [2, 2], "data": [[1.0, []], [2.0, [3.0, 4.0]]]}, "nested otherwise"),
        ({"data": [None, 1]}, "no FP32"),
        ({"data": ["1.5", 1]}, "no FP32"),
        ({"data": [True, 1]}, "no FP32"),
        ({"data": [1e39, 1]}, "out of range for FP32"),
        ({"data": {}}, "must be an array"),
        ({"parameters": {"binary_data_size": 8}}, "only one of"),
        ({"shape": [2_000_001, 2]}, "more than 4000000 elements in JSON"),
        ({"shape": [2**25 + 1, 2]}, "too many elements"),
        ({"parameters": {"a": [1]}}, "a string, a number or a boolean"),
    ],
    ids=str,
)
def test_a_tensor_that_is_not_the_models_is_refused_and_named(changes: dict[str, Any], match: str) -> None:
    refused(body(**changes), match)


def test_an_input_given_twice_is_refused() -> None:
    refused(orjson.dumps({"inputs": [tensor(), tensor()]}), "given twice")


@pytest.mark.parametrize("identifier", ["a\nb", "x" * 129, "é", 1, {}, "\x1b[31m"])
def test_an_id_that_could_break_a_log_line_is_refused(identifier: Any) -> None:
    refused(orjson.dumps({"id": identifier, "inputs": [tensor()]}), "printable ASCII")


@pytest.mark.parametrize(
    "outputs", [[{"name": "q"}], [{"name": "y"}, {"name": "y"}], [{}], [1], {}, [{"name": "y"}] * 65]
)
def test_outputs_that_cannot_be_given_are_refused(outputs: Any) -> None:
    refused(orjson.dumps({"inputs": [tensor()], "outputs": outputs}), "output")


def test_the_tokens_clients_send_for_numbers_that_are_not_finite_are_understood() -> None:
    raw = b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[NaN,Infinity,-Infinity,1]}]}'
    values = RequestDecoder("m", MODEL).decode(raw).inputs[0].ravel().tolist()
    assert math.isnan(values[0]) and values[1:] == [math.inf, -math.inf, 1.0]


@pytest.mark.parametrize("wrong", [b"null", b'"NaN"', b"true", b"1e39"])
def test_beside_such_a_token_the_rules_stay_the_same(wrong: bytes) -> None:
    refused(b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,%b]}]}' % wrong, "FP32")


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("UINT8", [0, 255], [256, -1]),
        ("INT8", [-128, 127], [128, 1.0]),
        ("INT64", [-(2**63), 2**63 - 1], [2**63, "1", 1.5]),
        ("UINT64", [0, 2**64 - 1], [-1, None]),
        ("BOOL", [True, False], [1, "true", None]),
        ("BYTES", ["a", "é\u0000"], [1, None, True]),
        ("FP64", [1e300, -0.0], ["x", None]),
    ],
)
def test_every_datatype_takes_its_own_values_exactly_and_no_others(
    datatype: str, good: list[Any], bad: list[Any]
) -> None:
    chosen = decoder(("x", datatype, (-1,)))
    request = chosen.decode(json.dumps({"inputs": [tensor(datatype=datatype, shape=[len(good)], data=good)]}).encode())
    assert request.inputs[0].tolist() == good and request.inputs[0].dtype == NUMPY_OF[datatype]
    for value in bad:
        raw = json.dumps({"inputs": [tensor(datatype=datatype, shape=[1], data=[value])]}).encode()
        refused(raw, datatype, by=chosen)


def test_the_largest_float_is_taken_as_it_is_written_and_the_next_one_is_not() -> None:
    taken = RequestDecoder("m", MODEL).decode(body(data=[3.4028235e38, -3.4028235677973362e38])).inputs[0]
    assert taken.tolist() == [[np.finfo("f4").max, np.finfo("f4").min]]
    refused(body(data=[3.4028235677973366e38, 0]), "out of range for FP32")
    with_token = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[NaN,3.4028235e38]}]}'
    assert RequestDecoder("m", MODEL).decode(with_token).inputs[0][0, 1] == np.finfo("f4").max


def test_integers_past_the_53_bits_of_a_double_are_exact() -> None:
    chosen = decoder(("x", "INT64", (-1,)))
    raw = json.dumps({"inputs": [tensor(datatype="INT64", shape=[1], data=[9007199254740993])]}).encode()
    assert chosen.decode(raw).inputs[0].tolist() == [9007199254740993]


def test_the_text_of_the_data_is_kept_for_the_log_only_when_it_is_certain() -> None:
    chosen = RequestDecoder("m", MODEL)
    assert chosen.decode(body()).fragments == [b"[1.5,2.0]"]
    assert chosen.decode(orjson.dumps({"inputs": [tensor()], "parameters": {"data": "[9,9]"}})).fragments == [None]
    assert chosen.decode(body(data=[[1.5, 2.0]])).fragments == [None]
    assert chosen.decode(json.dumps({"inputs": [tensor()]}, indent=1).encode()).fragments == [None]


KEYS = st.sampled_from(["name", "shape", "datatype", "data", "inputs", "id"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y", 1]),
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "datatype": st.sampled_from(["FP32", "INT64"]),
        "data": st.lists(st.integers(-2, 2) | st.floats(), max_size=4) | JSON,
    }
)


@given(st.one_of(st.binary(max_size=60), JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))))
def test_whatever_the_bytes_are_only_the_callers_error_is_raised(raw: bytes) -> None:
    try:
        RequestDecoder("m", MODEL).decode(raw)
    except CallerError:
        pass


@given(st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=2)}))
def test_nearly_right_requests_are_taken_or_refused_and_never_misread(request: dict[str, Any]) -> None:
    try:
        decoded = RequestDecoder("m", MODEL).decode(json.dumps(request).encode("utf-8", "surrogatepass"))
    except CallerError:
        return
    [sent] = request["inputs"]
    assert list(decoded.inputs[0].shape) == sent["shape"]
    flat = np.array(sent["data"], "f4").ravel()
    assert np.array_equal(decoded.inputs[0].ravel(), flat, equal_nan=True)


FIRST = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,2.0]}]}'


@pytest.mark.parametrize(
    "data",
    [
        *(b"[7,8]", b"[7,8 ]", b"[ 7,8]", b"[1e39,1]", b"[7]", b"[7,8,9]", b"[]", b"[[7,8]]", b"[7,null]", b'["7",8]'),
        *(b"7,8", b'[7,8],"data":[1,2]', b'[7,8],"x":[1]', b"[7,8", b"[NaN,1]", b"[7\n,8]", b"[true,1]"),
        *(b"", b"]", b"[7,8]]", b"{}"),
    ],
)
def test_a_request_like_the_last_one_is_read_as_if_it_were_the_first(data: bytes) -> None:
    raw = FIRST.replace(b"[1.5,2.0]", data)

    def outcome(chosen: RequestDecoder) -> tuple[Any, ...]:
        try:
            request = chosen.decode(raw)
        except CallerError as error:
            return (str(error),)
        return request.inputs[0].tobytes(), request.inputs[0].shape, request.rows, request.fragments

    practised = RequestDecoder("m", MODEL)
    practised.decode(FIRST)
    assert outcome(practised) == outcome(RequestDecoder("m", MODEL))
    assert practised.decode(FIRST).inputs[0].tolist() == [[1.5, 2.0]]
