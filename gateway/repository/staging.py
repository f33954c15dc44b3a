"""Staging: a private copy of a version from which it is loaded, so that what is loaded is what was hashed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gateway.repository.errors import IntegrityError, RepositoryError
from gateway.repository.files import copy_regular, open_folder
from gateway.repository.manifest import MODEL_FILE_NAME, ModelVersion

__all__ = ("stage",)


def stage(version: ModelVersion, target: Path, *, expected_digest: str) -> Path:
    """Copy every file of a version into a folder of our own, hashing the bytes on their way.

    The repository may be changed by anyone at any time; the copy is complete and as hashed, or it is not there. A
    copy that an earlier call left at `target` is replaced.

    Parameters
    ----------
    version : ModelVersion
    target : Path
        The folder to make, with mode 0700; its parent is made where it is missing.
    expected_digest : str
        The digest that was approved, `sha256:<64 hex>`.

    Returns
    -------
    Path of `model.onnx` in `target`.

    Raises
    ------
    IntegrityError
        The version does not have that digest, or a file is missing, a link, or not as it was hashed.
    RepositoryError
        The copy cannot be written.
    """
    if version.digest != expected_digest:
        raise IntegrityError(
            f"{version.model}/{version.version} has digest {version.digest}, approved is {expected_digest}: not loaded"
        )
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            copy = Path(scratch) / "new"
            copy.mkdir(mode=0o700)
            _copy_files(version, copy)
            if os.path.lexists(target):
                os.rename(target, Path(scratch) / "old")
            os.rename(copy, target)
    except OSError as error:
        raise RepositoryError(f"cannot write the copy {target}: {error.strerror}") from None
    return target / MODEL_FILE_NAME


def _copy_files(version: ModelVersion, copy: Path) -> None:
    with open_folder(version.folder) as folder:
        for entry in version.manifest.files:
            destination = copy / entry.path
            destination.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            size, sha256 = copy_regular(folder, entry.path, destination, max_bytes=entry.size)
            if (size, sha256) != (entry.size, entry.sha256):
                raise IntegrityError(
                    f"{version.model}/{version.version}: {entry.path} is not as recorded: expected {entry.size} bytes,"
                    f" sha256 {entry.sha256}, got {size} bytes, sha256 {sha256}"
                )
