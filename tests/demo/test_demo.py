"""The whole demo as a program: what it finds comes from the data, and changes with the data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "gateway", "demo"]
TURN_OF_THE_YEAR = ("2011-12-26", "2012-01-02")
"""The week the decay began in, or the one before: which requests are labelled first is drawn."""

SECONDS = 240.0
"""Far more than it takes, for a machine that does much else."""

pytestmark = pytest.mark.slow


def play(*arguments: str) -> dict[str, Any]:
    """The report of one run, which must end well."""
    command = [*DEMO, "--speed", "800", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    report: dict[str, Any] = json.loads(done.stdout)
    proof = report["proof"]
    assert report["proof_holds"] and report["audit_ok"]
    assert proof["answered"] == proof["logged"] > 10_000
    assert proof["refused"] == proof["refused_logged"] > 0
    assert proof["missing"] == proof["unknown"] == proof["differing"] == proof["repeated"] == 0
    return report


def kinds(report: dict[str, Any], version: int) -> list[str]:
    return [finding["kind"] for finding in report["findings"] if finding["version"] == version]


def monitors(report: dict[str, Any]) -> list[str]:
    """Kinds of the decisions that no person made."""
    return [decision["kind"] for decision in report["decisions"] if decision["actor"] == "gateway monitor"]


def test_three_verdicts_come_from_the_data() -> None:
    report = play()
    decay = report["decay"]
    # Misses were 5.8 % in the last quarter of 2011, and are 42.5 % from the first week of 2012 on.
    assert decay["since_week"] in TURN_OF_THE_YEAR and "2012-01-02" <= decay["data_time"] < "2012-03-01"
    assert report["outcomes"] == {"2": "promoted", "3": "rolled_back"}
    assert report["route"] == {"stable": 2, "canary": None, "weight": 0.0, "previous": 1}
    assert "rollback" not in kinds(report, 1) + kinds(report, 2), (
        "a decay that no older version mends rolls nothing back"
    )
    for finding in report["findings"]:
        assert finding["log_evidence"] >= finding["log_threshold"] > 0
    assert report["seconds_to_switch"] <= 1.0
    assert report["proof"]["labels"] == report["proof"]["labels_logged"] > 10_000


def test_without_its_mistake_version_3_is_not_rolled_back(tmp_path: Path) -> None:
    train = [sys.executable, "training/bike-demand/train.py", "--correct", "--versions", "3", "--models", str(tmp_path)]
    subprocess.run(train, cwd=ROOT, check=True, capture_output=True, timeout=SECONDS)
    report = play("--candidate", str(tmp_path / "bike-demand" / "3"))
    assert report["decay"]["since_week"] in TURN_OF_THE_YEAR
    assert report["outcomes"]["2"] == "promoted"
    assert report["outcomes"]["3"] in ("promoted", "held")
    assert "rollback" not in monitors(report)


def test_without_labels_drift_is_seen_and_nothing_is_rolled_back_for_it() -> None:
    report = play("--without-labels")
    assert report["proof"]["labels"] == report["proof"]["labels_logged"] == 0
    assert report["decay"] is None
    assert any("2012-01-01" <= finding["data_time"] <= "2012-12-31" for finding in report["drift"])
    assert not {"rollback", "rollout_promoted", "rollout_advanced", "harm"} & set(monitors(report))
    assert report["outcomes"] in ({"2": "held"}, {"2": "paused"})
    assert report["route"]["stable"] == 1


@pytest.mark.fault
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_leaves_nothing_behind(tmp_path: Path, by: signal.Signals) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    # Whoever runs the tests in the background may have them ignore what comes from the keyboard.
    heeded = partial(signal.signal, by, signal.SIG_DFL)
    with subprocess.Popen(
        DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, preexec_fn=heeded
    ) as demo:
        assert demo.stdout is not None
        first = next(line for line in demo.stdout if b"answered" in line)
        [folder] = tmp_path.glob("gateway-demo-*")
        gateway = json.loads((folder / "state" / "run" / "gateway.json").read_bytes())["pid"]
        demo.send_signal(by)
        assert demo.wait(SECONDS) == 130, first
        assert b"stopped" in demo.stderr.read() if demo.stderr is not None else False
    assert list(tmp_path.glob("gateway-demo-*")) == []
    with pytest.raises(ProcessLookupError):
        os.kill(gateway, 0)


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    for arguments, reason in (
        (["--candidate", str(tmp_path / "none")], "there is no folder"),
        (["--hours", str(tmp_path / "none.gz")], "which is not there"),
        (["--keep", tempfile.gettempdir()], "cannot keep the demo"),
    ):
        done = subprocess.run([*DEMO, *arguments], cwd=ROOT, capture_output=True, timeout=SECONDS)
        assert done.returncode == 1
        assert reason in done.stderr.decode() and len(done.stderr.decode().splitlines()) == 1
