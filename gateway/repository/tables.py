"""Tables of reference rows: reading CSV and Parquet into columns, and columns into arrays."""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gateway.protocol.datatypes import NUMPY_OF, bfloat16_of
from gateway.repository.errors import ReferenceFileError
from gateway.repository.runner import Array

__all__ = ("Table", "column_array", "read_csv", "read_parquet")

Table = dict[str, list[Any]]
"""Column name to one cell a row, in the file's order."""

_TRUTH = {"true": True, "false": False, "1": True, "0": False}


def read_csv(path: Path) -> Table:
    """Read a CSV file: UTF-8, one line of column names, commas.

    Raises
    ------
    ReferenceFileError
        With the line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(path, header)
            columns: list[list[Any]] = [[] for _ in header]
            for line in lines:
                if not line:
                    continue
                if len(line) != len(header):
                    where = f"{path.name} line {lines.line_num}"
                    raise ReferenceFileError(f"{where} has {len(line)} cells: expected {len(header)}, as in the header")
                for column, cell in zip(columns, line, strict=True):
                    column.append(cell)
    except UnicodeDecodeError:
        raise ReferenceFileError(f"{path.name} is not UTF-8 text") from None
    except (csv.Error, OSError) as error:
        raise ReferenceFileError(f"{path.name}: {error}") from None
    return dict(zip(header, columns, strict=True))


def read_parquet(path: Path) -> Table:
    """Read a Parquet file, where pyarrow is installed.

    Raises
    ------
    ReferenceFileError
        pyarrow is missing, or the file is no Parquet.
    """
    try:
        # Not a dependency: whoever has Parquet files has pyarrow.
        parquet = importlib.import_module("pyarrow.parquet")
        arrow_error: type[Exception] = importlib.import_module("pyarrow").ArrowException
    except ImportError:
        raise ReferenceFileError(f"{path.name}: Parquet needs the package pyarrow; or give a CSV file") from None
    try:
        table = parquet.read_table(path)
    except (arrow_error, OSError) as error:
        raise ReferenceFileError(f"{path.name} is no Parquet file: {error}") from None
    _check_header(path, table.column_names)
    return {name: table.column(name).to_pylist() for name in table.column_names}


def column_array(path: Path, name: str, cells: Sequence[Any], datatype: str) -> Array:
    """One column as an array of a V2 datatype, shape [rows].

    Raises
    ------
    ReferenceFileError
        A cell is empty, not a number, not finite or out of range; with column, row and cell.
    """
    dtype = NUMPY_OF[datatype]
    if datatype == "BF16":
        return bfloat16_of(column_array(path, name, cells, "FP32"))
    if datatype == "BYTES":
        return np.array([_text(path, name, row, cell) for row, cell in enumerate(cells)], dtype=object)
    array = np.empty(len(cells), dtype)
    with np.errstate(over="ignore"):
        for row, cell in enumerate(cells):
            try:
                array[row] = value = _value(cell, dtype.kind)
                if not math.isfinite(array[row]) or (dtype.kind in "iu" and array[row] != value):
                    raise OverflowError
            except (ValueError, TypeError, OverflowError):
                expected = {"f": "a finite number", "b": "true or false"}.get(dtype.kind, "a whole number")
                raise ReferenceFileError(
                    f"{path.name}: column {name!r}, row {row + 1} has {str(cell)[:40]!r}: expected {expected}"
                    f" that fits {datatype}"
                ) from None
    return array


def _check_header(path: Path, header: Sequence[str]) -> None:
    if not any(header):
        raise ReferenceFileError(f"{path.name} is empty: expected a line of column names")
    if not all(header):
        raise ReferenceFileError(f"{path.name}: column {list(header).index('') + 1} has no name")
    if repeated := [name for name in header if header.count(name) > 1]:
        raise ReferenceFileError(f"{path.name}: column {repeated[0]!r} comes twice: expected column names, each once")


def _text(path: Path, name: str, row: int, cell: Any) -> str:
    if not isinstance(cell, str):
        raise ReferenceFileError(f"{path.name}: column {name!r}, row {row + 1} has {cell!r}: expected text")
    return cell


def _value(cell: Any, kind: str) -> Any:
    text = str(cell).strip()
    if kind == "b" and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    if kind == "b" or "_" in text:  # Python reads 1_000 as a number, nothing else does
        raise ValueError(text)
    if kind == "f":
        return float(text)
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if number.is_integer():
            return int(number)
        raise
