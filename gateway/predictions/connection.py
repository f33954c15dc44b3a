"""Kafka clients as the settings describe them, and their end within a time limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, ProducerClosed, TopicAlreadyExistsError, for_code
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


def consumer_of(settings: KafkaSettings, group: str) -> Any:
    """Return a consumer of a group that commits by hand and begins at the earliest record; not started yet."""
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
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            await bounded(admin.close(), _END_SECONDS)


async def discard_producer(producer: Any) -> None:
    """End a producer now: what it still holds is not sent any more, and nothing here waits for the broker."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        await bounded(producer.client.close(), _END_SECONDS)
    # An idempotent producer never gives a batch up, so its stop() would wait for ever (aiokafka issue 1101).
    producer._message_accumulator.fail_all(ProducerClosed())  # noqa: SLF001
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        await bounded(producer.stop(), _END_SECONDS)


async def discard_consumer(consumer: Any) -> None:
    """End a consumer: it leaves its group when the broker answers in time, and is closed in any case."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        await bounded(consumer.stop(), _END_SECONDS)
        return
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        await bounded(consumer._client.close(), _END_SECONDS)  # noqa: SLF001
    fetcher = consumer._fetcher  # noqa: SLF001
    if fetcher is not None:
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            await bounded(fetcher.close(), _END_SECONDS)


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
