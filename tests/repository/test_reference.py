"""Reference rows, and the mistakes that people make in them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.repository.errors import ReferenceFileError
from gateway.repository.reference import read_reference

COUNT = (TensorSpec("count", "FP32", (-1, 1)),)
FEATURES = Signature((TensorSpec("features", "FP32", (-1, 2)),), COUNT)
NAMED = Signature((TensorSpec("age", "INT64", (-1, 1)), TensorSpec("city", "BYTES", (-1,))), COUNT)


def write(folder: Path, text: str, name: str = "reference.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_columns_are_the_features_of_one_wide_input_in_their_order(tmp_path: Path) -> None:
    path = write(tmp_path, "tmax,count,hour\n15,7,0\n-1.5,33,1e0\n")
    reference = read_reference(path, signature=FEATURES, label="count")
    assert reference.inputs["features"].tolist() == [[15.0, 0.0], [-1.5, 1.0]]
    assert reference.inputs["features"].dtype == np.float32
    assert reference.columns == {"features": ("tmax", "hour")}
    assert reference.labels is not None and reference.labels.tolist() == [7.0, 33.0]
    assert (reference.file.name, reference.file.rows) == ("reference.csv", 2)


@pytest.mark.parametrize("header", ["0,1", "5.1,tmax"])
def test_columns_may_be_counted_and_a_name_may_be_a_number(tmp_path: Path, header: str) -> None:
    reference = read_reference(write(tmp_path, f"{header}\n15,7\n"), signature=FEATURES, label="")
    assert reference.columns == {"features": tuple(header.split(","))}


def test_columns_are_inputs_by_name_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffcity,age\n"Washington, D.C.",41\n\nBonn, 7 \n')
    reference = read_reference(path, signature=NAMED, label="count")
    assert reference.inputs["age"].tolist() == [[41], [7]]
    assert reference.inputs["age"].dtype == np.int64
    assert reference.inputs["city"].tolist() == ["Washington, D.C.", "Bonn"]
    assert reference.labels is None


@pytest.mark.parametrize(
    ("signature", "text", "reason"),
    [
        (FEATURES, "", "reference.csv is empty"),
        (FEATURES, "\n", "reference.csv is empty"),
        (FEATURES, "hour,tmax\n", "has no rows"),
        (FEATURES, "hour,count\n1,2\n", "has 1 columns for input 'features' .hour.: expected its 2 features"),
        (FEATURES, "hour,tmax,wind\n1,2,3\n", "has 3 columns .* in order, and beside them no column but the label"),
        (FEATURES, "hour,hour\n1,2\n", "column 'hour' comes twice: expected column names, each once"),
        (FEATURES, "5.1,3.5\n4.9,3\n", "names of the columns are numbers .5.1, 3.5.: expected a first line of names"),
        (FEATURES, "1,0\n1,2\n", "names of the columns are numbers .1, 0.: expected a first line of names"),
        (FEATURES, "hour,\n1,2\n", "column 2 has no name"),
        (FEATURES, "hour,tmax\n1,2\n3\n", "line 3 has 1 cells: expected 2"),
        (FEATURES, "hour,tmax\n1,2\n3,warm\n", "column 'tmax', row 2 has 'warm': expected a finite number"),
        (FEATURES, "hour,tmax\n1,\n", "column 'tmax', row 1 has '': expected a finite number"),
        (FEATURES, "hour,tmax\n1,nan\n", "column 'tmax', row 1 has 'nan': expected a finite number"),
        (FEATURES, "hour,tmax\n1,inf\n", "row 1 has 'inf': expected a finite number"),
        (FEATURES, "hour,tmax\n1,1e39\n", "row 1 has '1e39': expected a finite number that fits FP32"),
        (FEATURES, "hour,tmax\n1,1_000\n", "row 1 has '1_000'"),
        (FEATURES, 'hour,tmax\n1,"2', "reference.csv: "),
        (FEATURES, "hour,tmax,count\n1,2,many\n", "column 'count', row 1 has 'many'"),
        (NAMED, "age\n1\n", "has no column 'city': expected one for each of"),
        (NAMED, "age,city,name\n1,Bonn,x\n", "column 'name' is no input of the model"),
        (NAMED, "age,city\n1.5,Bonn\n", "column 'age', row 1 has '1.5': expected a whole number that fits INT64"),
        (NAMED, "age,city\n9223372036854775808,Bonn\n", "expected a whole number that fits INT64"),
    ],
)
def test_a_table_with_a_mistake_is_refused_and_the_place_is_named(
    tmp_path: Path, signature: Signature, text: str, reason: str
) -> None:
    with pytest.raises(ReferenceFileError, match=reason):
        read_reference(write(tmp_path, text), signature=signature, label="count")


@pytest.mark.parametrize(("label", "told"), [("", "; it names none yet"), ("count", ", here 'count'")])
def test_who_gives_a_column_too_many_learns_which_one_is_the_label(tmp_path: Path, label: str, told: str) -> None:
    told = "a label stands in a column named as the output that [quality] output of model.toml names" + told
    with pytest.raises(ReferenceFileError, match=re.escape(told)):
        read_reference(write(tmp_path, "hour,tmax,label\n1,2,3\n"), signature=FEATURES, label=label)
    with pytest.raises(ReferenceFileError, match=re.escape(told)):
        read_reference(write(tmp_path, "age,city,label\n1,Bonn,3\n"), signature=NAMED, label=label)
    path = tmp_path / "reference.npz"
    np.savez(path, features=np.ones((1, 2)), label=np.ones(1))
    with pytest.raises(ReferenceFileError, match=re.escape(told)):
        read_reference(path, signature=FEATURES, label=label)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reference.csv").write_bytes("hour,tmäx\n1,2\n".encode("latin-1"))
    with pytest.raises(ReferenceFileError, match="is not UTF-8 text"):
        read_reference(tmp_path / "reference.csv", signature=FEATURES, label="")


@pytest.mark.parametrize("cell", ["300", "-1"])
def test_whole_numbers_must_fit_their_datatype(tmp_path: Path, cell: str) -> None:
    signature = Signature((TensorSpec("small", "UINT8", (-1,)),), COUNT)
    assert read_reference(write(tmp_path, "small\n255\n"), signature=signature, label="").inputs["small"] == [255]
    with pytest.raises(ReferenceFileError, match=f"row 1 has '{cell}': expected a whole number that fits UINT8"):
        read_reference(write(tmp_path, f"small\n{cell}\n"), signature=signature, label="")


def test_truth_is_written_as_a_word_or_a_digit(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("holiday", "BOOL", (-1,)),), COUNT)
    path = write(tmp_path, "holiday\ntrue\nFalse\n1\n0\n")
    assert read_reference(path, signature=signature, label="").inputs["holiday"].tolist() == [True, False, True, False]
    with pytest.raises(ReferenceFileError, match="row 1 has '2': expected true or false"):
        read_reference(write(tmp_path, "holiday\n2\n"), signature=signature, label="")


def test_a_picture_does_not_come_from_a_table(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("image", "FP32", (-1, 3, 8, 8)),), COUNT)
    with pytest.raises(ReferenceFileError, match="give an npz file"):
        read_reference(write(tmp_path, "image\n1\n"), signature=signature, label="")


def test_arrays_come_by_the_names_of_the_inputs(tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, age=np.array([[1], [2]]), city=np.array(["a", "b"]), count=np.array([[3.0], [4.0]]))
    reference = read_reference(path, signature=NAMED, label="count")
    assert reference.inputs["city"].dtype == object
    assert reference.inputs["city"].tolist() == ["a", "b"]
    assert reference.labels is not None and reference.labels.tolist() == [3.0, 4.0]
    assert reference.columns == {}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.ones((2, 2))}, "has no array 'features'"),
        ({"features": np.ones((2, 2)), "more": np.ones(2)}, "array 'more' is no input of the model"),
        ({"features": np.ones((2, 3))}, r"has shape \[2, 3\]: expected \[-1, 2\]"),
        ({"features": np.ones(2)}, r"has shape \[2\]: expected \[-1, 2\]"),
        ({"features": np.float32(1)}, r"has shape \[\]"),
        ({"features": np.ones((0, 2))}, "has no rows"),
        ({"features": np.array([["a", "b"]])}, "is <U1: expected FP32"),
        ({"features": np.ones((1, 2), dtype=complex)}, "is complex128: expected FP32"),
        ({"features": np.array([[np.nan, 1.0]])}, "values that are not finite as FP32"),
        ({"features": np.array([[1e300, 1.0]])}, "values that are not finite as FP32"),
        ({"features": np.ones((2, 2)), "count": np.ones(3)}, "different numbers of rows"),
        ({"features": np.array([[None, 1.0]], dtype=object)}, "no npz file of plain arrays"),
    ],
)
def test_arrays_with_a_mistake_are_refused(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(ReferenceFileError, match=reason):
        read_reference(tmp_path / "reference.npz", signature=FEATURES, label="count")


def test_whole_numbers_in_arrays_must_not_change(tmp_path: Path) -> None:
    signature = Signature((TensorSpec("small", "INT8", (-1,)),), COUNT)
    np.savez(tmp_path / "reference.npz", small=np.array([1000]))
    with pytest.raises(ReferenceFileError, match="values that do not fit INT8"):
        read_reference(tmp_path / "reference.npz", signature=signature, label="")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "reference.npz").write_bytes(content)
    with pytest.raises(ReferenceFileError, match="reference.npz is no npz file"):
        read_reference(tmp_path / "reference.npz", signature=FEATURES, label="")


def test_another_ending_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReferenceFileError, match="ends in .csv, .npz or .parquet"):
        read_reference(write(tmp_path, "x", "reference.xlsx"), signature=FEATURES, label="")
    with pytest.raises(ReferenceFileError, match="cannot read .*missing.csv: No such file"):
        read_reference(tmp_path / "missing.csv", signature=FEATURES, label="")


def test_parquet_without_pyarrow_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ReferenceFileError, match="Parquet needs the package pyarrow"):
        read_reference(write(tmp_path, "PAR1", "reference.parquet"), signature=FEATURES, label="")


def test_parquet_columns_are_read_as_those_of_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pyarrow is no dependency of ours, so its three calls that we use are stood in for.
    class Column(list[Any]):
        def to_pylist(self) -> list[Any]:
            return list(self)

    class Table(dict[str, Column]):
        column_names = ("hour", "tmax", "count")

        def column(self, name: str) -> Column:
            return self[name]

    def read_table(path: Path) -> Table:
        return Table(
            hour=Column([0, 1]), tmax=Column([15.0, None if path.name == "bad.parquet" else 2]), count=Column([7, 8])
        )

    pyarrow, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    vars(pyarrow)["ArrowException"] = ValueError
    vars(parquet)["read_table"] = read_table
    monkeypatch.setitem(sys.modules, "pyarrow", pyarrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    reference = read_reference(write(tmp_path, "", "good.parquet"), signature=FEATURES, label="count")
    assert reference.inputs["features"].tolist() == [[0.0, 15.0], [1.0, 2.0]]
    with pytest.raises(ReferenceFileError, match="column 'tmax', row 2 has 'None': expected a finite number"):
        read_reference(write(tmp_path, "", "bad.parquet"), signature=FEATURES, label="count")
