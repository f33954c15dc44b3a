"""Memory that a front shares with engines: large tensors are put there once, and read where they lie.

A place is lent as an array of bytes, and is free again when that array and all views of it are gone. So whoever still
needs the bytes holds on to a view: a request until it is logged, a lane until the engine has answered. An engine can
only read, and maps the whole; the memory can neither grow nor shrink.
Source: memfd_create(2), fcntl(2) on file sealing.
"""

from __future__ import annotations

import bisect
import fcntl
import logging
import mmap
import os
import weakref
from collections import deque
from typing import Any

import numpy as np

__all__ = ("ALIGNMENT", "Arena", "open_arena")

ALIGNMENT = 64
"""A cache line: of any tensor's first byte, for whoever reads it in steps of 512 bits."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x0010 | fcntl.F_SEAL_SEAL  # F_SEAL_FUTURE_WRITE, Linux 5.1
_OLDER_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

Array = np.ndarray[Any, np.dtype[Any]]


_log = logging.getLogger(__name__)


class _Lent(weakref.ref[Array]):
    """A place that is lent, by its array."""

    __slots__ = ("size", "start")
    start: int
    size: int


class Arena:
    """Places in shared memory of a fixed size.

    Parameters
    ----------
    size_bytes : int
        Of all of them together, rounded up to whole pages. What was never lent takes no memory.

    Raises
    ------
    OSError
        The system has no such memory.

    >>> arena = Arena(2**16)
    >>> place = arena.lend(1000)
    >>> len(place), arena.offset_of(place[64:]), arena
    (1000, 64, <Arena 4096 of 65536 bytes lent>)
    >>> del place
    >>> arena
    <Arena 0 of 65536 bytes lent>
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.descriptor = os.memfd_create("gateway-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, self.size_bytes)
            self._memory = mmap.mmap(self.descriptor, self.size_bytes)
            self._seal()
        except OSError:
            os.close(self.descriptor)
            raise
        self._base = np.frombuffer(self._memory, np.uint8).ctypes.data
        self._free = [(0, self.size_bytes)]  # places, in order
        self._lent: dict[int, _Lent] = {}  # by where they begin
        self._returned: deque[_Lent] = deque()

    def __repr__(self) -> str:
        return f"<Arena {self.lent_bytes} of {self.size_bytes} bytes lent>"

    def __del__(self) -> None:
        if hasattr(self, "_base"):
            os.close(self.descriptor)

    @property
    def lent_bytes(self) -> int:
        """What is lent, in whole pages."""
        self._take_back()
        return self.size_bytes - sum(size for _, size in self._free)

    def lend(self, size: int) -> Array | None:
        """A place of so many bytes, at the beginning of a page; None where there is no room.

        The bytes are whatever was there before.
        """
        if self._returned:
            self._take_back()
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        for index, (start, room) in enumerate(self._free):
            # The first that is large enough: what was lent before is in memory already, and perhaps in a cache.
            if room >= pages > 0:
                self._free[index : index + 1] = [(start + pages, room - pages)] if room > pages else []
                place: Array = np.frombuffer(self._memory, np.uint8, size, start)
                # It may be dropped by any thread, and at any step of this one: nothing is done then but to note it.
                lent = _Lent(place, self._returned.append)
                lent.start, lent.size = start, pages
                self._lent[start] = lent
                return place
        return None

    def offset_of(self, array: Array) -> int | None:
        """Where a contiguous array begins in this memory; None where it lies elsewhere."""
        offset: int = array.__array_interface__["data"][0] - self._base
        return offset if 0 <= offset < self.size_bytes else None

    def _seal(self) -> None:
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _OLDER_SEALS)

    def _take_back(self) -> None:
        free = self._free
        while self._returned:
            lent = self._returned.popleft()
            start, size = lent.start, lent.size
            del self._lent[start]
            index = bisect.bisect(free, (start, size))
            if index < len(free) and free[index][0] == start + size:
                size += free.pop(index)[1]
            if index and sum(free[index - 1]) == start:
                index -= 1
                before, room = free.pop(index)
                start, size = before, size + room
            free.insert(index, (start, size))


def open_arena(size_bytes: int) -> Arena | None:
    """Shared memory of so many bytes; None for none of them, or where the system does not give it."""
    if not size_bytes:
        return None
    try:
        return Arena(size_bytes)
    except (OSError, AttributeError) as error:
        _log.warning("there is no shared memory for large tensors, which are copied instead: %s", error)
        return None
