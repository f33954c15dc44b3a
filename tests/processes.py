"""What a process holds, as /proc tells it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

__all__ = ("Holding", "holding", "is_running")


class Holding(NamedTuple):
    """Counts, and bytes of memory that no other process shares."""

    descriptors: int
    threads: int
    children: int
    private_bytes: int


def holding(pid: int) -> Holding:
    """What a process holds now."""
    place = Path(f"/proc/{pid}")
    children = 0
    for task in os.listdir(place / "task"):
        with contextlib.suppress(OSError):
            children += len((place / "task" / task / "children").read_text().split())
    rollup = (place / "smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")) * 1024
    return Holding(len(os.listdir(place / "fd")), len(os.listdir(place / "task")), children, private)


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
