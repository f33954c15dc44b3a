"""What a running server is to the suite, and how one is started, waited for and ended."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import ServerFailed
from benchmarks.processes import end

__all__ = ("Running", "answers", "free_port", "started", "wait_until")

_STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes
    ----------
    name : str
        As tables show it.
    url : str
        Where inference is asked for.
    served : callable
        The processes that answer.
    beside : callable
        Its other processes: they share nothing with a request, but they cost.
    checked : bool
        Whether its answers are onnxruntime's; a constant reply is none.
    log : Path, optional
        State directory of the gateway whose log has its predictions.
    grpc : str
        Host and port of its inference over gRPC; empty where it is not asked for that.
    served_as : str
        The model's name there.
    """

    name: str
    url: str
    served: Callable[[], list[int]]
    beside: Callable[[], list[int]] = list
    checked: bool = True
    log: Path | None = None
    grpc: str = ""
    served_as: str = ""

    def processes(self) -> list[int]:
        """All of them, those that answer first."""
        return [*self.served(), *self.beside()]


@contextlib.contextmanager
def started(
    command: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program; it and all it has started end with the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            # No session of its own: Linux gives each session its share of a core, and all servers shall have the same.
            process_group=0,
        )
    try:
        yield process
    finally:
        end([process.pid], seconds=_STOP_SECONDS)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], *, log: Path, seconds: float = 60.0
) -> None:
    """Wait for a server to be there.

    Raises
    ------
    ServerFailed
        It ended or did not come, with the end of what it said.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        ended = process.poll()
        if ended is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-400:].strip()
            state = "did not start in time" if ended is None else f"ended with status {ended}"
            raise ServerFailed(f"{state}: {said}")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether somebody speaks HTTP there and means well."""
    try:
        with _opener().open(url, timeout=1) as response:
            return bool(response.status < 400)
    except (OSError, urllib.error.URLError):
        return False


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
