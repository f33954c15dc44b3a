"""A canary is taken back, by hand and by the system, and the decision says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.events.encoding import seconds_of
from tests.engines import save_adder, save_divider
from tests.gateways import RunningGateway, arrival, eventually, front_of
from tests.load import Load, vector


@pytest.mark.promise("P11")
def test_a_rollback_by_hand_leaves_the_canary_no_new_request_a_second_later(gateway: RunningGateway) -> None:
    gateway.set_route("bike-demand", 1, 2, 50)
    with Load(gateway.http_port, fresh=True) as load:
        load.wait(100)
        gateway.cli("rollback", "bike-demand", "--reason", "a test of rollbacks")
        decision = gateway.last_decision("bike-demand", "rollback")
        eventually(lambda: load.answers[-1].sent > decision["at"] + 2.0, what="load after the decision")
    assert decision["reason"] == "a test of rollbacks"
    assert not load.failed and not load.broken
    sent = set(load.sent)
    records = [record for record in gateway.predictions() if record.request_id in sent]
    before = [record for record in records if arrival(record) < decision["at"]]
    assert {record.version for record in before} == {1, 2}
    late = [arrival(record) - decision["at"] for record in records if record.version == 2]
    print(f"the last request that the canary got arrived {max(late):+.3f} s after the decision")
    assert max(late) < 1.0
    assert {front_of(record) for record in records if arrival(record) > decision["at"] + 1.0} == {"00", "01"}


@pytest.mark.promise("P11")
def test_a_canary_that_fails_is_taken_back_by_the_system(gateway: RunningGateway, tmp_path: Path) -> None:
    stable = gateway.add("arithmetic", save_adder(tmp_path / "adder.onnx"))
    gateway.set_route("arithmetic", stable)
    canary = gateway.add("arithmetic", save_divider(tmp_path / "divider.onnx"))
    # By zero: an error of the run, which the engine survives.
    by_zero = [[vector("a", [7]), vector("b", [0])]]
    with Load(gateway.http_port, "arithmetic", inputs=by_zero, fresh=True) as load:
        load.wait(30)
        gateway.set_route("arithmetic", stable, canary, 50)
        decision = gateway.last_decision("arithmetic", "rollback")
        eventually(lambda: load.answers[-1].sent > decision["at"] + 1.2, what="load after the decision")
    assert not load.broken
    assert decision["actor"] == "gateway monitor"
    assert decision["before"]["canary"] == canary and decision["before"]["weight"] == 50
    assert decision["after"]["canary"] is None and decision["after"]["weight"] == 0
    assert decision["evidence"]["metric"] == "errors"
    # Of its latest requests most failed, or more than chance explains: whichever the monitor saw first.
    assert "units on the canary failed" in decision["reason"] or "events on the canary" in decision["reason"]
    assert {answer.version for answer in load.failed} == {str(canary)}
    assert {answer.status for answer in load.failed} == {500}
    assert f"model 'arithmetic' version {canary} failed on this request" in load.failed[0].body["error"]
    sent = set(load.sent)
    late = [
        arrival(record) - decision["at"]
        for record in gateway.predictions()
        if record.request_id in sent and record.version == canary
    ]
    print(f"the last request that the failing canary got arrived {max(late):+.3f} s after the decision")
    assert max(late) < 1.0
    logged = eventually(
        lambda: [record for record in gateway.decisions() if record.id == decision["id"]], what="the decision's record"
    )
    assert logged[0].evidence == decision["evidence"]
    assert seconds_of(logged[0].time) == decision["at"]
    assert "none touched" in gateway.cli("audit", "verify")
