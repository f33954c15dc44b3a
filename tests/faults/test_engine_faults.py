"""Engines that are killed, that hang and that crash for ever: the harm stays with the version.

With `GATEWAY_TEST_ROUNDS`, the number of answers to measure over, the times of the other versions' answers before and
during each fault are printed side by side.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines import save_divider, save_looper
from tests.gateways import RunningGateway, call, eventually
from tests.load import ROWS, Answer, Load, features, vector
from tests.rounds import rounds

MODEL = "bike-demand"
SMALLEST = -(2**63)


def expected_answers(gateway: RunningGateway, version: int) -> list[list[float]]:
    url = f"{gateway.http_url}/v2/models/{MODEL}/versions/{version}/infer"
    answers = [call(url, {"inputs": [features(row)]})[1] for row in ROWS]
    return [answer["outputs"][0]["data"] for answer in answers]


def wrong(answers: list[Answer], expected: list[list[float]]) -> list[Answer]:
    """Answers that are not 200 or whose values are not those expected for their row."""
    return [
        answer
        for answer in answers
        if answer.status != 200
        or answer.body["outputs"][0]["data"] != expected[int(answer.request_id.rpartition("-")[2]) % len(ROWS)]
    ]


def stop_all(gateway: RunningGateway, model: str, version: int) -> None:
    """Freeze an engine whole, whichever front is asked."""
    instances = eventually(lambda: gateway.instances(model, version), what="the engine's instances")
    assert len(instances) == 2
    for pid in instances:
        os.kill(pid, signal.SIGSTOP)


def answered_again(load: Load, moment: float) -> float:
    """Seconds from `moment` to the first good answer to a request sent after it."""
    good = eventually(
        lambda: [answer for answer in list(load.answers) if answer.sent > moment and answer.status == 200],
        seconds=30,
        what="an answer of the new engine",
    )
    return min(answer.received for answer in good) - moment


@pytest.mark.fault
@pytest.mark.promise("P5")
def test_a_killed_engine_costs_what_it_was_running_and_serves_again(gateway: RunningGateway) -> None:
    expected = {version: expected_answers(gateway, version) for version in (1, 2)}
    with (
        Load(gateway.http_port, version=1) as others,
        Load(gateway.http_port, version=2, connections=6) as load,
    ):
        for freeze in (False, True):
            load.wait(50)
            (victim,) = gateway.children(f"engine {MODEL}/2")
            if freeze:
                # So that requests are certainly running in it when it dies.
                stop_all(gateway, MODEL, 2)
                time.sleep(0.3)
            failed_before, killed = len(load.failed), time.time()
            os.kill(victim, signal.SIGKILL)
            again = answered_again(load, killed)
            print(f"the killed engine's version answered again after {again:.2f} s")
            failures = load.failed[failed_before:]
            assert len(failures) <= 6, "only what was running"
            if freeze:
                assert failures
            assert again < 10
    assert not load.broken and not others.broken
    assert {answer.status for answer in load.failed} <= {500, 503}
    for answer in load.failed:
        assert answer.body["error"] == f"the engine of model '{MODEL}' version 2 ended while running this request"
    assert not wrong(others.answers, expected[1])
    assert not wrong([answer for answer in load.answers if answer.status == 200], expected[2])
    logged = {record.id: record for record in gateway.predictions()}
    assert all(logged[answer.prediction_id].status == answer.status for answer in load.answers), "failures are logged"


@pytest.mark.fault
@pytest.mark.promise("P5")
def test_a_frozen_engine_is_replaced_and_its_requests_end_in_time(gateway: RunningGateway) -> None:
    expected = expected_answers(gateway, 1)
    with (
        Load(gateway.http_port, version=1) as others,
        Load(gateway.http_port, version=2, headers={"Gateway-Timeout-Ms": "700"}) as load,
    ):
        load.wait(50)
        (victim,) = gateway.children(f"engine {MODEL}/2")
        frozen = time.time()
        stop_all(gateway, MODEL, 2)
        eventually(
            lambda: gateway.children(f"engine {MODEL}/2") not in ([], [victim]), seconds=30, what="another engine"
        )
        again = answered_again(load, frozen + 0.5) + 0.5
        print(f"the frozen engine's version answered again after {again:.2f} s")
    assert not load.broken
    assert load.failed and {answer.status for answer in load.failed} <= {500, 503, 504}
    timeouts = [answer for answer in load.failed if answer.status == 504]
    assert timeouts
    assert timeouts[0].body["error"] == f"model '{MODEL}' version 2 did not answer in time"
    assert max(answer.received - answer.sent for answer in load.failed) < 5
    assert not others.broken and not wrong(others.answers, expected)


def percentile(answers: list[Answer], share: float) -> float:
    times = sorted(answer.received - answer.sent for answer in answers)
    return times[int(share * (len(times) - 1))]


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.promise("P5")
def test_however_an_engine_ends_its_requests_end_in_time_and_the_others_stay_right(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    models = {"fragile": save_divider(tmp_path / "fragile.onnx"), "endless": save_looper(tmp_path / "endless.onnx")}
    urls = {}
    for model, file in models.items():
        urls[model] = f"{gateway.http_url}/v2/models/{model}/versions/{gateway.add(model, file)}/infer"
    harmless = {"fragile": {"inputs": [vector("a", [42]), vector("b", [5])]}, "endless": {"inputs": [vector("n", [8])]}}

    def is_right(model: str) -> bool:
        status, answer = call(urls[model], harmless[model])
        return status == 200 and answer["outputs"][0]["data"] == [8]

    def signalled(number: int) -> int:
        if number == signal.SIGSTOP:
            stop_all(gateway, "fragile", 1)
        else:
            (victim,) = gateway.children("engine fragile")
            os.kill(victim, number)
        return call(urls["fragile"], harmless["fragile"], headers={"Gateway-Timeout-Ms": "1000"})[0]

    def asked(model: str, **values: int) -> int:
        body = {"inputs": [vector(name, [value]) for name, value in values.items()]}
        return call(urls[model], body, headers={"Gateway-Timeout-Ms": "1000"})[0]

    faults: dict[str, tuple[str, Callable[[], int], set[int]]] = {
        "SIGKILL": ("fragile", lambda: signalled(signal.SIGKILL), {200, 500, 504}),
        "SIGSEGV": ("fragile", lambda: signalled(signal.SIGSEGV), {200, 500, 504}),
        "SIGFPE by its input": ("fragile", lambda: asked("fragile", a=SMALLEST, b=-1), {500}),
        "SIGSTOP": ("fragile", lambda: signalled(signal.SIGSTOP), {504}),
        "an endless loop": ("endless", lambda: asked("endless", n=2**62), {504}),
    }
    expected = expected_answers(gateway, 1)
    with Load(gateway.http_port, version=1) as others:
        for name, (model, fault, statuses) in faults.items():
            eventually(lambda model=model: is_right(model), seconds=30, what=model)
            engines = gateway.children(f"engine {model}")
            start = len(others.answers)
            others.wait(rounds(30))
            middle, started = len(others.answers), time.monotonic()
            assert fault() in statuses, name
            assert time.monotonic() - started < 10, name
            eventually(lambda model=model: is_right(model), seconds=30, what=f"{model} after {name}")
            others.wait(rounds(30))
            before, during = others.answers[start:middle], others.answers[middle:]
            print(
                f"{name}: p50 and p99 of the others {1000 * percentile(before, 0.5):.1f} and "
                f"{1000 * percentile(before, 0.99):.1f} ms before, {1000 * percentile(during, 0.5):.1f} and "
                f"{1000 * percentile(during, 0.99):.1f} ms during; "
                f"p99 {percentile(during, 0.99) / percentile(before, 0.99):.2f} times"
            )
            if model == "endless":
                assert gateway.children(f"engine {model}") == engines, "the engine stopped the run and goes on"
    assert not others.broken and not wrong(others.answers, expected)


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.promise("P5")
def test_a_model_that_crashes_each_time_is_taken_out_and_the_rest_serves(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    version = gateway.add("divider", save_divider(tmp_path / "divider.onnx"))
    url = f"{gateway.http_url}/v2/models/divider/versions/{version}/infer"
    harmless = {"inputs": [vector("a", [42]), vector("b", [5])]}
    eventually(lambda: call(url, harmless)[0] == 200, what="the divider")
    assert call(url, harmless)[1]["outputs"][0]["data"] == [8]
    expected = expected_answers(gateway, 1)
    deadly = {"inputs": [vector("a", [SMALLEST]), vector("b", [-1])]}
    seen = []
    with Load(gateway.http_port, version=1) as others:
        deadline = time.monotonic() + 90
        while not seen or seen[-1][0] != 503:
            assert time.monotonic() < deadline, seen
            seen.append(call(url, deadly))
        status, answer = call(url, harmless)
    crashes = [answer["error"] for status, answer in seen if status == 500]
    # Each time the engine ends, so does what its other instance has just been asked.
    assert 5 <= len(crashes) <= 10
    assert set(crashes) == {f"the engine of model 'divider' version {version} ended while running this request"}
    assert status == 503
    assert f"model 'divider' version {version} is not available: its engine ended 5 times" in answer["error"]
    assert not others.broken and not wrong(others.answers, expected)
    assert "circuit open" in gateway.cli("models", "list")
    assert not gateway.children("engine divider")
