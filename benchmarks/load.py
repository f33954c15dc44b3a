"""The load: wrk (Debian: apt-get install wrk), one request on many connections, percentiles of its answers."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError, WrongAnswer

__all__ = ("GRACE_SECONDS", "Load", "can_go_first", "check_installed", "run_load", "take_place")

_SCRIPT = Path(__file__).with_name("post.lua")
_MEASURED = re.compile(r"^measured (\{.*\})$", re.MULTILINE)
GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Load:
    """What one run of the load saw; latencies in microseconds."""

    requests: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds


def check_installed() -> None:
    """Raise BenchmarkError where wrk is missing."""
    if shutil.which("wrk") is None:
        raise BenchmarkError("wrk is not installed; try: apt-get install wrk")


def can_go_first() -> bool:
    """Whether this process may put a load before whatever else runs on its core."""
    before, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        _go_first()
    except OSError:
        return False
    os.sched_setscheduler(0, before, parameter)
    return True


def run_load(
    url: str,
    body: Path,
    *,
    content_type: str,
    json_length: int | None,
    connections: int,
    seconds: float,
    cores: Collection[int],
    threads: int = 1,
    first: bool = False,
) -> Load:
    """Send one request on all connections until the time is over.

    Parameters
    ----------
    body : Path
        File with the request's body.
    json_length : int, optional
        Length of the JSON part of a body that carries tensors in binary.
    seconds : float
        Rounded up to a whole second, wrk's unit.
    cores : set of int
        Where wrk runs.
    threads : int
        Of wrk, which share the connections.
    first : bool
        It has its core whenever it wants it, where the system allows that: clients stand elsewhere, so what it waits
        for the core is no latency of anybody's.

    Raises
    ------
    WrongAnswer
        An answer was no success, or a connection broke.
    """
    threads = min(threads, connections)
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s"]
    command += ["-s", str(_SCRIPT), url, "--", str(body), content_type, str(json_length or 0)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds + GRACE_SECONDS,
            check=False,
            preexec_fn=functools.partial(take_place, cores, first=first),
        )
    except subprocess.TimeoutExpired:
        raise WrongAnswer(f"the load on {url} did not end") from None
    found = _MEASURED.search(done.stdout)
    if found is None:
        raise WrongAnswer(f"the load on {url} failed: {(done.stderr or done.stdout)[-300:].strip()}")
    seen = json.loads(found[1])
    refused, broken = seen.pop("refused"), seen.pop("broken")
    if refused or broken or not seen["requests"]:
        raise WrongAnswer(f"{refused} of {seen['requests']} answers were no success, {broken} connections broke: {url}")
    return Load(**seen)


def take_place(cores: Collection[int], *, first: bool) -> None:
    """Run this process there, before all others where `first` says so and the system allows it."""
    os.sched_setaffinity(0, cores)
    if first:
        with contextlib.suppress(OSError):
            _go_first()


def _go_first() -> None:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
