"""One battery for every implementation of the port `LogSource`, then what is particular to each."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from gateway.events.addresses import format_id
from gateway.events.records import KIND_BLOCK, KIND_DECISION, KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.checkpoint import CHECKPOINT_NAME
from gateway.predictions.kafka_source import KafkaSource
from gateway.predictions.segments import LogRecord, expanded
from gateway.predictions.shipper import Shipper
from gateway.predictions.source import Deduplicator, ListSource, LogSource, SpoolSource
from gateway.predictions.spool import SpoolWriter
from gateway.predictions.topics import ensure_topics
from gateway.settings import KafkaSettings, SpoolSettings
from tests.blocks import singles
from tests.brokers import KafkaBroker, free_port


class Log:
    """A log that a test appends to and that a source of the kind under test reads."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.writer = SpoolWriter(spool / "front-0", slot=0, settings=SpoolSettings(segment_bytes=8192))
        self.written: list[LogRecord] = []

    async def append(self, count: int, *, kind: int = KIND_PREDICTION) -> None:
        for _ in range(count):
            sequence = self.writer.next_sequence
            record = {
                "id": format_id(self.writer.boot, sequence),
                "time": "2024-03-01T00:00:00Z",
                "model": f"model-{sequence % 5}",
            }
            payload = json.dumps(record).encode()
            self.written.append(LogRecord(kind, self.writer.boot, sequence, payload))
            self.writer.append([(kind, payload)])

    async def append_block(self, count: int) -> None:
        first, block = self.writer.next_sequence, singles(count)
        self.written += [
            LogRecord(KIND_PREDICTION, self.writer.boot, first + place, payload)
            for place, payload in enumerate(block.records(first, boot=self.writer.boot))
        ]
        self.writer.append([(KIND_BLOCK, block.payload())])

    def source(self, position: dict[str, Any] | None = None) -> LogSource:
        raise NotImplementedError


class SpoolLog(Log):
    def source(self, position: dict[str, Any] | None = None) -> LogSource:
        return SpoolSource(self.spool, position=position)


class ListLog(Log):
    def source(self, position: dict[str, Any] | None = None) -> LogSource:
        source = ListSource(position=position)
        source.records = self.written
        return source


class KafkaLog(Log):
    def __init__(self, spool: Path, servers: str) -> None:
        super().__init__(spool)
        self.settings = KafkaSettings(
            bootstrap_servers=servers, topic_prefix=f"t{uuid.uuid4().hex[:10]}", request_timeout_ms=3000
        )
        self.group = f"group-{self.settings.topic_prefix}"

    async def append(self, count: int, *, kind: int = KIND_PREDICTION) -> None:
        await super().append(count, kind=kind)
        await self.ship()

    async def append_block(self, count: int) -> None:
        await super().append_block(count)
        await self.ship()

    async def ship(self) -> None:
        stop = asyncio.Event()
        stop.set()
        shipper = Shipper(self.spool, self.settings, note=lambda text: None, stop_seconds=30)
        await asyncio.create_task(shipper._ship_until(stop))

    def source(self, position: dict[str, Any] | None = None) -> LogSource:
        return KafkaSource(self.settings, self.group, position=position)


@pytest.fixture(params=["spool", "list", pytest.param("kafka", marks=pytest.mark.broker)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    kinds: dict[str, Callable[[], Log]] = {
        "spool": lambda: SpoolLog(tmp_path),
        "list": lambda: ListLog(tmp_path),
        "kafka": lambda: KafkaLog(tmp_path, request.getfixturevalue("kafka")),
    }
    return kinds[request.param]()


async def read_until(source: LogSource, count: int, *, max_records: int = 100) -> list[LogRecord]:
    found: list[LogRecord] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            records = await source.read(max_records, 0.5)
            assert len(records) <= max_records
            found += records
    return found


def by_address(records: list[LogRecord]) -> list[LogRecord]:
    return sorted(records, key=lambda record: (record.boot, record.sequence))


async def test_every_record_comes_once_and_per_model_in_order(log: Log) -> None:
    await log.append(250)
    await log.append(20, kind=KIND_FEEDBACK)
    source = log.source()
    found = await read_until(source, 270, max_records=40)
    assert by_address(found) == log.written
    for kind in (KIND_PREDICTION, KIND_FEEDBACK):
        for model in range(5):
            numbers = [record.sequence for record in found if record.kind == kind and record.sequence % 5 == model]
            assert numbers == sorted(numbers)
    assert await source.read(10, 0.2) == []
    await log.append(5)
    assert by_address(await read_until(source, 5)) == log.written[-5:]
    await source.close()


async def test_a_position_survives_json_and_goes_on_where_it_stood(log: Log) -> None:
    await log.append(100)
    source = log.source()
    first = await read_until(source, 30, max_records=30)
    position = json.loads(json.dumps(source.position()))
    lost = await source.read(30, 0.5)
    await source.close()
    assert lost, "records read after the position must come again"
    again = log.source(position)
    rest = await read_until(again, 100 - len(first))
    assert by_address(first + rest) == log.written
    await again.close()


async def test_a_commit_after_a_checkpoint_repeats_nothing(log: Log) -> None:
    await log.append(50)
    source = log.source()
    await read_until(source, 50)
    position = json.loads(json.dumps(source.position()))
    await source.commit()
    await source.close()
    await log.append(10)
    again = log.source(position)
    assert by_address(await read_until(again, 10)) == log.written[50:]
    assert await again.read(10, 0.3) == []
    await again.close()


async def test_predictions_of_a_block_come_as_single_records_also_when_reading_is_broken_off(log: Log) -> None:
    for count in (5, 3, 40):
        await log.append_block(count)
        await log.append(1)
    source = log.source()
    found: list[LogRecord] = []
    async with asyncio.timeout(60):
        while len(found) < 7:
            records = await source.read(2, 0.5)
            assert len(records) <= 1 + 5
            found += records
    position = json.loads(json.dumps(source.position()))
    await source.commit()
    await source.close()
    again = log.source(position)
    found += await read_until(again, 51 - len(found), max_records=100)
    assert by_address(found) == log.written
    assert again.lag_events() == 0
    await again.close()


@pytest.mark.broker
async def test_predictions_come_back_from_kafka_as_blocks_when_they_are_asked_for(kafka: str, tmp_path: Path) -> None:
    log = KafkaLog(tmp_path, kafka)
    for count in (5, 3, 40):
        await log.append_block(count)
        await log.append(1)
    await log.append(6, kind=KIND_FEEDBACK)
    source = KafkaSource(log.settings, log.group, whole_blocks=True)
    found: list[LogRecord] = []
    async with asyncio.timeout(60):
        while sum(record.numbers for record in found) < 57:
            found += await source.read(30, 0.5)
    single = [each for record in found for each in (expanded(record) if record.kind == KIND_BLOCK else [record])]
    assert by_address(single) == log.written
    in_blocks = [record.numbers for record in found if record.kind == KIND_BLOCK]
    assert 5 in in_blocks and sum(in_blocks) >= 41, "a read may have broken off within the third"
    assert source.lag_events() == 0
    await source.close()


async def test_blocks_come_whole_from_a_spool_when_they_are_asked_for(tmp_path: Path) -> None:
    log = SpoolLog(tmp_path)
    for count in (5, 3, 40):
        await log.append_block(count)
        await log.append(1)
    source = SpoolSource(tmp_path, whole_blocks=True)
    found = await source.read(7, 0.5)
    assert [record.numbers for record in found] == [5, 1, 3]
    assert source.lag_events() == 42
    again = SpoolSource(tmp_path, position=json.loads(json.dumps(source.position())), whole_blocks=True)
    found += await again.read(100, 0.5)
    assert again.lag_events() == 0
    single = [each for record in found for each in (expanded(record) if record.kind == KIND_BLOCK else [record])]
    assert single == log.written
    for each in (source, again):
        await each.close()


async def test_an_empty_log_gives_nothing_and_closing_twice_is_harmless(log: Log) -> None:
    source = log.source()
    assert await source.read(10, 0.1) == []
    assert isinstance(json.dumps(source.position()), str)
    await source.commit()
    await source.close()
    await source.close()


@pytest.mark.broker
async def test_records_shipped_twice_come_once_and_decisions_and_strangers_never(kafka: str, tmp_path: Path) -> None:
    log = KafkaLog(tmp_path, kafka)
    await log.append(30)
    (tmp_path / CHECKPOINT_NAME).unlink()
    await log.append(10)
    await log.append(3, kind=KIND_DECISION)
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    topic = f"{log.settings.topic_prefix}.predictions"
    await producer.send_and_wait(topic, b"{}", partition=0)
    await producer.send_and_wait(topic, b"{}", partition=0, headers=[("ce_type", b"x"), ("ce_id", b"\xff")])
    await producer.stop()
    source = log.source()
    assert isinstance(source, KafkaSource)
    found = await read_until(source, 40)
    assert await source.read(100, 1.0) == []
    assert by_address(found) == log.written[:40]
    assert source.unreadable == 2
    assert source._seen.duplicates == 30
    await source.close()


@pytest.mark.broker
async def test_records_shipped_again_behind_a_position_do_not_come_again(kafka: str, tmp_path: Path) -> None:
    log = KafkaLog(tmp_path, kafka)
    await log.append(30)
    source = log.source()
    await read_until(source, 30)
    position = json.loads(json.dumps(source.position()))
    await source.close()
    (tmp_path / CHECKPOINT_NAME).unlink()
    await log.append(10)
    again = log.source(position)
    found = await read_until(again, 10)
    found += await again.read(100, 1.0)
    assert by_address(found) == log.written[30:]
    await again.close()


@pytest.mark.broker
async def test_from_the_latest_on_nothing_old_comes_wherever_the_group_stands(kafka: str, tmp_path: Path) -> None:
    log = KafkaLog(tmp_path, kafka)
    await log.append(20)
    source = log.source()
    await read_until(source, 20)
    await source.commit()
    await source.close()
    await log.append(20)
    latest = KafkaSource(log.settings, log.group, start="latest")
    async with asyncio.timeout(60):
        while not latest.position():
            assert await latest.read(100, 0.2) == []
    position = json.loads(json.dumps(latest.position()))
    await log.append(20)
    assert by_address(await read_until(latest, 20)) == log.written[40:]
    await latest.close()
    again = KafkaSource(log.settings, log.group, position=position, start="latest")
    assert by_address(await read_until(again, 20)) == log.written[40:]
    await again.close()


@pytest.mark.broker
async def test_two_members_share_the_partitions_and_one_that_leaves_costs_nothing(kafka: str, tmp_path: Path) -> None:
    log = KafkaLog(tmp_path, kafka)
    await ensure_topics(log.settings)
    await log.append(100)
    sources = [KafkaSource(log.settings, log.group) for _ in range(2)]
    found: list[LogRecord] = []

    async def read_both(count: int) -> None:
        async with asyncio.timeout(60):
            while len({record.sequence for record in found}) < count:
                for source in sources:
                    found.extend(await source.read(50, 0.2))
                    await source.commit()

    await read_both(100)
    await log.append(100)
    await read_both(200)
    async with asyncio.timeout(60):
        while not all(source.assigned for source in sources):
            for source in sources:
                found.extend(await source.read(50, 0.2))
    assert not sources[0].assigned & sources[1].assigned
    assert len(sources[0].assigned | sources[1].assigned) == 6
    await sources.pop(0).close()
    await log.append(100)
    await read_both(300)
    assert {record.sequence for record in found} == set(range(1, 301))
    await sources[0].close()


@pytest.mark.broker
@pytest.mark.slow
async def test_what_a_member_has_returned_is_committed_before_it_is_handed_over(kafka: str, tmp_path: Path) -> None:
    log = KafkaLog(tmp_path, kafka)
    # Predictions go to one member, feedback to the other, whoever comes first.
    await log.append(200)
    await log.append(100, kind=KIND_FEEDBACK)
    first, second = KafkaSource(log.settings, log.group), KafkaSource(log.settings, log.group)
    found = await read_until(first, 300)
    # Nobody commits here but the rebalance itself.
    async with asyncio.timeout(60):
        while not second.assigned:
            found += await second.read(100, 0.2)
            found += await first.read(100, 0.2)
    await log.append(100)
    await log.append(100, kind=KIND_FEEDBACK)
    async with asyncio.timeout(60):
        while len(found) < 500:
            found += await second.read(100, 0.2)
            found += await first.read(100, 0.2)
    assert by_address(found) == log.written
    assert first.lag_events() == second.lag_events() == 0
    await first.close()
    await second.close()


@pytest.mark.broker
async def test_offsets_that_somebody_resets_bring_nothing_back_behind_a_position(kafka: str, tmp_path: Path) -> None:
    log = KafkaLog(tmp_path, kafka)
    await log.append(40)
    source = log.source()
    await read_until(source, 40)
    await source.commit()
    position = json.loads(json.dumps(source.position()))
    await source.close()
    tool = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=log.group, enable_auto_commit=False)
    await tool.start()
    places = [TopicPartition(f"{log.settings.topic_prefix}.predictions", number) for number in range(3)]
    tool.assign(places)
    await tool.commit(dict.fromkeys(places, 0))
    await tool.stop()
    await log.append(10)
    again = log.source(position)
    found = await read_until(again, 10)
    assert by_address(found + await again.read(100, 1.0)) == log.written[40:]
    await again.close()


@pytest.mark.broker
async def test_messages_that_are_gone_before_they_are_read_are_told_and_the_rest_is_read(
    kafka: str, tmp_path: Path
) -> None:
    log = KafkaLog(tmp_path, kafka)
    await log.append(60)
    source = log.source()
    await read_until(source, 60)
    early = {name: place | {"offset": min(1, place["offset"]), "seen": {}} for name, place in source.position().items()}
    await source.close()
    place = TopicPartition(f"{log.settings.topic_prefix}.predictions", 0)
    ends = {name: int(position["offset"]) for name, position in source.position().items()}
    lost = ends[f"{place.topic}/0"] - 2
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.delete_records({place: RecordsToDelete(before_offset=lost)})
    await admin.close()
    notes: list[str] = []
    again = KafkaSource(log.settings, f"{log.group}-2", position=early, note=notes.append)
    left = sum(end - (lost if name.endswith("/0") else 1) for name, end in ends.items() if end)
    found = await read_until(again, left)
    found += await again.read(100, 1.0)
    assert len(found) == left
    assert again.out_of_range == 1
    assert any(f"reading goes on with {lost}, the earliest" in note for note in notes), notes
    await again.close()


@pytest.mark.broker
async def test_gateways_that_began_in_the_same_millisecond_do_not_hide_one_another(kafka: str, tmp_path: Path) -> None:
    settings = KafkaLog(tmp_path, kafka).settings
    await ensure_topics(settings)
    producer = AIOKafkaProducer(bootstrap_servers=kafka)
    await producer.start()
    for name in (b"/gateway/one", b"/gateway/two"):
        headers = [("ce_type", b"gateway.prediction.v1"), ("ce_id", b"01a20738c4d000-0000000001"), ("ce_source", name)]
        for _ in range(2):
            await producer.send_and_wait(f"{settings.topic_prefix}.predictions", b"{}", partition=0, headers=headers)
    await producer.stop()
    source = KafkaSource(settings, f"group-{settings.topic_prefix}")
    assert len(await read_until(source, 2)) == 2
    assert await source.read(100, 1.0) == []
    assert source._seen.duplicates == 2
    await source.close()


@pytest.mark.broker
@pytest.mark.fault
@pytest.mark.slow
async def test_a_broker_that_goes_and_comes_back_is_waited_for(own_kafka: KafkaBroker, tmp_path: Path) -> None:
    log = KafkaLog(tmp_path / "spool", own_kafka.bootstrap_servers)
    await log.append(20)
    source = log.source()
    await read_until(source, 20)
    await source.commit()
    own_kafka.kill()
    for _ in range(3):
        assert await source.read(10, 0.2) == []
    await source.commit()
    await asyncio.to_thread(own_kafka.start)
    await log.append(20)
    assert by_address(await read_until(source, 20)) == log.written[20:]
    own_kafka.freeze()
    await asyncio.wait_for(source.close(), 10)
    own_kafka.thaw()


async def test_a_broker_that_is_absent_gives_empty_reads_in_their_time_and_one_note() -> None:
    notes: list[str] = []
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}", request_timeout_ms=1000)
    source = KafkaSource(settings, "nobody", note=notes.append)
    for _ in range(5):
        assert await asyncio.wait_for(source.read(10, 0.1), 5) == []
    await source.commit()
    await source.close()
    assert len(notes) == 1
    assert notes[0].startswith("cannot read from Kafka: Kafka at 127.0.0.1:")
    assert "ConnectionRefusedError" in notes[0]
    assert await source.read(10, 0.1) == []


def test_a_deduplicator_forgets_the_lane_that_was_quiet_for_longest() -> None:
    seen = Deduplicator(capacity=2)
    for number, lane in enumerate(("a", "b", "a", "c"), start=1):
        assert seen.is_new(lane, "boot", number)
    assert not seen.is_new("a", "boot", 3)
    assert not seen.is_new("c", "boot", 4)
    assert seen.is_new("b", "boot", 2)


def test_a_block_is_new_once_with_all_its_numbers() -> None:
    seen = Deduplicator()
    assert seen.is_new(0, "boot", 1, numbers=32)
    assert not seen.is_new(0, "boot", 1, numbers=32)
    assert not seen.is_new(0, "boot", 32)
    assert seen.is_new(0, "boot", 33, numbers=2)
    assert seen.duplicates == 33


def test_lanes_and_boots_do_not_hide_one_another() -> None:
    seen = Deduplicator()
    assert seen.is_new("feedback/0", "boot-1", 50)
    assert seen.is_new("predictions/0", "boot-1", 40)
    assert seen.is_new("predictions/0", "boot-2", 1)
    assert not seen.is_new("predictions/0", "boot-1", 40)
    assert seen.duplicates == 1
