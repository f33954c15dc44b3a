from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from gateway.predictions.dead_letters import DEAD_LETTERS_NAME, OLDER_NAME, share_of, write_dead_letters
from gateway.predictions.reader import SpoolReader
from gateway.predictions.retention import Retention
from gateway.predictions.segments import LogRecord
from gateway.predictions.shipper import Shipper
from gateway.predictions.spool import SpoolError, SpoolWriter
from gateway.settings import KafkaSettings, SpoolSettings
from tests.checker import dead_letters

BOOT = "0196f0c5d2a100"


def letter(number: int, size: int) -> tuple[LogRecord, str]:
    return LogRecord(1, BOOT, number, b"x" * size), "too large"


def size_of(spool: Path) -> int:
    return sum(path.stat().st_size for path in spool.glob("dead-letters*"))


def test_dead_letters_take_no_more_than_their_share_and_what_goes_is_counted(tmp_path: Path) -> None:
    discarded: list[int] = []
    for number in range(0, 100, 4):
        batch = [letter(number + place, 100) for place in range(4)]
        write_dead_letters(tmp_path, batch, max_bytes=4000, discarded=discarded.append)
        assert size_of(tmp_path) <= 4000
    kept = [int(entry.id[-10:], 16) for entry in dead_letters(tmp_path)]
    assert kept == list(range(sum(discarded), 100)), "the newest are kept, in order, and the others are counted"
    assert len(kept) >= 4 and (tmp_path / OLDER_NAME).exists()


def test_a_batch_of_dead_letters_larger_than_a_file_is_told_apart_too(tmp_path: Path) -> None:
    discarded: list[int] = []
    batch = [letter(number, 100) for number in range(100)]
    write_dead_letters(tmp_path, batch, max_bytes=4000, discarded=discarded.append)
    assert size_of(tmp_path) <= 4000
    assert [int(entry.id[-10:], 16) for entry in dead_letters(tmp_path)] == list(range(sum(discarded), 100))


def test_of_a_record_without_room_the_reason_is_kept(tmp_path: Path) -> None:
    discarded: list[int] = []
    write_dead_letters(tmp_path, [letter(1, 5000), letter(2, 10)], max_bytes=4000, discarded=discarded.append)
    assert discarded == [1]
    first, second = map(json.loads, (tmp_path / DEAD_LETTERS_NAME).read_text().splitlines())
    assert (first["reason"], first["size"], first["payload"], first["encoding"]) == ("too large", 5000, "", "none")
    assert (second["payload"], second["encoding"]) == ("x" * 10, "utf-8")


def test_a_disk_that_refuses_leaves_no_half_of_a_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dead_letters(tmp_path, [letter(1, 10)], max_bytes=4000)

    def refuses(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuses)
        with pytest.raises(OSError, match="No space left"):
            write_dead_letters(tmp_path, [letter(2, 10)], max_bytes=4000)
    write_dead_letters(tmp_path, [letter(2, 10)], max_bytes=4000)
    assert [int(entry.id[-10:], 16) for entry in dead_letters(tmp_path)] == [1, 2]


def test_letters_that_make_room_are_counted_and_told_also_when_the_disk_refuses_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    notes: list[str] = []
    shipper = Shipper(
        tmp_path, KafkaSettings(bootstrap_servers="127.0.0.1:1"), note=notes.append, dead_letter_bytes=4000
    )
    reader = SpoolReader(tmp_path)
    for number in range(40):
        writer.append([(1, b"x" * 200)])
        [record] = reader.read()

        def refuses(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", refuses)
            shipper._refused[record.address] = record, "refused by Kafka"
            with pytest.raises(SpoolError, match="No space left"):
                shipper._acknowledge(reader, [record])
        shipper._acknowledge(reader, [record])
        assert shipper.discarded == number + 1 - len(dead_letters(tmp_path))
    assert sum("dead letters were discarded" in note for note in notes) >= 2
    writer.close()


def test_a_spool_whose_large_records_kafka_refuses_goes_on(tmp_path: Path) -> None:
    settings = SpoolSettings(max_bytes=4 * 2**20)
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=settings)
    notes: list[str] = []
    share = share_of(settings.max_bytes)
    kafka = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    shipper = Shipper(tmp_path, kafka, note=notes.append, dead_letter_bytes=share)
    reader = SpoolReader(tmp_path, whole_blocks=True)
    for number in range(1, 31):
        writer.append([(1, b"x" * 200_000)])
        [record] = reader.read()
        shipper._refused[record.address] = record, "refused by Kafka: MessageSizeTooLargeError"
        shipper._acknowledge(reader, [record])
        writer.append([(1, b"small")])
        shipper._acknowledge(reader, reader.read())
        Retention(tmp_path).sweep(
            max_bytes=settings.max_bytes, max_age_seconds=10**9, shipped=reader.position(), now=2e9
        )
        writer.tick()
        assert not writer.full
        assert (shipper.dead_letters, shipper.discarded) == (number, number)
        assert size_of(tmp_path) <= share
    assert notes[0] == f"1 dead letters were discarded: they may take {share} bytes in all"
    writer.close()
