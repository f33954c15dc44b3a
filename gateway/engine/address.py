"""Unix socket addresses for paths of any length."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ("short_address",)

MAX_ADDRESS_BYTES = 100  # sockaddr_un holds 107


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """An address for `path` that the kernel takes: a long one goes by way of its folder's descriptor (Linux).

    Raises
    ------
    OSError
        The folder cannot be opened.
    """
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        yield os.fspath(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
