"""How the whole gateway ends: by SIGTERM under load, with a stuck client, by kill -9; and what a second one is told."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateways import ROOT, RunningGateway, eventually, start_gateway
from tests.load import ROWS, Load, features

DRAIN_SECONDS = 5.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and state of one gateway that ends and starts again."""
    return tmp_path_factory.mktemp("ends")


@pytest.fixture
def gateway(place: Path) -> Iterator[RunningGateway]:
    settings = {"GATEWAY_SERVER__DRAIN_TIMEOUT_SECONDS": str(DRAIN_SECONDS)}
    started = start_gateway(place, fronts=2, environment=settings)
    yield started
    started.stop()


def unlogged(gateway: RunningGateway, load: Load) -> list[str]:
    """Ids that were answered and are not in the log."""
    logged = {record.id for record in gateway.predictions()}
    return [answer.prediction_id for answer in load.answers if answer.prediction_id not in logged]


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_sigterm_under_load_answers_what_was_accepted_and_logs_it(gateway: RunningGateway) -> None:
    gateway.set_route("bike-demand", 1, 2, 30)
    with Load(gateway.http_port, connections=16, pause_seconds=0.0) as load:
        load.wait(200)
        asked = time.monotonic()
        status = gateway.stop()
        print(f"SIGTERM under load: ended after {time.monotonic() - asked:.2f} s")
    assert status == 0
    assert time.monotonic() - asked < DRAIN_SECONDS + 20
    assert {answer.status for answer in load.answers} == {200}
    cut = [line for line in load.broken if "refused" not in line.lower()]
    print(f"{len(load.answers)} answered, {len(cut)} connections ended before a request was read")
    assert not [line for line in cut if "IncompleteRead" in line], "no answer was torn"
    assert not unlogged(gateway, load)
    answered = {answer.request_id for answer in load.answers}
    logged = {record.request_id for record in gateway.predictions() if (record.request_id or "").startswith(load.name)}
    assert logged == answered, "what was accepted was answered"


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_a_client_that_stopped_in_the_middle_of_a_body_does_not_hold_sigterm_up(gateway: RunningGateway) -> None:
    routes = json.loads(gateway.cli("route", "show", "bike-demand", "--json"))
    assert '"canary": 2' in json.dumps(routes) and '"weight": 30' in json.dumps(routes), "the route survived the end"
    body = json.dumps({"inputs": [features(ROWS[0])]}).encode()
    head = b"POST /v2/models/bike-demand/infer HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", gateway.http_port)) as stuck:
        stuck.sendall(head + body[:20])
        with Load(gateway.http_port) as load:
            load.wait(50)
            asked = time.monotonic()
            status = gateway.stop()
    print(f"SIGTERM with a stuck client: ended after {time.monotonic() - asked:.2f} s")
    assert status == 0
    assert not load.failed and not unlogged(gateway, load)


@pytest.mark.fault
def test_kill_9_of_the_supervisor_ends_all_and_a_new_start_goes_on(gateway: RunningGateway, place: Path) -> None:
    gateway.set_route("bike-demand", 1, 2, 70)
    children = list(gateway.titles().values())
    assert len(children) == 6
    with Load(gateway.http_port) as load:
        load.wait(100)
        gateway.kill()
        eventually(lambda: not [pid for pid in children if is_running(pid)], what="the end of all children")
    assert not load.failed and not unlogged(gateway, load)
    again = start_gateway(place, fronts=2)
    try:
        with Load(again.http_port) as more:
            more.wait(100)
        assert not more.failed and not more.broken
        assert {answer.version for answer in more.answers} == {"1", "2"}
        assert not unlogged(again, load) and not unlogged(again, more)
        assert "none touched" in again.cli("audit", "verify")
    finally:
        assert again.stop() == 0


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


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
