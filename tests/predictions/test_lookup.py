from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from gateway.events.addresses import AddressError, format_id, parse_id
from gateway.events.records import KIND_BLOCK
from gateway.predictions.lookup import _PART_BYTES, find
from gateway.predictions.segments import HEADER_BYTES, LogRecord, list_segments
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings
from tests.blocks import singles


def test_every_record_of_two_streams_and_two_lives_is_found_by_its_id(tmp_path: Path) -> None:
    written = []
    for _life in range(2):
        for slot in range(2):
            writer = SpoolWriter(tmp_path / f"front-{slot}", slot=slot, settings=SpoolSettings(segment_bytes=4096))
            for _ in range(200):
                payload = f"{writer.boot} {writer.next_sequence}".encode()
                written.append(LogRecord(1, writer.boot, writer.next_sequence, payload))
                writer.append([(1, payload)])
            writer.close()
    for record in written[::7]:
        assert find(tmp_path, format_id(record.boot, record.sequence)) == record
    last = written[-1]
    for sequence in (0, 201, 2**40 - 1):
        assert find(tmp_path, format_id(last.boot, sequence)) is None
    assert find(tmp_path, format_id("ffffffffffffff", 1)) is None
    assert find(tmp_path / "nowhere", format_id(last.boot, 1)) is None


def test_a_damaged_or_removed_record_is_not_found(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(1, b"first"), (1, b"second"), (1, b"third")])
    (name,) = list_segments(tmp_path / "front-0")
    path = tmp_path / "front-0" / name
    path.write_bytes(path.read_bytes().replace(b"second", b"SECOND"))
    assert find(tmp_path, format_id(writer.boot, 2)) is None
    third = find(tmp_path, format_id(writer.boot, 3))
    assert third is not None and third.payload == b"third"
    path.unlink()
    assert find(tmp_path, format_id(writer.boot, 3)) is None


def test_a_block_that_is_damaged_or_gives_no_records_hides_nothing_behind_it(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    block = singles(3)
    writer.append([(KIND_BLOCK, block.payload()), (KIND_BLOCK, b"\x05\0of a later form"), (1, b"last")])
    path = tmp_path / "front-0" / list_segments(tmp_path / "front-0")[0]
    third = find(tmp_path, format_id(writer.boot, 3))
    assert third is not None and third.payload == block.records(1, boot=writer.boot)[2]
    path.write_bytes(path.read_bytes().replace(b"features", b"FEATURES"))
    for sequence in range(1, 9):
        assert find(tmp_path, format_id(writer.boot, sequence)) is None
    last = find(tmp_path, format_id(writer.boot, 9))
    assert last is not None and last.payload == b"last"


@pytest.mark.parametrize("over", [-3, -2, -1, 0, 1, 2])
def test_a_block_is_found_wherever_what_is_read_at_once_ends(tmp_path: Path, over: int) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    block = singles(3)
    writer.append([(1, bytes(_PART_BYTES + over - 2 * HEADER_BYTES)), (KIND_BLOCK, block.payload())])
    last = find(tmp_path, format_id(writer.boot, 4))
    assert last is not None and last.payload == block.records(2, boot=writer.boot)[2]


def test_looking_for_a_record_reads_no_further_than_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(1, bytes(100_000))] * 100)
    read: list[int] = []

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            read.append(super().readinto(buffer) or 0)
            return read[-1]

    monkeypatch.setattr(Path, "open", lambda path, mode, buffering=-1: io.BufferedReader(Counted(path), buffering))
    assert find(tmp_path, format_id(writer.boot, 10)) == LogRecord(1, writer.boot, 10, bytes(100_000))
    assert 100_000 <= sum(read) < 1_000_000
    read.clear()
    assert find(tmp_path, format_id(writer.boot, 1)) is not None
    assert sum(read) < 300_000
    writer.close()


@pytest.mark.parametrize(
    "text",
    ["", "x", "0196f0c5d2a100", "0196f0c5d2a100-11", "0196F0C5D2A100-0000000011", "0196f0c5d2a100-0000000011 ",
     "0196f0c5d2a100-0000000011\n", "../../etc/passwd", "0196f0c5d2a100-00000000\u0661\u0661", "-" * 5000],
)  # fmt: skip
def test_what_is_no_event_id_is_refused_with_a_short_text(tmp_path: Path, text: str) -> None:
    with pytest.raises(AddressError, match="is no event id; expected") as refused:
        find(tmp_path, text)
    assert len(str(refused.value)) < 200


def test_an_id_is_read_back_as_it_was_written() -> None:
    assert parse_id(format_id("0196f0c5d2a1ff", 2**40 - 1)) == ("0196f0c5d2a1ff", 2**40 - 1)
