"""kill -9 of a front: the gateway serves on by itself. What the log holds then is judged in `test_killed.py`."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.gateways import RunningGateway, eventually
from tests.load import Load


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


def _both(gateway: RunningGateway) -> list[int]:
    fronts = gateway.children("front")
    return fronts if len(fronts) == 2 else []
