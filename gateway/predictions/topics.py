"""The topics of the log: created where they are missing, and looked at for what would break its promises."""

from __future__ import annotations

from typing import Any

from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from gateway.events.cloudevents import topic_of
from gateway.events.records import KIND_DECISION, KIND_FEEDBACK, KIND_PREDICTION
from gateway.predictions.connection import KafkaRefused, admin_of, bounded, discard_admin
from gateway.settings import KafkaSettings

__all__ = ("ensure_topics",)

_KINDS = (KIND_PREDICTION, KIND_FEEDBACK, KIND_DECISION)
_FOR_EVER = -1
# With so many replicas one may be away while a record needs two that have it.
_REPLICAS_FOR_TWO = 3


async def ensure_topics(settings: KafkaSettings) -> list[str]:
    """Create those topics that are missing, and return one line for each that would not keep what is promised.

    Raises
    ------
    KafkaRefused
        When topics are missing and must not, or cannot, be created.
    KafkaError, OSError, TimeoutError
        When the broker is away.
    """
    limit = settings.request_timeout_ms / 1000
    topics = {topic_of(kind, settings.topic_prefix): kind for kind in _KINDS}
    admin = admin_of(settings)
    try:
        await bounded(admin.start(), limit)
        if missing := sorted(topics.keys() - set(await bounded(admin.list_topics(), limit))):
            await _create(admin, settings, {topic: topics[topic] for topic in missing})
        return await _concerns(admin, sorted(topics), limit)
    finally:
        await discard_admin(admin)


async def _create(admin: Any, settings: KafkaSettings, topics: dict[str, int]) -> None:
    if not settings.create_topics:
        raise KafkaRefused(f"Kafka has no topic {', '.join(topics)}, and kafka.create_topics is off")
    wanted = [
        NewTopic(topic, settings.partitions, settings.replication_factor, topic_configs=_configuration(settings, kind))
        for topic, kind in topics.items()
    ]
    asked = admin.create_topics(wanted, timeout_ms=settings.request_timeout_ms)
    answer = await bounded(asked, settings.request_timeout_ms / 1000)
    for topic, code, *text in answer.topic_errors:
        if code not in (0, TopicAlreadyExistsError.errno):
            said = f"{for_code(code).__name__} {' '.join(str(part) for part in text if part)}".strip()
            raise KafkaRefused(f"Kafka does not create topic {topic}: {said}")


def _configuration(settings: KafkaSettings, kind: int) -> dict[str, str]:
    kept = _FOR_EVER if kind == KIND_DECISION else round(settings.retention_hours * 3_600_000)
    configuration = {"cleanup.policy": "delete", "retention.ms": str(kept)}
    if settings.replication_factor >= _REPLICAS_FOR_TWO:
        configuration["min.insync.replicas"] = "2"
    return configuration


async def _concerns(admin: Any, topics: list[str], limit: float) -> list[str]:
    """What stands in the way of "nothing is lost"; nothing where we may not look."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": None}) for topic in topics]
    try:
        answers = await bounded(admin.describe_configs(asked), limit)
    except KafkaError:
        return []
    return [
        f"topic {topic} is compacted (cleanup.policy = {value}): of each model Kafka keeps the last record only"
        for answer in answers
        for _, _, _, topic, entries in answer.resources
        for name, value, *_ in entries
        if name == "cleanup.policy" and "compact" in (value or "")
    ]
