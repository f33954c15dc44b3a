from __future__ import annotations

import json
import tracemalloc
from unittest import mock

import pytest
import simdjson
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol import json_tensor
from gateway.protocol.binary import SLICE_STRINGS
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.protocol.decode import RequestDecoder
from gateway.protocol.errors import CallerError
from gateway.protocol.json_tensor import READING, few_numbers_in, nesting_of, numbers_in_each, within

NUMBERS = st.one_of(
    st.integers(-(2**65), 2**65).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["-0", "-0.0", "0", "1e39", "-1E+39", "1e400", "3.4028235677973366e38", "3.4028235677973362e38"]),
    st.sampled_from(
        ["1.0", "2147483647", "-2147483649", "9223372036854775807", "9223372036854775808", "01", "+1", "1."]
    ),
    st.sampled_from(["true", "null", '"1"', "NaN", "Infinity", "", "1 2", "é"]),
)

IN_STRINGS = st.lists(st.sampled_from(["[", "]", "{", "}", "a", "é", "\\n", '\\"', "\\\\"]), max_size=6).map("".join)
MARKS = st.lists(st.one_of(st.sampled_from("[]{},1"), IN_STRINGS.map('"{}"'.format)), max_size=20).map("".join)
MEBIBYTE = 2**20


def nesting_by_character(text: str) -> int:
    deepest = level = 0
    in_string = is_escaped = False
    for character in text:
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif character == '"':
            in_string = not in_string
        elif character in "[]{}" and not in_string:
            level += 1 if character in "[{" else -1
            deepest = max(deepest, level)
    return deepest


@given(text=MARKS, unfinished=st.sampled_from(["", '"[[', '"\\"[[', '"[\\']), block_bytes=st.integers(1, 9))
@example(text="]" * 300 + "[" * 299 + "[{", unfinished="", block_bytes=7)
@example(text='""' * 300 + '[""[' + '"["' * 300, unfinished="", block_bytes=1000)
def test_nesting_is_what_counting_character_by_character_gives(text: str, unfinished: str, block_bytes: int) -> None:
    text += unfinished
    with mock.patch.object(json_tensor, "NESTING_BLOCK_BYTES", block_bytes):
        assert nesting_of(text.encode()) == nesting_by_character(text)


@pytest.mark.promise("P7")
@pytest.mark.parametrize(
    "text",
    [
        b'{"x":"%b"}' % (b"[" * 101 + b"a" * 4 * MEBIBYTE),
        b'{"x":[%b[[]]]}' % (b'"a",' * MEBIBYTE),
        b'{"x":"%b"}' % (b'\\"' * 2 * MEBIBYTE),
        b"[%b[[]]]" % (b"[]," * MEBIBYTE),
    ],
    ids=["a long string", "short strings", "escaped quotes", "arrays"],
)
def test_the_nesting_of_a_large_text_takes_little_memory(text: bytes) -> None:
    tracemalloc.start()
    try:
        nesting_of(text)
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("datatype", READING)
@given(texts=st.lists(NUMBERS, min_size=1, max_size=5))
@example(texts=["0.1", "2", "-3.5e-3"])
def test_a_few_numbers_are_read_as_many_are(datatype: str, texts: list[str]) -> None:
    reading, parser, text = READING[datatype], simdjson.Parser(), f" {' , '.join(texts)}\n".encode()
    few = few_numbers_in(text, len(texts), reading, parser=parser)
    many = numbers_in_each([text], len(texts), reading, secret=8731, parser=parser)
    if few is not None:
        assert many is not None and (reading.limits is None or within(many, reading))
        narrow = many.astype(reading.dtype)
        assert few.dtype == reading.dtype and few.tobytes() == narrow.tobytes()


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT32", "INT64"])
def test_what_most_models_have_is_read_in_few_steps(datatype: str) -> None:
    few = few_numbers_in(b"1,-2", 2, READING[datatype], parser=simdjson.Parser())
    assert few is not None and few.tolist() == [1, -2]


@pytest.mark.parametrize(
    ("last", "text"),
    [("1", "no BYTES"), ('["a"]', "no BYTES"), ("null", "no BYTES"), ('"\\ud800"', "Unicode|JSON")],
)
def test_one_wrong_element_among_many_strings_is_found(last: str, text: str) -> None:
    count = 2 * SLICE_STRINGS + 1
    decoder = RequestDecoder("m", Signature((TensorSpec("x", "BYTES", (-1,)),), ()))

    def decoded(last: str) -> list[str]:
        data = '"é",' * (count - 1) + last
        body = f'{{"inputs":[{{"name":"x","shape":[{count}],"datatype":"BYTES","data":[{data}]}}]}}'
        found: list[str] = decoder.decode(body.encode()).inputs[0].tolist()
        return found

    with pytest.raises(CallerError, match=text):
        decoded(last)
    assert decoded('"z"') == ["é"] * (count - 1) + ["z"]


def test_many_rows_of_strings_are_those_that_were_sent() -> None:
    rows = [[f"{number}", "é"] for number in range(SLICE_STRINGS + 1)]
    decoder = RequestDecoder("m", Signature((TensorSpec("x", "BYTES", (-1, 2)),), ()))
    tensor = {"name": "x", "shape": [len(rows), 2], "datatype": "BYTES"}
    assert decoder.decode(json.dumps({"inputs": [{**tensor, "data": rows}]}).encode()).inputs[0].tolist() == rows
    for wrong in (["a"], ["a", 1], ["a", ["b"]], "ab"):
        with pytest.raises(CallerError):
            decoder.decode(json.dumps({"inputs": [{**tensor, "data": [*rows[:-1], wrong]}]}).encode())
