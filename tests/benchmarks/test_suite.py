"""The suite works: real servers, a real load, a second for each; no time is judged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.suites import SUITES
from tests.prometheus import missing

ROOT = Path(__file__).parents[2]


def suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture(autouse=True)
def load() -> None:
    """What asks: the suite starts with nothing where it is missing."""
    for name, package in (("wrk", "wrk"), ("h2load", "nghttp2-client")):
        if shutil.which(name) is None:
            missing(f"{name} is not installed (Debian: {package})")


@pytest.mark.slow
@pytest.mark.fault
def test_the_small_form_measures_every_server_and_finds_no_answer_wrong(tmp_path: Path) -> None:
    done = suite("--suite", "smoke", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    values = json.loads((tmp_path / "smoke.json").read_text())
    assert not values["skipped"] and not values["faults"]
    measured = {(each["stage"], each["workload"], each["server"]) for each in values["series"]}
    wanted = {
        (stage.name, case.workload.name, server)
        for stage in SUITES["smoke"](None)
        for case in stage.cases
        for server in case.servers or [name for source in stage.sources for name in source.names]
    }
    assert measured == wanted
    answers = values["answers"]
    assert answers["checked"] > 0
    assert answers["answered"] <= answers["logged"] <= answers["answered"] + answers["in_flight"]


def test_a_stage_and_a_peer_that_are_not_there_are_named() -> None:
    done = suite("--suite", "quick", "--only", "nothing")
    assert done.returncode == 2
    assert "has no such stage; it has tabular" in done.stderr
    done = suite("--suite", "quick", "--peers", "nobody")
    assert done.returncode == 2
    assert "no peer is named nobody; there are constant reply, bare handler" in done.stderr
