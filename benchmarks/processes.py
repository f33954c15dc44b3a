"""Processes as the kernel shows them: trees, CPU time, memory, cores, standing still."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

__all__ = (
    "cpu_seconds",
    "end",
    "freeze",
    "memory_bytes",
    "pin",
    "settle",
    "thaw",
    "title",
    "tree",
)

_QUIET_SHARE = 0.05
_LOOK_SECONDS = 0.25
_GONE = (FileNotFoundError, ProcessLookupError)


def tree(roots: Iterable[int]) -> list[int]:
    """Return the processes and all they have started, parents first."""
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop(0)
        if pid in found:
            continue
        with contextlib.suppress(*_GONE):
            children = [
                int(child)
                for thread in Path(f"/proc/{pid}/task").iterdir()
                for child in (thread / "children").read_text().split()
            ]
            found.append(pid)
            waiting += children
    return found


def title(pid: int) -> str:
    """Return what `ps` shows of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except _GONE:
        return ""


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time, user and system, that the processes have used so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(*_GONE):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the proportional set size: what is shared counts once, divided among those who share it."""
    total = 0
    for pid in pids:
        with contextlib.suppress(*_GONE):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def pin(pids: Iterable[int], cores: Collection[int]) -> None:
    """Keep every thread of the processes on these cores."""
    for pid in pids:
        with contextlib.suppress(*_GONE):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(*_GONE):
                    os.sched_setaffinity(int(thread.name), cores)


def freeze(pids: Iterable[int]) -> None:
    """Let the processes stand still: some use a core's tenth while nobody asks them anything."""
    for pid in pids:
        with contextlib.suppress(*_GONE):
            os.kill(pid, signal.SIGSTOP)


def thaw(pids: Iterable[int]) -> None:
    """Let them go on."""
    for pid in pids:
        with contextlib.suppress(*_GONE):
            os.kill(pid, signal.SIGCONT)


def settle(pids: Collection[int], *, seconds: float) -> bool:
    """Wait until the processes have nothing left to do, at most so long; False when they still had."""
    if not pids:
        return True
    deadline = time.monotonic() + seconds
    used = cpu_seconds(pids)
    while time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        before, used = used, cpu_seconds(pids)
        if used - before <= _QUIET_SHARE * _LOOK_SECONDS * max(1, len(pids)):
            return True
    return False


def end(roots: Iterable[int], *, seconds: float) -> None:
    """End trees that the suite has started: their roots are asked to, and what is left after so long is killed."""
    roots = list(roots)
    pids = tree(roots)
    # Children first: a parent that goes on before them would find them standing still.
    thaw(reversed(pids))
    for pid in roots:
        with contextlib.suppress(*_GONE):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while any(_lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in pids:
        if _lives(pid):
            with contextlib.suppress(*_GONE):
                os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except _GONE:
        return False
