"""How the whole gateway ends: by kill -9, by SIGTERM under load and with a stuck client; what came before stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateways import RunningGateway, eventually, start_gateway
from tests.load import ROWS, Load, features
from tests.processes import is_running

DRAIN_SECONDS = 5.0
Answered = set[tuple[str, str]]  # prediction ids with the request ids they answer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and state of one gateway that ends and starts again."""
    return tmp_path_factory.mktemp("ends")


@pytest.fixture(scope="module")
def answered() -> Answered:
    """What was answered in every life of the gateway so far."""
    return set()


@pytest.fixture
def gateway(place: Path) -> Iterator[RunningGateway]:
    settings = {"GATEWAY_SERVER__DRAIN_TIMEOUT_SECONDS": str(DRAIN_SECONDS)}
    started = start_gateway(place, fronts=2, environment=settings)
    yield started
    started.stop()


@pytest.mark.fault
@pytest.mark.promise("P1")
def test_kill_9_of_the_supervisor_ends_every_process_and_loses_no_answer(
    gateway: RunningGateway, answered: Answered
) -> None:
    gateway.set_route("bike-demand", 1, 2, 70)
    children = list(gateway.titles().values())
    assert len(children) == 6
    with Load(gateway.http_port) as load:
        load.wait(100)
        gateway.kill()
        eventually(lambda: not [pid for pid in children if is_running(pid)], what="the end of all children")
    assert not load.failed
    answered |= answers_of(load)
    assert answered <= logged(gateway)


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_ctrl_c_which_reaches_every_process_ends_them_in_order(gateway: RunningGateway, answered: Answered) -> None:
    before = len(gateway.output.read_text())
    with Load(gateway.http_port, connections=16, pause_seconds=0.0) as load:
        load.wait(200)
        children = gateway.titles()
        for pid in children.values():
            os.kill(pid, signal.SIGINT)
        time.sleep(1)
        assert gateway.titles() == children, "only the supervisor ends them"
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(DRAIN_SECONDS + 20) == 0
    said = gateway.output.read_text()[before:]
    assert "gateway: stopped" in said and "starting it again" not in said
    assert {answer.status for answer in load.answers} == {200}
    answered |= answers_of(load)
    assert answered <= logged(gateway)


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_sigterm_under_load_answers_what_was_accepted_and_logs_it(gateway: RunningGateway, answered: Answered) -> None:
    assert route(gateway) == (1, 2, 70), "the route survived the kill"
    gateway.set_route("bike-demand", 1, 2, 30)
    with Load(gateway.http_port, connections=16, pause_seconds=0.0) as load:
        load.wait(200)
        asked = time.monotonic()
        status = gateway.stop()
        print(f"SIGTERM under load: ended after {time.monotonic() - asked:.2f} s")
    assert status == 0
    assert {answer.status for answer in load.answers} == {200}
    assert {answer.version for answer in load.answers} == {"1", "2"}
    assert not [line for line in load.broken if "IncompleteRead" in line], "no answer was torn"
    accepted = {record.request_id for record in gateway.predictions() if str(record.request_id).startswith(load.name)}
    assert accepted == {answer.request_id for answer in load.answers}, "what was accepted was answered"
    answered |= answers_of(load)
    assert answered <= logged(gateway)


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_sigterm_that_reaches_every_process_at_once_loses_no_answer_either(
    gateway: RunningGateway, answered: Answered
) -> None:
    before = len(gateway.output.read_text())
    with Load(gateway.http_port, connections=16, pause_seconds=0.0) as load:
        load.wait(200)
        for pid in (*gateway.titles().values(), gateway.process.pid):
            os.kill(pid, signal.SIGTERM)
        assert gateway.process.wait(DRAIN_SECONDS + 20) == 0
    said = gateway.output.read_text()[before:]
    assert "starting it again" not in said
    assert {answer.status for answer in load.answers} == {200}
    answered |= answers_of(load)
    assert answered <= logged(gateway)


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_sigterm_that_reaches_every_process_leaves_engines_to_those_who_are_still_sending(
    gateway: RunningGateway, answered: Answered
) -> None:
    body = json.dumps({"id": "slow", "inputs": [features(ROWS[0])]}).encode()
    head = b"POST /v2/models/bike-demand/infer HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=DRAIN_SECONDS + 20) as slow:
        slow.sendall(head + body[:20])
        time.sleep(0.2)
        for pid in (*gateway.titles().values(), gateway.process.pid):
            os.kill(pid, signal.SIGTERM)
        eventually(lambda: not gateway.children("engine bike-demand"), what="the end of engines that nobody asks")
        slow.sendall(body[20:])
        assert slow.recv(12) == b"HTTP/1.1 200"
    assert gateway.process.wait(DRAIN_SECONDS + 20) == 0
    assert "slow" in {request_id for _, request_id in logged(gateway)}
    assert answered <= logged(gateway)


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_sigterm_that_comes_twice_at_once_is_one(gateway: RunningGateway, answered: Answered) -> None:
    before = len(gateway.output.read_text())
    body = json.dumps({"inputs": [features(ROWS[0])]}).encode()
    head = b"POST /v2/models/bike-demand/infer HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", gateway.http_port), timeout=DRAIN_SECONDS + 20) as slow:
        slow.sendall(head + body[:20])
        time.sleep(0.2)
        for _ in range(2):
            gateway.process.send_signal(signal.SIGTERM)
            time.sleep(0.01)  # sooner the system itself makes one of them, most often
        time.sleep(1)
        slow.sendall(body[20:])
        assert slow.recv(12) == b"HTTP/1.1 200"
    assert gateway.process.wait(DRAIN_SECONDS + 20) == 0
    assert "told to stop again" not in gateway.output.read_text()[before:]
    assert answered <= logged(gateway)


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_a_second_sigterm_waits_no_longer_and_loses_nothing_that_was_answered(
    gateway: RunningGateway, answered: Answered
) -> None:
    body = json.dumps({"inputs": [features(ROWS[0])]}).encode()
    head = b"POST /v2/models/bike-demand/infer HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", gateway.http_port)) as stuck:
        stuck.sendall(head + body[:20])
        with Load(gateway.http_port) as load:
            load.wait(50)
        fronts = gateway.children("front")
        gateway.process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert [pid for pid in fronts if is_running(pid)], "one waits for the client"
        asked = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        # The monitor, which gives way to all others, may take its time on a machine that is busy.
        eventually(lambda: not [pid for pid in fronts if is_running(pid)], seconds=DRAIN_SECONDS / 2, what="their end")
        assert gateway.process.wait(DRAIN_SECONDS + 20) == 0
    print(f"a second SIGTERM: ended after {time.monotonic() - asked:.2f} s")
    assert not load.failed
    assert answered | answers_of(load) <= logged(gateway)


@pytest.mark.fault
@pytest.mark.promise("P13")
def test_a_client_that_stopped_in_the_middle_of_a_body_does_not_hold_sigterm_up(
    gateway: RunningGateway, answered: Answered
) -> None:
    assert route(gateway) == (1, 2, 30), "the route survived the end"
    assert "none touched" in gateway.cli("audit", "verify")
    body = json.dumps({"inputs": [features(ROWS[0])]}).encode()
    head = b"POST /v2/models/bike-demand/infer HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", gateway.http_port)) as stuck:
        stuck.sendall(head + body[:20])
        with Load(gateway.http_port) as load:
            load.wait(50)
            asked = time.monotonic()
            status = gateway.stop(seconds=DRAIN_SECONDS + 20)
    print(f"SIGTERM with a stuck client: ended after {time.monotonic() - asked:.2f} s")
    assert status == 0
    assert not load.failed
    assert answered | answers_of(load) <= logged(gateway)


def route(gateway: RunningGateway) -> tuple[int, int | None, float]:
    found = json.loads(gateway.cli("route", "show", "bike-demand", "--json"))
    return found["stable"], found["canary"], found["weight"]


def answers_of(load: Load) -> Answered:
    return {(answer.prediction_id, answer.request_id) for answer in load.answers}


def logged(gateway: RunningGateway) -> Answered:
    return {(record.id, str(record.request_id)) for record in gateway.predictions()}
