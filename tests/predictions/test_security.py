"""Logins and certificates against a real Apache Kafka that asks for them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.events.addresses import format_id
from gateway.events.records import KIND_PREDICTION
from gateway.predictions.connection import KafkaRefused, KafkaUnreachable, reach
from gateway.predictions.kafka_source import KafkaSource
from gateway.predictions.shipper import Shipper
from gateway.predictions.spool import SpoolWriter
from gateway.settings import KafkaSettings, SpoolSettings
from tests.authorities import Authority
from tests.brokers import KafkaBroker

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PASSWORD = "kept-to-itself"
KEY_PASSWORD = "of-the-key"


class World(NamedTuple):
    """A broker that wants logins and certificates, and what a client needs for it."""

    broker: KafkaBroker
    authority: Authority
    stranger: Authority
    client: Path

    def settings(self, listener: str, protocol: str, **changes: Any) -> KafkaSettings:
        chosen: dict[str, Any] = {
            "bootstrap_servers": f"127.0.0.1:{self.broker.port(listener)}",
            "security_protocol": protocol,
            "topic_prefix": f"t{uuid.uuid4().hex[:10]}",
            "request_timeout_ms": 5000,
        }
        if protocol.startswith("SASL"):
            chosen |= {"sasl_username": "gateway", "sasl_password": PASSWORD}
        if protocol.endswith("SSL"):
            chosen["ssl_cafile"] = str(self.authority.ca)
        return KafkaSettings(**(chosen | changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("secure")
    authority, stranger = Authority(folder / "authority"), Authority(folder / "stranger")
    login = "org.apache.kafka.common.security"
    users = f'user_gateway="{PASSWORD}" user_visitor="{PASSWORD}"'
    settings = {
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(authority.sign("broker")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.ca),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.named.ssl.keystore.type": "PEM",
        "listener.name.named.ssl.keystore.location": str(authority.sign("elsewhere", host="DNS:kafka.example.org")),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:gateway;User:CN=gateway",
        "connection.failed.authentication.delay.ms": "10",
    }
    for listener in ("login", "both"):
        settings |= {
            f"listener.name.{listener}.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required {users};",
            f"listener.name.{listener}.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            f"listener.name.{listener}.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
        }
    listeners = {"LOGIN": "SASL_PLAINTEXT", "TLS": "SSL", "MUTUAL": "SSL", "NAMED": "SSL", "BOTH": "SASL_SSL"}
    broker = KafkaBroker(folder / "kafka", settings=settings, listeners=listeners, users={"gateway": PASSWORD})
    broker.start()
    yield World(broker, authority, stranger, authority.sign("gateway", password=KEY_PASSWORD))
    broker.kill()


async def ship_and_read(settings: KafkaSettings, folder: Path) -> None:
    """Ship a few records with these settings and read them back as the monitor would."""
    writer = SpoolWriter(folder / "front-0", slot=0, settings=SpoolSettings())
    for number in range(1, 21):
        record = {"id": format_id(writer.boot, number), "time": "2024-03-01T00:00:00Z", "model": "iris"}
        writer.append([(KIND_PREDICTION, json.dumps(record).encode())])
    notes: list[str] = []
    shipper, stop = Shipper(folder, settings, note=notes.append), asyncio.Event()
    shipping = asyncio.create_task(shipper.run(stop))
    source = KafkaSource(settings, f"group-{settings.topic_prefix}", note=notes.append)
    found = []
    async with asyncio.timeout(60):
        while len(found) < 20:
            found += await source.read(100, 0.2)
    await source.close()
    stop.set()
    await asyncio.wait_for(shipping, 30)
    assert [record.sequence for record in found] == list(range(1, 21))
    assert shipper.lag_events == 0
    assert not [note for note in notes if "out of reach" in note or "refuses" in note]
    assert PASSWORD not in repr(notes)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_login_is_taken_over_plain_text_and_over_tls(world: World, mechanism: str, tmp_path: Path) -> None:
    for listener, protocol in (("LOGIN", "SASL_PLAINTEXT"), ("BOTH", "SASL_SSL")):
        await ship_and_read(world.settings(listener, protocol, sasl_mechanism=mechanism), tmp_path / listener)


async def test_a_broker_is_trusted_by_the_authority_that_signed_it(world: World, tmp_path: Path) -> None:
    await ship_and_read(world.settings("TLS", "SSL"), tmp_path)


async def test_a_certificate_of_our_own_is_shown_where_the_broker_asks_for_one(world: World, tmp_path: Path) -> None:
    ours = {"ssl_certfile": str(world.client), "ssl_key_password": KEY_PASSWORD}
    await ship_and_read(world.settings("MUTUAL", "SSL", **ours), tmp_path)


@pytest.mark.parametrize(
    ("listener", "protocol", "changes", "text"),
    [
        ("LOGIN", "SASL_PLAINTEXT", {"sasl_password": "wrong"}, "refuses the login of 'gateway' by PLAIN"),
        ("BOTH", "SASL_SSL", {"sasl_password": "wrong"}, "refuses the login of 'gateway' by PLAIN"),
        (
            "LOGIN",
            "SASL_PLAINTEXT",
            {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "nobody"},
            "refuses the login of 'nobody' by SCRAM-SHA-512",
        ),
        (
            "TLS",
            "SSL",
            {"ssl_cafile": ""},
            "certificate of Kafka at .* does not check: unable to get .*issuer certificate",
        ),
        ("TLS", "SSL", {"ssl_cafile": "{stranger}"}, "does not check: .*kafka.ssl_cafile names the authority"),
        ("TLS", "SSL", {"ssl_cafile": "/nowhere.pem"}, "kafka.ssl_cafile = /nowhere.pem: No such file"),
        ("NAMED", "SSL", {}, "does not check: IP address mismatch"),
        ("MUTUAL", "SSL", {"ssl_certfile": "{client}", "ssl_key_password": "wrong"}, "cannot use kafka.ssl_certfile"),
        ("MUTUAL", "SSL", {"ssl_certfile": "{client}"}, "cannot use kafka.ssl_certfile"),
    ],
)
async def test_a_refusal_says_which_setting_is_wrong(
    world: World, listener: str, protocol: str, changes: dict[str, str], text: str
) -> None:
    places = {"{stranger}": str(world.stranger.ca), "{client}": str(world.client)}
    settings = world.settings(listener, protocol, **{name: places.get(value, value) for name, value in changes.items()})
    with pytest.raises(KafkaRefused, match=text) as raised:
        await reach(settings)
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    ("listener", "protocol", "text"),
    [
        ("TLS", "PLAINTEXT", '"PLAINTEXT"'),
        ("LOGIN", "PLAINTEXT", '"PLAINTEXT"'),
        ("PLAINTEXT", "SSL", '"SSL", and kafka.ssl_certfile'),
        ("MUTUAL", "SSL", '"SSL", and kafka.ssl_certfile'),
    ],
)
async def test_a_listener_of_another_kind_is_named_as_the_likely_cause(
    world: World, listener: str, protocol: str, text: str
) -> None:
    with pytest.raises((KafkaUnreachable, KafkaRefused), match=rf"expect kafka.security_protocol = {text}\?"):
        await reach(world.settings(listener, protocol))


async def test_the_hosts_name_is_checked_unless_told_not_to(world: World) -> None:
    await reach(world.settings("NAMED", "SSL", ssl_check_hostname=False))


async def test_a_refusal_is_noted_once_and_the_records_wait(world: World, tmp_path: Path) -> None:
    settings = world.settings("LOGIN", "SASL_PLAINTEXT", sasl_username="visitor")
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(KIND_PREDICTION, b'{"id":"x","time":"2024-03-01T00:00:00Z","model":"iris"}')])
    notes: list[str] = []
    shipper, stop = Shipper(tmp_path, settings, note=notes.append), asyncio.Event()
    shipping = asyncio.create_task(shipper.run(stop))
    async with asyncio.timeout(30):
        while not notes:
            await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    stop.set()
    await asyncio.wait_for(shipping, 30)
    assert len(notes) == 1
    assert "does not create topic" in notes[0]
    assert "the spool keeps the records" in notes[0]
    assert (shipper.connected, shipper.lag_events) == (False, 1)
