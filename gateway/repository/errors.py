"""What can be wrong with a model folder; each error says what came and what is expected."""

from __future__ import annotations

__all__ = (
    "IntegrityError",
    "LineageError",
    "ManifestError",
    "ModelFileError",
    "ReferenceFileError",
    "RepositoryError",
    "VersionExistsError",
)


class RepositoryError(Exception):
    """Raised when a model folder cannot be read, written or trusted; the root of this tree."""


class ManifestError(RepositoryError):
    """Raised when a version folder has no complete manifest or does not look as its manifest says."""


class IntegrityError(RepositoryError):
    """Raised when a file's bytes, or the digest of the whole, are not those that were recorded."""


class VersionExistsError(RepositoryError):
    """Raised when a version is to be added that is already there; versions are never overwritten."""


class ModelFileError(RepositoryError):
    """Raised when an ONNX file, or the weights it names, cannot be taken."""


class ReferenceFileError(RepositoryError):
    """Raised when reference rows cannot be read or do not fit the model."""


class LineageError(RepositoryError):
    """Raised when a lineage file cannot be read or has a key or value that is not allowed."""
