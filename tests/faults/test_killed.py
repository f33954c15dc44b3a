"""kill -9 of fronts, shipper and supervisor at random moments under load, judged from what the clients wrote down.

`GATEWAY_TEST_ROUNDS` sets the number of kills of each test; the default is for every commit.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import KafkaBroker
from tests.checker import (
    Counts,
    Entry,
    History,
    check,
    check_counts,
    counts_of,
    dead_letters,
    read_history,
    spooled,
    topic,
)
from tests.gateways import eventually, start_gateway
from tests.load import Load
from tests.processes import is_running

ROUNDS = int(os.environ.get("GATEWAY_TEST_ROUNDS", "4"))
EMBEDDED = ("front", "supervisor", *["front"] * 6)
WITH_KAFKA = ("front", "shipper", "supervisor", "shipper", "front", "front", "shipper", "front")
SEED = 20
CONNECTIONS = 6
FRONTS = 2


class Siege:
    """A gateway that is killed again and again, in parts or whole, and the clients that keep asking it.

    Its lives sync in turn never, always and at an interval.
    """

    def __init__(self, place: Path, *, kafka: str | None = None) -> None:
        self.kills: Counter[str] = Counter()
        self.broken = 0
        self._counted: list[Counts] = []
        self.failed: Counter[int] = Counter()
        self._place = place
        self._kafka = kafka
        self._modes = itertools.cycle(("never", "always", "interval"))
        self._draw = random.Random(SEED)
        self.history = History(place / "client.jsonl")
        self._begin()

    def _begin(self) -> None:
        environment = {"GATEWAY_KAFKA__REQUEST_TIMEOUT_MS": "3000", "GATEWAY_SPOOL__FSYNC": next(self._modes)}
        self.gateway = start_gateway(self._place, fronts=FRONTS, environment=environment, kafka=self._kafka)
        self._load = Load(self.gateway.http_port, connections=CONNECTIONS, pause_seconds=0.002, history=self.history)
        self._load.__enter__()
        self._load.wait(30)

    def strike(self, victim: str) -> None:
        """Kill one process, or the supervisor and with it all of them, and wait for the next answer."""
        time.sleep(self._draw.uniform(0.0, 0.4))
        self.kills[victim] += 1
        if victim == "supervisor":
            children = list(self.gateway.titles().values())
            self.gateway.kill()
            eventually(lambda: not [pid for pid in children if is_running(pid)], what="the end of all children")
            self.end_load()
            # A gateway that starts counts from zero again.
            self._counted.append(counts_of(self.gateway.state_dir))
            self._begin()
            return
        pid = self._draw.choice(eventually(lambda: self.gateway.children(victim), what=f"a {victim}"))
        os.kill(pid, signal.SIGKILL)
        killed = time.time()
        eventually(lambda: self._load.answers[-1].sent > killed, seconds=30, what="an answer after the kill")

    def miscounted(self, entries: list[Entry]) -> list[str]:
        """What the metrics of all lives say that the log does not."""
        lives = [*self._counted, counts_of(self.gateway.state_dir)]
        counts = Counts(*(sum(column) for column in zip(*lives, strict=True)))
        fronts = self.kills["front"] + FRONTS * self.kills["supervisor"]
        told = [f"{counts} tell of damage where there is none"] if counts.corrupt or counts.missing else []
        return told + check_counts(counts, entries, kills=fronts, batch=CONNECTIONS)

    def end_load(self) -> None:
        self._load.stop()
        self.broken += len(self._load.broken)
        self.failed.update(answer.status for answer in self._load.failed)

    def end(self) -> None:
        """No more requests, and the gateway stays up."""
        self._load.wait(30)
        self.end_load()
        self.history.close()


@contextlib.contextmanager
def siege(place: Path, *, kafka: str | None = None) -> Iterator[Siege]:
    begun = Siege(place, kafka=kafka)
    try:
        yield begun
    finally:
        begun._load.stop()
        begun.gateway.stop()


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.promise("P1")
def test_whatever_is_killed_every_answer_is_in_the_log_as_it_was_given(tmp_path: Path) -> None:
    with siege(tmp_path) as under:
        for victim in itertools.islice(itertools.cycle(EMBEDDED), ROUNDS):
            under.strike(victim)
        under.end()
    entries = spooled(under.gateway.state_dir / "spool")
    verdict = check(read_history(under.history.path), entries, alone=True)
    print(f"kills {dict(under.kills)}: {verdict}; {under.broken} connections broken, {under.failed}")
    assert not verdict.faults
    assert verdict.gaps == 0
    assert under.failed.keys() <= {503}, "while no engine is reached"
    assert not under.miscounted(entries)


@pytest.mark.fault
@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(120 + 20 * ROUNDS)
@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
def test_whatever_is_killed_kafka_gets_every_answer_in_order(tmp_path: Path, own_kafka: KafkaBroker) -> None:
    broker = own_kafka.bootstrap_servers
    with siege(tmp_path, kafka=broker) as under:
        for victim in itertools.islice(itertools.cycle(WITH_KAFKA), ROUNDS):
            under.strike(victim)
        under.end()
        spool_dir = under.gateway.state_dir / "spool"
        entries = spooled(spool_dir)
        logged = {entry.id for entry in entries if entry.lane.startswith("front-")}

        def arrived() -> bool:
            return logged <= {entry.id for entry in [*topic(broker, "gateway.predictions"), *dead_letters(spool_dir)]}

        eventually(arrived, seconds=60, what="the arrival of the whole log in Kafka")
    history = read_history(under.history.path)
    shipped = [*topic(broker, "gateway.predictions"), *dead_letters(spool_dir)]
    for place, found in (("spool", entries), ("topic", shipped), ("both", entries + shipped)):
        verdict = check(history, found, alone=True)
        print(f"{place}, kills {dict(under.kills)}: {verdict}; {under.broken} connections broken, {under.failed}")
        assert not verdict.faults, place
        assert verdict.gaps == 0
    assert under.failed.keys() <= {503}, "while no engine is reached"
    assert not under.miscounted(entries)
