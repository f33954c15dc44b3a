"""The load's place on the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.cases import ONE_CORE, SHARED_CORE, TWO_CORES
from benchmarks.load import can_go_first, run_load

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
