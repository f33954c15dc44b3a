from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as parquet
import pytest

from gateway.events.records import KIND_FEEDBACK, FeedbackRecord, PredictionRecord, TensorRecord, Timings
from gateway.predictions.export import export_parquet, lines_of
from gateway.predictions.segments import LogRecord
from gateway.predictions.table import ENVELOPE, labels_by_prediction, table_lines


def record(
    inputs: list[TensorRecord], outputs: list[TensorRecord], *, rows: int = 2, **changes: Any
) -> PredictionRecord:
    fields: dict[str, Any] = {
        "id": "0196f0c5d2a100-0000000001", "time": "2012-03-01T00:00:00Z", "gateway": "g", "seq": 1, "model": "m",
        "version": 1, "digest": "", "arm": "stable", "weight": 0.0, "reason": "stable", "status": 200, "rows": rows,
        "timings": Timings(1, 2, 3), "inputs": inputs, "outputs": outputs, "parameters": {},
    }  # fmt: skip
    return PredictionRecord(**(fields | changes))


def lines(found: PredictionRecord, **names: list[str]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.values.items() if name not in ENVELOPE}
        for line in table_lines(found, lambda model, version: names, {})
    ]


X = TensorRecord("x", "FP32", (2, 2), [1.0, 2.0, 3.0, 4.0])
Y = TensorRecord("y", "INT64", (2, 1), [7, 8])


def test_each_row_is_a_line_and_each_scalar_a_column() -> None:
    assert lines(record([X], [Y])) == [{"x[0]": 1.0, "x[1]": 2.0, "y": 7}, {"x[0]": 3.0, "x[1]": 4.0, "y": 8}]
    assert lines(record([X], [Y]), x=["age", "hour"])[1] == {"age": 3.0, "hour": 4.0, "y": 8}


def test_a_name_that_is_taken_says_where_it_comes_from() -> None:
    found = lines(record([X], [Y, TensorRecord("z", "BOOL", (2,), [True, False])]), x=["time", "y"], z=["y"])
    assert found[0] == {"input.time": 1.0, "y": 2.0, "output.y": True} | {"output.y": True}


def test_many_axes_many_columns_and_no_row_axis_are_lists() -> None:
    wide = TensorRecord("w", "FP32", (2, 2, 2), [float(number) for number in range(8)])
    whole = TensorRecord("s", "BYTES", (3,), ["a", "b", "c"])
    assert lines(record([wide, whole], [])) == [
        {"w": [0.0, 1.0, 2.0, 3.0], "s": ["a", "b", "c"]},
        {"w": [4.0, 5.0, 6.0, 7.0], "s": ["a", "b", "c"]},
    ]


def test_what_was_not_logged_is_null() -> None:
    masked = TensorRecord("x", "FP32", (2, 2), [1.0, None, 3.0, None], redacted_columns={"x[1]": 1})
    assert lines(record([masked], []))[0] == {"x[0]": 1.0, "x[1]": None}
    assert lines(record([TensorRecord("x", "FP32", (2, 2), redacted=True)], []))[0] == {"x[0]": None, "x[1]": None}
    [failed] = table_lines(record([], [], rows=0, status=400, error="no"), lambda model, version: {}, {})
    assert failed.values["error"] == "no" and failed.values["row"] == 0


def test_the_last_label_of_a_row_counts_by_its_time_in_whatever_order_they_are_read() -> None:
    prediction_id = "0196f0c5d2a100-0000000001"
    read = [
        LogRecord(KIND_FEEDBACK, "0196f0c5d2a101", seq, msgspec.json.encode(label))
        for seq, time, value in ((1, "2012-03-03T00:00:00Z", 7.0), (2, "2012-03-02T00:00:00Z", 5.0))
        for label in [FeedbackRecord(f"0196f0c5d2a101-000000000{seq}", time, "g", seq, "m", prediction_id, 1, value)]
    ]
    wanted = {("m", prediction_id, 1): (7.0, "2012-03-03T00:00:00Z")}
    assert labels_by_prediction(read, "m") == labels_by_prediction(reversed(read), None) == wanted


def test_a_label_is_on_its_row_where_it_was_sent_to_the_model_that_answered() -> None:
    labels = {
        ("m", "0196f0c5d2a100-0000000001", 1): (5.0, "2012-03-02T00:00:00Z"),
        ("other", "0196f0c5d2a100-0000000001", 0): (6.0, "2012-03-02T00:00:00Z"),
    }
    assert [line.values["label"] for line in table_lines(record([X], [Y]), lambda model, version: {}, labels)] == [
        None,
        5.0,
    ]


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64", "INT8", "UINT64", "BOOL", "BYTES"])
def test_every_datatype_has_a_column_in_parquet(tmp_path: Path, datatype: str) -> None:
    values = {"BOOL": [True, False], "BYTES": ["a", "b"], "UINT64": [2**64 - 1, 0]}.get(datatype, [1, 2])
    found = [record([TensorRecord("x", datatype, (2, 1), values)], [TensorRecord("v", datatype, (2, 1, 1), values)])]
    export_parquet(lambda: lines_of(found, lambda model, version: {}, {}), tmp_path / "t.parquet", lambda: None)
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.column("x").to_pylist() == values and table.column("v").to_pylist() == [[value] for value in values]


def test_versions_that_disagree_about_a_column_share_it(tmp_path: Path) -> None:
    one = record([TensorRecord("x", "INT64", (1, 1), [1])], [], rows=1)
    for other, held in (
        (TensorRecord("x", "FP32", (1, 1), [1.5]), [1.0, 1.5]),
        (TensorRecord("x", "BYTES", (1, 1), ["a"]), ["1", "a"]),
    ):
        found = [one, record([other], [], rows=1, version=2)]
        export_parquet(
            lambda found=found: lines_of(found, lambda model, version: {}, {}), tmp_path / "t.parquet", lambda: None
        )
        assert parquet.read_table(tmp_path / "t.parquet").column("x").to_pylist() == held


@pytest.mark.parametrize(("datatype", "held"), [("FP32", 2.0**53), ("FP64", 2.0**53 + 2)])
def test_integers_that_callers_wrote_for_floats_are_floats(tmp_path: Path, datatype: str, held: float) -> None:
    given = [TensorRecord("x", datatype, (1, 1), [2**53 + 2]), TensorRecord("v", datatype, (1, 1, 1), [2**53 + 2])]
    columns = exported([record(given, [], rows=1)], tmp_path)
    assert (columns["x"], columns["v"]) == ([held], [[held]])


@pytest.mark.parametrize(
    ("one", "other", "held"),
    [
        (("INT32", 1), ("INT64", 2**53 + 1), [1, 2**53 + 1]),
        (("UINT8", 1), ("INT8", -1), [1, -1]),
        (("INT64", 2**53 + 2), ("FP32", 1.5), [2.0**53 + 2, 1.5]),
        (("UINT64", 2**64 - 1), ("INT8", -1), [2.0**64, -1.0]),
        (("BOOL", True), ("INT32", 7), [1, 7]),
        (("BOOL", True), ("BYTES", "a"), ["True", "a"]),
        (("BF16", 1.5), ("FP16", 2.5), [1.5, 2.5]),
    ],
)
def test_a_column_holds_what_versions_of_different_datatypes_put_there(
    tmp_path: Path, one: tuple[str, Any], other: tuple[str, Any], held: list[Any]
) -> None:
    values = (one, other)
    scalars = [record([TensorRecord("x", datatype, (1, 1), [value])], [], rows=1) for datatype, value in values]
    assert exported(scalars, tmp_path)["x"] == held
    lists = [record([TensorRecord("x", datatype, (1, 1, 1), [value])], [], rows=1) for datatype, value in values]
    assert exported(lists, tmp_path)["x"] == [[value] for value in held]
    assert exported([scalars[0], lists[1]], tmp_path)["x"] == [[value] for value in held]


def exported(found: list[PredictionRecord], folder: Path) -> dict[str, list[Any]]:
    path = folder / "t.parquet"
    export_parquet(lambda: lines_of(found, lambda model, version: {}, {}), path, lambda: None)
    columns: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    return columns
