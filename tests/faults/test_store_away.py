"""The store is locked or gone: serving goes on with the last route, and follows again afterwards."""

from __future__ import annotations

import os
import signal
import sqlite3
import time

import pytest

from tests.gateways import RunningGateway, call, eventually
from tests.load import Load


@pytest.mark.fault
def test_serving_goes_on_while_another_process_holds_the_store(gateway: RunningGateway) -> None:
    gateway.set_route("bike-demand", 1, 2, 50)
    with Load(gateway.http_port) as load:
        load.wait(50)
        holder = sqlite3.connect(gateway.state_dir / "store.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        try:
            started = time.monotonic()
            status, answer = call(
                f"{gateway.admin_url}/api/v1/routes/bike-demand", {"stable": 1, "reason": "a test"}, method="PUT"
            )
            assert status == 503, answer
            assert "store" in answer["error"]
            time.sleep(max(0.0, 2.0 - (time.monotonic() - started)))
            load.wait(100)
        finally:
            holder.execute("ROLLBACK")
            holder.close()
        eventually(lambda: call(f"{gateway.admin_url}/api/v1/models")[0] == 200, what="the admin API")
        gateway.set_route("bike-demand", 1)
        load.wait(50)
    assert not load.failed and not load.broken
    assert {answer.version for answer in load.answers[-20:]} == {"1"}


@pytest.mark.fault
def test_a_front_that_starts_while_the_store_is_gone_serves_the_last_route(gateway: RunningGateway) -> None:
    gateway.set_route("bike-demand", 1, 2, 50)
    store = gateway.state_dir / "store.db"
    files = list(store.parent.glob("store.db*"))
    with Load(gateway.http_port, fresh=True) as load:
        load.wait(50)
        for path in files:
            path.rename(path.with_name(f"away-{path.name}"))
        store.mkdir()  # nothing can be opened, nor created, under its name
        try:
            before = set(gateway.children("front"))
            for victim in before:
                os.kill(victim, signal.SIGKILL)
            eventually(lambda: "the store is away" in gateway.output.read_text(), seconds=30, what="a line about it")
            eventually(gateway.is_ready, seconds=30, what="readiness")
            eventually(lambda: len(gateway.children("front")) == 2, seconds=30, what="both fronts")
            started, away = len(load.answers), len(load.broken)
            load.wait(100)
        finally:
            store.rmdir()
            for path in files:
                path.with_name(f"away-{path.name}").rename(path)
        eventually(lambda: "the store is back" in gateway.output.read_text(), seconds=30, what="a line about it")
        gateway.set_route("bike-demand", 2)
        load.wait(50)
    assert not load.failed and len(load.broken) == away
    assert {answer.version for answer in load.answers[started : started + 100]} == {"1", "2"}
    assert {answer.version for answer in load.answers[-20:]} == {"2"}
