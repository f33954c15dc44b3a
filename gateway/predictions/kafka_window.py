"""A window of the log on Kafka, read once from end to end, without a consumer group."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from gateway.events.addresses import AddressError, parse_id
from gateway.events.cloudevents import kind_of, topic_of
from gateway.predictions.connection import KafkaRefused, KafkaUnreachable, bounded, consumer_of, discard_consumer, reach
from gateway.predictions.segments import LogRecord
from gateway.predictions.source import Deduplicator
from gateway.predictions.tail import moment_of
from gateway.settings import KafkaSettings

__all__ = ("KafkaUnreadable", "ends_of_topics", "read_topics")

_BLOCK = 2000
# A message's timestamp is its record's time; the broker's clock and ours may differ.
_SLACK_SECONDS = 60.0


class KafkaUnreadable(Exception):
    """Raised when the brokers cannot be reached, or hold no such topic."""


def read_topics(
    settings: KafkaSettings,
    *,
    kinds: Collection[int],
    since: float | None = None,
    until: float | None = None,
    with_repetitions: bool = False,
    ends: Mapping[TopicPartition, int] | None = None,
) -> Iterator[LogRecord]:
    """Yield what the topics of some kinds of records hold now; order holds within a partition.

    Parameters
    ----------
    since, until : float, optional
        Only records of this time or later, and before this time, in seconds since 1970.
    with_repetitions : bool
        Yield a record again when the topic holds it again.
    ends : mapping of partition to offset, optional
        Yield what the topics held when `ends_of_topics` returned this.

    Raises
    ------
    KafkaUnreadable
    """
    seen = Deduplicator()
    with _consuming(settings, kinds) as (runner, consumer, topics):
        ends = left = runner.run(_begin(consumer, settings, topics, since, ends))
        while left:
            for place, messages in runner.run(_read(consumer, settings)).items():
                for message in messages:
                    record = _record_of(message) if message.offset < ends.get(place, 0) else None
                    if record is None:
                        continue
                    # Gateways that were started in the same millisecond write under the same boot.
                    lane = (place, dict(message.headers).get("ce_source"))
                    if not with_repetitions and not seen.is_new(lane, record.boot, record.sequence):
                        continue
                    moment = moment_of(record)
                    if (since is None or moment >= since) and (until is None or moment < until):
                        yield record
            left = runner.run(_still_left(consumer, left))


def ends_of_topics(settings: KafkaSettings, *, kinds: Collection[int]) -> dict[TopicPartition, int]:
    """Return the offset after the last message of each partition that holds some, in the topics of these kinds.

    Raises
    ------
    KafkaUnreadable
    """
    with _consuming(settings, kinds) as (runner, consumer, topics):
        return runner.run(_begin(consumer, settings, topics, None, None))


@contextmanager
def _consuming(settings: KafkaSettings, kinds: Collection[int]) -> Iterator[tuple[asyncio.Runner, Any, list[str]]]:
    """A consumer, not yet started, with a loop to run it on and the topics of these kinds."""
    if not settings.bootstrap_servers:
        raise KafkaUnreadable("kafka.bootstrap_servers is empty; expected host:port,...")
    topics = [topic_of(kind, settings.topic_prefix) for kind in sorted(kinds)]
    with asyncio.Runner() as runner:
        try:
            consumer = runner.run(_new_consumer(settings))
        except (KafkaRefused, KafkaUnreachable) as error:
            raise KafkaUnreadable(f"cannot read {', '.join(topics)}: {error}") from None
        try:
            yield runner, consumer, topics
        except (KafkaError, OSError, TimeoutError) as error:
            text = str(error) or type(error).__name__
            raise KafkaUnreadable(f"cannot read {', '.join(topics)} at {settings.bootstrap_servers}: {text}") from None
        finally:
            runner.run(discard_consumer(consumer))


async def _new_consumer(settings: KafkaSettings) -> Any:
    await reach(settings)
    return consumer_of(settings, None)


async def _begin(
    consumer: Any,
    settings: KafkaSettings,
    topics: list[str],
    since: float | None,
    given: Mapping[TopicPartition, int] | None,
) -> dict[TopicPartition, int]:
    """Start at the window's beginning; returns the partitions that hold something, with the offset after it."""
    limit = settings.request_timeout_ms / 1000
    consumer.subscribe(topics)
    await bounded(consumer.start(), limit)
    places = list(consumer.assignment())
    ends = await bounded(consumer.end_offsets(places), limit)
    begins = await bounded(consumer.beginning_offsets(places), limit)
    if since is not None:
        asked = {place: int(max(0.0, since - _SLACK_SECONDS) * 1000) for place in places}
        found = await bounded(consumer.offsets_for_times(asked), limit)
        begins = {place: ends[place] if found[place] is None else found[place].offset for place in places}
    if given is not None:
        ends = {place: given.get(place, 0) for place in places}
    for place in places:
        consumer.seek(place, begins[place])
    return {place: ends[place] for place in places if begins[place] < ends[place]}


async def _read(consumer: Any, settings: KafkaSettings) -> dict[Any, list[Any]]:
    limit = settings.request_timeout_ms / 1000
    found: dict[Any, list[Any]] = await bounded(
        consumer.getmany(timeout_ms=settings.request_timeout_ms, max_records=_BLOCK), 2 * limit
    )
    if not found:
        raise TimeoutError(f"nothing came within {limit:g} s")
    return found


async def _still_left(consumer: Any, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    return {place: end for place, end in ends.items() if await consumer.position(place) < end}


def _record_of(message: Any) -> LogRecord | None:
    headers = dict(message.headers)
    kind = kind_of(headers.get("ce_type", b"").decode("utf-8", "replace"))
    try:
        boot, sequence = parse_id(headers.get("ce_id", b"").decode("utf-8", "replace"))
    except AddressError:
        return None
    if kind is None or message.value is None:
        return None
    return LogRecord(kind, boot, sequence, message.value)
