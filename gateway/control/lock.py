"""Only one monitor acts: the others wait for its lock."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

__all__ = ("held_lock",)

_POLL_SECONDS = 0.5


@asynccontextmanager
async def held_lock(path: Path, stop: asyncio.Event) -> AsyncIterator[bool]:
    """Hold the lock file for the body; waits until it is free or `stop` is set.

    The kernel frees the lock when its process ends, however it ends.

    Yields
    ------
    bool
        False when `stop` was set first: the body must not act.

    Raises
    ------
    OSError
        The file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield await _take(descriptor, stop)
    finally:
        os.close(descriptor)


async def _take(descriptor: int, stop: asyncio.Event) -> bool:
    while not stop.is_set():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                await asyncio.wait_for(stop.wait(), _POLL_SECONDS)
            except TimeoutError:
                continue
        else:
            return True
    return False
