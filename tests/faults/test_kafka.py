"""Apache Kafka absent at the start, killed under load, and read by the monitor: callers never notice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.events.addresses import parse_id
from tests.brokers import KafkaBroker, consume
from tests.engines import save_adder, save_divider
from tests.gateways import RunningGateway, call, eventually, start_gateway
from tests.load import Load, vector

SETTINGS = {"GATEWAY_KAFKA__REQUEST_TIMEOUT_MS": "3000", "GATEWAY_MONITOR__SOURCE": "kafka"}
pytestmark = [pytest.mark.broker, pytest.mark.fault, pytest.mark.slow]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A broker of this module alone, not started yet."""
    made = KafkaBroker(tmp_path_factory.mktemp("broker"))
    yield made
    made.kill()


@pytest.fixture(scope="module")
def gateway(broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that was started while no broker answered."""
    place = tmp_path_factory.mktemp("gateway")
    started = start_gateway(place, kafka=broker.bootstrap_servers, fronts=2, environment=SETTINGS)
    yield started
    assert started.stop() == 0


@pytest.mark.promise("P3")
def test_a_broker_that_is_away_at_the_start_changes_nothing_and_gets_everything_later(
    gateway: RunningGateway, broker: KafkaBroker
) -> None:
    with Load(gateway.http_port, pause_seconds=0.01) as load:
        load.wait(300)
        broker.start()
        load.wait(100)
    assert not load.failed and not load.broken
    arrived(broker, "predictions", {answer.prediction_id for answer in load.answers})


@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
def test_a_broker_killed_under_load_loses_nothing_and_fails_nobody(
    gateway: RunningGateway, broker: KafkaBroker
) -> None:
    with Load(gateway.http_port, connections=6, pause_seconds=0.01) as load:
        load.wait(200)
        for _ in range(2):
            broker.kill()
            load.wait(200)
            broker.start()
            load.wait(100)
    assert not load.failed and not load.broken
    messages = arrived(broker, "predictions", {answer.prediction_id for answer in load.answers})
    sent = set(load.sent)
    values = [msgspec.json.decode(message.value) for message in messages]
    ours = [value for value in values if (value["request_id"] or "").startswith(load.name)]
    assert {value["id"] for value in ours} == {answer.prediction_id for answer in load.answers}
    assert {value["request_id"] for value in ours} == sent

    by_lane: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    by_id: dict[str, set[bytes]] = defaultdict(set)
    for message, value in zip(messages, values, strict=True):
        boot, sequence = parse_id(value["id"])
        lane = by_lane[boot, value["model"], message.partition]
        if sequence not in lane:
            lane.append(sequence)
        by_id[value["id"]].add(message.value)
        assert message.key == value["model"].encode()
        assert dict(message.headers)["ce_id"] == value["id"].encode()
    assert all(lane == sorted(lane) for lane in by_lane.values()), "in order per front and model"
    assert len({(boot, model) for boot, model, _ in by_lane}) == len(by_lane), "a model keeps its partition"
    assert all(len(contents) == 1 for contents in by_id.values()), "duplicates are equal byte for byte"
    print(f"{len(messages) - len(by_id)} duplicates among {len(messages)} messages")
    headers = {name: value.decode() for name, value in messages[-1].headers}
    assert headers["ce_specversion"] == "1.0"
    assert headers["content-type"] == "application/json"
    assert {"ce_id", "ce_source", "ce_type", "ce_time", "ce_subject"} <= headers.keys()


@pytest.mark.promise("P11")
def test_the_monitor_takes_a_failing_canary_back_on_what_it_reads_from_kafka(
    gateway: RunningGateway, broker: KafkaBroker, tmp_path: Path
) -> None:
    stable = gateway.add("arithmetic", save_adder(tmp_path / "adder.onnx"))
    gateway.set_route("arithmetic", stable)
    canary = gateway.add("arithmetic", save_divider(tmp_path / "divider.onnx"))
    by_zero = [[vector("a", [7]), vector("b", [0])]]
    with Load(gateway.http_port, "arithmetic", inputs=by_zero) as load:
        gateway.set_route("arithmetic", stable, canary, 50)
        decision = gateway.last_decision("arithmetic", "rollback")
    assert decision["actor"] == "gateway monitor"
    (message,) = [
        message
        for message in arrived(broker, "decisions", {decision["id"]})
        if dict(message.headers)["ce_id"] == decision["id"].encode()
    ]
    value = msgspec.json.decode(message.value)
    assert value["evidence"] == decision["evidence"]
    assert value["hash"] == decision["hash"]
    assert message.key == b"arithmetic"

    label = {"prediction_id": load.answers[0].prediction_id, "row": 0, "label": 7.0}
    status, answer = call(f"{gateway.http_url}/v2/models/arithmetic/feedback", label)
    assert (status, answer) == (200, {"accepted": 1})
    eventually(
        lambda: [
            message
            for message in consume(broker.bootstrap_servers, "gateway.feedback")
            if msgspec.json.decode(message.value)["prediction_id"] == label["prediction_id"]
        ],
        seconds=30,
        what="the label in gateway.feedback",
    )


def arrived(broker: KafkaBroker, topic: str, ids: set[str]) -> list[Any]:
    """Wait until all these ids are in a topic; returns all its messages, by partition and offset."""
    found: list[Any] = []

    def all_there() -> bool:
        found[:] = consume(broker.bootstrap_servers, f"gateway.{topic}")
        return ids <= {dict(message.headers)["ce_id"].decode() for message in found}

    eventually(all_there, seconds=60, what=f"the arrival of {len(ids)} events in gateway.{topic}")
    return found
