"""The load over gRPC: h2load (Debian: apt-get install nghttp2-client), one message on many connections."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np

from benchmarks.errors import WrongAnswer
from benchmarks.load import Load, output_of

__all__ = ("METHOD", "can_load_grpc", "run_grpc_load")

METHOD = "/inference.GRPCInferenceService/ModelInfer"

_MEASURED = re.compile(
    r"^finished in ([0-9.]+)(ms|s),.* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout.*\((\d+)\) data$",
    re.MULTILINE | re.DOTALL,
)


def can_load_grpc() -> bool:
    """Whether h2load is installed."""
    return shutil.which("h2load") is not None


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
    url = f"http://{address}{METHOD}"
    output = output_of([*command, url], url, measured=_MEASURED, seconds=seconds, cores=cores, first=first)
    duration, unit, *counts = _MEASURED.findall(output)[0]
    answered, *broken, content = map(int, counts)
    if not answered or any(broken) or content < answered * answer_bytes:
        raise WrongAnswer(f"{answered} calls succeeded, {sum(broken)} did not, {content} bytes were answered: {url}")
    took = np.loadtxt(times, np.int64, usecols=2, ndmin=1)
    p50, p90, p99, longest = np.percentile(took, (50, 90, 99, 100)).tolist()
    return Load(answered, float(duration) / (1000 if unit == "ms" else 1), p50, p90, p99, longest)
