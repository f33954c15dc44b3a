"""From the spool to Kafka: at least once, in order per front and model, checkpointed after acknowledgement.

One batch is in flight per partition. After any doubt (a time limit, a refusal, a lost connection) the producer is
thrown away, with what it holds, and a new one goes on from the last checkpoint. So what comes twice comes in order,
with the same bytes and the same id. The next try after a time limit is a smaller one, and tries that bring nothing
come ever more seldom, so that neither a slow line nor a lasting refusal fills Kafka with repetitions.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

from aiokafka.errors import (
    BrokerResponseError,
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    UnknownError,
    UnsupportedForMessageFormatError,
)
from aiokafka.partitioner import murmur2

from gateway.events.addresses import format_id
from gateway.events.blocks import predictions_of
from gateway.events.cloudevents import Headers, common_headers_of, headers_with, topic_of
from gateway.events.encoding import RecordError, read_envelope, seconds_of
from gateway.events.records import KIND_BLOCK, KIND_PREDICTION
from gateway.predictions.backlog import Backlog
from gateway.predictions.checkpoint import CheckpointError, clear_unfinished, read_checkpoint, write_checkpoint
from gateway.predictions.connection import (
    DISCARD_SECONDS,
    CompressionRefused,
    KafkaRefused,
    KafkaUnreachable,
    bounded,
    discard_producer,
    is_there,
    producer_of,
    reach,
)
from gateway.predictions.damage import DamageBook
from gateway.predictions.dead_letters import write_dead_letters
from gateway.predictions.locks import held
from gateway.predictions.reader import LogRecord, Position, SpoolReader
from gateway.predictions.spool import SpoolError
from gateway.predictions.topics import ensure_topics
from gateway.settings import KafkaSettings

__all__ = ("Shipper", "ShipperBusy", "partition_of")

LOCK_NAME = "shipper.lock"
_ROUND_RECORDS = 4000
_SMALLEST_BATCH_BYTES = 1024
_POLL_SECONDS = 0.05
# How often a broker that has nothing to get is asked whether it is there.
_LOOK_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 3.0
# Answers that speak of the records and not of the broker's state. A code that aiokafka does not know, such as
# INVALID_RECORD of KIP-467, arrives as UnknownError.
_REFUSALS = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    InvalidTimestampError,
    UnsupportedForMessageFormatError,
    PolicyViolationError,
    UnknownError,
)
_SIZE_REFUSALS = (MessageSizeTooLargeError, RecordListTooLargeError)
_UNKNOWN_TRIES = 5

_Address = tuple[str, int]


class _Common(NamedTuple):
    """What the messages of a block have in common; a record of its own has it for itself, and its own id."""

    kind: int
    boot: str
    identity: bytes
    topic: str
    key: bytes
    timestamp_ms: int
    headers: Headers


# The number of the record, its JSON, and the rest: one for each prediction of the log, so no more than a tuple.
_Message = tuple[int, bytes, _Common]


class _Refused(Exception):
    """The broker will not take these records, however often they are sent."""

    def __init__(self, messages: list[_Message], error: BrokerResponseError) -> None:
        super().__init__(type(error).__name__)
        self.messages = messages
        self.of_size = isinstance(error, _SIZE_REFUSALS)
        self.certain = not isinstance(error, UnknownError)


class ShipperBusy(Exception):
    """Raised when a spool cannot be had alone."""


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key, as Kafka's own default partitioner finds it.

    >>> partition_of(b"bike-demand", 3)
    1
    """
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def _address_of(message: _Message) -> _Address:
    return message[2].boot, message[0]


class Shipper:
    """Sends what the spool holds to Kafka, for as long as it runs; a broker that is away only makes it wait.

    `shipped` counts records acknowledged by Kafka (repeats not counted), `dead_letters` those it refused, which are
    kept in `dead-letters.jsonl` in the spool, and `discarded` of these what there was no room to keep; `corrupt` and
    `missing` are what the spool's reader could not give (`SpoolReader`). `connected` is true from a connection on until
    a batch or, every 5 s while there is none, a question is not answered in time.

    Parameters
    ----------
    spool_dir : Path
    settings : KafkaSettings
    note : callable
        Gets one line when the broker goes away or comes back and when a record is refused.
    dead_letter_bytes : int
        What dead letters may take; the default is the share of a spool of 4 GiB.
    stop_seconds : float
        Time that `run` takes at most once told to stop; all but 3 s of it to send what is left.
    clock : callable
        Seconds since 1970.
    """

    def __init__(
        self,
        spool_dir: Path,
        settings: KafkaSettings,
        *,
        note: Callable[[str], None],
        dead_letter_bytes: int = 256 * 2**20,
        stop_seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.shipped = 0
        self.dead_letters = 0
        self.discarded = 0
        self.connected = False
        self._spool_dir = spool_dir
        self._settings = settings
        self._note = note
        self._dead_letter_bytes = dead_letter_bytes
        self._stop_seconds = stop_seconds
        self._clock = clock
        self._limit = settings.request_timeout_ms / 1000
        self._damage = DamageBook(note=note, set_aside=True)
        self._missing_seen = 0
        self._acknowledged_to: Position = {}
        self._backlog = Backlog(spool_dir)
        self._lag = 0
        self._round_records = _ROUND_RECORDS
        self._batch_bytes = settings.batch_bytes
        self._pause = _FIRST_PAUSE_SECONDS
        self._noted: set[str] = set()
        # What is known of the records after the checkpoint: these go alone, and these do not go at all.
        self._alone: set[_Address] = set()
        self._refused: dict[_Address, tuple[LogRecord, str]] = {}
        self._tries: defaultdict[_Address, int] = defaultdict(int)

    def __repr__(self) -> str:
        return (
            f"<Shipper {'up' if self.connected else 'down'} shipped={self.shipped} lag={self.lag_events} "
            f"dead_letters={self.dead_letters}>"
        )

    @property
    def corrupt(self) -> int:
        """Places of the spool that do not check; their segments are set aside."""
        return self._damage.corrupt

    @property
    def missing(self) -> int:
        """Numbers of the log that are not there."""
        return self._damage.missing

    @property
    def lag_events(self) -> int:
        """Records in the spool that Kafka has not acknowledged, as far as the spool can be read."""
        with contextlib.suppress(OSError):
            self._lag = self._backlog.count(self._acknowledged_to)
        return self._lag

    async def run(self, stop: asyncio.Event) -> None:
        """Ship until `stop` is set, then send what is left for at most `stop_seconds`.

        Raises
        ------
        ShipperBusy
            Another process ships this spool, or its lock cannot be taken. Nothing else is raised.
        """
        with contextlib.ExitStack() as stack:
            try:
                self._spool_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
                stack.enter_context(held(self._spool_dir / LOCK_NAME))
                clear_unfinished(self._spool_dir)
            except BlockingIOError:
                raise ShipperBusy(f"another process ships {self._spool_dir}; one shipper a spool") from None
            except OSError as error:
                raise ShipperBusy(f"{self._spool_dir} cannot be shipped: {error.strerror}") from None
            await self._run(stop)

    async def _run(self, stop: asyncio.Event) -> None:
        self._acknowledged_to = self._checkpoint()
        shipping = asyncio.create_task(self._ship_until(stop))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({shipping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({shipping}, timeout=max(0.0, self._stop_seconds - DISCARD_SECONDS))
        finally:
            stopping.cancel()
            shipping.cancel()
            await asyncio.wait({shipping, stopping})

    async def _ship_until(self, stop: asyncio.Event) -> None:
        while True:
            try:
                await self._ship_from_checkpoint(stop)
                return
            except _Refused as refused:
                # What went with them is sent again.
                self._round_records = max(1, self._round_records // 4)
                if self._learn(refused):
                    continue
            except (Exception, asyncio.CancelledError) as error:
                # Whatever it was, the spool keeps the records and the next try may work. aiokafka lets cancellations
                # of its own tasks out; only one that is meant for this task ends it.
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                if isinstance(error, TimeoutError):
                    self._round_records = max(1, self._round_records // 4)
                self._lose(error)
            if stop.is_set():
                return
            with contextlib.suppress(TimeoutError):
                await bounded(stop.wait(), self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    async def _ship_from_checkpoint(self, stop: asyncio.Event) -> None:
        reader = SpoolReader(self._spool_dir, position=self._checkpoint(), whole_blocks=True)
        self._missing_seen = 0
        producer = None
        try:
            await reach(self._settings)
            for concern in await ensure_topics(self._settings):
                self._note_once(concern)
            producer = producer_of(self._settings)
            await bounded(producer.start(), self._limit)
            self._find()
            await self._ship_all(producer, reader, stop)
        finally:
            reader.close()
            if producer is not None:
                await discard_producer(producer)

    async def _ship_all(self, producer: Any, reader: SpoolReader, stop: asyncio.Event) -> None:
        """Ship what the reader gives; returns when there is nothing more and `stop` is set."""
        loop = asyncio.get_running_loop()
        look_at = loop.time() + _LOOK_SECONDS
        while True:
            records = reader.read(self._round_records)
            # Before a checkpoint lets retention have the segment.
            self._damage.look(reader)
            if records:
                await self._ship_round(producer, records)
                self._acknowledge(reader, records)
                look_at = loop.time() + _LOOK_SECONDS
            elif stop.is_set():
                return
            else:
                with contextlib.suppress(TimeoutError):
                    await bounded(stop.wait(), _POLL_SECONDS)
                if loop.time() >= look_at:
                    if not await is_there(producer.client, self._limit):
                        raise KafkaUnreachable("Kafka does not answer any more")
                    look_at = loop.time() + _LOOK_SECONDS

    async def _ship_round(self, producer: Any, records: list[LogRecord]) -> None:
        """Send records to their partitions, all partitions at once, and wait until every one is acknowledged."""
        places: dict[tuple[str, bytes], int] = {}
        lanes: defaultdict[tuple[str, int], list[_Message]] = defaultdict(list)
        for record in records:
            messages = self._messages_of(record)
            if not messages:
                continue
            common = messages[0][2]
            topic, key = topic_and_key = common.topic, common.key
            if topic_and_key not in places:
                partitions = await bounded(producer.partitions_for(topic), self._limit)
                places[topic_and_key] = partition_of(key, len(partitions))
            lanes[topic, places[topic_and_key]] += messages
        tasks = [
            asyncio.create_task(self._ship_lane(producer, topic, partition, messages))
            for (topic, partition), messages in lanes.items()
        ]
        try:
            for task in asyncio.as_completed(tasks):
                await task
        finally:
            for unfinished in tasks:
                unfinished.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ship_lane(self, producer: Any, topic: str, partition: int, messages: list[_Message]) -> None:
        begun = 0
        while begun < len(messages):
            batch, end = self._fill(producer, messages, begun)
            try:
                async with asyncio.timeout(self._limit):
                    acknowledged = await producer.send_batch(batch, topic, partition=partition)
                    await acknowledged
            except CompressionRefused:
                name = self._settings.compression
                raise KafkaRefused(f"Kafka does not take kafka.compression = {name}; set lz4, gzip or none") from None
            except _REFUSALS as error:
                raise _Refused(messages[begun:end], error) from None
            begun = end

    def _fill(self, producer: Any, messages: list[_Message], begun: int) -> tuple[Any, int]:
        """Return a batch with as many of the messages as it takes, at least one, and where it ended.

        A round that shall be small may be a whole block of the spool; its batches are as small as was asked for.
        """
        batch = producer.create_batch()
        end = begun
        room = self._batch_bytes
        for message in islice(messages, begun, None):
            number, payload, common = message
            alone = bool(self._alone) and _address_of(message) in self._alone
            room -= len(payload)
            if end > begun and (alone or room < 0 or end - begun >= self._round_records):
                break
            identity = common.identity or format_id(common.boot, number).encode()
            headers = headers_with(identity, common.headers)
            if batch.append(key=common.key, value=payload, timestamp=common.timestamp_ms, headers=headers) is None:
                break
            end += 1
            if alone:
                break
        batch.close()
        return batch, end

    def _messages_of(self, record: LogRecord) -> list[_Message]:
        """Return the messages of a record, or of a block's predictions, without those that do not go.

        What is no record is noted for the dead letters.
        """
        kind, boot, first, payload = record
        single = kind != KIND_BLOCK
        payloads = [payload]
        if not single:
            kind, payloads = KIND_PREDICTION, predictions_of(payload, boot=boot, sequence=first)
        try:
            common = self._common_of(kind, boot, payloads[0], single=single)
        except (RecordError, KeyError, UnicodeEncodeError) as error:
            for number, payload in enumerate(payloads, first):
                refused = LogRecord(kind, boot, number, payload)
                self._refused[refused.address] = refused, f"not a record: {error}"
            return []
        messages = list(zip(count(first), payloads, repeat(common)))
        if self._refused:
            return [message for message in messages if _address_of(message) not in self._refused]
        return messages

    def _common_of(self, kind: int, boot: str, payload: bytes, *, single: bool) -> _Common:
        envelope = read_envelope(payload)
        # A broker refuses times that lie in its future.
        moment = min(seconds_of(envelope.time), self._clock())
        return _Common(
            kind=kind,
            boot=boot,
            identity=envelope.id.encode() if single else b"",
            topic=topic_of(kind, self._settings.topic_prefix),
            key=envelope.model.encode(),
            timestamp_ms=max(0, int(moment * 1000)),
            headers=common_headers_of(kind, envelope),
        )

    def _learn(self, refused: _Refused) -> bool:
        """Note which records to send alone, or not at all; return False when only another try can tell."""
        if len(refused.messages) > 1:
            if refused.of_size and self._batch_bytes > _SMALLEST_BATCH_BYTES:
                # A topic may take less at once than `kafka.batch_bytes`.
                self._batch_bytes //= 2
            else:
                self._alone.update(_address_of(message) for message in refused.messages)
            return True
        number, payload, common = refused.messages[0]
        record = LogRecord(common.kind, common.boot, number, payload)
        address = record.address
        self._tries[address] += 1
        if not refused.certain and self._tries[address] < _UNKNOWN_TRIES:
            return False
        self._refused[address] = record, f"refused by Kafka: {refused}"
        return True

    def _acknowledge(self, reader: SpoolReader, records: list[LogRecord]) -> None:
        dead = self._dead_among(records) if self._refused else []
        position = reader.position()
        try:
            if dead:
                write_dead_letters(
                    self._spool_dir, dead, max_bytes=self._dead_letter_bytes, discarded=self._count_discarded
                )
            write_checkpoint(self._spool_dir, position)
        except OSError as error:
            raise SpoolError(f"cannot write to {self._spool_dir}: {error.strerror}") from None
        self._acknowledged_to = position
        self._round_records = min(2 * self._round_records, _ROUND_RECORDS)
        self._pause = _FIRST_PAUSE_SECONDS
        self.shipped += sum([record.numbers for record in records]) - len(dead)
        self.dead_letters += len(dead)
        self._damage.miss(reader.missing - self._missing_seen)
        self._missing_seen = reader.missing
        self._alone.clear()
        self._refused.clear()
        self._tries.clear()
        if dead:
            record, reason = dead[0]
            more = f" and {len(dead) - 1} more" if len(dead) > 1 else ""
            self._note(f"dead letter {format_id(*record.address)}{more}: {reason}")

    def _count_discarded(self, count: int) -> None:
        self.discarded += count
        self._note(f"{count} dead letters were discarded: they may take {self._dead_letter_bytes} bytes in all")

    def _dead_among(self, records: list[LogRecord]) -> list[tuple[LogRecord, str]]:
        addresses = [
            (record.boot, number)
            for record in records
            for number in range(record.sequence, record.sequence + record.numbers)
        ]
        return [self._refused[address] for address in addresses if address in self._refused]

    def _checkpoint(self) -> dict[str, tuple[str, int]]:
        try:
            return read_checkpoint(self._spool_dir)
        except CheckpointError as error:
            self._note(f"{error}; shipping the spool from its start")
            return {}

    def _find(self) -> None:
        if not self.connected:
            self._note(f"Kafka at {self._settings.bootstrap_servers} is reachable")
        self.connected = True
        self._noted.clear()

    def _lose(self, error: BaseException) -> None:
        text = _reason(error)
        # What only a person can mend is told also when Kafka was away before, each reason once.
        if self.connected or not self._noted or isinstance(error, KafkaRefused):
            self._note_once(text)
        self.connected = False

    def _note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._note(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, KafkaRefused):
        return f"{error}; the spool keeps the records"
    if isinstance(error, TimeoutError):
        return "Kafka does not answer in time; the spool keeps the records"
    if isinstance(error, KafkaUnreachable):
        return f"{error}; the spool keeps the records"
    if isinstance(error, KafkaError | OSError):
        return f"Kafka is out of reach: {type(error).__name__}: {error}; the spool keeps the records"
    if isinstance(error, SpoolError):
        return f"shipping has stopped for now: {error}"
    return f"shipping has stopped for now: {type(error).__name__}: {error}"
