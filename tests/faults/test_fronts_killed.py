"""kill -9 of fronts under load: what was answered is in the log, and the gateway serves on by itself."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.gateways import RunningGateway, eventually
from tests.load import Load

ROUNDS = 20


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.promise("P1")
def test_no_answered_prediction_is_missing_after_twenty_kills(gateway: RunningGateway) -> None:
    draw = random.Random(20)
    back = []
    with Load(gateway.http_port, connections=6, pause_seconds=0.002) as load:
        load.wait(50)
        for _ in range(ROUNDS):
            time.sleep(draw.uniform(0.0, 0.3))
            victim = draw.choice(eventually(lambda: gateway.children("front"), what="a front"))
            killed = time.time()
            os.kill(victim, signal.SIGKILL)
            back.append(answered_after(load, killed))
        eventually(lambda: len(gateway.children("front")) == 2, seconds=30, what="both fronts")
        load.wait(50)
    print(
        f"{len(load.answers)} answers, {len(load.broken)} broken by {ROUNDS} kills; "
        f"an answer came {sorted(back)[ROUNDS // 2]:.2f} s (median), {max(back):.2f} s (most) after a kill"
    )
    assert not load.failed
    sent = set(load.sent)
    logged = {record.id: record for record in gateway.predictions() if (record.request_id or "").startswith(load.name)}
    missing = [answer for answer in load.answers if answer.prediction_id not in logged]
    assert not missing
    for answer in load.answers:
        record = logged[answer.prediction_id]
        assert record.request_id == answer.request_id
        assert [output.data for output in record.outputs] == [output["data"] for output in answer.body["outputs"]]
    requests = [record.request_id for record in logged.values()]
    assert set(requests) <= sent, "everything logged was sent"
    assert len(requests) == len(set(requests)), "and once"


@pytest.mark.fault
def test_a_front_that_ended_is_started_again(gateway: RunningGateway) -> None:
    before = set(eventually(lambda: _both(gateway), seconds=30, what="both fronts"))
    victim = min(before)
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    with Load(gateway.http_port, fresh=True, connections=2) as load:
        slot = next(name for name, pid in gateway.titles().items() if pid in before - {victim})[-1]
        other = {"0": "01", "1": "00"}[slot]
        eventually(
            lambda: any(answer.prediction_id[12:14] == other for answer in list(load.answers)),
            seconds=30,
            what="an answer of the front that was killed",
        )
        print(f"a killed front answered again after {time.monotonic() - killed:.2f} s")
    assert not load.failed


def answered_after(load: Load, moment: float) -> float:
    """Seconds from `moment` to the first answer to a request sent after it."""
    eventually(lambda: load.answers[-1].sent > moment, seconds=30, what="an answer after the kill")
    return next(answer.received for answer in load.answers if answer.sent > moment) - moment


def _both(gateway: RunningGateway) -> list[int]:
    fronts = gateway.children("front")
    return fronts if len(fronts) == 2 else []
