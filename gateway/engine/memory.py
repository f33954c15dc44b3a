"""What an engine may hold in memory, kept by the kernel during a run too."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
from collections.abc import Callable

from gateway.engine.errors import EngineError

__all__ = ("Floor", "limit_growth", "resident_bytes")

SLACK_BYTES = 2**25

_RESIDENT = re.compile(r"^(VmRSS|RssShmem):\s*([0-9]+) kB$", re.MULTILINE)


class Floor:
    """What an engine holds when nothing large is asked of it; what a large request left behind is given back.

    onnxruntime's arena and the allocator under numpy both keep what they once had. They are asked to give it back when
    the engine holds `SLACK_BYTES` more than it need, and not again for what stayed all the same.

    Parameters
    ----------
    shrink : callable
        Makes the arena give back what is free, by a small run; may raise EngineError.
    """

    def __init__(self, shrink: Callable[[], None]) -> None:
        self._shrink = shrink
        self._give_back()
        self._bytes = resident_bytes()

    def __repr__(self) -> str:
        return f"<Floor {self._bytes} bytes>"

    def keep(self) -> None:
        """Call about once a second, between two runs."""
        held = resident_bytes()
        if held > self._bytes + SLACK_BYTES:
            self._give_back()
            self._bytes = max(self._bytes, resident_bytes())
        elif held < self._bytes:
            self._bytes = held

    def _give_back(self) -> None:
        with contextlib.suppress(EngineError):
            self._shrink()
        with contextlib.suppress(OSError, AttributeError):  # not GNU's libc
            ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(pid: int | None = None) -> int:
    """Bytes of a process that lie in memory, this one's by default; 0 when it is gone or the system does not tell.

    Shared memory is not counted: what an engine has read of it is its fronts'.
    """
    try:
        with open(f"/proc/{pid or 'self'}/status", encoding="ascii", errors="replace") as file:
            told = dict(_RESIDENT.findall(file.read()))
    except OSError:
        return 0
    return 1024 * (int(told.get("VmRSS", 0)) - int(told.get("RssShmem", 0)))


def limit_growth(growth_bytes: int) -> None:
    """Let this process take `growth_bytes` more than it holds now; what asks for more is refused (RLIMIT_DATA).

    What counts are private writable pages, as Linux has counted them since 4.7: heap, arenas and stacks, but neither
    code nor weights that are mapped from their file. Where that is not counted nothing is done.
    """
    held = _data_bytes()
    if held:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = held + max(growth_bytes, 0)
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _data_bytes() -> int:
    # Of this process: data and stack, the sixth number of statm (proc(5)).
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
