"""Reading files that nobody has vouched for yet: by descriptor, regular files only, hashed while they are read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from gateway.repository.errors import IntegrityError

__all__ = (
    "MAX_PATH_DEPTH",
    "copy_named",
    "copy_regular",
    "hash_regular",
    "is_safe_path",
    "open_folder",
    "open_regular",
)

CHUNK_BYTES = 2**20
MAX_PATH_DEPTH = 8

_PATH_PART = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# Opening a FIFO or a device must not wait; what it is, is asked afterwards.
_READ_FILE = _READ | os.O_NONBLOCK
_READ_FOLDER = _READ | os.O_DIRECTORY


def is_safe_path(path: str) -> bool:
    """Tell whether a relative path stays in its folder on every platform.

    >>> is_safe_path("weights/layer.0.bin"), is_safe_path("../x"), is_safe_path("/x"), is_safe_path(".x")
    (True, False, False, False)
    """
    parts = path.split("/")
    return len(parts) <= MAX_PATH_DEPTH and all(_PATH_PART.fullmatch(part) for part in parts)


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[int]:
    """A descriptor of a folder, so that what is opened below it stays below it whatever is renamed meanwhile.

    Raises
    ------
    IntegrityError
        It is missing, not a folder, or a symbolic link.
    """
    try:
        descriptor = os.open(folder, _READ_FOLDER)
    except OSError as error:
        raise IntegrityError(f"{folder} cannot be opened as a folder: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_regular(folder: int, path: str) -> Iterator[tuple[int, int]]:
    """Open one file below a folder's descriptor without following a link at any step.

    Parameters
    ----------
    folder : int
        Descriptor of the folder.
    path : str
        Relative, with forward slashes.

    Yields
    ------
    (descriptor, size in bytes)

    Raises
    ------
    IntegrityError
        The path is unsafe, missing, a link, no regular file, or has a second name elsewhere (a hard link).
    """
    if not is_safe_path(path):
        raise IntegrityError(f"{path!r} is not a plain relative path")
    with contextlib.ExitStack() as opened:
        try:
            *parents, name = path.split("/")
            for parent in parents:
                folder = os.open(parent, _READ_FOLDER, dir_fd=folder)
                opened.callback(os.close, folder)
            descriptor = os.open(name, _READ_FILE, dir_fd=folder)
            opened.callback(os.close, descriptor)
            status = os.fstat(descriptor)
        except OSError as error:
            raise IntegrityError(f"{path} cannot be opened: {error.strerror} (links are not followed)") from None
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(f"{path} is not a regular file")
        if status.st_nlink != 1:
            raise IntegrityError(f"{path} has {status.st_nlink} hard links: expected one, so that nobody else holds it")
        yield descriptor, status.st_size


def hash_regular(folder: int, path: str, *, max_bytes: int) -> tuple[int, str]:
    """Size and SHA-256 (hex) of one file; see `open_regular`.

    Raises
    ------
    IntegrityError
        Also when there are more than `max_bytes`.
    """
    with open_regular(folder, path) as (descriptor, _):
        return _read_through(descriptor, None, path=path, max_bytes=max_bytes)


def copy_regular(folder: int, path: str, target: Path, *, max_bytes: int, mode: int = 0o400) -> tuple[int, str]:
    """Copy one file below a folder's descriptor to a new file; the hash is that of the bytes written.

    Returns
    -------
    (size in bytes, SHA-256 in hex)

    Raises
    ------
    IntegrityError
        See `open_regular`; also when there are more than `max_bytes`. The new file is then incomplete.
    OSError
        The new file cannot be written.
    """
    with open_regular(folder, path) as (descriptor, _):
        return _copy(descriptor, target, path=path, max_bytes=max_bytes, mode=mode)


def copy_named(source: Path, target: Path, *, max_bytes: int, mode: int = 0o400) -> tuple[int, str]:
    """Copy a file that a person named: links are followed, the rest is as in `copy_regular`.

    Raises
    ------
    IntegrityError
        It is missing or not a regular file, or there are more than `max_bytes`.
    OSError
        The new file cannot be written.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise IntegrityError(f"{source} cannot be opened: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise IntegrityError(f"{source} is not a regular file")
        return _copy(descriptor, target, path=os.fspath(source), max_bytes=max_bytes, mode=mode)
    finally:
        os.close(descriptor)


def _copy(descriptor: int, target: Path, *, path: str, max_bytes: int, mode: int) -> tuple[int, str]:
    created = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(created, "wb", buffering=0):
        size, digest = _read_through(descriptor, created, path=path, max_bytes=max_bytes)
        os.fsync(created)
    return size, digest


def _read_through(descriptor: int, out: int | None, *, path: str, max_bytes: int) -> tuple[int, str]:
    sha256 = hashlib.sha256()
    size = 0
    while True:
        try:
            chunk = os.read(descriptor, CHUNK_BYTES)
        except OSError as error:
            raise IntegrityError(f"{path} cannot be read: {error.strerror}") from None
        if not chunk:
            return size, sha256.hexdigest()
        size += len(chunk)
        if size > max_bytes:
            raise IntegrityError(f"{path} has more than {max_bytes} bytes, which is all that was expected")
        sha256.update(chunk)
        if out is not None:
            _write_all(out, chunk)


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
