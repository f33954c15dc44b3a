"""Versions that come and go, again and again: nothing is lost and nothing is left.

`GATEWAY_TEST_ROUNDS` is the number of rounds of the long form: a round of the first test loads and unloads four models,
a round of the second swaps the stable version once, a round of the third loads a version, swaps to it and back, and
unloads it.
"""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.engines import save_doubler, save_looper
from tests.gateways import RunningGateway, call, eventually
from tests.load import Load, vector
from tests.processes import Holding, holding
from tests.rounds import rounds

COPIES = ("tiny-a", "tiny-b", "tiny-c", "tiny-d")
ROW = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
SETTLING_ROUNDS = 3
SLACK_BYTES = 3 * 2**20
"""What a process may take more than 5 % for: an allocator's whim, which does not grow with the rounds."""


def add(gateway: RunningGateway, model: str, file: Path) -> None:
    """As version 2, to which no route leads by itself."""
    gateway.cli("models", "add", model, str(file), "--version", "2", "--models", str(gateway.models))


def judge(gateway: RunningGateway, model: str, verdict: str, *, version: int = 2) -> None:
    url = f"{gateway.admin_url}/api/v1/models/{model}/versions/{version}/{verdict}"
    status, answer = call(url, {"reason": "a test"}, method="POST")
    assert status == 200, answer


def ask(gateway: RunningGateway, model: str) -> tuple[int, Any]:
    return call(f"{gateway.http_url}/v2/models/{model}/versions/2/infer", ROW)


def answered(gateway: RunningGateway, model: str) -> Any:
    status, answer = ask(gateway, model)
    return answer if status == 200 else None


def watched(gateway: RunningGateway) -> dict[str, Holding]:
    pids = {"supervisor": gateway.process.pid}
    pids |= {title: pid for title, pid in gateway.titles().items() if title.startswith("front")}
    return {name: holding(pid) for name, pid in pids.items()}


def left_behind(gateway: RunningGateway) -> set[str]:
    folders = (gateway.state_dir / "run", gateway.state_dir / "loaded")
    return {path.name for folder in folders for path in folder.iterdir() if "tiny" in path.name}


def load_and_unload(gateway: RunningGateway) -> None:
    callers = [threading.Thread(target=judge, args=(gateway, model, "approve")) for model in COPIES]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for model in COPIES:
        answer = eventually(lambda model=model: answered(gateway, model), seconds=60, what=f"an answer of {model}")
        assert answer["outputs"][0]["data"] == [2, 4, 6]
    for model in COPIES:
        judge(gateway, model, "reject")
    eventually(lambda: not gateway.children("engine tiny"), seconds=60, what="the end of the engines")
    for model in COPIES:
        eventually(lambda model=model: ask(gateway, model)[0] == 404, what=f"the end of {model}")


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.promise("P7")
def test_versions_that_are_loaded_and_unloaded_over_and_over_leave_nothing_behind(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    add(gateway, COPIES[0], save_doubler(tmp_path / "m.onnx"))
    for model in COPIES[1:]:
        shutil.copytree(gateway.models / COPIES[0], gateway.models / model)
    for _ in range(SETTLING_ROUNDS):
        load_and_unload(gateway)
    eventually(lambda: not left_behind(gateway), what="the end of the engines' files")
    before = watched(gateway)
    wanted = rounds(3)
    for _ in range(wanted):
        load_and_unload(gateway)
    eventually(lambda: not left_behind(gateway), what="the end of the engines' files")
    after = watched(gateway)
    print(f"{wanted * len(COPIES)} loads and unloads: {before} -> {after}")
    assert after.keys() == before.keys()
    for name, then in before.items():
        now = after[name]
        assert now.descriptors <= then.descriptors + 1, name
        assert now.threads <= 1.05 * then.threads, name
        assert now.children == then.children, name
        assert now.private_bytes <= 1.05 * then.private_bytes + SLACK_BYTES, name


@pytest.mark.fault
@pytest.mark.promise("P8")
def test_no_request_fails_while_the_stable_version_is_swapped_over_and_over(gateway: RunningGateway) -> None:
    gateway.set_route("bike-demand", 1)
    wanted = rounds(10)
    with Load(gateway.http_port) as load:
        for swap in range(wanted):
            gateway.set_route("bike-demand", 2 - swap % 2)
        gateway.set_route("bike-demand", 1)
        load.wait(20)
    print(f"{wanted} swaps under {len(load.answers)} requests: {len(load.failed)} failed, {len(load.broken)} broken")
    assert not load.failed and not load.broken
    assert {answer.version for answer in load.answers} == {"1", "2"}


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.promise("P8")
def test_no_request_fails_while_a_version_is_loaded_swapped_to_and_unloaded(gateway: RunningGateway) -> None:
    gateway.set_route("bike-demand", 1)
    judge(gateway, "bike-demand", "reject")
    wanted = rounds(2)
    try:
        with Load(gateway.http_port) as load:
            for _ in range(wanted):
                judge(gateway, "bike-demand", "approve")
                gateway.set_route("bike-demand", 2)
                load.wait(10)
                gateway.set_route("bike-demand", 1)
                judge(gateway, "bike-demand", "reject")
                load.wait(10)
    finally:
        judge(gateway, "bike-demand", "approve")
    print(f"{wanted} loads, swaps and unloads under {len(load.answers)} requests: {len(load.failed)} failed")
    assert not load.failed and not load.broken
    assert {answer.version for answer in load.answers} == {"1", "2"}


@pytest.mark.fault
@pytest.mark.promise("P8")
def test_a_version_that_is_unloaded_still_answers_what_was_taken_for_it(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    add(gateway, "looper", save_looper(tmp_path / "looper.onnx"))
    judge(gateway, "looper", "approve")
    url = f"{gateway.http_url}/v2/models/looper/versions/2/infer"

    def count_to(number: int) -> tuple[int, Any]:
        return call(url, {"inputs": [vector("n", [number])]})

    eventually(lambda: all(count_to(1)[0] == 200 for _ in range(10)), what="the looper on every front")
    started = time.monotonic()
    assert count_to(10**5)[1]["outputs"][0]["data"] == [10**5]
    about_a_second = int(10**5 / (time.monotonic() - started))
    (engine,) = gateway.children("engine looper/2")
    answers: list[tuple[int, Any]] = []
    callers = [threading.Thread(target=lambda: answers.append(count_to(about_a_second))) for _ in range(2)]
    for caller in callers:
        caller.start()
    time.sleep(0.3)
    judge(gateway, "looper", "reject")
    assert gateway.children("engine looper") == [engine], "it has not answered yet"
    for caller in callers:
        caller.join()
    assert [status for status, _ in answers] == [200, 200], answers
    eventually(lambda: not gateway.children("engine looper"), what="the end of the engine")
