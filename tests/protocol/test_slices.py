"""Large bodies, read and written in slices: as others, only in pieces."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import slices
from gateway.protocol.datatypes import NUMPY_OF, Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.encode import encode_flat, encode_flat_with_tokens
from gateway.protocol.errors import CallerError
from gateway.protocol.json_tensor import MAX_TOKEN_BYTES
from tests.tensors import same, tensors

OUTPUTS = (TensorSpec("y", "FP32", (-1,)),)
NUMBERS = ("FP32", "FP64", "INT64", "UINT8", "INT32", "UINT64")
GIVEN = st.one_of(
    st.sampled_from([0, 1, -1, 255, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 2**70]),
    st.sampled_from([0.1, -2.5, 1e38, 1e39, float("nan"), float("inf"), float("-inf")]),
    st.sampled_from([None, True, "1", "]", [], {}, [1], "\u00e9", "data"]),
)


def decode(raw: bytes, signature: Signature, length: int | None, *, sliced: bool) -> Any:
    decoder = RequestDecoder("m", signature)
    try:
        read = decoder.decode_in_slices if sliced else decoder.decode
        return read(raw, length)
    except CallerError as error:
        assert 0 < len(str(error)) < 1000
        return None


def agree(raw: bytes, signature: Signature, length: int | None = None) -> bool:
    """Whether both ways take a body, and for the same."""
    with mock.patch.object(slices, "SLICE_BYTES", 8):
        one, other = (decode(raw, signature, length, sliced=sliced) for sliced in (True, False))
    assert (one is None) == (other is None), raw
    if one is None:
        return False
    assert all(same(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))
    assert (one.id, one.rows, one.parameters, one.outputs) == (other.id, other.rows, other.parameters, other.outputs)
    return True


@given(
    datatype=st.sampled_from(NUMBERS),
    rows=st.lists(st.lists(st.integers(0, 200), min_size=3, max_size=3), max_size=20),
    form=st.sampled_from(["flat", "rows", "cells"]),
    spaces=st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]),
    odd=st.lists(st.tuples(st.integers(0, 59), GIVEN), max_size=2),
    shape=st.sampled_from([None, [3], [2, 3], [-1], [3, 20]]),
)
def test_a_body_means_the_same_in_slices(
    datatype: str, rows: list[Any], form: str, spaces: Any, odd: list[Any], shape: Any
) -> None:
    cells = [element for row in rows for element in row]
    for place, value in odd:
        if place < len(cells):
            cells[place] = value
    rows = [cells[start : start + 3] for start in range(0, len(cells), 3)]
    data = {"flat": cells, "rows": rows, "cells": [[[cell] for cell in row] for row in rows]}[form]
    given_shape = shape or [len(rows), 3]
    tensor = {"name": "x", "shape": given_shape, "datatype": datatype, "data": data}
    signature = Signature((TensorSpec("x", datatype, (-1,) * len(given_shape)),), OUTPUTS)
    raw = json.dumps({"id": "7", "inputs": [tensor], "parameters": {"a": 1}}, separators=spaces).encode()
    agree(raw, signature)


@given(st.data())
def test_whatever_is_done_to_a_body_both_ways_say_the_same(draw: st.DataObject) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)), TensorSpec("data", "INT64", (-1,))), OUTPUTS)
    first = {"name": "x", "shape": [9, 2], "datatype": "FP32", "data": [[0.5, 2]] * 9}
    second = {"name": "data", "shape": [8], "datatype": "INT64", "data": [10**6] * 8}
    body = {"inputs": [first, second], "outputs": [{"name": "y"}]}
    raw = bytearray(json.dumps(body, separators=draw.draw(st.sampled_from([(",", ":"), (", ", ": ")]))).encode())
    for _ in range(draw.draw(st.integers(0, 2))):
        at = draw.draw(st.integers(0, len(raw) - 1))
        piece = draw.draw(
            st.sampled_from([b"", b"[", b"]", b",", b'"', b"{", b"}", b"1", b"-", b" ", b"NaN", b"\\", b"e"])
        )
        raw[at : at + draw.draw(st.integers(0, 2))] = piece
    agree(bytes(raw), signature)


@pytest.mark.parametrize("data", [[1.5] * 20, [[1.5, 2.5]] * 10])
def test_good_bodies_are_cut_and_taken(data: list[Any]) -> None:
    tensor = {"name": "x", "shape": [10, 2], "datatype": "FP32", "data": data}
    raw = json.dumps({"inputs": [tensor]}).encode()
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), OUTPUTS)
    with mock.patch.object(slices, "SLICE_BYTES", 8):
        cut = slices.cut_numbers(raw)
        assert cut is not None and b"1.5" not in cut.text
    assert agree(raw, signature)
    assert agree(raw + bytes(3), signature, len(raw)) is False  # bytes behind it belong to no input
    assert agree(raw, signature, len(raw))
    assert not agree(raw, signature, len(raw) + 1)


def test_numbers_that_no_tensor_reads_are_json_all_the_same() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), OUTPUTS)
    tensor = {"name": "x", "shape": [20], "datatype": "FP32", "data": [7] * 20}
    raw = json.dumps({"inputs": [tensor], "extra": {"data": [8] * 20}}).encode()
    assert agree(raw, signature)
    assert not agree(raw.replace(b"8, 8", b"8, 8.x", 1), signature)


def test_the_mark_of_what_is_cut_out_cannot_be_forged() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)), TensorSpec("z", "FP32", (-1,))), OUTPUTS)
    long = {"name": "x", "shape": [20], "datatype": "FP32", "data": [7] * 20}
    mark = "numbers that were cut out: 0"
    for text in (mark, mark.replace("n", "\\u006e", 1)):
        forged = f'{{"name":"z","shape":[20],"datatype":"FP32","data":["{text}"]}}'
        assert not agree(f'{{"inputs":[{json.dumps(long)},{forged}]}}'.encode(), signature)


@pytest.mark.parametrize(
    "text",
    [
        b'{"data":[%bx]}' % (b" " * 4_000_000),
        b'{"data":[%b"x"]}' % (b" \t\r\n" * 1_000_000),
        b'{"data":[1,' * 1_000_000,
        b'{"data":[[1,' * 1_000_000,
        b'{"data":[[1,"":[],' * 1_000 + b"[" * 4_000_000,
    ],
    ids=["spaces", "spaces of all kinds", "arrays without an end", "rows without an end", "brackets"],
)
def test_a_text_in_which_nothing_can_be_cut_is_not_looked_at_again_and_again(text: bytes) -> None:
    began = time.thread_time()
    assert slices.cut_numbers(text) is None
    assert time.thread_time() - began < 5  # some ms; hours where the time grows with the square


@pytest.mark.parametrize("count", [slices.MOST_KEYS, slices.MOST_KEYS + 1])
def test_among_very_many_keys_nothing_is_cut(count: int) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), OUTPUTS)
    tensor = {"name": "x", "shape": [20], "datatype": "FP32", "data": [7] * 20}
    raw = json.dumps({"inputs": [tensor], "extra": [{"data": []}] * (count - 1)}).encode()
    with mock.patch.object(slices, "SLICE_BYTES", 8):
        assert (slices.cut_numbers(raw) is not None) is (count <= slices.MOST_KEYS)
    assert agree(raw, signature)


@pytest.mark.parametrize("row", ["1,2,3", "[1,2,3]", "1,2", "", "1,2,[]", "[]", "1", "1,{},3", "true,1,1", "1e39,1,1"])
def test_a_row_that_is_no_row_is_found_among_good_ones(row: str) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 3)),), OUTPUTS)
    for place in (0, 7, 19):
        rows = ["[4,5,6]"] * 20
        rows[place] = f"[{row}]"
        tensor = f'{{"name":"x","shape":[20,3],"datatype":"FP32","data":[{",".join(rows)}]}}'
        assert agree(f'{{"inputs":[{tensor}]}}'.encode(), signature) is (row == "1,2,3")


def test_rows_of_one_number_may_not_be_empty() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 1)),), OUTPUTS)
    rows = ["[4]"] * 20
    for good, row in ((True, "[ 4 ]"), (False, "[]"), (False, "[ ]"), (False, "4")):
        rows[5] = row
        tensor = f'{{"name":"x","shape":[20,1],"datatype":"FP32","data":[{",".join(rows)}]}}'
        assert agree(f'{{"inputs":[{tensor}]}}'.encode(), signature) is good


def test_a_decoder_reads_on_after_a_body_that_was_wrong_in_the_middle() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), OUTPUTS)
    decoder = RequestDecoder("m", signature)
    good = json.dumps({"inputs": [{"name": "x", "shape": [20], "datatype": "FP32", "data": [7] * 20}]}).encode()
    refusals = []
    with mock.patch.object(slices, "SLICE_BYTES", 8):
        for wrong in (b"null", b"1e39", b"1e400", b"[7]", b"7 7", b"NaN7"):
            try:
                decoder.decode_in_slices(good.replace(b"7, 7]", b"7, %b]" % wrong))
            except CallerError as error:
                refusals.append(error)  # whoever holds on to it does not hold the parser
            assert decoder.decode_in_slices(good).inputs[0].tolist() == [7.0] * 20
    assert len(refusals) == 6


def test_a_text_is_as_it_was_between_two_slices_and_in_the_end() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), OUTPUTS)
    for data in ([7] * 20, [[7, 8]] * 10, [7] * 19 + [None]):
        tensor = {"name": "x", "shape": [10, 2], "datatype": "FP32", "data": data}
        raw = json.dumps({"inputs": [tensor]}).encode()
        text, steps = bytearray(raw), 0
        with mock.patch.object(slices, "SLICE_BYTES", 8):
            reading = RequestDecoder("m", signature).in_slices(text)
            assert reading is not None
            with contextlib.suppress(StopIteration, CallerError):
                while True:
                    next(reading)
                    steps += 1
                    assert text == raw
        assert text == raw and steps > 3


def test_tokens_among_numbers_are_read_in_shorter_slices() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), OUTPUTS)
    numbers = [float("nan") if place % 1000 == 0 else 0.5 for place in range(100_000)]
    tensor = {"name": "x", "shape": [100_000], "datatype": "FP32", "data": numbers}
    raw = json.dumps({"inputs": [tensor]}).encode()
    with mock.patch.object(slices, "numbers_with_tokens", wraps=slices.numbers_with_tokens) as slow:
        [array] = RequestDecoder("m", signature).decode_in_slices(raw).inputs
    assert np.isnan(array).sum() == 100 and array[1] == 0.5
    assert slow.call_count > 10 and all(len(call.args[0]) <= slices.SLOW_BYTES + 10 for call in slow.call_args_list)


@pytest.mark.parametrize("columns", [-1, 30])
def test_a_row_with_tokens_has_so_many_bytes_as_pythons_parser_takes_a_moment_for_and_no_more(columns: int) -> None:
    decoder = RequestDecoder("m", Signature((TensorSpec("x", "FP32", (-1, columns)),), OUTPUTS))
    for size, fits in ((1_000_000, columns < 0), (1_100_000, False)):
        row = b"NaN" + b",1" * (size - 1)
        shape = b"1,%d" % (size if columns < 0 else columns)
        raw = b'{"inputs":[{"name":"x","shape":[%b],"datatype":"FP32","data":[[%b]]}]}' % (shape, row)
        with mock.patch.object(slices, "numbers_with_tokens", wraps=slices.numbers_with_tokens) as slow:
            with contextlib.nullcontext() if fits else pytest.raises(CallerError):
                assert np.isnan(decoder.decode_in_slices(raw).inputs[0]).sum() == 1
        assert all(len(call.args[0]) <= MAX_TOKEN_BYTES for call in slow.call_args_list)


@pytest.mark.parametrize("datatype", ["FP32", "INT8", "UINT8", "INT32", "UINT32"])
def test_a_number_out_of_range_is_found_in_any_slice(datatype: str) -> None:
    signature = Signature((TensorSpec("x", datatype, (-1,)),), OUTPUTS)
    limits = np.finfo(NUMPY_OF[datatype]) if datatype.startswith("FP") else np.iinfo(NUMPY_OF[datatype])
    for place in (0, 9, 19):
        for value, good in ((float(limits.max), True), (float(limits.max) * 2, False)):
            numbers: list[Any] = [7] * 20
            numbers[place] = value if datatype.startswith("FP") else int(value)
            raw = json.dumps({"inputs": [{"name": "x", "shape": [20], "datatype": datatype, "data": numbers}]})
            assert agree(raw.encode(), signature) is good


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT8", "BOOL", "BYTES"])
@given(draw=st.data())
def test_an_answer_says_the_same_in_slices(datatype: str, draw: st.DataObject) -> None:
    array = draw.draw(tensors(datatype))
    with mock.patch.object(slices, "SLICE_ELEMENTS", 3):
        sliced = slices.encode_in_slices(array)
    whole = encode_flat(array)
    if array.dtype.kind == "f" and b"null" in whole:
        whole = encode_flat_with_tokens(array)
    assert np.array_equal(
        np.array(json.loads(sliced), NUMPY_OF[datatype]),
        np.array(json.loads(whole), NUMPY_OF[datatype]),
        equal_nan=array.dtype.kind == "f",
    )
