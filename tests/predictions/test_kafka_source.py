"""What a source does with what its consumer tells it, without a broker."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Literal, NamedTuple

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaConnectionError, NoOffsetForPartitionError

from gateway.events.addresses import format_id
from gateway.predictions.kafka_source import KafkaSource
from gateway.settings import KafkaSettings

BOOT = "0196f0c5d2a100"
PLACES = [TopicPartition("gateway.predictions", number) for number in range(2)]


class Message(NamedTuple):
    offset: int
    headers: tuple[tuple[str, bytes], ...]
    value: bytes = b"{}"


def message(number: int, *, offset: int | None = None) -> Message:
    """Prediction `number`, by default at the offset that it has when none was repeated."""
    headers = (("ce_type", b"gateway.prediction.v1"), ("ce_id", format_id(BOOT, number).encode()))
    return Message(number - 1 if offset is None else offset, headers)


class StubClient:
    async def force_metadata_update(self) -> bool:
        return True


class StubConsumer:
    """A member of a group that is assigned some partitions at once and gives what a test lays into `batches`."""

    def __init__(self, *assigned: TopicPartition) -> None:
        self.assigned = set(assigned)
        self.batches: deque[dict[TopicPartition, list[Message]] | Exception] = deque()
        self.given = 0
        self.committed_offsets: dict[TopicPartition, int] = {}
        self.sought: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self._client = StubClient()
        self._listener: Any = None

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def subscribe(self, topics: list[str], *, listener: Any) -> None:
        self._listener = listener

    def assignment(self) -> set[TopicPartition]:
        return self.assigned

    async def committed(self, place: TopicPartition) -> int | None:
        assert place in self.paused, "what lies at the offset that was committed may come meanwhile"
        return self.committed_offsets.get(place)

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        assert self.paused.issuperset(places), "what lies at the offset that was committed may come meanwhile"
        return dict.fromkeys(places, 7)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.sought[place] = offset

    def pause(self, *places: TopicPartition) -> None:
        self.paused.update(places)

    def resume(self, *places: TopicPartition) -> None:
        self.paused.difference_update(places)

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Message]]:
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.on_partitions_assigned(self.assigned)
        if not self.batches:
            await asyncio.sleep(timeout_ms / 1000)
            return {}
        batch = self.batches.popleft()
        self.given += 1
        if isinstance(batch, Exception):
            raise batch
        return batch

    async def commit(self, offsets: dict[TopicPartition, Any]) -> None:
        if offsets.keys() - self.assigned:
            raise IllegalStateError("a partition is not assigned")
        self.committed_offsets.update({place: offset.offset for place, offset in offsets.items()})


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> deque[StubConsumer]:
    """The consumers that a source is given, one for each time it connects."""
    members: deque[StubConsumer] = deque()

    async def reached(settings: KafkaSettings) -> None:
        pass

    monkeypatch.setattr("gateway.predictions.kafka_source.reach", reached)
    monkeypatch.setattr("gateway.predictions.kafka_source.consumer_of", lambda settings, group: members.popleft())
    return members


def source() -> KafkaSource:
    return KafkaSource(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "group")


async def test_commits_go_on_after_a_lost_connection_and_another_assignment(members: deque[StubConsumer]) -> None:
    first, second = StubConsumer(*PLACES), StubConsumer(PLACES[0])
    first.batches += [
        {place: [message(number)] for place, number in zip(PLACES, (1, 2), strict=True)},
        KafkaConnectionError(),
    ]
    second.batches.append({PLACES[0]: [message(5)]})
    members += [first, second]
    reader = source()
    assert len(await reader.read(100, 1.0)) == 2
    assert await reader.read(100, 1.0) == []
    lost = reader.position()
    assert len(await reader.read(100, 1.0)) == 1
    await reader.commit()
    assert second.committed_offsets == {PLACES[0]: 5}
    assert {name: place["offset"] for name, place in lost.items()} == {
        "gateway.predictions/0": 1,
        "gateway.predictions/1": 2,
    }
    await reader.close()


async def test_a_partition_that_went_unnoticed_does_not_keep_the_others_from_being_committed(
    members: deque[StubConsumer],
) -> None:
    only = StubConsumer(*PLACES)
    only.batches.append({place: [message(number)] for place, number in zip(PLACES, (1, 2), strict=True)})
    members.append(only)
    reader = source()
    await reader.read(100, 1.0)
    only.assigned = {PLACES[1]}
    await reader.commit()
    assert only.committed_offsets == {PLACES[1]: 2}
    await reader.close()


async def test_repetitions_end_a_read_at_its_time_and_leave_every_other_task_its_turn(
    members: deque[StubConsumer],
) -> None:
    only = StubConsumer(PLACES[0])
    only.batches.append({PLACES[0]: [message(1)]})
    again = [message(1, offset=2)] * 100
    only.batches += [{PLACES[0]: again}] * 10_000
    members.append(only)
    reader = source()
    assert len(await reader.read(100, 1.0)) == 1
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    assert await reader.read(100, 0.05) == []
    other.cancel()
    assert only.batches, "all of them were passed over, however long that took"
    assert turns >= only.given - 2
    await reader.close()


async def test_what_comes_behind_repetitions_is_read_in_the_same_read(members: deque[StubConsumer]) -> None:
    only = StubConsumer(PLACES[0])
    only.batches += [
        {PLACES[0]: [message(1)]},
        {PLACES[0]: [message(1, offset=1)]},
        {PLACES[0]: [message(2, offset=2)]},
    ]
    members.append(only)
    reader = source()
    assert [record.sequence for _ in range(2) for record in await reader.read(100, 5.0)] == [1, 2]
    await reader.close()


@pytest.mark.parametrize("start", ["latest", "earliest"])
async def test_nothing_comes_of_a_partition_before_it_is_known_where_to_go_on(
    members: deque[StubConsumer], start: Literal["latest", "earliest"]
) -> None:
    only = StubConsumer(*PLACES)
    only.committed_offsets = dict.fromkeys(PLACES, 3)
    members.append(only)
    position = {"gateway.predictions/0": {"offset": 7, "seen": {}}} if start == "earliest" else None
    settings = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    reader = KafkaSource(settings, "group", position=position, start=start)
    assert await reader.read(100, 0.05) == []
    assert only.sought == dict.fromkeys(PLACES[: 1 if start == "earliest" else 2], 7)
    assert only.paused == set()
    await reader.close()


async def test_a_partition_of_which_nothing_was_committed_is_not_read_from_its_start_when_it_was_taken_up_elsewhere(
    members: deque[StubConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = StubConsumer(PLACES[0])
    only.batches.append(NoOffsetForPartitionError(PLACES[0]))
    taken_up = asyncio.Event()

    async def take_up(listener: Any) -> None:
        await listener.on_partitions_assigned(only.assigned)
        taken_up.set()

    def subscribe(topics: list[str], *, listener: Any) -> None:
        tasks.append(asyncio.create_task(take_up(listener)))

    async def beginning_offsets(places: list[TopicPartition]) -> dict[TopicPartition, int]:
        await taken_up.wait()
        return dict.fromkeys(places, 0)

    tasks: list[asyncio.Task[None]] = []
    monkeypatch.setattr(only, "subscribe", subscribe)
    monkeypatch.setattr(only, "beginning_offsets", beginning_offsets, raising=False)
    members.append(only)
    reader = KafkaSource(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "group", start="latest")
    assert await reader.read(100, 0.05) == []
    assert only.sought == {PLACES[0]: 7}
    await reader.close()


async def test_nothing_is_read_of_a_partition_of_which_the_broker_does_not_tell_where_to_go_on(
    members: deque[StubConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = StubConsumer(*PLACES), StubConsumer(*PLACES)
    members += [first, second]
    notes: list[str] = []
    settings = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    reader = KafkaSource(settings, "group", start="latest", note=notes.append)

    async def does_not_answer(places: list[TopicPartition]) -> dict[TopicPartition, int]:
        raise TimeoutError

    monkeypatch.setattr(first, "end_offsets", does_not_answer)
    assert await reader.read(100, 0.05) == []
    assert first.paused == set(PLACES), "what lies where the group stands is not to be read"
    assert await reader.read(100, 0.05) == []
    assert notes[-1] == "cannot read from Kafka: TimeoutError"
    second.batches.append({PLACES[0]: [message(8)]})
    assert [record.sequence for record in await reader.read(100, 1.0)] == [8]
    assert second.sought == dict.fromkeys(PLACES, 7) and second.paused == set()
    await reader.close()
