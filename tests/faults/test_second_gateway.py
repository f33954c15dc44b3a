"""A second gateway on the same state or the same port is refused in one sentence, and the first one serves on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateways import ROOT, RunningGateway
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


def serve(*arguments: str) -> str:
    """Start a gateway that shall be refused; returns the one sentence it says."""
    command = [sys.executable, "-m", "gateway", "serve", *arguments, "--metrics-port", "0", "--admin-port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stderr.strip().splitlines()
    assert len(said) == 1, said
    return said[0]
