"""Locks that keep a second process from doing the same work on a spool; they end with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ("held",)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of this file, which is made when missing.

    Raises
    ------
    BlockingIOError
        Another process, or another part of this one, holds it.
    OSError
        The file cannot be made.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)
