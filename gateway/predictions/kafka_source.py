"""The log on Kafka: a consumer group over predictions and feedback, committed by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata

from gateway.events.addresses import AddressError, parse_id
from gateway.events.cloudevents import kind_of, topic_of
from gateway.events.folding import FEWEST, fold
from gateway.events.records import KIND_BLOCK, KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.connection import (
    KafkaRefused,
    KafkaUnreachable,
    bounded,
    consumer_of,
    discard_consumer,
    is_there,
    reach,
)
from gateway.predictions.segments import LogRecord
from gateway.predictions.source import Deduplicator
from gateway.settings import KafkaSettings

__all__ = ("KafkaSource", "folded")

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
# Beyond the time it was given, for what a read has to do before it can wait.
_GRACE_SECONDS = 1.0
# How often a broker from which nothing comes is asked whether it is there.
_LOOK_SECONDS = 5.0


class KafkaSource:
    """Reads `<prefix>.predictions` and `<prefix>.feedback` as a member of a consumer group.

    Several monitors of one group share the partitions. One that has to hand partitions over in a rebalance commits
    first what it has returned of them, so that the next one goes on behind it; what a member that died, or was frozen
    until the group gave it up, had not committed is returned to its successor again.

    A broker that is away gives empty reads. `unreadable` counts messages that are no record of ours, `out_of_range` how
    often what was to be read next was gone: then reading goes on with the earliest message there is.

    Parameters
    ----------
    settings : KafkaSettings
    group : str
        Consumer group.
    position : mapping, optional
        What `position` gave: where the reader's own checkpoint stands, by "topic/partition" the offset and the
        highest sequence seen of each boot. A partition goes on from there when the group has not come further, and
        what the shipper repeats behind it is known as such.
    start : "earliest" or "latest"
        Without a position: go on where the group stands, at first with the earliest record; or begin with what
        comes from now on, wherever the group stands.
    whole_blocks : bool
        Give predictions that came of one block together again, as a record of `KIND_BLOCK`, where they are many enough.
    note : callable, optional
        Gets one line when the broker goes away or comes back, and when messages were gone before they were read.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        *,
        position: Mapping[str, Mapping[str, Any]] | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        whole_blocks: bool = False,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.unreadable = 0
        self.out_of_range = 0
        self.connected = False
        self._settings = settings
        self._group = group
        self._whole_blocks = whole_blocks
        self._note = note
        self._limit = settings.request_timeout_ms / 1000
        self._checkpoint: dict[str, int] = {name: place["offset"] for name, place in (position or {}).items()}
        self._position: dict[TopicPartition, int] = {}
        self._begins_at_the_end = start == "latest" and not position
        self._seen = Deduplicator()
        for name, place in (position or {}).items():
            for boot, sequence in place["seen"].items():
                self._seen.remember(name, boot, sequence)
        self._consumer: Any = None
        self._not_taken_up: Exception | None = None
        self._connecting: asyncio.Task[Any] | None = None
        self._pause = _FIRST_PAUSE_SECONDS
        self._noted = False
        self._look_at = 0.0
        self._looking: asyncio.Task[bool] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<KafkaSource {self._group} {'up' if self.connected else 'down'} partitions={len(self._position)} "
            f"duplicates={self._seen.duplicates} unreadable={self.unreadable} out_of_range={self.out_of_range}>"
        )

    @property
    def assigned(self) -> frozenset[str]:
        """The partitions that are this member's at the moment, as "topic/partition"."""
        places = self._consumer.assignment() if self._consumer is not None else ()
        return frozenset(_name(place) for place in places)

    async def read(self, max_records: int, timeout_seconds: float) -> list[LogRecord]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while not self._closed:
            records = await self._read_once(max_records, deadline)
            if records is not None or loop.time() >= deadline:
                return records or []
            # What was passed over may have come without waiting for it.
            await asyncio.sleep(0)
        return []

    async def _read_once(self, max_records: int, deadline: float) -> list[LogRecord] | None:
        """What comes next; None when all of it was passed over and more may be there at once."""
        loop = asyncio.get_running_loop()
        if self._consumer is None and not await self._connected_within(max(0.0, deadline - loop.time())):
            return []
        if self._not_taken_up is not None:
            await self._lose(self._not_taken_up)
            return []
        left = max(0.0, deadline - loop.time())
        try:
            batches = await bounded(
                self._consumer.getmany(timeout_ms=int(left * 1000), max_records=max_records), left + _GRACE_SECONDS
            )
        except TimeoutError:
            # The group is being rebalanced, which takes as long as its slowest member.
            batches = {}
        except (OffsetOutOfRangeError, NoOffsetForPartitionError) as error:
            await self._begin_at_the_earliest(error)
            return None
        except (KafkaError, OSError) as error:
            await self._lose(error)
            return []
        self._look(loop)
        records = []
        for place, messages in batches.items():
            records += self._records_of(place, messages)
        if batches and not records:
            return None
        return folded(records) if self._whole_blocks else records

    def lag_events(self) -> int:
        """Messages of this member's partitions that were not returned yet, as of the last fetch."""
        if self._consumer is None:
            return 0
        ends = {place: self._consumer.highwater(place) for place in self._position.keys() & self._consumer.assignment()}
        return sum(max(0, end - self._position[place]) for place, end in ends.items() if end is not None)

    def position(self) -> dict[str, Any]:
        offsets = self._checkpoint | {_name(place): offset for place, offset in self._position.items()}
        seen = self._seen.lanes()
        return {name: {"offset": offset, "seen": seen.get(name, {})} for name, offset in offsets.items()}

    async def commit(self) -> None:
        await self._commit(self._position)

    async def _commit(self, positions: Mapping[TopicPartition, int]) -> None:
        if self._consumer is None:
            return
        # One partition that is another member's by now would have all of it refused.
        assigned = self._consumer.assignment()
        offsets = {place: OffsetAndMetadata(at, "") for place, at in positions.items() if place in assigned}
        if not offsets:
            return
        # A commit that fails costs a repetition after a rebalance, which the reader's checkpoint and the
        # deduplication catch.
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            await bounded(self._consumer.commit(offsets), self._limit)

    async def close(self) -> None:
        self._closed = True
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            await asyncio.wait({connecting})
        await self._discard()

    async def _connected_within(self, seconds: float) -> bool:
        """Go on with connecting, for at most `seconds`; the attempt itself may take longer and is kept."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        connecting = self._connecting
        done, _ = await asyncio.wait({connecting}, timeout=seconds)
        if not done:
            return False
        self._connecting = None
        self._consumer = None if connecting.cancelled() else connecting.result()
        return self._consumer is not None

    async def _connect(self) -> Any:
        topics = [topic_of(kind, self._settings.topic_prefix) for kind in (KIND_PREDICTION, KIND_FEEDBACK)]
        consumer = None
        started = False
        try:
            await reach(self._settings)
            consumer = consumer_of(self._settings, self._group)
            await bounded(consumer.start(), self._limit)
            # Joining the group goes on in the background. It must not be cut short: the broker would wait for each
            # member that gave up until its session ends.
            consumer.subscribe(topics, listener=_Assignment(consumer, self._take_up, self._let_go))
            started = True
        except (KafkaError, KafkaRefused, KafkaUnreachable, OSError, TimeoutError) as error:
            self._set_connected(False, error)
        finally:
            if consumer is not None and not started:
                await discard_consumer(consumer)
        if not started:
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
            return None
        self._pause = _FIRST_PAUSE_SECONDS
        self._set_connected(True, None)
        return consumer

    def _records_of(self, place: TopicPartition, messages: Iterable[Any]) -> list[LogRecord]:
        lane, is_new = _name(place), self._seen.is_new
        records = []
        for message in messages:
            self._position[place] = message.offset + 1
            headers = dict(message.headers)
            kind = kind_of(_text(headers.get("ce_type")))
            try:
                boot, sequence = parse_id(_text(headers.get("ce_id")))
            except AddressError:
                kind = None
            if kind is None or message.value is None:
                self.unreadable += 1
                continue
            # Gateways that were started in the same millisecond write under the same boot.
            if is_new(lane, f"{_text(headers.get('ce_source'))}#{boot}", sequence):
                records.append(LogRecord(kind, boot, sequence, message.value))
        return records

    async def _let_go(self, revoked: set[TopicPartition]) -> None:
        await self._commit({place: self._position[place] for place in revoked if place in self._position})
        self._keep(revoked)

    def _keep(self, places: Iterable[TopicPartition]) -> None:
        """Keep how far partitions were read that are not this member's any more, should they come back."""
        for place in list(places):
            if place in self._position:
                self._checkpoint[_name(place)] = self._position.pop(place)

    async def _take_up(self, assigned: set[TopicPartition], consumer: Any) -> None:
        if not assigned:
            return
        # What lies where the group stands must not come before it is known whether to go on there.
        consumer.pause(*assigned)
        try:
            await self._go_on(assigned, consumer)
        except (KafkaError, OSError, TimeoutError) as error:
            self._not_taken_up = error
            return
        consumer.resume(*assigned & consumer.assignment())

    async def _go_on(self, assigned: set[TopicPartition], consumer: Any) -> None:
        if self._begins_at_the_end:
            ends = await bounded(consumer.end_offsets(list(assigned)), self._limit)
            self._checkpoint.update({_name(place): end for place, end in ends.items()})
        for place in assigned:
            offset = self._checkpoint.get(_name(place))
            if offset is None:
                continue
            committed = await bounded(consumer.committed(place), self._limit)
            if self._begins_at_the_end or committed is None or committed < offset:
                consumer.seek(place, offset)
                self._position[place] = offset
        # What is taken over from another member later goes on where that one stood.
        self._begins_at_the_end = False

    async def _begin_at_the_earliest(self, error: KafkaError) -> None:
        """Go on with the earliest message, where nothing was committed or where what was to come next is gone."""
        is_gone = isinstance(error, OffsetOutOfRangeError)
        places = list(error.args[0]) if is_gone else [error.args[0]]
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            starts = await bounded(self._consumer.beginning_offsets(places), self._limit)
            for place, start in starts.items():
                # Where nothing was committed it may have been taken up at its checkpoint, or at its end, meanwhile.
                self._consumer.seek(place, start if is_gone else self._position.get(place, start))
                if is_gone:
                    self.out_of_range += 1
                    if self._note is not None:
                        self._note(
                            f"{_name(place)} has no message {error.args[0][place]} any more: reading goes on with "
                            f"{start}, the earliest; what lay between was never read"
                        )

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask the broker every few seconds whether it is there, which a consumer that gets nothing does not tell.

        One that is away is waited for: who left the group would have to wait, on its return, until its former self has
        been given up.
        """
        if self._looking is not None and self._looking.done():
            there = self._looking.result()
            self._looking = None
            self._set_connected(there, None if there else KafkaUnreachable("Kafka does not answer any more"))
        if self._looking is None and loop.time() >= self._look_at:
            self._look_at = loop.time() + _LOOK_SECONDS
            self._looking = asyncio.create_task(is_there(self._consumer._client, self._limit))  # noqa: SLF001

    async def _lose(self, error: Exception) -> None:
        self._set_connected(False, error)
        await self._discard()

    async def _discard(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._not_taken_up = None
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
        if consumer is not None:
            await discard_consumer(consumer)
        # Whatever it is assigned when it is back comes as new.
        self._keep(self._position)

    def _set_connected(self, connected: bool, error: Exception | None) -> None:
        if self._note is not None and (connected != self.connected or not self._noted):
            servers = self._settings.bootstrap_servers
            ours = isinstance(error, KafkaRefused | KafkaUnreachable)
            reason = str(error) if ours else f"{type(error).__name__}: {error}".removesuffix(": ")
            self._note(f"reading from Kafka at {servers}" if connected else f"cannot read from Kafka: {reason}")
            self._noted = True
        self.connected = connected


class _Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """Takes partitions up at the checkpoint and lets go of them when they are taken away."""

    def __init__(
        self,
        consumer: Any,
        take_up: Callable[[set[TopicPartition], Any], Awaitable[None]],
        let_go: Callable[[set[TopicPartition]], Awaitable[None]],
    ) -> None:
        self._consumer = consumer
        self._take_up = take_up
        self._let_go = let_go

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        await self._let_go(revoked)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        await self._take_up(assigned, self._consumer)


def _name(place: TopicPartition) -> str:
    return f"{place.topic}/{place.partition}"


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def folded(records: list[LogRecord]) -> list[LogRecord]:
    """Return the same records, with predictions as blocks where `fold` puts them together."""
    given: list[LogRecord] = []
    begin = 0
    while begin < len(records):
        kind, boot, first, _ = records[begin]
        end = begin + 1
        while end < len(records) and records[end][:3] == (kind, boot, first + end - begin):
            end += 1
        if kind != KIND_PREDICTION or end - begin < FEWEST:
            given += records[begin:end]
        else:
            payloads = [record.payload for record in records[begin:end]]
            for count, block in _pieces_of(payloads, boot=boot, sequence=first):
                if block is None:
                    given += records[begin : begin + count]
                else:
                    given.append(LogRecord(KIND_BLOCK, boot, records[begin].sequence, block))
                begin += count
        begin = end
    return given


def _pieces_of(payloads: list[bytes], *, boot: str, sequence: int) -> list[tuple[int, bytes | None]]:
    try:
        return list(fold(payloads, boot=boot, sequence=sequence))
    except Exception:  # records must never end who reads them, whatever is in them, and single they can be read too
        return [(len(payloads), None)]
