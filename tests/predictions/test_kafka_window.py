from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path

import pytest

from gateway.events.addresses import format_id
from gateway.predictions.kafka_window import KafkaUnreadable, ends_of_topics, read_topics
from gateway.predictions.reconcile import lives_of
from gateway.predictions.segments import LogRecord
from gateway.predictions.shipper import Shipper
from gateway.predictions.spool import SpoolWriter
from gateway.settings import KafkaSettings, SpoolSettings

START = 1330560000.0


@pytest.mark.broker
def test_a_window_of_the_topics_is_read_once_however_often_it_was_shipped(tmp_path: Path, kafka: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka, topic_prefix=f"t{uuid.uuid4().hex[:10]}", request_timeout_ms=5000)
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    written = []
    for number in range(1, 61):
        event = {
            "id": format_id(writer.boot, number),
            "time": f"2012-03-01T00:00:{number - 1:02d}Z",
            "model": f"m{number % 5}",
        }
        written.append(LogRecord(1 + number % 2, writer.boot, number, json.dumps(event).encode()))
        writer.append([(written[-1].kind, written[-1].payload)])
    for _ in range(2):
        asyncio.run(ship(tmp_path, settings))
        (tmp_path / "shipper.json").unlink()
    found = list(read_topics(settings, kinds={1, 2}))
    assert sorted(found, key=lambda record: record.sequence) == written
    predictions = list(read_topics(settings, kinds={1}, since=START + 10, until=START + 20))
    assert sorted(record.sequence for record in predictions) == list(range(12, 21, 2))
    repeated = list(read_topics(settings, kinds={1, 2}, with_repetitions=True))
    [life] = lives_of(repeated)
    assert (life.records, life.repeated, life.gaps) == (60, 60, [])
    assert list(read_topics(settings, kinds={1}, since=START + 10**6)) == []


@pytest.mark.broker
def test_what_comes_after_an_end_is_not_read_to_it(tmp_path: Path, kafka: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka, topic_prefix=f"t{uuid.uuid4().hex[:10]}", request_timeout_ms=5000)
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())

    def write(count: int) -> None:
        for number in range(count):
            event = {"id": format_id(writer.boot, writer.next_sequence), "time": "2012-03-01T00:00:00Z"}
            writer.append([(1, json.dumps({**event, "model": f"m{number % 5}"}).encode())])
        asyncio.run(ship(tmp_path, settings))

    write(30)
    ends = ends_of_topics(settings, kinds={1})
    assert sum(ends.values()) == 30
    write(30)
    found = read_topics(settings, kinds={1}, ends=ends)
    assert sorted(record.sequence for record in found) == list(range(1, 31))
    assert len(list(read_topics(settings, kinds={1}))) == 60


async def ship(spool: Path, settings: KafkaSettings) -> None:
    stop = asyncio.Event()
    stop.set()
    shipper = Shipper(spool, settings, note=lambda text: None, stop_seconds=30)
    await asyncio.create_task(shipper._ship_until(stop))


def test_brokers_that_are_away_are_named() -> None:
    with pytest.raises(KafkaUnreadable, match="bootstrap_servers is empty"):
        next(read_topics(KafkaSettings(), kinds={1}))
    nobody = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_ms=500)
    with pytest.raises(KafkaUnreadable, match="cannot read gateway.predictions: Kafka at 127.0.0.1:1 is out of reach"):
        next(read_topics(nobody, kinds={1}))


@pytest.mark.broker
def test_a_topic_that_is_not_there_is_named(kafka: str) -> None:
    settings = KafkaSettings(bootstrap_servers=kafka, topic_prefix=f"t{uuid.uuid4().hex[:10]}", request_timeout_ms=5000)
    with pytest.raises(KafkaUnreadable, match=r"cannot read t\w+.predictions"):
        next(read_topics(settings, kinds={1}))
