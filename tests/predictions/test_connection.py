from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import InvalidTimestampError, MessageSizeTooLargeError, UnknownError

from gateway.predictions.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from gateway.predictions.connection import bounded, consumer_of, producer_of
from gateway.predictions.segments import LogRecord
from gateway.predictions.shipper import _SMALLEST_BATCH_BYTES, _UNKNOWN_TRIES, Shipper, ShipperBusy, _Common, _Refused
from gateway.settings import KafkaSettings


async def test_security_settings_reach_the_clients() -> None:
    settings = KafkaSettings(
        bootstrap_servers="one:9093, two:9093",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="gateway",
        sasl_password="secret",
        request_timeout_ms=1234,
    )
    for client in (producer_of(settings), consumer_of(settings, "monitor")):
        connection: Any = client.client if hasattr(client, "client") else client._client
        assert connection._bootstrap_servers == ["one:9093", "two:9093"]
        assert connection._security_protocol == "SASL_SSL"
        assert connection._sasl_mechanism == "SCRAM-SHA-512"
        assert (connection._sasl_plain_username, connection._sasl_plain_password) == ("gateway", "secret")
        assert isinstance(connection._ssl_context, ssl.SSLContext)
        assert connection._ssl_context.verify_mode is ssl.CERT_REQUIRED
        assert connection._request_timeout_ms == 1234
        await client.stop()


@pytest.mark.parametrize(
    ("changes", "acks", "idempotent"),
    [({}, -1, True), ({"idempotence": False}, -1, False), ({"acks": "1"}, 1, False)],
)
async def test_acks_and_idempotence_are_settings(changes: dict[str, Any], acks: int, idempotent: bool) -> None:
    producer = producer_of(KafkaSettings(bootstrap_servers="localhost:1", **changes))
    assert producer._sender._acks == acks
    assert (producer._txn_manager is not None) is idempotent
    await producer.stop()


async def test_a_bounded_wait_ends() -> None:
    with pytest.raises(TimeoutError):
        await bounded(asyncio.Event().wait(), 0.01)


def test_a_checkpoint_is_read_as_written_and_none_is_the_start(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) == {}
    position = {"front-0": ("01a20738c4d000-0000000001.seg", 17), "decisions": ("01a20738c4d0ff-0000000001.seg", 0)}
    write_checkpoint(tmp_path, position)
    write_checkpoint(tmp_path, position)
    assert read_checkpoint(tmp_path) == position
    assert [path.name for path in tmp_path.iterdir()] == ["shipper.json"]


def test_a_full_disk_leaves_room_for_the_checkpoint_which_makes_room(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"front-0": ("01a20738c4d000-0000000001.seg", 1_234_567)})
    (tmp_path / f".shipper.json.{os.getpid()}").symlink_to("/dev/full")
    position = {"front-0": ("01a20738c4d000-0000000002.seg", 17)}
    write_checkpoint(tmp_path, position)
    assert read_checkpoint(tmp_path) == position


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / f".shipper.json.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, {})


def test_a_full_disk_that_takes_part_of_a_checkpoint_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"front-0": ("01a20738c4d000-0000000001.seg", 17)}
    write_checkpoint(tmp_path, old)
    (tmp_path / f".shipper.json.{os.getpid()}").symlink_to("/dev/full")
    pwrite, taken = os.pwrite, []

    def takes_part(file: int, content: bytes, offset: int) -> int:
        taken.append(content)
        return pwrite(file, content[:40] if len(taken) == 1 else content, offset)

    monkeypatch.setattr(os, "pwrite", takes_part)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, {f"front-{slot}": ("02a20738c4d001-0000000001.seg", 17) for slot in range(2)})
    assert read_checkpoint(tmp_path) == old


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_place_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: steps.append("sync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append("replace") or replace(*paths))
    write_checkpoint(tmp_path, {})
    assert steps == ["sync", "replace"]


async def test_a_second_shipper_of_a_spool_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".shipper.json.1").write_bytes(b"left by one that was killed")
    stop = asyncio.Event()
    running = asyncio.create_task(shipper_in(tmp_path).run(stop))
    await asyncio.sleep(0)
    assert not (tmp_path / ".shipper.json.1").exists()
    second = shipper_in(tmp_path)
    with pytest.raises(ShipperBusy, match=f"another process ships {tmp_path}"):
        await second.run(stop)
    stop.set()
    await running
    await second.run(stop)


@pytest.mark.parametrize("text", [b"", b"{}", b'{"streams":{"front-0":["../x",1]}}', b"\xff"])
def test_a_damaged_checkpoint_is_an_error_of_its_own(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "shipper.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_checkpoint(tmp_path)


def refused(*sequences: int, error: Any) -> _Refused:
    return _Refused([(number, b"", _Common(1, "boot", b"", "topic", b"key", 0, ())) for number in sequences], error)


def shipper_in(folder: Path) -> Shipper:
    return Shipper(folder, KafkaSettings(bootstrap_servers="localhost:1"), note=lambda text: None)


def test_a_refused_batch_is_sent_record_by_record_and_the_one_at_fault_is_given_up(tmp_path: Path) -> None:
    shipper = shipper_in(tmp_path)
    assert shipper._learn(refused(1, 2, 3, error=InvalidTimestampError()))
    assert (shipper._alone, shipper._refused) == ({("boot", 1), ("boot", 2), ("boot", 3)}, {})
    assert shipper._learn(refused(2, error=InvalidTimestampError()))
    given_up = LogRecord(1, "boot", 2, b""), "refused by Kafka: InvalidTimestampError"
    assert shipper._refused == {("boot", 2): given_up}


def test_a_batch_too_large_for_its_topic_is_halved_until_only_a_record_can_be_at_fault(tmp_path: Path) -> None:
    shipper = shipper_in(tmp_path)
    while not shipper._alone:
        assert shipper._learn(refused(1, 2, error=MessageSizeTooLargeError()))
    assert shipper._batch_bytes == _SMALLEST_BATCH_BYTES
    assert shipper._learn(refused(1, error=MessageSizeTooLargeError()))
    assert list(shipper._refused) == [("boot", 1)]


def test_an_answer_that_may_be_the_brokers_own_trouble_gives_no_record_up_at_once(tmp_path: Path) -> None:
    shipper = shipper_in(tmp_path)
    verdicts = [shipper._learn(refused(1, error=UnknownError())) for _ in range(_UNKNOWN_TRIES)]
    assert verdicts == [False] * (_UNKNOWN_TRIES - 1) + [True]
    assert list(shipper._refused) == [("boot", 1)]
