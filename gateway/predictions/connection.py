"""Kafka clients as the settings describe them, a look whether Kafka is there, and their end within a time limit."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    BrokerResponseError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    ProducerClosed,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    kafka_errors,
)
from aiokafka.helpers import create_ssl_context
from aiokafka.protocol.metadata import MetadataRequest

from gateway.settings import KafkaSettings

__all__ = (
    "DISCARD_SECONDS",
    "CompressionRefused",
    "KafkaRefused",
    "KafkaUnreachable",
    "admin_of",
    "bounded",
    "consumer_of",
    "discard_admin",
    "discard_consumer",
    "discard_producer",
    "is_there",
    "producer_of",
    "reach",
)

_END_SECONDS = 1.0
# The longest that discarding a client takes.
DISCARD_SECONDS = 3 * _END_SECONDS
_METADATA_MAX_AGE_MS = 10_000
_LOGIN_ERRORS = (
    AuthenticationFailedError,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)


class KafkaUnreachable(Exception):
    """Raised when no broker answers; it may come back by itself."""


class KafkaRefused(Exception):
    """Raised when a broker is there and does not take the client, or the client not it, until somebody changes that."""


class CompressionRefused(BrokerResponseError):  # type: ignore[misc]
    """The broker does not know the compression of a batch, as those before 2.1 do not know zstd (KIP-110)."""

    errno = 76
    message = "UNSUPPORTED_COMPRESSION_TYPE"
    description = "The requesting client does not support the compression type of given partition."


# aiokafka does not know it, and would call it unknown, as it does what is wrong with a record.
kafka_errors.setdefault(CompressionRefused.errno, CompressionRefused)


def producer_of(settings: KafkaSettings) -> Any:
    """Return a producer that is not started yet."""
    return AIOKafkaProducer(
        acks="all" if settings.acks == "all" else 1,
        enable_idempotence=settings.idempotence and settings.acks == "all",
        compression_type=None if settings.compression == "none" else settings.compression,
        max_batch_size=settings.batch_bytes,
        **_connection(settings),
        metadata_max_age_ms=_METADATA_MAX_AGE_MS,
    )


def consumer_of(settings: KafkaSettings, group: str | None) -> Any:
    """Return a consumer that commits by hand, of a group or of none; not started yet.

    One of a group is told where to begin, one of none begins at the earliest record.
    """
    return AIOKafkaConsumer(
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="none" if group else "earliest",
        **_connection(settings),
        metadata_max_age_ms=_METADATA_MAX_AGE_MS,
    )


def admin_of(settings: KafkaSettings) -> Any:
    """Return an admin client that is not started yet."""
    return AIOKafkaAdminClient(**_connection(settings), metadata_max_age_ms=_METADATA_MAX_AGE_MS)


async def reach(settings: KafkaSettings) -> None:
    """Connect to the first bootstrap server that answers, and leave again.

    The clients themselves say only that none answered, whatever the reason.

    Raises
    ------
    KafkaUnreachable
        When none answers within the request timeout.
    KafkaRefused
        When one does, and the login, its certificate or the protocol is refused.
    """
    reasons: list[KafkaUnreachable | KafkaRefused] = []
    limit = settings.request_timeout_ms / 1000
    options = _connection(settings)
    for host, port, _ in collect_hosts(options.pop("bootstrap_servers")):
        try:
            connection = await bounded(create_conn(host, port, **options), limit)
            try:
                # Before a login a listener answers the question for its versions and no other.
                await bounded(connection.send(MetadataRequest([])), limit)
            finally:
                await _end(_closed(connection))
            return
        except (KafkaError, OSError, TimeoutError, ValueError) as error:
            reasons.append(_reason(settings, f"{host}:{port}", error))
    raise min(reasons, key=lambda reason: isinstance(reason, KafkaUnreachable))


def _reason(settings: KafkaSettings, server: str, error: Exception) -> KafkaUnreachable | KafkaRefused:
    if isinstance(error, ssl.SSLCertVerificationError):
        return KafkaRefused(
            f"the certificate of Kafka at {server} does not check: {error.verify_message}; "
            "kafka.ssl_cafile names the authority that signed it"
        )
    if isinstance(error, ssl.SSLError):
        return KafkaRefused(f"no TLS with Kafka at {server}: {error.reason or error}")
    if isinstance(error, _LOGIN_ERRORS):
        who = f"{settings.sasl_username!r} by {settings.sasl_mechanism}"
        return KafkaRefused(f"Kafka at {server} refuses the login of {who}: {error}")
    if isinstance(error, KafkaConnectionError | ConnectionResetError):
        # Also what a listener does that wants a certificate of ours: TLS 1.3 finds out after it has let us in.
        certificate = ", and kafka.ssl_certfile" if settings.security_protocol.endswith("SSL") else ""
        return KafkaUnreachable(
            f"Kafka at {server} closed the connection; does its listener expect kafka.security_protocol = "
            f'"{settings.security_protocol}"{certificate}?'
        )
    if isinstance(error, TimeoutError):
        return KafkaUnreachable(f"Kafka at {server} does not answer")
    return KafkaUnreachable(f"Kafka at {server} is out of reach: {type(error).__name__}: {error}")


async def _closed(connection: Any) -> None:
    await connection.close()


async def is_there(client: Any, seconds: float) -> bool:
    """Whether a started client's broker answers a question for its topics within `seconds`."""
    try:
        return bool(await bounded(client.force_metadata_update(), seconds))
    except (KafkaError, OSError, TimeoutError):
        return False


async def discard_producer(producer: Any) -> None:
    """End a producer now: what it still holds is not sent any more, and nothing here waits for the broker."""
    # An idempotent producer never gives a batch up, so its stop() alone would wait for ever (aiokafka issue 1101).
    sender = producer._sender.sender_task  # noqa: SLF001
    if sender is not None:
        sender.cancel()
    await _end(producer.client.close())
    accumulator = producer._message_accumulator  # noqa: SLF001
    accumulator.fail_all(ProducerClosed())
    held = [*accumulator._pending_batches, *chain.from_iterable(accumulator._batches.values())]  # noqa: SLF001
    for future in chain.from_iterable((batch.future, batch._drain_waiter) for batch in held):  # noqa: SLF001
        # Nobody waits for these any more, which asyncio would complain of.
        future.add_done_callback(_ignore_outcome)
    await _end(producer.stop())


async def discard_admin(admin: Any) -> None:
    """End an admin client."""
    await _end(admin.close())


async def discard_consumer(consumer: Any) -> None:
    """End a consumer: it leaves its group when the broker answers in time, and is closed in any case."""
    if await _end(consumer.stop()):
        return
    # Whatever still runs would open new connections after the client has closed its own.
    coordinator, fetcher = consumer._coordinator, consumer._fetcher  # noqa: SLF001
    if coordinator is not None:
        await _end(coordinator._stop_heartbeat_task())  # noqa: SLF001
        await _end(coordinator._stop_commit_offsets_refresh_task())  # noqa: SLF001
    if fetcher is not None:
        await _end(fetcher.close())
    await _end(consumer._client.close())  # noqa: SLF001


async def _end(closing: Coroutine[Any, Any, None]) -> bool:
    """Give a client's own closing a second, in a task of its own, as it may swallow a cancellation or leak one.

    Returns whether it came to its end, rather than to an error on the way.
    """
    task = asyncio.create_task(closing)
    await asyncio.wait({task}, timeout=_END_SECONDS)
    if not task.done():
        task.add_done_callback(_ignore_outcome)
        task.cancel()
        return False
    return not task.cancelled() and task.exception() is None


def _ignore_outcome(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()


async def bounded(work: Awaitable[Any], seconds: float) -> Any:
    """Await `work` for at most `seconds`.

    Raises
    ------
    TimeoutError
        When it took longer; it has been cancelled then.
    """
    async with asyncio.timeout(seconds):
        return await work


def _connection(settings: KafkaSettings) -> dict[str, Any]:
    return {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": "gateway",
        "request_timeout_ms": settings.request_timeout_ms,
        "security_protocol": settings.security_protocol,
        "ssl_context": _ssl_context(settings) if settings.security_protocol in ("SSL", "SASL_SSL") else None,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username or None,
        "sasl_plain_password": settings.sasl_password or None,
    }


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    context: ssl.SSLContext = _loaded(
        "ssl_cafile", settings.ssl_cafile, lambda: create_ssl_context(cafile=settings.ssl_cafile or None)
    )
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_certfile:
        # With no password at all OpenSSL would ask a terminal for that of an encrypted key, and wait.
        key, password = settings.ssl_keyfile or None, settings.ssl_key_password
        name = f"{settings.ssl_certfile} with {key or 'the key in it'}"
        _loaded("ssl_certfile", name, lambda: context.load_cert_chain(settings.ssl_certfile, key, password))
    return context


def _loaded(setting: str, name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except OSError as error:
        raise KafkaRefused(f"cannot use kafka.{setting} = {name}: {error.strerror or error}") from None
