from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from gateway.predictions.connection import KafkaRefused
from gateway.predictions.topics import ensure_topics
from gateway.settings import KafkaSettings

pytestmark = pytest.mark.broker


def kafka_settings(servers: str, **changes: Any) -> KafkaSettings:
    chosen = {"bootstrap_servers": servers, "topic_prefix": f"t{uuid.uuid4().hex[:10]}", "request_timeout_ms": 5000}
    return KafkaSettings(**(chosen | changes))


async def configuration_of(servers: str, topic: str) -> dict[str, str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        (_, _, _, _, entries) = answer.resources[0]
        (described,) = await admin.describe_topics([topic])
        return {name: value for name, value, *_ in entries} | {"partitions": str(len(described["partitions"]))}
    finally:
        await admin.close()


async def test_missing_topics_are_created_as_set_and_decisions_stay_for_ever(kafka: str) -> None:
    settings = kafka_settings(kafka, partitions=5, retention_hours=2)
    assert await ensure_topics(settings) == []
    for name, kept, partitions in (
        ("predictions", "7200000", "5"),
        ("feedback", "7200000", "5"),
        ("decisions", "-1", "5"),
    ):
        found = await configuration_of(kafka, f"{settings.topic_prefix}.{name}")
        assert (found["retention.ms"], found["partitions"], found["cleanup.policy"]) == (kept, partitions, "delete")
    assert await ensure_topics(settings) == []


async def test_topics_that_are_there_stay_as_they_are_and_a_compacted_one_is_warned_of(kafka: str) -> None:
    settings = kafka_settings(kafka)
    topic = f"{settings.topic_prefix}.predictions"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 2, 1, topic_configs={"cleanup.policy": "compact,delete"})])
    await admin.close()
    # A topic may be unknown to the broker for a moment after it was created.
    async with asyncio.timeout(30):
        while not (concerns := await ensure_topics(settings)):
            await asyncio.sleep(0.1)
    (concern,) = concerns
    assert concern.startswith(f"topic {topic} is compacted (cleanup.policy = compact,delete)")
    assert (await configuration_of(kafka, topic))["partitions"] == "2"


async def test_a_missing_topic_is_named_where_none_may_be_created(kafka: str) -> None:
    settings = kafka_settings(kafka, create_topics=False)
    with pytest.raises(
        KafkaRefused, match=rf"no topic {settings.topic_prefix}.decisions, .*kafka.create_topics is off"
    ):
        await ensure_topics(settings)


async def test_more_replicas_than_brokers_are_refused_with_kafkas_own_words(kafka: str) -> None:
    settings = kafka_settings(kafka, replication_factor=3)
    with pytest.raises(KafkaRefused, match="does not create topic .*ReplicationFactor"):
        await ensure_topics(settings)
