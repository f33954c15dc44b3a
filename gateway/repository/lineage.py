"""Where a version comes from: source, data, hyperparameters, metrics, parent, author."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from gateway.protocol.mistakes import told_mistake
from gateway.repository.errors import LineageError

__all__ = ("Lineage", "ReferenceFile", "Source", "TrainingData", "detect_source", "read_lineage")

MAX_LINEAGE_BYTES = 2**20
GIT_TIMEOUT_SECONDS = 10.0


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


def read_lineage(path: Path) -> Lineage:
    """Read a lineage file, TOML or JSON by its ending; the keys are those of `Lineage`.

    Raises
    ------
    LineageError
        With the file and the key.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_LINEAGE_BYTES + 1)
    except OSError as error:
        raise LineageError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > MAX_LINEAGE_BYTES:
        raise LineageError(f"{path.name} has more than {MAX_LINEAGE_BYTES} bytes")
    try:
        match path.suffix.lower():
            case ".json":
                content = msgspec.json.decode(raw)
            case ".toml":
                # Through builtins, since TOML has times of its own and the lineage keeps them as text.
                content = msgspec.to_builtins(tomllib.loads(raw.decode()))
            case _:
                raise LineageError(f"{path.name}: expected a file that ends in .toml or .json")
        return msgspec.convert(content, Lineage)
    except (ValueError, RecursionError) as error:
        raise LineageError(f"{path.name}: {told_mistake(error, Lineage)}") from None


def detect_source(folder: Path) -> Source:
    """The git commit checked out around `folder`; an empty `Source` where there is no git or no commit."""
    git = shutil.which("git")
    commit = _ask_git(git, folder, "rev-parse", "--verify", "HEAD") if git else None
    if git is None or commit is None:
        return Source()
    changed = _ask_git(git, folder, "status", "--porcelain", "--untracked-files=no")
    return Source(commit=commit, dirty=None if changed is None else changed != "")


def _ask_git(git: str, folder: Path, *arguments: str) -> str | None:
    # A checkout may name programs to run on a status; none is needed here.
    command = [git, "-C", os.fspath(folder), "-c", "core.fsmonitor=false", *arguments]
    try:
        asked = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=GIT_TIMEOUT_SECONDS,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.decode("utf-8", "replace").strip() if asked.returncode == 0 else None
