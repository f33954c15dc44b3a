"""A second gateway on the same state or the same port is refused in one sentence, and the first one serves on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.control.outbox import open_decisions
from gateway.predictions.locks import held
from gateway.predictions.shipper import LOCK_NAME
from gateway.settings import Settings
from gateway.telemetry.cells import LOCK_SECONDS, CellFile
from gateway.telemetry.layout import read_header
from tests.gateways import ROOT, RunningGateway, eventually
from tests.load import Load


@pytest.mark.fault
def test_a_second_gateway_on_the_same_state_or_port_is_told_so(gateway: RunningGateway, tmp_path: Path) -> None:
    same_state = serve("--state-dir", str(gateway.state_dir), "--http-port", "0")
    assert f"another gateway uses {gateway.state_dir}" in same_state
    same_port = serve("--state-dir", str(tmp_path / "state"), "--http-port", str(gateway.http_port))
    assert f"server.http_port = {gateway.http_port}: cannot listen on 127.0.0.1" in same_port
    with Load(gateway.http_port) as load:
        load.wait(50)
    assert not load.failed and not load.broken


@pytest.mark.fault
def test_a_second_shipper_of_a_spool_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    spool = tmp_path / "spool"
    spool.mkdir()
    with held(spool / LOCK_NAME):
        assert f"another process ships {spool}" in refused("ship", "--state-dir", str(tmp_path))


@pytest.mark.fault
@pytest.mark.parametrize(("name", "command"), [("front 0", ("front",)), ("admin", ("admin-process",))])
def test_a_process_whose_place_is_taken_is_told_so(name: str, command: tuple[str, ...], tmp_path: Path) -> None:
    cells = CellFile(tmp_path / "run" / "metrics" / f"{name.replace(' ', '-')}.cells")
    said = refused(*command, "--state-dir", str(tmp_path))
    assert f" {name}: warning: cannot run: another process runs as {cells.path.stem}: it holds {cells.path}" in said
    cells.close()


@pytest.mark.fault
def test_a_second_monitor_waits_until_the_first_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway", "monitor", "--state-dir", str(tmp_path)]
    settings = Settings.model_validate({"state_dir": tmp_path})
    first = open_decisions(settings)
    cells = CellFile(tmp_path / "run" / "metrics" / "monitor.cells")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as second:
        try:
            assert second.stderr is not None and f"waiting: {first.directory}" in second.stderr.readline()
            time.sleep(2 * LOCK_SECONDS)
            assert second.poll() is None
            first.close()
            cells.close()
            eventually(lambda: writer_of(cells.path) == second.pid, what="the second monitor")
        finally:
            second.terminate()
        assert second.wait(30) == 0


def writer_of(path: Path) -> int:
    header = read_header(memoryview(path.read_bytes()))
    assert header is not None
    return header.process_id


def serve(*arguments: str) -> str:
    return refused("serve", *arguments, "--metrics-port", "0", "--admin-port", "0")


def refused(*arguments: str) -> str:
    """Start what shall be refused; returns the one sentence it says."""
    command = [sys.executable, "-m", "gateway", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, said
    return said[0]
