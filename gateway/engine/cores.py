"""How many cores this process may use: by affinity and by the quota of its control groups, not what the host has."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ("choose_threads", "usable_cores")

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(*, affinity: int | None = None, membership: str | None = None, cgroups: Path = CGROUPS) -> int:
    """The cores that may be busy at once, at least 1.

    Parameters
    ----------
    affinity : int, optional
        Cores the process may be put on; asked of the system by default.
    membership : str, optional
        Content of `/proc/self/cgroup`, which is read by default.
    cgroups : Path
        Where control groups are mounted: version 2 (`cpu.max`), or version 1 with its controller `cpu`
        (`cpu.cfs_quota_us`). A quota of a part of a core counts as a whole one.
    """
    cores = affinity if affinity is not None else _affinity()
    quota = min(_quotas(membership if membership is not None else _membership(), cgroups), default=math.inf)
    return max(1, cores if quota == math.inf else min(cores, math.ceil(quota)))


def choose_threads(asked: int, cores: int) -> tuple[int, str]:
    """Threads of a run, and a few words on why.

    >>> choose_threads(0, 4)
    (4, '4 threads: all 4 cores that may be used')
    >>> choose_threads(8, 2)
    (2, '2 threads: engine.threads is 8, but only 2 cores may be used')
    >>> choose_threads(1, 2)
    (1, '1 thread: engine.threads is 1, of 2 cores that may be used')
    """
    if asked == 0:
        return cores, f"{_threads(cores)}: all {_cores(cores)} that may be used"
    if asked > cores:
        return cores, f"{_threads(cores)}: engine.threads is {asked}, but only {_cores(cores)} may be used"
    return asked, f"{_threads(asked)}: engine.threads is {asked}, of {_cores(cores)} that may be used"


def _cores(count: int) -> str:
    return f"{count} core{'s' * (count > 1)}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _membership() -> str:
    try:
        return Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return ""


def _quotas(membership: str, cgroups: Path) -> list[float]:
    """Quotas, in cores, of the process's groups and all groups above them."""
    quotas = []
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            folder, read = cgroups, _quota_2
        elif "cpu" in controllers.split(","):
            folder, read = cgroups / "cpu", _quota_1
        else:
            continue
        # In a container the path is often that of the host, of which only the root is mounted.
        steps = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(steps) + 1):
            quota = read(folder.joinpath(*steps[:depth]))
            if quota is not None:
                quotas.append(quota)
    return quotas


def _quota_2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return None if quota <= 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None
