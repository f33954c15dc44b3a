"""Each limit of the decoder at its bound and one beyond."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.errors import CallerError
from gateway.protocol.limits import Limits
from gateway.protocol.request import MAX_EMPTY_ROWS


def decode(signature: list[tuple[str, tuple[int, ...]]], request: Any, **limits: int) -> None:
    specs = tuple(TensorSpec(name, "INT64", shape) for name, shape in signature)
    outputs = tuple(TensorSpec(f"y{number}", "INT64", (-1,)) for number in range(70))
    text = request if isinstance(request, str) else json.dumps(request)
    RequestDecoder("m", Signature(specs, outputs), limits=Limits(**limits)).decode(text.encode())


def tensor(shape: list[int], name: str = "x", data: Any = None) -> dict[str, Any]:
    size = 1
    for axis in shape:
        size *= axis
    return {"name": name, "shape": shape, "datatype": "INT64", "data": [1] * size if data is None else data}


def numbers(count: int) -> str:
    data = ",".join("1" * count)
    return f'{{"inputs":[{{"name":"x","shape":[{count}],"datatype":"INT64","data":[{data}]}}]}}'


def nested(levels: int) -> str:
    return '{"extra":' + "[" * (levels - 1) + "]" * (levels - 1) + "," + json.dumps({"inputs": [tensor([1])]})[1:]


ONE = [("x", (-1,))]
LIMITS = Limits()


@pytest.mark.parametrize(
    ("signature", "at_limit", "beyond", "limits"),
    [
        (ONE, nested(LIMITS.max_json_depth), nested(LIMITS.max_json_depth + 1), {}),
        (ONE, numbers(LIMITS.max_json_elements), numbers(LIMITS.max_json_elements + 1), {}),
        (
            [(f"x{number}", (-1,)) for number in range(65)],
            None,
            {"inputs": [tensor([1], f"x{number}") for number in range(65)]},
            {},
        ),
        (
            [(f"x{number}", (-1,)) for number in range(64)],
            {"inputs": [tensor([1], f"x{n}") for n in range(64)]},
            None,
            {},
        ),
        (
            ONE,
            {"inputs": [tensor([1])], "outputs": [{"name": f"y{number}"} for number in range(64)]},
            {"inputs": [tensor([1])], "outputs": [{"name": f"y{number}"} for number in range(65)]},
            {},
        ),
        ([("x", (1,) * 8)], {"inputs": [tensor([1] * 8)]}, None, {}),
        ([("x", (1,) * 9)], None, {"inputs": [tensor([1] * 9)]}, {}),
        (ONE, {"inputs": [tensor([5])]}, {"inputs": [tensor([6])]}, {"max_dimension": 5}),
        (
            [("x", (-1, 0, -1))],
            {"inputs": [tensor([2**10, 0, 2**16])]},
            {"inputs": [tensor([2**10, 0, 2**16 + 1])]},
            {},
        ),
        (ONE, {"id": "i" * 128, "inputs": [tensor([1])]}, {"id": "i" * 129, "inputs": [tensor([1])]}, {}),
    ],
    ids=["depth", "elements", "inputs", "64 inputs", "outputs", "8 axes", "9 axes", "dimension", "size", "id"],
)
def test_a_request_at_the_limit_is_taken_and_one_beyond_is_refused(
    signature: list[tuple[str, tuple[int, ...]]], at_limit: Any, beyond: Any, limits: dict[str, int]
) -> None:
    if at_limit is not None:
        decode(signature, at_limit, **limits)
    if beyond is not None:
        with pytest.raises(CallerError, match="more than|too deeply|at most|integers from 0"):
            decode(signature, beyond, **limits)


def test_an_axis_of_2_31_is_refused_however_empty_the_tensor() -> None:
    signature = [("x", (-1, 0))]
    with pytest.raises(CallerError, match="too many elements"):
        decode(signature, {"inputs": [tensor([2**31 - 1, 0])]})
    with pytest.raises(CallerError, match="integers from 0 to 2147483647"):
        decode(signature, {"inputs": [tensor([2**31, 0])]})


def rows_of(inputs: list[tuple[list[int], int]], *, binary: bool, batchable: bool = True) -> int:
    """Rows of a request with inputs of these shapes, with so many elements."""
    tensors, block = [], b""
    for number, (shape, elements) in enumerate(inputs):
        content = {"parameters": {"binary_data_size": elements}} if binary else {"data": [1] * elements}
        tensors.append({"name": f"x{number}", "datatype": "UINT8", "shape": shape, **content})
        block += bytes(elements * binary)
    specs = tuple(TensorSpec(f"x{number}", "UINT8", (-1,) * len(shape)) for number, (shape, _) in enumerate(inputs))
    head = json.dumps({"inputs": tensors}).encode()
    decoder = RequestDecoder("m", Signature(specs, (TensorSpec("y", "INT64", (-1,)),)), batchable=batchable)
    return decoder.decode(head + block, len(head) if binary else None).rows


@pytest.mark.promise("P16")
@pytest.mark.parametrize("binary", [False, True], ids=["JSON", "binary"])
def test_many_rows_are_taken_only_with_elements_in_them(binary: bool) -> None:
    for shape in ([0, 3], [0, 224, 224, 3], [0, 0], [1, 0], [5, 0], [MAX_EMPTY_ROWS, 0], [2, 0, 1000]):
        assert rows_of([(shape, 0)], binary=binary) == shape[0]
    many = MAX_EMPTY_ROWS + 1
    assert rows_of([([many], many)], binary=binary) == many
    for beside in ([([many, 0], 0), ([many], many)], [([many, 1], many), ([many, 0, 3], 0)]):
        assert rows_of(beside, binary=binary) == many
    for shape in ([many, 0], [60_000_000, 0], [2**20, 0, 3]):
        with pytest.raises(CallerError, match=f"'x0' has {shape[0]} rows without elements in them, more than 1024"):
            rows_of([(shape, 0)], binary=binary)
    with pytest.raises(CallerError, match="more than 1024"):
        rows_of([([60_000_000, 0], 0), ([5], 5)], binary=binary, batchable=False)


def hostile(*, datatype: str = "BYTES", shape: str = "[1,2]", data: str = '["a","b"]', parameters: str = "{}") -> bytes:
    tensor = f'{{"name":"x","shape":{shape},"datatype":"{datatype}","parameters":{parameters},"data":{data}}}'
    return f'{{"inputs":[{tensor}]}}'.encode()


MANY = "[" + "[]," * 200_000 + "1]"


@pytest.mark.promise("P7")
@pytest.mark.parametrize(
    ("body", "match"),
    [
        (hostile(shape=MANY), "must be an array of at most 8"),
        (hostile(shape=f"[{MANY},2]"), "must hold integers from 0 to 2147483647, got an array or an object"),
        (hostile(parameters=f'{{"a":{MANY}}}'), "'parameters' takes 600009 bytes, more than 16384"),
        (hostile(data=f'["a",{MANY}]'), "has an element that is no BYTES"),
        (hostile(data=f'[["a",{MANY}]]'), "is nested otherwise"),
        (hostile(data=f"[{MANY}]"), "is nested otherwise"),
        (
            hostile(datatype="FP32", shape=MANY, data="[1,2]").replace(b'"parameters":{},', b""),
            "must be an array of at",
        ),
    ],
    ids=["shape", "axis", "parameter", "element", "nested element", "row", "shape of the usual request"],
)
def test_what_will_be_refused_does_not_become_objects_first(body: bytes, match: str) -> None:
    datatype = "FP32" if b'"FP32"' in body else "BYTES"
    signature = Signature((TensorSpec("x", datatype, (-1, 2)),), (TensorSpec("y", "INT64", (-1,)),))
    decoder = RequestDecoder("m", signature)
    tracemalloc.start()
    try:
        with pytest.raises(CallerError, match=match):
            decoder.decode(body)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)  # 24 bytes a byte, as lists
    finally:
        tracemalloc.stop()


def test_a_name_of_a_parameter_may_have_any_character() -> None:
    given = {"a\0b": 1, "a": 2, "\u00e9~1/": 3}
    signature = Signature((TensorSpec("x", "INT64", (-1,)),), (TensorSpec("y", "INT64", (-1,)),))
    body = json.dumps({"inputs": [tensor([1])], "parameters": given}).encode()
    assert RequestDecoder("m", signature).decode(body).parameters == given
