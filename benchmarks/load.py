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

__all__ = ("Load", "can_go_first", "check_installed", "output_of", "run_load")

_SCRIPT = Path(__file__).with_name("post.lua")
_MEASURED = re.compile(r"^measured (\{.*\})$", re.MULTILINE)
_GRACE_SECONDS = 30.0


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
    output = output_of(command, url, measured=_MEASURED, seconds=seconds, cores=cores, first=first)
    seen = json.loads(_MEASURED.findall(output)[0])
    refused, broken = seen.pop("refused"), seen.pop("broken")
    if refused or broken or not seen["requests"]:
        raise WrongAnswer(f"{refused} of {seen['requests']} answers were no success, {broken} connections broke: {url}")
    return Load(**seen)


def output_of(
    command: list[str],
    target: str,
    *,
    measured: re.Pattern[str],
    seconds: float,
    cores: Collection[int],
    first: bool,
) -> str:
    """What a load has said, in which `measured` stands.

    Raises
    ------
    WrongAnswer
        It did not end in time, or measured nothing.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds + _GRACE_SECONDS,
            check=False,
            preexec_fn=functools.partial(_take_place, cores, first=first),
        )
    except subprocess.TimeoutExpired:
        raise WrongAnswer(f"the load on {target} did not end") from None
    if measured.search(done.stdout) is None:
        raise WrongAnswer(f"the load on {target} failed: {(done.stderr or done.stdout)[-300:].strip()}")
    return done.stdout


def _take_place(cores: Collection[int], *, first: bool) -> None:
    os.sched_setaffinity(0, cores)
    if first:
        with contextlib.suppress(OSError):
            _go_first()


def _go_first() -> None:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
