"""The load's place on the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.load import can_go_first, run_load

LOOKS = """#!{python}
import json, os
policy, cores = os.sched_getscheduler(0), len(os.sched_getaffinity(0))
seen = dict(requests=1, max_us=policy, seconds=cores, p50_us=0, p90_us=0, p99_us=0)
print("measured", json.dumps(dict(seen, refused=0, broken=0)))
"""


@pytest.mark.parametrize("first", [False, True])
def test_the_load_has_one_core_and_goes_first_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    if not can_go_first():
        pytest.skip("this user may not put a process before others")
    wrk = tmp_path / "wrk"
    wrk.write_text(LOOKS.format(python=sys.executable))
    wrk.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    body = tmp_path / "body"
    seen = run_load(
        "http://127.0.0.1:9", body, content_type="", json_length=None, connections=1, seconds=1, cores={0}, first=first
    )
    assert (seen.max_us, seen.seconds) == (os.SCHED_RR if first else os.SCHED_OTHER, 1)
