"""Reference rows: a CSV, npz or Parquet file that shows what a version was made for.

In a table a column belongs to the input of its name, or, where the model has one input of shape [-1, k], the k columns
are that input's features in the file's order. A column named as `quality.output` of `model.toml` is the label.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from gateway.protocol.datatypes import FREE, NUMPY_OF, Signature, TensorSpec, bfloat16_of, numbers_of
from gateway.repository.errors import ReferenceFileError
from gateway.repository.lineage import ReferenceFile
from gateway.repository.runner import Array
from gateway.repository.tables import Table, column_array, read_csv, read_parquet

__all__ = ("Reference", "read_reference")

MAX_REFERENCE_BYTES = 2**30


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """Reference rows as the model takes them.

    Parameters
    ----------
    inputs : dict of input name to array, shape [rows, ...]
    labels : array of float64, shape [rows], or None
    columns : dict of input name to the names of its scalar columns, where the file named them
    file : ReferenceFile
        Name, SHA-256 and rows, for the lineage.
    """

    inputs: dict[str, Array]
    labels: Array | None
    columns: dict[str, tuple[str, ...]]
    file: ReferenceFile


def read_reference(path: Path, *, signature: Signature, label: str) -> Reference:
    """Read reference rows and fit them to a model.

    Parameters
    ----------
    path : Path
        Ends in `.csv` (UTF-8, one line of column names), `.npz` (an array for each input) or `.parquet`.
    signature : Signature
        What the model takes.
    label : str
        The output whose true values may be in the file; "" for none.

    Raises
    ------
    ReferenceFileError
        With what came, where, and what is expected.
    """
    sha256 = _hash(path)
    match path.suffix.lower():
        case ".csv":
            inputs, labels, columns = _from_table(path, read_csv(path), signature, label)
        case ".parquet":
            inputs, labels, columns = _from_table(path, read_parquet(path), signature, label)
        case ".npz":
            inputs, labels, columns = *_from_arrays(path, _read_npz(path), signature, label), {}
        case _:
            raise ReferenceFileError(f"{path.name}: expected a file that ends in .csv, .npz or .parquet")
    rows = {name: len(array) for name, array in inputs.items()}
    if labels is not None:
        rows[label] = len(labels)
    if len(set(rows.values())) != 1:
        raise ReferenceFileError(f"{path.name}: arrays have different numbers of rows: {rows}")
    count = next(iter(rows.values()))
    if count == 0:
        raise ReferenceFileError(f"{path.name} has no rows: expected at least one")
    return Reference(inputs, labels, columns, ReferenceFile(path.name, sha256, count))


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_REFERENCE_BYTES:
                raise ReferenceFileError(f"{path.name} has {size} bytes: expected no more than {MAX_REFERENCE_BYTES}")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ReferenceFileError(f"cannot read {path}: {error.strerror}") from None


def _from_table(
    path: Path, table: Table, signature: Signature, label: str
) -> tuple[dict[str, Array], Array | None, dict[str, tuple[str, ...]]]:
    names = [spec.name for spec in signature.inputs]
    is_label = label in table and label not in names
    labels = column_array(path, label, table.pop(label), "FP64") if is_label else None
    first = signature.inputs[0]
    if len(names) == 1 and len(first.shape) == 2 and first.shape[1] != 1:
        if _are_cells(list(table)):
            raise ReferenceFileError(
                f"{path.name}: the names of the columns are numbers ({', '.join(list(table)[:5])}): "
                "expected a first line of names"
            )
        if first.shape[1] not in (FREE, len(table)):
            raise ReferenceFileError(
                f"{path.name} has {len(table)} columns for input {names[0]!r} ({', '.join(table)}): expected its"
                f" {first.shape[1]} features in order, and beside them no column but the label; {_about_labels(label)}"
            )
        features = [column_array(path, name, cells, first.datatype) for name, cells in table.items()]
        return {first.name: np.stack(features, axis=1)}, labels, {first.name: tuple(table)}
    inputs = {}
    for spec in signature.inputs:
        if spec.name not in table:
            raise ReferenceFileError(f"{path.name} has no column {spec.name!r}: expected one for each of {names}")
        if len(spec.shape) not in (1, 2) or spec.shape[1:] not in ((), (1,), (FREE,)):
            raise ReferenceFileError(
                f"{path.name}: input {spec.name!r} of shape {list(spec.shape)} is not one column; give an npz file"
            )
        array = column_array(path, spec.name, table[spec.name], spec.datatype)
        inputs[spec.name] = array.reshape(-1, 1) if len(spec.shape) == 2 else array
    if unknown := [name for name in table if name not in names]:
        raise ReferenceFileError(
            f"{path.name}: column {unknown[0]!r} is no input of the model: expected {names}; {_about_labels(label)}"
        )
    return inputs, labels, {}


def _are_cells(names: list[str]) -> bool:
    """Whether a first line is one of values; what a program counted, from 0 on, are names."""
    if names == [str(number) for number in range(len(names))]:
        return False
    try:
        return all(map(math.isfinite, map(float, names)))
    except ValueError:
        return False


def _about_labels(label: str) -> str:
    told = "a label stands in a column named as the output that [quality] output of model.toml names"
    return f"{told}, here {label!r}" if label else f"{told}; it names none yet"


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ReferenceFileError(f"{path.name} is no npz file of plain arrays: {error}") from None


def _from_arrays(
    path: Path, arrays: dict[str, Array], signature: Signature, label: str
) -> tuple[dict[str, Array], Array | None]:
    names = [spec.name for spec in signature.inputs]
    labels = None
    if label in arrays and label not in names:
        labels = arrays.pop(label)
        labels = _fit(path, TensorSpec(label, "FP64", (FREE,)), labels.reshape(-1) if labels.ndim == 2 else labels)
    if missing := [name for name in names if name not in arrays]:
        raise ReferenceFileError(f"{path.name} has no array {missing[0]!r}: expected one for each of {names}")
    if unknown := [name for name in arrays if name not in names]:
        raise ReferenceFileError(
            f"{path.name}: array {unknown[0]!r} is no input of the model: expected {names}; {_about_labels(label)}"
        )
    return {spec.name: _fit(path, spec, arrays[spec.name]) for spec in signature.inputs}, labels


def _fit(path: Path, spec: TensorSpec, array: Array) -> Array:
    expected = (FREE, *spec.shape[1:])
    fits = len(expected) == array.ndim and all(e in (FREE, a) for e, a in zip(expected, array.shape, strict=True))
    if not fits:
        raise ReferenceFileError(
            f"{path.name}: array {spec.name!r} has shape {list(array.shape)}: expected {list(expected)}"
        )
    dtype = NUMPY_OF[spec.datatype]
    if (spec.datatype == "BYTES") != (array.dtype.kind == "U") or array.dtype.kind not in "Ubiuf":
        raise ReferenceFileError(f"{path.name}: array {spec.name!r} is {array.dtype}: expected {spec.datatype}")
    with np.errstate(over="ignore", invalid="ignore"):
        fitted: Array = bfloat16_of(array) if spec.datatype == "BF16" else array.astype(dtype)
    if dtype.kind in "fV" and not np.isfinite(numbers_of(fitted)).all():
        raise ReferenceFileError(f"{path.name}: array {spec.name!r} has values that are not finite as {spec.datatype}")
    if dtype.kind in "biu" and not np.array_equal(fitted, array):
        raise ReferenceFileError(f"{path.name}: array {spec.name!r} has values that do not fit {spec.datatype}")
    return fitted
