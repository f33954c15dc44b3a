"""Where a version comes from: source, data, hyperparameters, metrics, parent, author."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ("Lineage", "ReferenceFile", "Source", "TrainingData")


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The git commit that trained the version; `dirty` when tracked files differed from it."""

    commit: str | None = None
    dirty: bool | None = None


class TrainingData(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the version was trained on; `start` and `end` are ISO 8601 dates or times, both included."""

    uri: str | None = None
    sha256: str | None = None
    rows: int | None = None
    start: str | None = None
    end: str | None = None


class ReferenceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file whose rows made the reference profile."""

    name: str
    sha256: str
    rows: int


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of a lineage file; every key may be left out.

    `framework` maps a package's name to its version, `parent` is the version this one takes over from, `created` is
    an ISO 8601 time.
    """

    source: Source = Source()
    data: TrainingData = TrainingData()
    reference: ReferenceFile | None = None
    hyperparameters: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    framework: dict[str, str] = {}
    parent: int | None = None
    author: str | None = None
    created: str | None = None
    notes: str | None = None
