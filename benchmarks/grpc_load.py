"""The load over gRPC: h2load (Debian: apt-get install nghttp2-client), one message on many connections."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

import numpy as np

from benchmarks.errors import WrongAnswer
from benchmarks.load import GRACE_SECONDS, Load, take_place

__all__ = ("METHOD", "can_load_grpc", "framed", "run_grpc_load")

METHOD = "/inference.GRPCInferenceService/ModelInfer"

_FINISHED = re.compile(r"^finished in ([0-9.]+)(ms|s),", re.MULTILINE)
_REQUESTS = re.compile(r" (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
_CONTENT = re.compile(r"\((\d+)\) data$", re.MULTILINE)


def can_load_grpc() -> bool:
    """Whether h2load is installed."""
    return shutil.which("h2load") is not None


def framed(message: bytes) -> bytes:
    """A message as it stands in the body of a call (gRPC over HTTP/2: not compressed, and its length).

    >>> framed(b"ab")
    b'\\x00\\x00\\x00\\x00\\x02ab'
    """
    return b"\0" + len(message).to_bytes(4, "big") + message


def run_grpc_load(
    address: str,
    body: Path,
    *,
    answer_bytes: int,
    connections: int,
    seconds: float,
    cores: Collection[int],
    threads: int = 1,
    first: bool = False,
) -> Load:
    """Send one message on all connections, the next when the last is answered, until the time is over.

    Parameters
    ----------
    address : str
        Host and port.
    body : Path
        File with the message, framed.
    answer_bytes : int
        What the body of an answer has at least: a call that failed has none, and else looks like one that did not.
    seconds, cores, threads, first
        As for `run_load`.

    Raises
    ------
    WrongAnswer
        An answer was no success, or a connection broke.
    """
    threads = min(threads, connections)
    times = body.with_name(f"{body.name}.times")
    times.unlink(missing_ok=True)
    command = ["h2load", f"-t{threads}", f"-c{connections}", "-m1", f"-D{max(1, round(seconds))}", "-d", str(body)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"--log-file={times}"]
    try:
        done = subprocess.run(
            [*command, f"http://{address}{METHOD}"],
            capture_output=True,
            text=True,
            timeout=seconds + GRACE_SECONDS,
            check=False,
            preexec_fn=functools.partial(take_place, cores, first=first),
        )
    except subprocess.TimeoutExpired:
        raise WrongAnswer(f"the load on {address} did not end") from None
    finished, requests, content = (each.search(done.stdout) for each in (_FINISHED, _REQUESTS, _CONTENT))
    if finished is None or requests is None or content is None:
        raise WrongAnswer(f"the load on {address} failed: {(done.stderr or done.stdout)[-300:].strip()}")
    answered, *broken = map(int, requests.groups())
    if not answered or any(broken) or int(content[1]) < answered * answer_bytes:
        raise WrongAnswer(f"not all calls were answered by {address}: {requests[0].strip()}, {content[0].strip()}")
    took = np.loadtxt(times, np.int64, usecols=2, ndmin=1)
    p50, p90, p99, longest = np.percentile(took, (50, 90, 99, 100)).tolist()
    duration = float(finished[1]) / (1000 if finished[2] == "ms" else 1)
    return Load(answered, duration, p50, p90, p99, longest)
