from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.drift.profile import (
    FeatureProfile,
    LossProfile,
    ProfileError,
    bin_counts,
    bin_indices,
    build_feature,
    build_loss,
    build_profile,
    decode_profile,
    encode_profile,
    out_of_range,
    psi,
)

ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True, width=64)
TIED_FLOAT = st.sampled_from([0.0, -0.0, 1.0, 1.5, -3.0, 1e308, -1e308, math.nan, math.inf, -math.inf, 5e-324])
COLUMN = st.lists(st.one_of(ANY_FLOAT, TIED_FLOAT), min_size=1, max_size=80)
WORDS = st.lists(st.one_of(st.none(), st.text(max_size=2)), min_size=1, max_size=80)


def slow_bin(feature: FeatureProfile, value: float) -> int:
    if math.isnan(value):
        return len(feature.edges) + 1
    return sum(1 for edge in feature.edges if edge <= value)


@settings(deadline=None)
@given(COLUMN, COLUMN)
def test_bins_agree_with_a_count_of_the_edges_below(reference, live):
    feature = build_feature(np.array(reference))
    assert bin_indices(feature, np.array(live)).tolist() == [slow_bin(feature, value) for value in live]


@settings(deadline=None)
@given(COLUMN, COLUMN)
def test_every_number_falls_in_exactly_one_bin(reference, live):
    feature = build_feature(np.array(reference))
    counts = bin_counts(feature, np.array(live))
    assert len(counts) == len(feature.counts)
    assert counts.sum() == len(live)
    assert sum(feature.counts) == len(reference)


@settings(deadline=None)
@given(COLUMN)
def test_edges_rise_are_finite_and_separate_values_of_the_reference(reference):
    feature = build_feature(np.array(reference))
    assert all(math.isfinite(edge) for edge in feature.edges)
    assert list(feature.edges) == sorted(set(feature.edges))
    distinct = {value for value in reference if math.isfinite(value)}
    if len(distinct) > 1:
        assert all(min(distinct) < edge <= max(distinct) for edge in feature.edges)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_every_word_falls_in_exactly_one_bin(reference, live):
    feature = build_feature(np.array(reference, dtype=object))
    indices = bin_indices(feature, np.array(live, dtype=object)).tolist()
    for word, index in zip(live, indices, strict=True):
        if word is None:
            assert index == len(feature.categories) + 1
        elif word in feature.categories:
            assert feature.categories[index] == word
        else:
            assert index == len(feature.categories)
    assert sum(feature.counts) == len(reference)


@settings(deadline=None)
@given(COLUMN, COLUMN, COLUMN)
def test_the_counts_of_merged_batches_are_the_sum_of_the_counts(reference, first, second):
    feature = build_feature(np.array(reference))
    merged = bin_counts(feature, np.array(first + second))
    assert (merged == bin_counts(feature, np.array(first)) + bin_counts(feature, np.array(second))).all()


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=80), st.booleans())
def test_no_value_of_the_reference_is_out_of_range(reference, with_missing):
    column = np.array(reference + [math.nan] * with_missing)
    assert not out_of_range(build_feature(column), column).any()


@settings(deadline=None)
@given(COLUMN, WORDS)
def test_a_profile_survives_its_file(numbers, words):
    words = (words * 80)[: len(numbers)]
    profile = build_profile(
        inputs={"x": np.array(numbers)}, outputs={"label": np.array(words, dtype=object)}, columns={}
    )
    assert decode_profile(encode_profile(profile)) == profile


def test_a_smooth_feature_has_ten_bins_of_equal_counts_and_one_for_the_missing():
    feature = build_feature(np.random.default_rng(1).normal(size=1000))
    assert feature.counts == (100,) * 10 + (0,)


def test_a_value_that_fills_several_deciles_has_a_bin_of_its_own():
    feature = build_feature(np.array([-2.0, -1.0, *[0.0] * 60, *range(1, 39)]))
    index = int(bin_indices(feature, np.array([0.0]))[0])
    assert feature.counts[index] == 60


def test_a_constant_is_told_from_what_lies_below_and_above_it():
    feature = build_feature(np.full(50, 0.1))
    assert bin_indices(feature, np.array([0.1, np.float32(0.1), 0.09, 0.11, np.nan])).tolist() == [1, 1, 0, 2, 3]


@pytest.mark.parametrize("constant", [1.7976931348623157e308, -1.7976931348623157e308, 0.0, 5e-324])
def test_a_constant_of_any_size_can_be_profiled(constant):
    feature = build_feature(np.full(3, constant))
    assert sum(feature.counts) == max(feature.counts) == 3
    assert feature.mean == pytest.approx(constant)


def test_a_reference_without_a_finite_number_has_one_bin_of_values():
    feature = build_feature(np.array([np.nan, np.inf, np.nan]))
    assert (feature.edges, feature.counts, feature.low, feature.mean) == ((), (1, 2), None, None)
    assert out_of_range(feature, np.array([1.0, np.nan])).tolist() == [True, False]


def test_the_mean_of_large_numbers_is_finite():
    assert build_feature(np.full(4, 1.5e308)).mean == pytest.approx(1.5e308)


def test_rare_categories_share_a_bin():
    words = np.array([f"w{index:02}" for index in range(30) for _ in range(30 - index)], dtype=object)
    feature = build_feature(words)
    assert feature.categories == tuple(f"w{index:02}" for index in range(20))
    assert feature.counts[-2:] == (sum(range(1, 11)), 0)


def test_an_unknown_category_is_out_of_range_only_where_the_reference_had_no_others():
    closed = build_feature(np.array(["a", "b"], dtype=object))
    opened = build_feature(np.array([f"w{index}" for index in range(30)], dtype=object))
    assert out_of_range(closed, np.array(["a", "c", None], dtype=object)).tolist() == [False, True, True]
    assert out_of_range(opened, np.array(["new"], dtype=object)).tolist() == [False]


def test_infinities_are_out_of_range_whatever_the_reference():
    feature = build_feature(np.array([-1.7e308, 1.7e308]))
    assert out_of_range(feature, np.array([np.inf, -np.inf, 1.7e308])).tolist() == [True, True, False]


def test_bytes_and_text_are_one_category():
    feature = build_feature(np.array(["a", "b"], dtype=object))
    assert bin_indices(feature, np.array([b"b", "b"], dtype=object)).tolist() == [1, 1]


def test_strings_for_a_numeric_feature_are_refused():
    with pytest.raises(ProfileError, match="strings came for a numeric feature"):
        bin_indices(build_feature(np.arange(3.0)), np.array(["cold"], dtype=object))


def test_a_reference_without_rows_is_refused():
    with pytest.raises(ProfileError, match="no rows"):
        build_profile(inputs={"x": np.zeros(0)}, outputs={}, columns={})


def test_names_for_a_tensor_that_is_not_there_are_refused():
    with pytest.raises(ProfileError, match="named for 'z', which is no tensor here: x"):
        build_profile(inputs={"x": np.zeros(2)}, outputs={}, columns={"z": ["a"]})


def test_a_tenth_of_the_reference_misses_by_default():
    loss = build_loss(output="y", loss="absolute_error", losses=np.arange(1000.0))
    assert (loss.rows, loss.misses, loss.miss_above) == (1000, 100, 899.0)


def test_losses_that_are_not_finite_are_left_out():
    loss = build_loss(output="y", loss="zero_one", losses=np.array([0.0, 1.0, np.nan]), miss_above=0.5)
    assert (loss.rows, loss.misses, loss.mean) == (2, 1, 0.5)
    with pytest.raises(ProfileError, match="no finite loss"):
        build_loss(output="y", loss="zero_one", losses=np.array([np.nan]))


VALID = build_profile(
    inputs={"x": np.arange(20.0)},
    outputs={"y": np.array(["a", "b"] * 10, dtype=object)},
    columns={},
    loss=LossProfile("y", "zero_one", 0.5, 20, 2, 0.1),
)


@pytest.mark.parametrize(
    ("part", "changes", "text"),
    [
        ("features.x", {"counts": (1, 2)}, "has 2 counts; expected 11"),
        ("features.x", {"counts": (-1, *(2,) * 9, 0)}, "has the count -1"),
        ("features.x", {"edges": (3.0, 2.0, *range(4, 11))}, "expected them to rise"),
        ("features.x", {"edges": (2.0, 2.0, *range(4, 11))}, "expected them to rise"),
        ("features.x", {"low": None}, "only one of low and high"),
        ("features.x", {"low": 30.0}, "low 30.0 above high 19.0"),
        ("features.x", {"kind": "category"}, "both edges and categories"),
        ("features.x", {"kind": "text"}, "not a profile"),
        ("outputs.y", {"categories": ("a", "a")}, "names a category twice"),
        ("loss", {"misses": 21}, "21 misses of 20 rows"),
        ("", {"rows": 0}, "rows is 0"),
        ("", {"columns": {"x": ("x",)}}, "'y' is a column of no tensor"),
    ],
)
def test_a_profile_that_does_not_hold_together_is_refused(part, changes, text):
    tree = msgspec.to_builtins(VALID)
    place = tree
    for key in part.split(".") if part else ():
        place = place[key]
    place.update(changes)
    with pytest.raises(ProfileError, match=text):
        decode_profile(msgspec.json.encode(tree))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b'{"rows": "many"}', b"[" * 100_000])
def test_what_is_no_profile_is_refused(raw):
    with pytest.raises(ProfileError, match="not a profile"):
        decode_profile(raw)


def test_psi_is_about_zero_without_drift_at_any_sample_size():
    rng = np.random.default_rng(2)
    feature = build_feature(rng.normal(size=20_000))
    for rows in (100, 1000):
        readings = [psi(feature, bin_counts(feature, rng.normal(size=rows))) for _ in range(300)]
        assert abs(float(np.mean(readings))) < 0.3 * 9 / rows


def test_psi_tells_a_shift_of_one_deviation():
    rng = np.random.default_rng(2)
    feature = build_feature(rng.normal(size=20_000))
    assert 0.7 < psi(feature, bin_counts(feature, rng.normal(loc=1.0, size=5_000))) < 1.1


def test_psi_of_nothing_is_not_a_number():
    feature = build_feature(np.arange(20.0))
    assert math.isnan(psi(feature, [0] * 11))
    with pytest.raises(ProfileError, match=r"shape \[3\] came; expected \[11\]"):
        psi(feature, [1, 2, 3])
