"""Whatever a network or a broker does between the gateway and Kafka: callers never notice, and the log is whole.

`GATEWAY_TEST_ROUNDS` times as long as here goes on what has a length; `-s` shows the latencies.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.brokers import KafkaBroker
from tests.checker import History, check, counts_of, dead_letters, read_history, spooled, topic
from tests.gateways import RunningGateway, eventually, start_gateway
from tests.load import Answer, Load
from tests.proxies import ChaosProxy

pytestmark = [pytest.mark.broker, pytest.mark.fault, pytest.mark.slow]

ROUNDS = int(os.environ.get("GATEWAY_TEST_ROUNDS", "1"))
SETTINGS = {"GATEWAY_KAFKA__REQUEST_TIMEOUT_MS": "2000", "GATEWAY_MONITOR__SOURCE": "spool"}
TOPIC = "gateway.predictions"
ARRIVAL_SECONDS = 60.0


class World(NamedTuple):
    """A gateway, a broker, and a proxy between them; the test itself reads the broker past the proxy."""

    gateway: RunningGateway
    broker: KafkaBroker
    proxy: ChaosProxy

    def drain(self) -> None:
        """Wait until everything that is in the spool now has been acknowledged or set aside."""
        spool = self.gateway.state_dir / "spool"
        wanted = len(spooled(spool))

        def shipped() -> bool:
            counts = counts_of(self.gateway.state_dir)
            return counts.shipped + counts.dead_letters >= wanted

        eventually(shipped, seconds=ARRIVAL_SECONDS, what=f"the arrival of {wanted} events")

    def assert_whole(self, history: Path) -> None:
        """Everything answered is in the topic, once or with equal repetitions, in order."""
        self.drain()
        entries = topic(self.broker.bootstrap_servers, TOPIC) + dead_letters(self.gateway.state_dir / "spool")
        verdict = check(read_history(history), entries)
        print(verdict)
        assert not verdict.faults, "\n".join(verdict.faults)
        assert verdict.answered == verdict.sent, "every request was answered"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    broker = KafkaBroker(tmp_path_factory.mktemp("broker"), listeners={"PROXIED": "PLAINTEXT"})
    with ChaosProxy(lambda: broker.port("PROXIED")) as proxy:
        broker.advertise("PROXIED", proxy.port)
        broker.start()
        place = tmp_path_factory.mktemp("gateway")
        gateway = start_gateway(place, kafka=f"127.0.0.1:{proxy.port}", environment=SETTINGS)
        try:
            yield World(gateway, broker, proxy)
        finally:
            proxy.heal()
            status = gateway.stop()
            broker.kill()
        assert status == 0


def delayed(world: World, load: Load) -> None:
    world.proxy.delay(0.3)
    load.wait(100 * ROUNDS, seconds=60.0 * ROUNDS)


def on_a_slow_line(world: World, load: Load) -> None:
    world.proxy.slow(20_000)
    load.wait(100 * ROUNDS, seconds=60.0 * ROUNDS)


def in_a_black_hole(world: World, load: Load) -> None:
    world.proxy.black_hole()
    load.wait(200 * ROUNDS, seconds=60.0 * ROUNDS)


def cut_off(world: World, load: Load) -> None:
    world.proxy.cut()
    load.wait(200 * ROUNDS, seconds=60.0 * ROUNDS)


def bereft_of_answers(world: World, load: Load) -> None:
    before = world.proxy.lost_answers
    for _ in range(3 * ROUNDS):
        lost = world.proxy.lost_answers
        world.proxy.lose_answers(1)
        eventually(lambda lost=lost: world.proxy.lost_answers > lost, seconds=30, what="an answer to be lost")
        load.wait(20)
    assert world.proxy.lost_answers >= before + 3 * ROUNDS


def damaged(world: World, load: Load) -> None:
    world.proxy.damage()
    load.wait(100 * ROUNDS, seconds=60.0 * ROUNDS)


def frozen(world: World, load: Load) -> None:
    world.broker.freeze()
    load.wait(200 * ROUNDS, seconds=60.0 * ROUNDS)
    world.broker.thaw()


def restarted(world: World, load: Load) -> None:
    world.broker.kill()
    load.wait(100 * ROUNDS, seconds=60.0 * ROUNDS)
    # Its partitions come back under another leader epoch.
    world.broker.start()


@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.parametrize(
    "fault", [delayed, on_a_slow_line, in_a_black_hole, cut_off, bereft_of_answers, damaged, frozen, restarted]
)
def test_nobody_notices_and_nothing_is_lost_when_kafka_is(
    fault: Callable[[World, Load], None], world: World, tmp_path: Path
) -> None:
    history = History(tmp_path / "history")
    with Load(world.gateway.http_port, pause_seconds=0.01, history=history) as load:
        load.wait(50 * ROUNDS, seconds=60.0 * ROUNDS)
        began = time.time()
        fault(world, load)
        ended = time.time()
        world.proxy.heal()
        world.drain()
        drained = time.time()
        load.wait(50 * ROUNDS, seconds=60.0 * ROUNDS)
    history.close()
    show_latencies(load.answers, began, ended, drained)
    assert not load.failed and not load.broken
    world.assert_whole(history.path)


def test_a_topic_that_is_deleted_is_made_again_and_takes_what_comes_after(world: World, tmp_path: Path) -> None:
    during, after = History(tmp_path / "during"), History(tmp_path / "after")
    with Load(world.gateway.http_port, pause_seconds=0.01, history=during) as load:
        load.wait(50)
        asyncio.run(delete_topic(world.broker.bootstrap_servers, TOPIC))
        load.wait(100)
    during.close()
    assert not load.failed and not load.broken
    world.drain()
    with Load(world.gateway.http_port, pause_seconds=0.01, history=after) as later:
        later.wait(100)
    after.close()
    assert not later.failed and not later.broken
    world.assert_whole(after.path)
    everything = check(read_history(during.path), spooled(world.gateway.state_dir / "spool"))
    assert not everything.faults, everything.faults


@pytest.mark.promise("P13")
def test_a_black_hole_does_not_hold_up_the_stop_and_the_next_start_ships_the_rest(world: World, tmp_path: Path) -> None:
    history = History(tmp_path / "history")
    place = tmp_path / "gateway"
    place.mkdir()
    kafka = f"127.0.0.1:{world.proxy.port}"
    prefix = {"GATEWAY_KAFKA__TOPIC_PREFIX": "second"}
    gateway = start_gateway(place, kafka=kafka, environment=SETTINGS | prefix)
    with Load(gateway.http_port, pause_seconds=0.01, history=history) as load:
        load.wait(50)
        world.proxy.black_hole()
        load.wait(100)
    history.close()
    assert gateway.stop() == 0
    world.proxy.heal()
    again = start_gateway(place, kafka=kafka, environment=SETTINGS | prefix)
    try:
        eventually(
            lambda: (
                not check(
                    read_history(history.path), topic(world.broker.bootstrap_servers, "second.predictions")
                ).faults
            ),
            seconds=ARRIVAL_SECONDS,
            what="everything of the life before in the topic",
        )
    finally:
        assert again.stop() == 0


def show_latencies(answers: list[Answer], began: float, ended: float, drained: float) -> None:
    """Print what callers waited before, in and after a fault: never asserted, as machines differ."""
    spans = {"before": (0.0, began), "during": (began, ended), "draining": (ended, drained), "after": (drained, 9e99)}
    for name, (start, end) in spans.items():
        waits = sorted(answer.received - answer.sent for answer in answers if start <= answer.sent < end)
        if waits:
            middle, late = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
            print(f"{name:9} {len(waits):6} answers, p50 {middle * 1e3:6.2f} ms, p99 {late * 1e3:6.2f} ms")


async def delete_topic(bootstrap_servers: str, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_topics([name])
    finally:
        await admin.close()
