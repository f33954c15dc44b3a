"""Measures the gateway against other servers in one interleaved run: make bench, or scripts/bench --help."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.cases import Bench
from benchmarks.errors import BenchmarkError
from benchmarks.grpc_load import can_load_grpc
from benchmarks.load import check_installed
from benchmarks.others import PEERS
from benchmarks.results import write_results
from benchmarks.run import Depth, estimated_seconds, run_stages
from benchmarks.suites import GRPC, SUITES, TRITON, stages_of

ROOT = Path(__file__).parents[1]
DEPTHS = {
    "smoke": Depth(rounds=1, seconds=1, checked=16, warm_seconds=0),
    "quick": Depth(rounds=3, seconds=2, checked=200),
    "ratios": Depth(rounds=5, seconds=3, checked=400),
    "full": Depth(rounds=5, seconds=3, checked=400),
}


def main(arguments: Sequence[str]) -> int:
    """Run the suite; 0 when every answer was right, 1 when not, 2 when it could not be run."""
    given = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    usual = DEPTHS[given.suite]
    depth = replace(usual, rounds=given.rounds or usual.rounds, seconds=given.seconds or usual.seconds)
    peers = None if given.peers is None else [name for name in given.peers.split(",") if name not in ("", "none")]
    unknown = sorted(set(peers or []) - {*PEERS, TRITON})
    stages = stages_of(given.suite, only=given.only, peers=peers, triton=given.triton)
    measurable = [stage for stage in stages if stage.name != GRPC or can_load_grpc()]
    if len(measurable) < len(stages):
        print(f"without stage {GRPC}: h2load is not installed; try: apt-get install nghttp2-client", file=sys.stderr)
        stages = measurable
    try:
        check_installed()
        if unknown:
            raise BenchmarkError(f"no peer is named {', '.join(unknown)}; there are {', '.join([*PEERS, TRITON])}")
        if not stages:
            known = [stage.name for stage in stages_of(given.suite, only=(), peers=None, triton=None)]
            raise BenchmarkError(f"the suite {given.suite} has no such stage; it has {', '.join(known)}")
        if (os.cpu_count() or 1) < 2:
            raise BenchmarkError("the suite needs two cores: one for the servers, one for the load")
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    minutes = estimated_seconds(stages, depth) / 60
    print(f"suite {given.suite}: about {minutes:.0f} minutes, installations not counted", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        outcome = run_stages(stages, Bench(ROOT / ".cache" / "benchmarks", Path(folder)), depth)
    command = shlex.join(["scripts/bench", *arguments])
    written = write_results(outcome, given.results, suite=given.suite, command=command, depth=depth)
    print(written[0].read_text())
    print(f"written: {', '.join(path.name for path in written)} in {given.results}", file=sys.stderr)
    return 1 if outcome.faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default="quick", help="how much is measured (default: quick)")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="one stage of it; may be repeated")
    parser.add_argument("--peers", metavar="NAME,...", help=f"only these peers, or none: {', '.join([*PEERS, TRITON])}")
    parser.add_argument("--rounds", type=_positive, help="measurements of each server in each case")
    parser.add_argument("--seconds", type=_positive, help="length of one measurement")
    parser.add_argument(
        "--triton", type=Path, metavar="PATH", help="a tritonserver binary, with its onnxruntime backend"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR", help="where tables and plots go"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
