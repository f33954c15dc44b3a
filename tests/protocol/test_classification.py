from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.classification import classify
from gateway.protocol.datatypes import NUMPY_OF, TensorSpec
from tests.tensors import tensors

Array = np.ndarray[Any, Any]


def ranked(array: Any, classes: int, *, shape: tuple[int, ...] = (-1, 4), labels: tuple[str, ...] = ()) -> Any:
    return classify(np.asarray(array), classes, spec=TensorSpec("y", "FP32", shape), labels=labels).tolist()


def test_each_row_is_ranked_for_itself_with_six_decimals_and_labels_where_there_are_any() -> None:
    rows = np.array([[0.1, 15.34623, -3, 2], [4, 1, 2, 3]], "f4")
    assert ranked(rows, 2, labels=("zero", "one")) == [
        ["15.346230:1:one", "2.000000:3"],
        ["4.000000:0:zero", "3.000000:3"],
    ]


def test_an_output_without_a_batch_axis_is_ranked_as_a_whole() -> None:
    assert ranked(np.array([[1, 9], [8, 2]], "i8"), 3, shape=(2, 2)) == ["9:1", "8:2", "2:3"]
    assert ranked(np.array([3.0, 4.0]), 5, shape=(-1,)) == ["4.000000:1", "3.000000:0"]


def test_of_equal_elements_the_first_comes_first_and_nan_comes_last() -> None:
    assert ranked(np.array([[1, np.nan, np.inf, 1]], "f4"), 9) == [["inf:2", "1.000000:0", "1.000000:3", "nan:1"]]


@pytest.mark.parametrize(("dtype", "low"), [("u8", 0), ("i8", -(2**63)), ("i1", -128)])
def test_whole_numbers_are_ranked_exactly_to_the_ends_of_their_range(dtype: str, low: int) -> None:
    high = np.iinfo(dtype).max
    assert ranked(np.array([[low, high, high - 1, low + 1]], dtype), 4) == [
        [f"{high}:1", f"{high - 1}:2", f"{low + 1}:3", f"{low}:0"]
    ]


def test_bfloat16_is_ranked_by_value() -> None:
    assert ranked(np.array([[0xC000, 0x3FC0]], "<u2").view("V2"), 1) == [["1.500000:1"]]


def test_an_output_without_rows_or_columns_has_no_classes() -> None:
    assert ranked(np.zeros((0, 4), "f4"), 2) == []
    assert ranked(np.zeros((2, 0), "f4"), 2, shape=(-1, -1)) == [[], []]


@given(
    st.sampled_from([name for name in NUMPY_OF if name not in ("BYTES", "BOOL")]).flatmap(tensors), st.integers(1, 9)
)
def test_any_numbers_can_be_ranked(array: Array, classes: int) -> None:
    shape = (-1, *array.shape[1:]) if array.ndim else ()
    got = classify(array, classes, spec=TensorSpec("y", "FP32", shape))
    width = array[0].size if array.ndim > 1 and len(array) else array.size
    assert got.dtype == object
    assert got.shape[-1] == min(classes, width) or 0 in array.shape
