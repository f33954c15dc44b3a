from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.events.addresses import format_id
from gateway.events.records import KIND_BLOCK
from gateway.predictions.backlog import Backlog
from gateway.predictions.checkpoint import read_checkpoint
from gateway.predictions.damage import DamageBook, damaged_path
from gateway.predictions.index import index_closed, index_path
from gateway.predictions.lookup import LogLookup, find
from gateway.predictions.reader import SpoolReader
from gateway.predictions.retention import Retention
from gateway.predictions.salvage import next_behind, whole_records
from gateway.predictions.segments import Scan, SpoolSize, list_segments, scan, segment_name, spool_size
from gateway.predictions.shipper import Shipper
from gateway.predictions.source import SpoolSource
from gateway.predictions.spool import SpoolWriter
from gateway.settings import KafkaSettings, SpoolSettings
from tests.blocks import singles

RECORD = b'{"id":"0","time":"2024-03-01T00:00:00Z","model":"iris"}'


def filled(spool: Path, *, count: int = 300) -> list[Path]:
    """A stream of several segments, whose writer has gone."""
    writer = SpoolWriter(spool / "front-0", slot=0, settings=SpoolSettings(segment_bytes=4096))
    for _ in range(count):
        writer.append([(1, RECORD)])
    writer.close()
    return [spool / "front-0" / name for name in list_segments(spool / "front-0")]


def damage(segment: Path, offset: int) -> None:
    content = bytearray(segment.read_bytes())
    content[offset] ^= 0xFF
    segment.write_bytes(content)


def test_one_damaged_byte_costs_its_record_wherever_it_is(tmp_path: Path) -> None:
    segment = filled(tmp_path)[0]
    content, size = segment.read_bytes(), 17 + len(RECORD)
    whole = scan(content, "b").records
    for offset in range(5 * size, 6 * size):
        spoilt = bytearray(content)
        spoilt[offset] ^= 0xFF
        assert whole_records(bytes(spoilt), "b", 1) == (whole[:5] + whole[6:], [5 * size])
    assert whole_records(content, "b", 1) == (whole, [])
    assert whole_records(content[:-1], "b", 1) == (whole[:-1], [len(content) - size])


def test_records_behind_damaged_blocks_are_found_by_their_numbers(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    for count in (3, 200, 1, 40, 5):
        writer.append([(KIND_BLOCK, singles(count).payload())])
    writer.append([(2, b"label")])
    writer.close()
    [name] = list_segments(tmp_path / "front-0")
    content = bytearray((tmp_path / "front-0" / name).read_bytes())
    starts, offset = [], 0
    while offset < len(content):
        starts.append(offset)
        offset += 17 + int.from_bytes(content[offset : offset + 4], "little")
    for place in (0, 1):
        content[starts[place] + 3] ^= 0x01
    records, damaged = whole_records(bytes(content), "b", 1)
    assert [record.sequence for record in records] == list(range(204, 251))
    assert damaged == [0]


@pytest.mark.parametrize("dropped", [0, 1000])
def test_what_lies_behind_a_hole_is_found_however_many_numbers_are_gone(tmp_path: Path, dropped: int) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    for number in range(1, 5001):
        writer.append([(1, RECORD)])
        writer.next_sequence += dropped if number == 100 else 0
    writer.close()
    [name] = list_segments(tmp_path / "front-0")
    content, size = bytearray((tmp_path / "front-0" / name).read_bytes()), 17 + len(RECORD)
    whole = scan(bytes(content), "b").records
    hole = 1 if dropped else 131_072
    content[99 * size + 1 : 99 * size + 1 + hole] = bytes([0x40]) * hole
    behind = 99 - (-(1 + hole) // size)
    assert whole_records(bytes(content), "b", 1) == (whole[:99] + whole[behind:], [99 * size])


def test_whatever_bit_of_a_length_is_wrong_a_reader_goes_on_while_the_segment_is_written(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    for _ in range(20):
        writer.append([(1, RECORD), (KIND_BLOCK, singles(40).payload())])
    segment = writer.directory / list_segments(writer.directory)[0]
    content, pair = segment.read_bytes(), segment.stat().st_size // 20
    for bit in range(32):
        for start, lost in ((5 * pair, {206}), (5 * pair + 17 + len(RECORD), set(range(207, 247)))):
            spoilt = bytearray(content)
            spoilt[start + bit // 8] ^= 1 << bit % 8
            segment.write_bytes(spoilt[: 6 * pair])
            reader = SpoolReader(tmp_path)
            read = reader.read()
            segment.write_bytes(spoilt)
            read += reader.read()
            assert {record.sequence for record in read} == set(range(1, writer.next_sequence)) - lost, bit
            assert (reader.corrupt, reader.torn, len(read)) == (1, 0, 820 - len(lost))
            reader.close()


def test_between_two_damaged_records_one_is_read_also_behind_many_dropped_numbers(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings(segment_bytes=4096))
    size = 17 + len(RECORD)
    writer.append([(1, RECORD)] * (4096 // size))
    writer.next_sequence += 1000
    writer.append([(1, RECORD)] * 3)
    segment = writer.directory / list_segments(writer.directory)[1]
    first = writer.next_sequence - 3
    damage(segment, 1)  # a length
    damage(segment, 2 * size + 10)  # a number
    writer.close()
    (writer.directory / segment_name(writer.boot, writer.next_sequence)).touch()
    [between], _ = whole_records(segment.read_bytes(), writer.boot, first)
    assert SpoolReader(tmp_path).read()[-1] == between and between.sequence == first + 1


def test_pixels_that_look_like_headers_do_not_hold_up_the_search(tmp_path: Path) -> None:
    draw = random.Random(1)
    content = bytes(draw.choices(range(4), k=4 * 2**20)) + bytes(1 << 24)
    checked: list[int] = []

    def counted(part: bytes, boot: str, *, start: int, max_records: int = 1) -> Scan:
        checked.append(start)
        return Scan([], start, 0, True)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gateway.predictions.salvage.scan", counted)
        assert next_behind(content, "b", Scan([], 0, 0, True), number=1000) is None
    assert len(checked) < 100, "each costs a checksum of up to 64 MiB"


class Producer:
    """A producer that keeps what it is given; a broker that acknowledges all of it."""

    def __init__(self) -> None:
        self.client = None
        self.values: list[bytes] = []

    async def partitions_for(self, topic: str) -> set[int]:
        return {0}

    def create_batch(self) -> Any:
        values: list[bytes] = []
        return SimpleNamespace(
            append=lambda *, value, **_: values.append(value) or True, close=lambda: None, values=values
        )

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Any:
        self.values += batch.values
        acknowledged = asyncio.get_running_loop().create_future()
        acknowledged.set_result(None)
        return acknowledged


@pytest.mark.promise("P4")
@pytest.mark.parametrize("byte", [1, 3, 40])
async def test_what_a_shipper_passes_over_is_counted_told_once_and_outlives_retention(
    tmp_path: Path, byte: int
) -> None:
    segments = filled(tmp_path)
    damage(segments[1], 5 * (17 + len(RECORD)) + byte)
    content = segments[1].read_bytes()
    notes: list[str] = []
    shipper = Shipper(tmp_path, KafkaSettings(bootstrap_servers="127.0.0.1:1"), note=notes.append)
    stop = asyncio.Event()
    stop.set()
    for _ in range(2):
        reader = SpoolReader(tmp_path, whole_blocks=True)
        shipper._missing_seen = 0
        await shipper._ship_all(Producer(), reader, stop)
    lost = 300 - shipper.shipped // 2
    assert (shipper.corrupt, shipper.missing) == (1, 2 * lost) and lost >= 1
    assert len(notes) == 2
    assert f"front-0/{segments[1].name} is damaged at byte" in notes[0]
    assert f"kept as {segments[1].name}.damaged" in notes[0]
    assert f"{lost} records are missing in the spool" in notes[1]
    later = 2e9
    Retention(tmp_path).sweep(max_bytes=2**30, max_age_seconds=1, shipped=read_checkpoint(tmp_path), now=later)
    assert list_segments(tmp_path / "front-0") == []
    assert [path.name for path in tmp_path.rglob("*.damaged")] == [f"{segments[1].name}.damaged"]
    assert damaged_path(segments[1]).read_bytes() == content


async def test_what_a_monitor_passes_over_in_the_spool_is_counted_and_told_once(tmp_path: Path) -> None:
    segments = filled(tmp_path)
    damage(segments[1], 40)
    notes: list[str] = []
    book = DamageBook(note=notes.append)
    for _ in range(2):
        source = SpoolSource(tmp_path, damage=book)
        while await source.read(50, 0.0):
            pass
        await source.close()
    assert (book.corrupt, book.missing) == (1, 2)
    assert [note.partition(" is damaged at byte ")[2] for note in notes if "damaged" in note] == [
        "0: what does not check is passed over"
    ]
    assert not damaged_path(segments[1]).exists()


def test_a_disk_that_knows_no_second_names_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = filled(tmp_path)
    damage(segments[0], 40)
    reader = SpoolReader(tmp_path)
    reader.read(1 << 30)

    def refuses(*_: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuses)
    notes: list[str] = []
    DamageBook(note=notes.append, set_aside=True).look(reader)
    assert "cannot be set aside (Operation not permitted) and goes when it is due" in notes[0]


def test_what_was_set_aside_counts_once(tmp_path: Path) -> None:
    segments = filled(tmp_path)
    size, before = SpoolSize(tmp_path), spool_size(tmp_path)
    os.link(segments[0], damaged_path(segments[0]))
    assert size.count() == spool_size(tmp_path) == before
    segments[0].unlink()
    assert size.count() == spool_size(tmp_path) == before
    damaged_path(segments[0]).unlink()
    assert size.count() == spool_size(tmp_path) < before


def test_of_what_was_set_aside_the_oldest_goes_when_it_takes_more_than_an_eighth(tmp_path: Path) -> None:
    segments = filled(tmp_path, count=600)
    for segment in segments[:5]:
        segment.rename(damaged_path(segment))
    notes: list[str] = []
    most = sum(damaged_path(segment).stat().st_size for segment in segments[2:5])
    retention = Retention(tmp_path, note=notes.append)
    for _ in range(2):
        retention.sweep(max_bytes=8 * most, max_age_seconds=1e10, shipped=None, now=2e9)
    assert sorted(path.name for path in tmp_path.rglob("*.damaged")) == [
        damaged_path(segment).name for segment in segments[2:5]
    ]
    assert len(notes) == 2 and "was removed: what is set aside has its share of the spool" in notes[0]


def test_what_was_set_aside_of_a_stream_that_has_nothing_else_any_more_has_its_share_too(tmp_path: Path) -> None:
    segments = filled(tmp_path)
    for segment in segments:
        segment.rename(damaged_path(segment))
    most = damaged_path(segments[-1]).stat().st_size
    Retention(tmp_path).sweep(max_bytes=8 * most, max_age_seconds=1e10, shipped=None, now=2e9)
    assert [path.name for path in tmp_path.rglob("*.damaged")] == [damaged_path(segments[-1]).name]


@pytest.mark.parametrize("closed", [False, True])
def test_whatever_bit_of_a_header_is_wrong_all_other_records_are_found_by_id(tmp_path: Path, closed: bool) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    block = (KIND_BLOCK, singles(40).payload())
    for _ in range(20):
        writer.append([(1, RECORD), block])
    last = writer.next_sequence - 1
    if closed:
        (writer.directory / segment_name(writer.boot, last + 1)).touch()
    segment = writer.directory / list_segments(writer.directory)[0]
    content, pair = segment.read_bytes(), 17 + len(RECORD) + 17 + len(block[1])
    for bit in range(8 * 17):
        for start, lost in ((5 * pair, {206}), (5 * pair + 17 + len(RECORD), set(range(207, 247)))):
            spoilt = bytearray(content)
            spoilt[start + bit // 8] ^= 1 << bit % 8
            segment.write_bytes(spoilt)
            index_closed(tmp_path, seconds=60)
            assert index_path(segment).exists() == closed
            for number in (1, 205, 206, 207, 246, 247, 248, 300, last - 40, last):
                found = find(tmp_path, format_id(writer.boot, number))
                assert (None if found is None else found.sequence) == (None if number in lost else number)
            assert find(tmp_path, format_id(writer.boot, last + 1)) is None
            index_path(segment).unlink(missing_ok=True)


@pytest.mark.parametrize("closed", [False, True])
def test_labels_behind_a_damaged_header_are_found_whatever_bit_is_wrong(tmp_path: Path, closed: bool) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    prediction = format_id(writer.boot, 1)
    label = b'{"prediction_id":"%s"}' % prediction.encode()
    writer.append([(1, RECORD)] * 100 + [(2, label)] + [(1, RECORD)] * 100 + [(2, label)])
    if closed:
        (writer.directory / segment_name(writer.boot, writer.next_sequence)).touch()
    segment = writer.directory / list_segments(writer.directory)[0]
    content, size = segment.read_bytes(), 17 + len(RECORD)
    for place in (0, 50, 63, 64):
        for bit in range(8 * 17):
            spoilt = bytearray(content)
            spoilt[place * size + bit // 8] ^= 1 << bit % 8
            segment.write_bytes(spoilt)
            index_closed(tmp_path, seconds=60)
            assert [found.sequence for found in LogLookup(tmp_path).labels_of(prediction)] == [101, 202], (place, bit)
            index_path(segment).unlink(missing_ok=True)


@pytest.mark.parametrize("seen", [0, 5, 6, 20])
def test_no_damaged_header_makes_more_or_fewer_records_wait_than_there_are(tmp_path: Path, seen: int) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    for _ in range(20):
        writer.append([(KIND_BLOCK, singles(40).payload())])
    segment = writer.directory / list_segments(writer.directory)[0]
    content, size = segment.read_bytes(), segment.stat().st_size // 20
    for bit in range(8 * 17):
        spoilt = bytearray(content)
        spoilt[5 * size + bit // 8] ^= 1 << bit % 8
        backlog = Backlog(tmp_path)
        segment.write_bytes(spoilt[: seen * size])
        backlog.count({})
        segment.write_bytes(spoilt)
        assert backlog.count({}) == 800, bit
        assert backlog.count({"front-0": (segment.name, 4 * size)}) == 640, bit
        assert 0 <= backlog.count({"front-0": (segment.name, 5 * size)}) <= 800, bit
        assert backlog.count({"front-0": (segment.name, 6 * size)}) == 560, bit
