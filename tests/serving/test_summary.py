from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.datatypes import bfloat16_of
from gateway.serving.summary import digest_of, summary_of

LARGEST = float(np.finfo("f4").max)
SIZES = [1, 15, 16, 4095, 4096, 4097, 150_528]


def test_a_digest_is_of_the_little_endian_bytes_row_by_row() -> None:
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    assert digest_of(array.T) == f"blake3:{blake3(array.T.tobytes()).hexdigest()}" != digest_of(array)


def test_the_digest_of_strings_covers_their_lengths() -> None:
    texts = np.array(["ab", "c"], dtype=object)
    packed = b"\x02\x00\x00\x00ab\x01\x00\x00\x00c"
    assert digest_of(texts) == f"blake3:{blake3(packed).hexdigest()}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1e-44, 1e-3, 1.0, 255.0, LARGEST / 64, LARGEST])
def test_the_mean_of_float32_is_right_to_a_millionth_of_their_magnitude(size: int, scale: float) -> None:
    array = (np.random.default_rng(size).uniform(-0.5, 1.0, size) * scale).astype("f4")
    mean = np.mean(array.astype("f8"))
    assert summary_of(array)["mean"] == pytest.approx(mean, rel=0, abs=1e-6 * np.abs(array.astype("f8")).mean())


@pytest.mark.parametrize("value", [0.1, 1 / 3, -LARGEST, LARGEST, 16777217.0])
def test_the_mean_of_a_uniform_picture_is_its_colour(value: float) -> None:
    array = np.full((1, 3, 224, 224), value, "f4")
    colour = float(array[0, 0, 0, 0])
    assert summary_of(array) == {"count": 150_528, "min": colour, "max": colour, "mean": colour, "not_finite": 0}


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e30])
def test_errors_of_rounding_do_not_pile_up(value: float) -> None:
    array = np.full(4_000_000, value, "f4")
    array[0], array[-1] = 0, 2 * value
    assert summary_of(array)["mean"] == pytest.approx(float(array[1]), rel=1e-6)


@pytest.mark.parametrize("size", [4, 150_528])
def test_what_is_not_finite_is_counted_and_left_out(size: int) -> None:
    array = np.ones(size, "f4")
    array[:3] = np.nan, np.inf, -np.inf
    assert summary_of(array) == {"count": size, "min": 1.0, "max": 1.0, "mean": 1.0, "not_finite": 3}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_without_a_finite_number_has_no_mean(value: float) -> None:
    assert summary_of(np.full(5000, value, "f4")) == {"count": 5000, "not_finite": 5000}


@pytest.mark.parametrize("dtype", ["f2", "f8", "i1", "u2", "i8", "u8"])
def test_the_mean_of_every_other_datatype_is_that_of_float64(dtype: str) -> None:
    array = np.arange(120).astype(dtype).reshape(2, 60)
    assert summary_of(array) == {"count": 120, "min": 0.0, "max": 119.0, "mean": 59.5, "not_finite": 0}


def test_brain_floats_are_summarised_as_numbers() -> None:
    assert summary_of(bfloat16_of([1.5, -2.0])) == {"count": 2, "min": -2.0, "max": 1.5, "mean": -0.25, "not_finite": 0}


@pytest.mark.parametrize("array", [np.array(["a"], dtype=object), np.array([True]), np.empty((0, 3), "f4")])
def test_what_has_no_numbers_is_only_counted(array: np.ndarray[Any, np.dtype[Any]]) -> None:
    assert summary_of(array) == {"count": array.size}


@given(st.integers(4096, 9000), st.floats(-1e30, 1e30), st.floats(0, 1e30))
def test_a_mean_lies_between_the_ends(size: int, low: float, spread: float) -> None:
    array = np.linspace(low, low + spread, size, dtype="f4")
    summary = summary_of(array)
    assert summary["min"] <= summary["mean"] <= summary["max"]
