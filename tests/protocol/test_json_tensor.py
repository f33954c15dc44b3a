from __future__ import annotations

import pytest
import simdjson
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.protocol.json_tensor import READING, few_numbers_in, numbers_in, within

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


@pytest.mark.parametrize("datatype", READING)
@given(texts=st.lists(NUMBERS, max_size=5))
@example(texts=["0.1", "2", "-3.5e-3"])
def test_a_few_numbers_are_read_as_many_are(datatype: str, texts: list[str]) -> None:
    reading, parser, text = READING[datatype], simdjson.Parser(), f"[ {' , '.join(texts)}\n]".encode()
    few = few_numbers_in(text, reading, parser=parser)
    many = numbers_in([text], reading, parser=parser)
    if few is not None:
        assert many is not None and (reading.limits is None or within(many, reading))
        narrow = many.astype(reading.dtype)
        assert few.dtype == reading.dtype and few.tobytes() == narrow.tobytes()


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT32", "INT64"])
def test_what_most_models_have_is_read_in_few_steps(datatype: str) -> None:
    few = few_numbers_in(b"[1,-2]", READING[datatype], parser=simdjson.Parser())
    assert few is not None and few.tolist() == [1, -2]
