"""Kafka clients as the settings describe them, and their end within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import ProducerClosed, TopicAlreadyExistsError, for_code
from aiokafka.helpers import create_ssl_context

from gateway.settings import KafkaSettings

__all__ = (
    "DISCARD_SECONDS",
    "bounded",
    "consumer_of",
    "create_topics",
    "discard_consumer",
    "discard_producer",
    "producer_of",
)

_END_SECONDS = 1.0
# The longest that discarding a client takes.
DISCARD_SECONDS = 3 * _END_SECONDS
_METADATA_MAX_AGE_MS = 10_000


def producer_of(settings: KafkaSettings) -> Any:
    """Return a producer that is not started yet."""
    return AIOKafkaProducer(
        acks="all" if settings.acks == "all" else 1,
        enable_idempotence=settings.idempotence and settings.acks == "all",
        compression_type=None if settings.compression == "none" else settings.compression,
        max_batch_size=settings.batch_bytes,
        **_connection(settings),
    )


def consumer_of(settings: KafkaSettings, group: str | None) -> Any:
    """Return a consumer that commits by hand, of a group or of none; not started yet.

    It begins at the earliest record.
    """
    return AIOKafkaConsumer(
        group_id=group, enable_auto_commit=False, auto_offset_reset="earliest", **_connection(settings)
    )


async def create_topics(settings: KafkaSettings, topics: list[str]) -> None:
    """Create those topics that are not there.

    Raises
    ------
    KafkaError, OSError, TimeoutError
        When the broker is away or refuses.
    """
    limit = settings.request_timeout_ms / 1000
    admin = AIOKafkaAdminClient(**_connection(settings))
    try:
        await bounded(admin.start(), limit)
        missing = set(topics) - set(await bounded(admin.list_topics(), limit))
        wanted = [NewTopic(name, settings.partitions, settings.replication_factor) for name in sorted(missing)]
        if wanted:
            answer = await bounded(admin.create_topics(wanted, timeout_ms=settings.request_timeout_ms), limit)
            for topic, code, *text in answer.topic_errors:
                if code not in (0, TopicAlreadyExistsError.errno):
                    raise for_code(code)(f"cannot create topic {topic}: {' '.join(str(part) for part in text)}")
    finally:
        await _end(admin.close())


async def discard_producer(producer: Any) -> None:
    """End a producer now: what it still holds is not sent any more, and nothing here waits for the broker."""
    # An idempotent producer never gives a batch up, so its stop() alone would wait for ever (aiokafka issue 1101).
    sender = producer._sender.sender_task  # noqa: SLF001
    if sender is not None:
        sender.cancel()
    await _end(producer.client.close())
    producer._message_accumulator.fail_all(ProducerClosed())  # noqa: SLF001
    await _end(producer.stop())


async def discard_consumer(consumer: Any) -> None:
    """End a consumer: it leaves its group when the broker answers in time, and is closed in any case."""
    if await _end(consumer.stop()):
        return
    await _end(consumer._client.close())  # noqa: SLF001
    if consumer._fetcher is not None:  # noqa: SLF001
        await _end(consumer._fetcher.close())  # noqa: SLF001


async def _end(closing: Coroutine[Any, Any, None]) -> bool:
    """Give a client's own closing a second, in a task of its own, as it may swallow a cancellation or leak one."""
    task = asyncio.create_task(closing)
    task.add_done_callback(_ignore_outcome)
    await asyncio.wait({task}, timeout=_END_SECONDS)
    return not task.cancel()


def _ignore_outcome(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


async def bounded(work: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """Await `work` for at most `seconds`.

    Raises
    ------
    TimeoutError
        When it took longer; it has been cancelled then.
    """
    async with asyncio.timeout(seconds):
        return await work


def _connection(settings: KafkaSettings) -> dict[str, Any]:
    secure = settings.security_protocol in ("SSL", "SASL_SSL")
    return {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": "gateway",
        "request_timeout_ms": settings.request_timeout_ms,
        "metadata_max_age_ms": _METADATA_MAX_AGE_MS,
        "security_protocol": settings.security_protocol,
        "ssl_context": create_ssl_context(cafile=settings.ssl_cafile or None) if secure else None,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username or None,
        "sasl_plain_password": settings.sasl_password or None,
    }
