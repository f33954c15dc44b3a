from __future__ import annotations

import numpy as np
import pytest

from gateway.drift.columns import MAX_COLUMNS, column_names, columns_of
from gateway.drift.profile import ProfileError


def test_a_tensor_of_one_scalar_a_row_is_one_column_with_its_name():
    table = columns_of({"flat": np.array([1, 2], dtype=np.int32), "tall": np.array([[True], [False]])}, {})
    assert {name: column.tolist() for name, column in table.items()} == {"flat": [1.0, 2.0], "tall": [1.0, 0.0]}


def test_the_columns_of_a_matrix_are_numbered_unless_named():
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float16)
    assert list(columns_of({"x": matrix}, {})) == ["x[0]", "x[1]"]
    assert columns_of({"x": matrix}, {"x": ["hour", "wind"]})["wind"].tolist() == [2.0, 4.0]


def test_names_that_do_not_fit_the_columns_are_refused_with_both_numbers():
    with pytest.raises(ProfileError, match=r"'x' of shape \[1, 3\] has 3 columns, but 2 names: a, b"):
        columns_of({"x": np.zeros((1, 3))}, {"x": ["a", "b"]})


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(ProfileError, match="two columns are named 'y'"):
        columns_of({"x": np.zeros((1, 2)), "y": np.zeros(1)}, {"x": ["a", "y"]})


def test_a_wide_tensor_is_summarised_by_row():
    wide = np.zeros((2, MAX_COLUMNS + 1))
    wide[1, 0] = MAX_COLUMNS + 1
    table = columns_of({"x": wide}, {})
    assert list(table) == ["x.mean", "x.min", "x.max", "x.zeros"]
    assert [column[1] for column in table.values()] == [1.0, 0.0, MAX_COLUMNS + 1, MAX_COLUMNS / (MAX_COLUMNS + 1)]


def test_an_image_is_wide_whatever_its_size():
    assert column_names("image", np.zeros((5, 2, 2))) == ("image.mean", "image.min", "image.max", "image.zeros")


def test_a_wide_tensor_of_strings_is_summarised_by_length():
    words = np.array([[["a", "bcd"]], [["", ""]]], dtype=object)
    table = columns_of({"words": words}, {})
    assert {name: column.tolist() for name, column in table.items()} == {
        "words.length": [2.0, 0.0],
        "words.empty": [0.0, 1.0],
    }


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 300), (2, 0), (2, 0, 4), (0, 2, 2), ()])
def test_empty_and_odd_shapes_give_as_many_columns_as_names(shape):
    tensor = np.zeros(shape, dtype=np.float32)
    assert tuple(columns_of({"x": tensor}, {})) == column_names("x", tensor)


def test_a_wide_tensor_with_nothing_in_a_row_is_missing():
    assert np.isnan(columns_of({"x": np.zeros((2, 0, 4))}, {})["x.mean"]).all()


def test_infinities_of_both_signs_have_a_missing_mean_and_raise_no_warning():
    row = np.full((1, MAX_COLUMNS + 1), np.inf)
    row[0, 0] = -np.inf
    assert np.isnan(columns_of({"x": row}, {})["x.mean"]).all()
