"""What an engine may hold in memory, kept by the kernel during a run too."""

from __future__ import annotations

import os
import resource

__all__ = ("limit_growth", "resident_bytes")


def resident_bytes(pid: int | None = None) -> int:
    """Bytes of a process that lie in memory, this one's by default; 0 when it is gone or the system does not tell."""
    return _statm(pid, 1)


def limit_growth(growth_bytes: int) -> None:
    """Let this process take `growth_bytes` more than it holds now; what asks for more is refused (RLIMIT_DATA).

    What counts are private writable pages, as Linux has counted them since 4.7: heap, arenas and stacks, but neither
    code nor weights that are mapped from their file. Where that is not counted nothing is done.
    """
    held = _statm(None, 5)
    if held:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = held + max(growth_bytes, 0)
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def _statm(pid: int | None, field: int) -> int:
    try:
        with open(f"/proc/{pid or 'self'}/statm", encoding="ascii") as file:
            return int(file.read().split()[field]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
