"""Rows become counts: the same bins as the profile's own, whatever the log holds."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.control.logged import LoggedTensor
from gateway.control.rows import RowBuffer
from gateway.drift.profile import bin_counts, build_profile
from gateway.events.records import TensorRecord

T = TypeVar("T", TensorRecord, LoggedTensor)
REFERENCE = build_profile(
    inputs={
        "wide": np.random.default_rng(1).normal(size=(500, 3)),
        "constant": np.full((500, 1), 7.0),
        "place": np.array([["a"], ["b"]] * 250, dtype=object),
    },
    outputs={"y": np.random.default_rng(2).normal(size=500)},
    columns={"wide": ("first", "second", "third")},
)


def buffer(**changes: Any) -> RowBuffer:
    return RowBuffer(REFERENCE.features, REFERENCE.columns, **changes)


def tensor(name: str, values: list[Any], *, width: int = 1) -> TensorRecord:
    return TensorRecord(name, "FP64", (len(values) // width, width), values)


numbers = st.one_of(st.floats(allow_nan=False), st.none(), st.sampled_from([7.0, 0.0, 7.000001]))
requests = st.lists(
    st.tuples(
        st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=3),
        numbers,
        st.sampled_from(["a", "b", "elsewhere"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


def logged(tensor: TensorRecord, kind: type[T]) -> T:
    return msgspec.json.decode(msgspec.json.encode(tensor), type=kind)


@settings(deadline=None)
@given(requests, st.lists(st.integers(1, 3), min_size=8, max_size=8))
def test_tensors_whose_numbers_are_still_text_count_as_those_that_were_read(sent: list[Any], wanted: list[int]) -> None:
    read, unread = buffer(), buffer()
    for (table, constant, place, turned), rows in zip(sent, wanted, strict=False):
        tensors = [
            tensor("wide", [value for row in table for value in row], width=3),
            tensor("constant", [constant] * len(table)),
            tensor("place", [place] * len(table)),
        ]
        tensors = tensors[::-1] if turned else tensors
        read.add([logged(each, TensorRecord) for each in tensors], rows)
        unread.add([logged(each, LoggedTensor) for each in tensors], rows)
    assert np.array_equal(read.take(), unread.take())
    assert read.skipped == unread.skipped


@settings(deadline=None)
@given(requests)
def test_counts_are_those_of_the_profile_value_by_value(sent: list[Any]) -> None:
    rows = buffer()
    columns: dict[str, list[Any]] = {"first": [], "second": [], "third": [], "constant": [], "place": []}
    for table, constant, place, turned in sent:
        tensors = [
            tensor("wide", [value for row in table for value in row], width=3),
            tensor("constant", [constant] * len(table)),
            tensor("place", [place] * len(table)),
        ]
        rows.add(tensors[::-1] if turned else tensors, len(table))
        for name, values in zip(("first", "second", "third"), zip(*table, strict=True), strict=True):
            columns[name] += values
        columns["constant"] += [constant] * len(table)
        columns["place"] += [place] * len(table)
    counts = rows.take()
    for index, (name, feature) in enumerate(rows.features.items()):
        dtype = object if name == "place" else np.float64
        expected = bin_counts(feature, np.array(columns[name], dtype=dtype))
        assert counts[index, : len(expected)].tolist() == expected.tolist(), name
        assert not counts[index, len(expected) :].any()
    assert rows.skipped == 0
    assert not rows.take().any()


def test_ignored_columns_and_tensors_are_not_counted() -> None:
    assert list(buffer(ignore=("second", "place")).features) == ["first", "third", "constant"]
    rows = buffer(ignore=("second", "place"))
    rows.add([tensor("wide", [0.0, 1e9, 0.0], width=3), tensor("place", ["a"])], 1)
    assert rows.take().sum(axis=1).tolist() == [1, 1, 0]


def test_only_the_first_rows_count_where_one_caller_sent_many() -> None:
    rows = buffer()
    rows.add([tensor("constant", [7.0, 7.0, 0.0, 0.0])], 2)
    counts = rows.take()
    place = list(rows.features).index("constant")
    assert counts[place].tolist()[:3] == [0, 2, 0]


def test_tensors_without_their_values_are_skipped_and_counted() -> None:
    rows = buffer()
    for spoiled in (
        TensorRecord("constant", "FP64", (1, 1), digest="blake3:" + "0" * 64),
        TensorRecord("constant", "FP64", (2, 1), [7.0]),
        TensorRecord("constant", "FP64", (1, 1), ["text"]),
        TensorRecord("constant", "FP64", (-1, 1), [7.0]),
        TensorRecord("wide", "FP64", (1, 2), [7.0, 7.0]),
    ):
        rows.add([spoiled], 1)
        assert rows.take().sum() == 0
    assert rows.skipped == 5
    rows.add([TensorRecord("unknown", "FP64", (1, 1), [7.0])], 1)
    assert rows.take().sum() == 0
    assert rows.skipped == 5
