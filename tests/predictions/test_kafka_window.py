from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest
from aiokafka import TopicPartition

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


class Message(NamedTuple):
    offset: int
    headers: tuple[tuple[str, bytes], ...]
    value: bytes


class StubConsumer:
    """A consumer of one partition, which gives all of it at once."""

    place = TopicPartition("gateway.predictions", 0)

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def subscribe(self, topics: list[str]) -> None:
        pass

    def assignment(self) -> set[TopicPartition]:
        return {self.place}

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, len(self.messages))

    def seek(self, place: TopicPartition, offset: int) -> None:
        pass

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Message]]:
        return {self.place: self.messages}

    async def position(self, place: TopicPartition) -> int:
        return len(self.messages)


def test_records_of_two_gateways_that_were_started_in_the_same_millisecond_are_both_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = [
        Message(
            offset,
            (
                ("ce_type", b"gateway.prediction.v1"),
                ("ce_id", format_id("0196f0c5d2a100", number).encode()),
                ("ce_source", b"/gateway/" + gateway),
            ),
            b'{"id":"%d","time":"2012-03-01T00:00:00Z","model":"m","gateway":"%b"}' % (number, gateway),
        )
        for offset, (gateway, number) in enumerate([(b"a", 1), (b"b", 1), (b"a", 2), (b"b", 1), (b"b", 2)])
    ]

    async def new_consumer(settings: KafkaSettings) -> StubConsumer:
        return StubConsumer(messages)

    monkeypatch.setattr("gateway.predictions.kafka_window._new_consumer", new_consumer)
    found = read_topics(KafkaSettings(bootstrap_servers="127.0.0.1:1"), kinds={1})
    assert [record.payload for record in found] == [messages[place].value for place in (0, 1, 2, 4)]


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
