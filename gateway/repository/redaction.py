"""What of a version's inputs must not be logged: `logging.redact` names inputs, and columns of inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.drift.profile import ProfileError, decode_profile
from gateway.protocol.datatypes import FREE, Signature, TensorSpec
from gateway.repository.errors import RepositoryError
from gateway.repository.manifest import PROFILE_NAME, ModelVersion, load_version
from gateway.repository.policy import PolicyError

__all__ = ("Redaction", "input_names", "redaction_of")


class Redaction(NamedTuple):
    """Inputs without content in the log, and by input the columns without, each with its place in a row.

    `doubts` are sentences for the operator: on names that another version knows and this one does not, where an input
    of this one may hold what they name.
    """

    inputs: tuple[str, ...]
    columns: dict[str, dict[str, int]]
    doubts: tuple[str, ...] = ()


def redaction_of(version: ModelVersion, names: Sequence[str]) -> Redaction:
    """Find what `logging.redact` names among the inputs of a version and the columns that its profile names.

    A column of an input of shape [-1, k] that has no name in the profile is `input[0]` to `input[k-1]`. A column that
    another version has in an input of the same name, and that this version does not know, may stand anywhere in that
    input: all of it is redacted, unless this version has a name for each of its columns and that is none of them.

    Raises
    ------
    PolicyError
        A name is none of them, here nor in another version of the model: a slip would log what must not be.
    """
    if not names:
        return Redaction((), {})
    here = _Columns.of(version)
    redacted = {spec.name for spec in here.inputs if spec.name in names}
    doubts = []
    unknown = [name for name in names if name not in here.places]
    others = list(_others(version)) if unknown else []
    for name in unknown:
        holders = {number: columns.places[name] for number, columns in others if name in columns.places}
        if not holders:
            raise PolicyError(
                f"logging.redact names {name!r}, which is no input and no column of version "
                f"{version.folder.name}; expected some of {', '.join(list(here.places)[:20])}"
            )
        for number, (tensor, column) in holders.items():
            if column is not None and here.may_hold(name, tensor) and tensor not in redacted:
                redacted.add(tensor)
                doubts.append(
                    f"all of input {tensor!r} is redacted: version {number} has {name!r} in it, which "
                    f"logging.redact names, and version {version.folder.name} does not tell which column that is"
                )
        if here.unnamed and redacted.isdisjoint(tensor for tensor, _ in holders.values()):
            doubts.append(
                f"nothing is redacted for {name!r}, which logging.redact names: version {version.folder.name} has no "
                f"such input or column, and no names for the columns of {', '.join(map(repr, here.unnamed))}"
            )
    columns: dict[str, dict[str, int]] = {}
    for name in names:
        tensor, place = here.places.get(name, ("", None))
        if place is not None and tensor not in redacted:
            columns.setdefault(tensor, {})[name] = place
    return Redaction(tuple(spec.name for spec in here.inputs if spec.name in redacted), columns, tuple(doubts))


def input_names(version: ModelVersion) -> list[str]:
    """The inputs of a version and their columns, by the names that its profile has for them, and by their place."""
    columns = _Columns.of(version)
    named = _column_names(version.folder)
    return [*columns.places, *(name for spec in columns.inputs for name in named.get(spec.name, ()))]


class _Columns:
    """The inputs of a version and their columns, by name.

    `places` maps a name to an input, and to the place of a column in it; `unnamed` are the inputs of several columns of
    which some have no name but their place.
    """

    def __init__(self, signature: Signature, named: Mapping[str, Sequence[str]]) -> None:
        self.inputs = signature.inputs
        self.places: dict[str, tuple[str, int | None]] = {}
        self._named: set[str] = set()
        for spec in signature.inputs:
            default = _default_names(spec)
            given = named.get(spec.name, ())
            names = given if len(given) == len(default) else default
            self.places |= {name: (spec.name, place) for place, name in enumerate(names)}
            if names and not {spec.name, *default}.intersection(names):
                self._named.add(spec.name)
        several = [spec.name for spec in signature.inputs if any(size != 1 for size in spec.shape[1:])]
        self.unnamed = [name for name in several if name not in self._named]
        # An input's own name means all of it, also where its one column has the same name.
        self.places |= {spec.name: (spec.name, None) for spec in signature.inputs}

    @classmethod
    def of(cls, version: ModelVersion) -> _Columns:
        return cls(version.manifest.signature, _column_names(version.folder))

    def may_hold(self, name: str, tensor: str) -> bool:
        """Tell whether a column that another version has in an input of this name may be in the one here.

        Of one that has no name but its place there, no name here says that it is another.
        """
        is_here = any(spec.name == tensor for spec in self.inputs)
        return is_here and (tensor not in self._named or name.startswith(f"{tensor}["))


def _default_names(spec: TensorSpec) -> list[str]:
    if len(spec.shape) != 2 or spec.shape[1] == FREE:
        return []
    return [f"{spec.name}[{column}]" for column in range(spec.shape[1])]


def _column_names(folder: Path) -> Mapping[str, Sequence[str]]:
    try:
        return decode_profile((folder / PROFILE_NAME).read_bytes()).columns
    except (OSError, ProfileError):
        return {}


def _others(version: ModelVersion) -> Iterator[tuple[str, _Columns]]:
    """The other versions of the model: one may have had an input or a column that this one has not."""
    for folder in sorted(version.folder.parent.iterdir()):
        if folder.name.isdigit() and folder != version.folder:
            try:
                yield folder.name, _Columns.of(load_version(folder))
            except RepositoryError:
                continue
