"""Each limit of the decoder at its bound and one beyond."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.errors import CallerError
from gateway.protocol.limits import Limits


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
            {"inputs": [tensor([2**13, 0, 2**13])]},
            {"inputs": [tensor([2**13, 0, 2**13 + 1])]},
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
