"""Which version answers: by weight, by routing key, by pin; and how a change reaches every front."""

from __future__ import annotations

import json

import pytest

from tests.gateways import RunningGateway, arrival, call, eventually, exchange, front_of
from tests.load import ROWS, Load, features

MODEL = "bike-demand"
TENSOR = {"inputs": [features(ROWS[0])]}


@pytest.mark.promise("P11")
def test_a_change_of_weight_is_in_force_on_every_front_a_second_later(gateway: RunningGateway) -> None:
    gateway.set_route(MODEL, 1, 2, 10)
    moments = []
    with Load(gateway.http_port, MODEL, fresh=True) as load:
        for weight in (60, 0, 100):
            load.wait(100)
            gateway.cli("route", "set", MODEL, "--stable", "1", "--canary", "2", "--weight", str(weight))
            moments.append((gateway.last_decision(MODEL, "route_set")["at"], float(weight)))
            load.wait(100)
            eventually(
                lambda: load.answers[-1].received > moments[-1][0] + 1.2, seconds=30, what="load after the change"
            )
    assert not load.failed and not load.broken
    sent = set(load.sent)
    records = [record for record in gateway.predictions() if record.request_id in sent]
    assert {front_of(record) for record in records} == {"00", "01"}, "both fronts answered"
    slowest = 0.0
    for (at, weight), (end, _) in zip(moments, [*moments[1:], (float("inf"), 0.0)], strict=True):
        during = [record for record in records if at < arrival(record) < end]
        assert {front_of(record) for record in during if record.weight == weight} == {"00", "01"}
        late = [arrival(record) - at for record in during if record.weight != weight]
        slowest = max([slowest, *late])
    print(f"a weight was in force on every front after {slowest:.3f} s")
    assert slowest < 1.0


def test_a_key_that_entered_the_canary_stays_in_it_while_the_weight_grows(gateway: RunningGateway) -> None:
    keys = [f"rider-{number}" for number in range(60)]
    entered: list[set[str]] = []
    gateway.set_route(MODEL, 1)
    for weight in (5, 25, 60, 100):
        gateway.set_route(MODEL, 1, 2, weight)
        canary = set()
        for key in keys:
            status, headers, answer = exchange(
                f"{gateway.http_url}/v2/models/{MODEL}/infer", TENSOR, headers={"Gateway-Routing-Key": key}
            )
            assert status == 200
            said = (headers["gateway-model-version"], headers["gateway-arm"])
            assert said in (("1", "stable"), ("2", "canary"))
            assert answer["model_version"] == said[0]
            if said[1] == "canary":
                canary.add(key)
        entered.append(canary)
    assert all(before <= after for before, after in zip(entered, entered[1:], strict=False))
    assert len(entered[0]) < len(entered[2]) < len(entered[3]) == len(keys)


def test_a_version_is_pinned_by_path_and_by_header(gateway: RunningGateway) -> None:
    gateway.set_route(MODEL, 1)
    url = f"{gateway.http_url}/v2/models/{MODEL}"
    by_path = call(f"{url}/versions/2/infer", TENSOR)
    by_header = call(f"{url}/infer", TENSOR, headers={"Gateway-Version": "2"})
    assert by_path[0] == by_header[0] == 200
    assert by_path[1]["model_version"] == by_header[1]["model_version"] == "2"
    assert by_path[1]["outputs"] == by_header[1]["outputs"]
    record = json.loads(gateway.cli("predictions", "show", by_path[1]["parameters"]["prediction_id"], "--json"))
    assert record["prediction"]["arm"] == "pinned"
    status, refused = call(f"{url}/versions/2/infer", TENSOR, headers={"Gateway-Version": "1"})
    assert status == 400
    assert "2" in refused["error"] and "1" in refused["error"]
