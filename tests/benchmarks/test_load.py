"""The load's place on the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.cases import ONE_CORE, SHARED_CORE, TWO_CORES
from benchmarks.errors import WrongAnswer
from benchmarks.grpc_load import run_grpc_load
from benchmarks.load import Load, can_go_first, run_load

LOOKS = """#!{python}
import json, os, sys
policy, cores, threads = os.sched_getscheduler(0), len(os.sched_getaffinity(0)), int(sys.argv[1][2:])
seen = dict(requests=1, max_us=policy, seconds=cores, p50_us=threads, p90_us=0, p99_us=0)
print("measured", json.dumps(dict(seen, refused=0, broken=0)))
"""
"""In place of wrk: tells of its own place."""


@pytest.mark.parametrize(("first", "allowed"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize(("threads", "connections"), [(1, 8), (2, 8), (2, 1)])
def test_the_load_runs_on_its_cores_and_goes_first_only_when_told_and_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool, allowed: bool, threads: int, connections: int
) -> None:
    wrk = tmp_path / "wrk"
    wrk.write_text(LOOKS.format(python=sys.executable))
    wrk.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    if first and allowed and not can_go_first():
        pytest.skip("this user may not put a process before others")
    if not allowed:

        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "sched_setscheduler", refuse)
        assert not can_go_first()
    seen = run_load(
        "http://127.0.0.1:9",
        tmp_path / "body",
        content_type="",
        json_length=None,
        connections=connections,
        seconds=1,
        cores={0},
        threads=threads,
        first=first,
    )
    assert (seen.max_us, seen.seconds) == (os.SCHED_RR if first and allowed else os.SCHED_OTHER, 1)
    assert seen.p50_us == min(threads, connections)


def test_only_a_load_apart_from_what_answers_may_go_first() -> None:
    assert [placement.apart for placement in (ONE_CORE, SHARED_CORE, TWO_CORES)] == [True, False, False]


SAYS = """#!{python}
import sys
(times,) = [each.partition("=")[2] for each in sys.argv if each.startswith("--log-file=")]
open(times, "w").write("".join("1\\t200\\t%d\\n" % took for took in (100, 200, 300)))
print('''{said}''')
"""
"""In place of h2load."""
SAID = """finished in 2.00s, 1.50 req/s, 1.00KB/s
requests: 3 total, 4 started, 3 done, {succeeded} succeeded, {failed} failed, 0 errored, 0 timeout
traffic: 1.00KB (1024) total, 100B (100) headers (space savings 90.00%), 117B ({content}) data"""


def grpc_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> Load:
    program = tmp_path / "h2load"
    program.write_text(SAYS.format(python=sys.executable, said=said))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    body = tmp_path / "message"
    return run_grpc_load("127.0.0.1:9", body, answer_bytes=39, connections=1, seconds=2, cores={0})


def test_the_load_over_grpc_tells_rates_and_percentiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = grpc_load(tmp_path, monkeypatch, SAID.format(succeeded=3, failed=0, content=117))
    assert (seen.requests, seen.rate, seen.p50_us, seen.max_us) == (3, 1.5, 200, 300)


@pytest.mark.parametrize(
    "said",
    [
        SAID.format(succeeded=2, failed=1, content=117),
        SAID.format(succeeded=3, failed=0, content=116),  # one call failed: its answer has no content
        SAID.format(succeeded=0, failed=0, content=0),
        "unable to connect",
    ],
    ids=["failed", "without content", "none", "no server"],
)
def test_calls_that_fail_over_grpc_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    with pytest.raises(WrongAnswer):
        grpc_load(tmp_path, monkeypatch, said)
