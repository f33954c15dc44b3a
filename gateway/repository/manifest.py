"""`manifest.json`: what a version consists of, by digest, and what was seen when it was added.

A version folder is served only when its manifest is complete and the folder holds exactly the files it lists.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gateway.protocol.datatypes import Signature
from gateway.protocol.mistakes import told_mistake
from gateway.repository.errors import IntegrityError, ManifestError, RepositoryError
from gateway.repository.files import MAX_PATH_DEPTH, hash_regular, is_safe_path, open_folder, open_regular
from gateway.repository.lineage import Lineage

__all__ = (
    "ADDING_PREFIX",
    "CARD_NAME",
    "MANIFEST_NAME",
    "MODEL_FILE_NAME",
    "MODEL_NAME",
    "PROFILE_NAME",
    "TRIED_ROWS",
    "Batching",
    "FileEntry",
    "Manifest",
    "ModelVersion",
    "digest_of",
    "is_model_name",
    "load_version",
    "parse_version",
    "scan",
    "verify",
)

ADDING_PREFIX = ".adding-"
CARD_NAME = "card.md"
MANIFEST_NAME = "manifest.json"
MODEL_FILE_NAME = "model.onnx"
PROFILE_NAME = "profile.json"

TRIED_ROWS = 256
"""Of the largest run that a version is tried with whatever it takes, if its rows are no large ones."""

MAX_FILE_BYTES = 2 * 2**30  # what a protobuf can hold
MAX_FOLDER_BYTES = 4 * 2**30
MAX_FOLDER_FILES = 64
MAX_MANIFEST_BYTES = 2**20

MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Of a model's name, all of it; a regular expression."""

_MODEL_NAME = re.compile(MODEL_NAME)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0)]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a version; `path` is relative to the version folder, with forward slashes."""

    path: str
    size: Count
    sha256: Hex


class Batching(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether rows may share a run, as seen when the version was added.

    Parameters
    ----------
    verdict : str
        `equal`: answers were the same bit for bit. `within`: they differed by no more than `tolerance`.
        `dependent`: a row's answer depends on its neighbours. `not_batchable`: there is no common row axis.
    max_difference, max_relative_difference : float
        Largest difference seen, absolute and relative to the size of the answer.
    tolerance : float
        Of `within`: the difference that answers in other company are held to, relative to the size of the row's
        answer or of a usual one, whichever is larger.
    rows : int
        Distinct rows that were tried.
    reason : str
        What was seen, in a sentence.
    most_rows : int
        Of the largest run that was tried, which requests share at most; `TRIED_ROWS` where a manifest does not say.
    """

    verdict: Literal["equal", "within", "dependent", "not_batchable"]
    max_difference: float = 0.0
    max_relative_difference: float = 0.0
    rows: Count = 0
    reason: str = ""
    tolerance: float = 0.0
    most_rows: Annotated[int, msgspec.Meta(ge=1)] = TRIED_ROWS

    def shared_rows(self, max_rows: int, *, exact: bool) -> int:
        """Of a run that several requests may share, when no more than `max_rows` are wanted; 1 where they may not.

        >>> Batching("equal").shared_rows(1024, exact=True), Batching("within").shared_rows(1024, exact=True)
        (256, 1)
        """
        return min(max_rows, self.most_rows) if self.allows(exact=exact) else 1

    def allows(self, *, exact: bool) -> bool:
        """Tell whether requests may be put together; `exact` asks for equal bits.

        >>> Batching("within", max_difference=1e-7).allows(exact=False), Batching("within").allows(exact=True)
        (True, False)
        """
        return self.verdict == "equal" or (self.verdict == "within" and not exact)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The whole of `manifest.json`; `digest` covers every other field, see `digest_of`.

    `remarks` are sentences on what was seen of the model when it was added, for whoever approves it.
    """

    files: tuple[FileEntry, ...]
    signature: Signature
    batching: Batching
    lineage: Lineage
    digest: str
    remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class ModelVersion:
    """One version in the repository, with its manifest, read and checked."""

    model: str
    version: int
    folder: Path
    manifest: Manifest = dataclasses.field(hash=False)

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def __repr__(self) -> str:
        return f"<ModelVersion {self.model}/{self.version} {self.digest[:19]}>"


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON (keys sorted, no spaces) of a manifest's content without `digest`.

    It covers the files by their own digests, and also signature, batching verdict and lineage: who approves a digest
    approves all that was said about the version. It is taken of what the file says, not of what this release makes of
    it, so that a key added in a later release leaves old digests as they are.
    """
    covered = {key: value for key, value in content.items() if key != "digest"}
    return "sha256:" + hashlib.sha256(msgspec.json.encode(covered, order="sorted")).hexdigest()


def is_model_name(name: str) -> bool:
    """Tell whether a folder name is a model's name.

    >>> is_model_name("bike-demand"), is_model_name(".hidden"), is_model_name("a/b")
    (True, False, False)
    """
    return _MODEL_NAME.fullmatch(name) is not None


def parse_version(name: str) -> int | None:
    """The version a folder name stands for, or None.

    >>> parse_version("12"), parse_version("01"), parse_version("v1")
    (12, None, None)
    """
    return int(name) if _VERSION.fullmatch(name) else None


def load_version(folder: Path) -> ModelVersion:
    """Read and check one version folder: its manifest, and names and sizes of its files.

    The bytes are compared with their hashes by `verify`, and by `stage` before anything is loaded.

    Raises
    ------
    ManifestError
        With the reason the folder is not served.
    """
    version = parse_version(folder.name)
    if version is None:
        raise ManifestError(f"{folder.name!r} is not a version: expected a positive whole number such as 1")
    if not is_model_name(folder.parent.name):
        raise ManifestError(f"{folder.parent.name!r} is not a model name: expected letters, digits, '.', '_', '-'")
    try:
        with open_folder(folder) as descriptor:
            manifest = _read_manifest(descriptor)
            _check_entries(manifest.files)
            found = {path: size for path, size in _walk(folder)}
    except IntegrityError as error:
        raise ManifestError(str(error)) from None
    except OSError as error:
        raise ManifestError(f"the folder cannot be read: {error.strerror}") from None
    _check_found(manifest.files, found)
    return ModelVersion(folder.parent.name, version, folder, manifest)


def scan(models_dir: Path) -> tuple[list[ModelVersion], list[tuple[Path, str]]]:
    """Read every version folder below the folder of all models.

    Returns
    -------
    versions : list of ModelVersion
        Sorted by model and version.
    refused : list of (path, reason)
        What looks like a model or a version and is not served. Hidden folders do not, such as one being added.

    Raises
    ------
    RepositoryError
        The folder of all models cannot be read.
    """
    versions: list[ModelVersion] = []
    refused: list[tuple[Path, str]] = []
    for model in _entries(models_dir):
        if not model.is_dir() or model.name.startswith("."):
            continue
        if not is_model_name(model.name):
            refused.append((Path(model.path), "not a model name: expected letters, digits, '.', '_', '-'"))
            continue
        try:
            entries = _entries(Path(model.path))
        except RepositoryError as error:
            refused.append((Path(model.path), str(error)))
            continue
        for entry in entries:
            if entry.name.startswith(".") or (not entry.is_dir() and parse_version(entry.name) is None):
                continue
            try:
                versions.append(load_version(Path(entry.path)))
            except ManifestError as error:
                refused.append((Path(entry.path), str(error)))
    return sorted(versions, key=lambda version: (version.model, version.version)), refused


def verify(version: ModelVersion) -> None:
    """Hash every file of a version.

    Raises
    ------
    IntegrityError
        With the first file that is not as it was recorded.
    """
    with open_folder(version.folder) as folder:
        for entry in version.manifest.files:
            size, sha256 = hash_regular(folder, entry.path, max_bytes=entry.size)
            if (size, sha256) != (entry.size, entry.sha256):
                raise IntegrityError(
                    f"{entry.path} is not as recorded: expected {entry.size} bytes, sha256 {entry.sha256},"
                    f" got {size} bytes, sha256 {sha256}"
                )


def _read_manifest(folder: int) -> Manifest:
    try:
        os.stat(MANIFEST_NAME, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        raise ManifestError(f"no {MANIFEST_NAME}: the folder is not complete; `gateway models add` writes it") from None
    with open_regular(folder, MANIFEST_NAME) as (descriptor, size):
        if size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{MANIFEST_NAME} has {size} bytes: expected no more than {MAX_MANIFEST_BYTES}")
        raw = os.read(descriptor, MAX_MANIFEST_BYTES)
    try:
        content = msgspec.json.decode(raw, type=dict[str, Any])
        manifest = msgspec.convert(content, Manifest)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST_NAME}: {told_mistake(error, Manifest)}") from None
    if manifest.digest != (computed := digest_of(content)):
        raise ManifestError(f"{MANIFEST_NAME} says digest {manifest.digest!r}, its content has {computed!r}")
    return manifest


def _check_entries(files: tuple[FileEntry, ...]) -> None:
    paths = [entry.path for entry in files]
    if unsafe := [path for path in paths if not is_safe_path(path) or path == MANIFEST_NAME]:
        raise ManifestError(f"{MANIFEST_NAME} lists {unsafe[0]!r}: expected plain relative paths")
    if len(set(paths)) != len(paths):
        raise ManifestError(f"{MANIFEST_NAME} lists a file twice")
    if MODEL_FILE_NAME not in paths:
        raise ManifestError(f"{MANIFEST_NAME} does not list {MODEL_FILE_NAME}")
    if len(paths) > MAX_FOLDER_FILES:
        raise ManifestError(f"{MANIFEST_NAME} lists {len(paths)} files: expected no more than {MAX_FOLDER_FILES}")
    if (total := sum(entry.size for entry in files)) > MAX_FOLDER_BYTES:
        raise ManifestError(f"{MANIFEST_NAME} lists {total} bytes: expected no more than {MAX_FOLDER_BYTES}")


def _check_found(files: tuple[FileEntry, ...], found: dict[str, int | None]) -> None:
    for entry in files:
        size = found.pop(entry.path, None) if entry.path in found else -1
        if size == -1:
            raise ManifestError(f"{entry.path} is missing")
        if size is None:
            raise ManifestError(f"{entry.path} is not a regular file with one name (links are not followed)")
        if size != entry.size:
            raise ManifestError(f"{entry.path} has {size} bytes: the manifest says {entry.size}")
    found.pop(MANIFEST_NAME, None)
    if found:
        raise ManifestError(f"{min(found)!r} is not in the manifest: expected exactly the files it lists")


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, int | None]]:
    """Each file below a folder with its size; None for what is no regular file with one name."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                if path.count("/") >= MAX_PATH_DEPTH:
                    raise ManifestError(f"{path!r} lies too deep")
                yield from _walk(Path(entry.path), path + "/")
            elif stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                yield path, status.st_size
            else:
                yield path, None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise RepositoryError(f"cannot read the folder {folder}: {error.strerror}") from None
