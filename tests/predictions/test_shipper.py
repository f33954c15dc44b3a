from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code

from gateway.events.addresses import format_id
from gateway.events.records import KIND_BLOCK, KIND_DECISION, KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.checkpoint import CHECKPOINT_NAME, read_checkpoint
from gateway.predictions.connection import KafkaRefused
from gateway.predictions.dead_letters import DEAD_LETTERS_NAME
from gateway.predictions.reader import SpoolReader
from gateway.predictions.shipper import Shipper, partition_of
from gateway.predictions.spool import SpoolWriter
from gateway.settings import KafkaSettings, SpoolSettings
from tests.blocks import Batch, singles
from tests.brokers import KafkaBroker, free_port

MODELS = ("bike-demand", "magika", "iris")


def kafka_settings(servers: str, **changes: object) -> KafkaSettings:
    defaults = {"topic_prefix": f"t{uuid.uuid4().hex[:10]}", "request_timeout_ms": 3000}
    return KafkaSettings(bootstrap_servers=servers, **(defaults | changes))


def writer_in(spool: Path, slot: int = 0) -> SpoolWriter:
    return SpoolWriter(spool / f"front-{slot}", slot=slot, settings=SpoolSettings(segment_bytes=200_000))


def append(writer: SpoolWriter, count: int, *, kind: int = KIND_PREDICTION, size: int = 200) -> None:
    for _ in range(count):
        sequence = writer.next_sequence
        record = {
            "id": format_id(writer.boot, sequence),
            "time": "2024-03-01T00:00:00.250Z",
            "gateway": "gateway",
            "seq": sequence,
            "model": MODELS[sequence % len(MODELS)],
            "version": 2,
            "filler": "x" * size,
        }
        writer.append([(kind, json.dumps(record).encode())])


@asynccontextmanager
async def shipping(shipper: Shipper) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(shipper.run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


async def until(condition: Any, seconds: float = 90) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def messages_of(servers: str, topic: str) -> list[Any]:
    """Return everything a topic holds, each partition in order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    await consumer.start()
    try:
        await consumer._client._wait_on_metadata(topic)
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found = []
        for partition in partitions:
            consumer.seek(partition, 0)
        async with asyncio.timeout(60):
            while any([await consumer.position(place) < end for place, end in ends.items()]):
                batches = await consumer.getmany(timeout_ms=500)
                found += [message for messages in batches.values() for message in messages]
        return sorted(found, key=lambda message: (message.partition, message.offset))
    finally:
        await consumer.stop()


def assert_complete_and_in_order(messages: list[Any], spool: Path, kind: int = KIND_PREDICTION) -> None:
    """Every record is there with its bytes; per partition and front the first arrivals are in order."""
    reader = SpoolReader(spool)
    spooled = {
        format_id(record.boot, record.sequence): record.payload
        for record in reader.read(1 << 30)
        if record.kind == kind
    }
    reader.close()
    arrived: dict[str, bytes] = {}
    last: defaultdict[tuple[int, str], int] = defaultdict(int)
    for message in messages:
        identity = dict(message.headers)["ce_id"].decode()
        if identity in arrived:
            assert message.value == arrived[identity]
            continue
        arrived[identity] = message.value
        boot, number = identity.split("-")
        assert int(number, 16) > last[message.partition, boot]
        last[message.partition, boot] = int(number, 16)
    assert arrived == spooled


@pytest.mark.broker
@pytest.mark.promise("P2")
async def test_everything_spooled_arrives_in_order_as_cloudevents(kafka: str, tmp_path: Path) -> None:
    settings = kafka_settings(kafka)
    writers = [writer_in(tmp_path, slot) for slot in range(2)]
    for writer in writers:
        append(writer, 3000)
        append(writer, 50, kind=KIND_FEEDBACK)
        append(writer, 5, kind=KIND_DECISION)
    shipper = Shipper(tmp_path, settings, note=lambda text: None)
    async with shipping(shipper):
        await until(lambda: shipper.shipped == 2 * 3055)
        append(writers[0], 10)
        await until(lambda: shipper.shipped == 2 * 3055 + 10)
        assert shipper.lag_events == 0
    messages = await messages_of(kafka, f"{settings.topic_prefix}.predictions")
    assert len(messages) == 6010
    assert_complete_and_in_order(messages, tmp_path)
    for message in messages[:10]:
        record = json.loads(message.value)
        assert message.key == record["model"].encode()
        assert message.partition == partition_of(message.key, 3)
        assert message.timestamp == 1709251200250
        assert dict(message.headers) == {
            "ce_specversion": b"1.0",
            "ce_id": record["id"].encode(),
            "ce_source": b"/gateway/gateway",
            "ce_type": b"gateway.prediction.v1",
            "ce_subject": f"{record['model']}/2".encode(),
            "ce_time": b"2024-03-01T00:00:00.250Z",
            "content-type": b"application/json",
        }
    for kind, topic, count in ((KIND_FEEDBACK, "feedback", 100), (KIND_DECISION, "decisions", 10)):
        messages = await messages_of(kafka, f"{settings.topic_prefix}.{topic}")
        assert len(messages) == count
        assert_complete_and_in_order(messages, tmp_path, kind)


@pytest.mark.broker
async def test_an_independent_reader_sees_headers_key_and_json(kafka: str, tmp_path: Path) -> None:
    if shutil.which("kcat") is None:
        pytest.skip("kcat is not installed")
    settings = kafka_settings(kafka)
    writer = writer_in(tmp_path)
    append(writer, 20)
    shipper = Shipper(tmp_path, settings, note=lambda text: None)
    async with shipping(shipper):
        await until(lambda: shipper.shipped == 20)
    topic = f"{settings.topic_prefix}.predictions"
    kcat = await asyncio.to_thread(
        subprocess.run,
        ["kcat", "-b", kafka, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-J"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert kcat.returncode == 0, kcat.stderr
    events = [json.loads(line) for line in kcat.stdout.splitlines()]
    assert len(events) == 20
    for event in events:
        headers = dict(zip(event["headers"][::2], event["headers"][1::2], strict=True))
        record = json.loads(event["payload"])
        assert event["key"] == record["model"]
        assert headers["ce_id"] == record["id"]
        assert headers["content-type"] == "application/json"


@pytest.mark.broker
async def test_a_restart_goes_on_from_the_checkpoint(kafka: str, tmp_path: Path) -> None:
    settings = kafka_settings(kafka, compression="zstd")
    writer = writer_in(tmp_path)
    for part in range(3):
        append(writer, 100)
        shipper = Shipper(tmp_path, settings, note=lambda text: None)
        async with shipping(shipper):
            await until(lambda shipper=shipper: shipper.shipped == 100)
        assert read_checkpoint(tmp_path) == SpoolReader(tmp_path, start="latest").position(), part
    messages = await messages_of(kafka, f"{settings.topic_prefix}.predictions")
    assert len(messages) == 300
    assert_complete_and_in_order(messages, tmp_path)


@pytest.mark.broker
async def test_a_checkpoint_that_cannot_be_read_costs_repetitions_and_no_record(kafka: str, tmp_path: Path) -> None:
    settings = kafka_settings(kafka, compression="none", idempotence=False)
    writer = writer_in(tmp_path)
    append(writer, 30)
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"\0\0\0")
    notes: list[str] = []
    shipper = Shipper(tmp_path, settings, note=notes.append)
    async with shipping(shipper):
        await until(lambda: shipper.shipped == 30)
    assert any("shipping the spool from its start" in text for text in notes)


@pytest.mark.broker
async def test_records_that_kafka_refuses_become_dead_letters_and_the_rest_goes_on(kafka: str, tmp_path: Path) -> None:
    settings = kafka_settings(kafka)
    writer = writer_in(tmp_path)
    append(writer, 40)
    large = {"id": "large", "time": "2024-03-01T00:00:00Z", "model": "iris", "noise": os.urandom(1_500_000).hex()}
    writer.append([(KIND_PREDICTION, json.dumps(large).encode())])
    append(writer, 40)
    writer.append([(KIND_PREDICTION, b"\xff not json"), (KIND_PREDICTION, b'{"id":"x"}')])
    writer.append([(77, b'{"id":"x","time":"2024-03-01T00:00:00Z","model":"iris"}')])
    append(writer, 40)
    notes: list[str] = []
    shipper = Shipper(tmp_path, settings, note=notes.append)
    async with shipping(shipper):
        await until(lambda: shipper.shipped == 120)
    assert shipper.dead_letters == 4
    letters = [json.loads(line) for line in (tmp_path / DEAD_LETTERS_NAME).read_text().splitlines()]
    assert [letter["id"] for letter in letters] == [format_id(writer.boot, number) for number in (41, 82, 83, 84)]
    assert letters[0]["reason"] == "refused by Kafka: MessageSizeTooLargeError"
    assert json.loads(letters[0]["payload"]) == large
    assert letters[1]["encoding"] == "base64"
    assert "dead letter" in notes[-1]
    messages = await messages_of(kafka, f"{settings.topic_prefix}.predictions")
    ids = {dict(message.headers)["ce_id"].decode() for message in messages}
    assert len(ids) == 120


@pytest.mark.broker
@pytest.mark.promise("P2")
async def test_predictions_of_a_block_are_messages_of_their_own_with_the_same_bytes_each_time(
    kafka: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka)
    writer = writer_in(tmp_path)
    noise = np.random.default_rng(0).random((600_000, 1), dtype="f4")
    for model in MODELS:
        append(writer, 2)
        writer.append([(KIND_BLOCK, singles(50, model=model).payload())])
    rows = [noise[:1], noise, noise[1:2]]
    writer.append([(KIND_BLOCK, Batch(rows, [row[:, :0] for row in rows]).payload())])
    for part in range(2):
        shipper = Shipper(tmp_path, settings, note=lambda text: None)
        async with shipping(shipper):
            await until(lambda shipper=shipper: shipper.shipped == 158)
            assert (shipper.dead_letters, shipper.lag_events, shipper.corrupt, shipper.missing) == (1, 0, 0, 0)
        (tmp_path / CHECKPOINT_NAME).unlink()
        letters = [json.loads(line)["id"] for line in (tmp_path / DEAD_LETTERS_NAME).read_text().splitlines()]
        assert letters == [format_id(writer.boot, 158)] * (part + 1), "what the topic does not take, alone"
    messages = await messages_of(kafka, f"{settings.topic_prefix}.predictions")
    arrived: defaultdict[str, list[bytes]] = defaultdict(list)
    for message in messages:
        record = json.loads(message.value)
        assert message.key == record["model"].encode()
        arrived[dict(message.headers)["ce_id"].decode()].append(message.value)
    reader = SpoolReader(tmp_path)
    spooled = {format_id(record.boot, record.sequence): record.payload for record in reader.read(1 << 30)}
    reader.close()
    del spooled[format_id(writer.boot, 158)]
    assert {identity: values[0] for identity, values in arrived.items()} == spooled
    assert all(len(values) >= 2 and len(set(values)) == 1 for values in arrived.values())


@pytest.mark.broker
async def test_a_block_whose_predictions_are_no_records_becomes_dead_letters_one_by_one(
    kafka: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka)
    writer = writer_in(tmp_path)
    broken = singles(3)
    writer.append([(KIND_BLOCK, broken.payload(head=broken.head + b"["))])
    writer.append([(KIND_BLOCK, singles(5).payload())])
    shipper = Shipper(tmp_path, settings, note=lambda text: None)
    async with shipping(shipper):
        await until(lambda: shipper.shipped == 5)
    assert (shipper.dead_letters, shipper.lag_events, shipper.missing) == (3, 0, 0)
    letters = [json.loads(line) for line in (tmp_path / DEAD_LETTERS_NAME).read_text().splitlines()]
    assert [letter["id"] for letter in letters] == [format_id(writer.boot, number) for number in (1, 2, 3)]
    assert all(letter["reason"].startswith("not a record") and letter["kind"] == 1 for letter in letters)
    messages = await messages_of(kafka, f"{settings.topic_prefix}.predictions")
    assert [dict(message.headers)["ce_id"].decode() for message in messages] == [
        format_id(writer.boot, number) for number in range(4, 9)
    ]


@pytest.mark.broker
async def test_a_topic_that_takes_less_at_once_gets_smaller_batches_and_no_dead_letter(
    kafka: str, tmp_path: Path
) -> None:
    settings = kafka_settings(kafka, compression="none", partitions=1)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    small = {"max.message.bytes": "4000"}
    await admin.create_topics([NewTopic(f"{settings.topic_prefix}.predictions", 1, 1, topic_configs=small)])
    await admin.close()
    append(writer_in(tmp_path), 300)
    shipper = Shipper(tmp_path, settings, note=lambda text: None)
    async with shipping(shipper):
        await until(lambda: shipper.shipped == 300)
    assert (shipper.dead_letters, shipper.lag_events) == (0, 0)
    messages = await messages_of(kafka, f"{settings.topic_prefix}.predictions")
    assert len({dict(message.headers)["ce_id"] for message in messages}) == 300
    assert_complete_and_in_order(messages, tmp_path)


@pytest.mark.broker
@pytest.mark.fault
async def test_an_idle_shipper_notices_that_its_broker_is_away(own_kafka: KafkaBroker, tmp_path: Path) -> None:
    settings = kafka_settings(own_kafka.bootstrap_servers, request_timeout_ms=1000)
    notes: list[str] = []
    shipper = Shipper(tmp_path, settings, note=notes.append)
    async with shipping(shipper):
        await until(lambda: shipper.connected)
        own_kafka.freeze()
        await until(lambda: not shipper.connected)
        own_kafka.thaw()
        await until(lambda: shipper.connected)
    assert len(notes) == 3


@pytest.mark.broker
@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.promise("P2")
async def test_a_broker_killed_and_restarted_while_shipping_loses_nothing(
    own_kafka: KafkaBroker, tmp_path: Path
) -> None:
    settings = kafka_settings(own_kafka.bootstrap_servers, batch_bytes=4096)
    spool = tmp_path / "spool"
    writers = [writer_in(spool, slot) for slot in range(2)]
    notes: list[str] = []
    shipper = Shipper(spool, settings, note=notes.append)
    async with shipping(shipper):
        await until(lambda: shipper.connected)
        for _ in range(2):
            for writer in writers:
                append(writer, 4000)
            await until(lambda: shipper.lag_events > 0)
            await asyncio.sleep(0.1)
            own_kafka.kill()
            for writer in writers:
                append(writer, 500)
            await until(lambda: not shipper.connected)
            await asyncio.to_thread(own_kafka.start)
            await until(lambda: shipper.connected and shipper.lag_events == 0)
    assert shipper.shipped == 18_000
    assert [("reachable" in note, "Kafka" in note) for note in notes] == [(True, True), (False, True)] * 2 + [
        (True, True)
    ]
    messages = await messages_of(own_kafka.bootstrap_servers, f"{settings.topic_prefix}.predictions")
    assert_complete_and_in_order(messages, spool)


@pytest.mark.broker
@pytest.mark.fault
@pytest.mark.slow
async def test_a_frozen_broker_neither_holds_up_the_stop_nor_loses_anything(
    own_kafka: KafkaBroker, tmp_path: Path
) -> None:
    settings = kafka_settings(own_kafka.bootstrap_servers)
    spool = tmp_path / "spool"
    writer = writer_in(spool)
    append(writer, 100)
    stop = asyncio.Event()
    shipper = Shipper(spool, settings, note=lambda text: None, stop_seconds=4)
    running = asyncio.create_task(shipper.run(stop))
    await until(lambda: shipper.shipped == 100)
    own_kafka.freeze()
    append(writer, 5000)
    await until(lambda: shipper.lag_events > 0)
    stop.set()
    await asyncio.wait_for(running, 5)
    own_kafka.thaw()
    again = Shipper(spool, settings, note=lambda text: None)
    async with shipping(again):
        await until(lambda: again.shipped == 5000)
    messages = await messages_of(own_kafka.bootstrap_servers, f"{settings.topic_prefix}.predictions")
    assert_complete_and_in_order(messages, spool)


@pytest.mark.broker
@pytest.mark.fault
async def test_a_broker_that_is_absent_at_the_start_is_waited_for(tmp_path: Path) -> None:
    broker = KafkaBroker(tmp_path / "kafka")
    settings = kafka_settings(broker.bootstrap_servers)
    spool = tmp_path / "spool"
    append(writer_in(spool), 10)
    notes: list[str] = []
    shipper = Shipper(spool, settings, note=notes.append)
    try:
        async with shipping(shipper):
            await until(lambda: notes)
            assert "out of reach" in notes[0]
            assert shipper.lag_events == 10
            await asyncio.to_thread(broker.start)
            await until(lambda: shipper.shipped == 10)
        assert len(notes) == 2
    finally:
        broker.kill()


async def test_without_a_broker_the_shipper_stops_at_once_and_keeps_everything(tmp_path: Path) -> None:
    settings = kafka_settings(f"127.0.0.1:{free_port()}")
    append(writer_in(tmp_path), 10)
    notes: list[str] = []
    shipper = Shipper(tmp_path, settings, note=notes.append)
    async with shipping(shipper):
        await until(lambda: notes)
    assert shipper.shipped == 0
    assert read_checkpoint(tmp_path) == {}
    assert repr(shipper).startswith("<Shipper down shipped=0 lag=")


class Batches:
    """A producer whose batches take whatever they are given."""

    def create_batch(self) -> Any:
        return SimpleNamespace(append=lambda **message: message, close=lambda: None)


def test_the_batches_of_a_small_round_are_small_also_when_the_spool_gives_a_whole_block(tmp_path: Path) -> None:
    writer_in(tmp_path).append([(KIND_BLOCK, singles(50).payload())])
    shipper = Shipper(tmp_path, kafka_settings("127.0.0.1:1"), note=lambda text: None)
    (block,) = SpoolReader(tmp_path, whole_blocks=True).read(1)
    messages = shipper._messages_of(block)
    assert len(messages) == 50
    for records, end in ((4000, 50), (7, 20), (1, 14)):
        shipper._round_records = records
        assert shipper._fill(Batches(), messages, 13)[1] == end


async def test_a_broker_that_does_not_know_the_compression_is_no_reason_to_give_records_up(tmp_path: Path) -> None:
    class Old(Batches):
        async def send_batch(self, *_: Any, **__: Any) -> None:
            raise for_code(76)()  # UNSUPPORTED_COMPRESSION_TYPE

    writer_in(tmp_path).append([(KIND_BLOCK, singles(5).payload())])
    shipper = Shipper(tmp_path, kafka_settings("127.0.0.1:1", compression="zstd"), note=lambda text: None)
    (block,) = SpoolReader(tmp_path, whole_blocks=True).read(1)
    with pytest.raises(KafkaRefused, match="does not take kafka.compression = zstd; set lz4"):
        await shipper._ship_lane(Old(), "t", 0, shipper._messages_of(block))


def test_keys_go_where_kafkas_default_partitioner_puts_them() -> None:
    # Values of org.apache.kafka.common.utils.Utils.murmur2 as published in Kafka's UtilsTest.
    for key, hashed in ((b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536)):
        assert partition_of(key, 7) == (hashed & 0x7FFFFFFF) % 7
