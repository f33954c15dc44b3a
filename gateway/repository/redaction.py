"""What of a version's inputs must not be logged: `logging.redact` names inputs, and columns of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.drift.profile import ProfileError, decode_profile
from gateway.protocol.datatypes import FREE, Signature
from gateway.repository.errors import RepositoryError
from gateway.repository.manifest import PROFILE_NAME, ModelVersion, load_version
from gateway.repository.policy import PolicyError

__all__ = ("Redaction", "redaction_of")


class Redaction(NamedTuple):
    """Inputs without content in the log, and by input the columns without, each with its place in a row."""

    inputs: tuple[str, ...]
    columns: dict[str, dict[str, int]]


def redaction_of(version: ModelVersion, names: Sequence[str]) -> Redaction:
    """Find what `logging.redact` names among the inputs of a version and the columns that its profile names.

    A column of an input of shape [-1, k] that has no name in the profile is `input[0]` to `input[k-1]`.

    Raises
    ------
    PolicyError
        A name is none of them, here nor in another version of the model: a slip would log what must not be.
    """
    if not names:
        return Redaction((), {})
    signature = version.manifest.signature
    places = _places(signature, _column_names(version.folder))
    if unknown := [name for name in names if name not in places and not _is_elsewhere(version, name)]:
        raise PolicyError(
            f"logging.redact names {unknown[0]!r}, which is no input and no column of version "
            f"{version.folder.name}; expected some of {', '.join(list(places)[:20])}"
        )
    whole = tuple(spec.name for spec in signature.inputs if spec.name in names)
    columns: dict[str, dict[str, int]] = {}
    for name in names:
        tensor, column = places.get(name, ("", None))
        if column is not None and tensor not in whole:
            columns.setdefault(tensor, {})[name] = column
    return Redaction(whole, columns)


def _places(signature: Signature, named: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, int | None]]:
    places: dict[str, tuple[str, int | None]] = {}
    for spec in signature.inputs:
        if len(spec.shape) == 2 and spec.shape[1] != FREE:
            default = [f"{spec.name}[{column}]" for column in range(spec.shape[1])]
            given = named.get(spec.name, ())
            columns = given if len(given) == spec.shape[1] else default
            places |= {column: (spec.name, place) for place, column in enumerate(columns)}
    # An input's own name means all of it, also where its one column has the same name.
    return places | {spec.name: (spec.name, None) for spec in signature.inputs}


def _column_names(folder: Path) -> Mapping[str, Sequence[str]]:
    try:
        return decode_profile((folder / PROFILE_NAME).read_bytes()).columns
    except (OSError, ProfileError):
        return {}


def _is_elsewhere(version: ModelVersion, name: str) -> bool:
    """Tell whether another version of the model knows the name: it may have had an input that this one has not."""
    for folder in version.folder.parent.iterdir():
        if folder.name.isdigit() and folder != version.folder:
            try:
                signature = load_version(folder).manifest.signature
            except RepositoryError:
                continue
            if name in _places(signature, _column_names(folder)):
                return True
    return False
