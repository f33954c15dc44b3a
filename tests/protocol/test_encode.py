from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.protocol.datatypes import NUMPY_OF, bfloat16_of, numbers_of
from gateway.protocol.encode import encode_flat, encode_flat_with_tokens
from tests.tensors import tensors

ARRAYS = st.sampled_from([name for name in NUMPY_OF if name not in ("BYTES", "BF16")]).flatmap(tensors)


@given(ARRAYS)
def test_finite_tensors_come_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    decoded = orjson.loads(encode_flat(array))
    if array.dtype.kind != "f" or np.isfinite(array).all():
        assert np.array(decoded, array.dtype).tobytes() == array.tobytes()
    else:
        assert decoded.count(None) == int((~np.isfinite(array)).sum())


@given(hnp.arrays(st.sampled_from([np.dtype("f2"), np.dtype("f4"), np.dtype("f8")]), 5))
def test_tokens_stand_where_else_null_would_and_nothing_else_changes(array: np.ndarray[Any, Any]) -> None:
    said = encode_flat_with_tokens(array)
    assert re.sub(rb"NaN|-?Infinity", b"null", said) == encode_flat(array)


@given(hnp.arrays(st.sampled_from([np.dtype("f4"), np.dtype("f8")]), 5))
def test_tokens_keep_what_is_not_finite_and_the_shortest_decimals_keep_the_rest(array: np.ndarray[Any, Any]) -> None:
    decoded = np.array(json.loads(encode_flat_with_tokens(array)), array.dtype)
    assert np.array_equal(decoded, array, equal_nan=True)


def test_strings_are_json_strings() -> None:
    assert orjson.loads(encode_flat(np.array([["a", 'q"\u0000']], object))) == ["a", 'q"\u0000']


@given(tensors("BF16"))
def test_bfloat16_is_read_as_the_float32_that_begins_with_its_bits(array: np.ndarray[Any, Any]) -> None:
    widened = numbers_of(array)
    assert widened.shape == array.shape and widened.dtype == np.float32
    assert (widened.view("<u4") >> 16).astype("<u2").tobytes() == array.tobytes()


@given(hnp.arrays("f4", 8))
def test_numbers_are_rounded_to_bfloat16_as_the_package_clients_use_does(array: np.ndarray[Any, Any]) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    finite = array[~np.isnan(array)]
    with np.errstate(over="ignore"):
        assert bfloat16_of(finite).tobytes() == finite.astype(ml_dtypes.bfloat16).tobytes()
    assert np.array_equal(np.isnan(array), np.isnan(numbers_of(bfloat16_of(array))))


def test_bfloat16_agrees_with_the_package_clients_use() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([1.5, -2.25, 3e38, np.inf], ml_dtypes.bfloat16)
    assert numbers_of(values.view("V2")).tolist() == values.astype("f4").tolist()
