from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway.protocol.datatypes import NUMPY_OF
from gateway.protocol.encode import all_finite, encode_flat, encode_flat_with_tokens

ARRAYS = st.sampled_from([dtype for dtype in NUMPY_OF.values() if dtype.kind not in "OV"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4))
)


@given(ARRAYS)
def test_finite_tensors_come_back_bit_for_bit(array: np.ndarray[Any, Any]) -> None:
    decoded = orjson.loads(encode_flat(array))
    if all_finite(array):
        assert np.array(decoded, array.dtype).tobytes() == array.tobytes()
    else:
        assert decoded.count(None) == int((~np.isfinite(array)).sum())


@given(hnp.arrays(st.sampled_from([np.dtype("f4"), np.dtype("f8")]), 5))
def test_tokens_keep_what_is_not_finite_and_the_shortest_decimals_keep_the_rest(array: np.ndarray[Any, Any]) -> None:
    decoded = np.array(json.loads(encode_flat_with_tokens(array)), array.dtype)
    assert np.array_equal(decoded, array, equal_nan=True)


def test_strings_are_json_strings() -> None:
    assert orjson.loads(encode_flat(np.array([["a", 'q"\u0000']], object))) == ["a", 'q"\u0000']
