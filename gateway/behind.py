"""A process that works behind others: it has the time that they leave, and hands it back the moment they want it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

__all__ = ("BEHIND_SERVING", "SLICE_NS", "step_behind")

BEHIND_SERVING = 10
"""Added to the niceness of who reads the log: where cores are short, it waits for those who answer."""

SLICE_NS = 10_000_000
"""Several times the usual one; as long one that never sleeps may have to wait for it, on Linux before 6.17."""

# Linux: struct sched_attr in its first form, and the number of the call; glibc has no name for it before 2.41.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")
_SCHED_OTHER = 0
_CALLS = {"x86_64": 314, "aarch64": 274, "riscv64": 274}


def step_behind(niceness: int) -> None:
    """Add this to the niceness of the calling thread, and give it a long time slice.

    The threads that it starts from now on have the same. Since Linux 6.12 a task that wakes up takes the core at once
    from one whose slice is longer than its own; before, and with the default of some milliseconds, it waits until that
    has passed. On other systems there is the niceness alone.

    Sources
    -------
    sched_setattr(2); Linux, kernel/sched/fair.c, PREEMPT_SHORT.
    """
    niceness = os.nice(niceness)
    call = _CALLS.get(platform.machine())
    if platform.system() != "Linux" or call is None:
        return
    # A sandbox or a C library may refuse; then the niceness has to do.
    with contextlib.suppress(OSError, AttributeError):
        if os.sched_getscheduler(0) == _SCHED_OTHER:
            attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, _SCHED_OTHER, 0, niceness, 0, SLICE_NS, 0, 0)
            ctypes.CDLL(None).syscall(call, 0, attributes, 0)
