from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from gateway.events.blocks import MAX_BLOCK
from gateway.events.records import KIND_BLOCK
from gateway.predictions.reader import SpoolReader
from gateway.predictions.segments import HEADER_BYTES, LogRecord, expanded, list_segments
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings
from tests.blocks import singles

RECORD = HEADER_BYTES + 10


def writer_in(spool: Path, stream: str = "front-0", *, slot: int = 0, segment_bytes: int = 4096) -> SpoolWriter:
    return SpoolWriter(spool / stream, slot=slot, settings=SpoolSettings(segment_bytes=segment_bytes))


def append(writer: SpoolWriter, count: int) -> None:
    for _ in range(count):
        writer.append([(1, b"%010d" % writer.next_sequence)])


def sequences(reader: SpoolReader, max_records: int = 1 << 30) -> list[int]:
    return [record.sequence for record in reader.read(max_records)]


def damage(path: Path, offset: int) -> None:
    block = bytearray(path.read_bytes())
    block[offset] ^= 0xFF
    path.write_bytes(block)


def segments_of(spool: Path, stream: str = "front-0") -> list[Path]:
    return [spool / stream / name for name in list_segments(spool / stream)]


def test_a_spool_that_is_not_there_yet_is_empty_and_found_later(tmp_path: Path) -> None:
    reader = SpoolReader(tmp_path / "spool")
    assert reader.read() == []
    assert reader.position() == {}
    writer = writer_in(tmp_path / "spool")
    assert reader.read() == []
    append(writer, 2)
    assert sequences(reader) == [1, 2]
    assert reader.read() == []


def test_new_streams_are_found_and_a_full_one_does_not_starve_the_others(tmp_path: Path) -> None:
    busy, quiet = writer_in(tmp_path, "front-0"), writer_in(tmp_path, "front-1", slot=1)
    append(busy, 500)
    append(quiet, 3)
    reader = SpoolReader(tmp_path)
    first = reader.read(10)
    assert len(first) == 10
    assert {record.boot for record in first} == {busy.boot, quiet.boot}
    late = writer_in(tmp_path, "decisions", slot=255)
    append(late, 1)
    rest = reader.read(1 << 30)
    assert late.boot in {record.boot for record in rest}
    assert len(first) + len(rest) == 504


def test_latest_begins_with_what_comes_next_and_takes_new_streams_whole(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    append(writer, 300)
    with open(segments_of(tmp_path)[-1], "ab") as file:
        file.write(b"\x0a\0\0\0half a header")
    reader = SpoolReader(tmp_path, start="latest")
    assert reader.read() == []
    segment, offset = reader.position()["front-0"]
    assert offset % RECORD == 0
    late = writer_in(tmp_path, "front-1", slot=1)
    append(late, 2)
    assert sequences(reader) == [1, 2]


@pytest.mark.parametrize("part", range(HEADER_BYTES + 10))
def test_one_damaged_byte_costs_its_record_and_is_counted(tmp_path: Path, part: int) -> None:
    writer = writer_in(tmp_path)
    append(writer, 400)
    writer.close()
    damage(segments_of(tmp_path)[0], 5 * RECORD + part)
    reader = SpoolReader(tmp_path)
    assert sequences(reader) == [1, 2, 3, 4, 5, *range(7, 401)]
    assert (reader.corrupt, reader.torn, reader.missing) == (1, 0, 1)


@pytest.mark.parametrize("blocks", [False, True])
def test_what_lies_behind_a_record_that_seems_unfinished_is_read_once_its_segment_is_closed(
    tmp_path: Path, blocks: bool
) -> None:
    payload = singles(3).payload()
    writer = writer_in(tmp_path, segment_bytes=1 << 20)
    for _ in range(50):
        writer.append([(KIND_BLOCK, payload) if blocks else (1, bytes(10))])
    numbers = 3 if blocks else 1
    begins = 5 * (HEADER_BYTES + len(payload) if blocks else RECORD)
    damage(segments_of(tmp_path)[0], begins + 2)
    damage(segments_of(tmp_path)[0], begins + HEADER_BYTES)
    reader = SpoolReader(tmp_path)
    assert sequences(reader) == list(range(1, 5 * numbers + 1))
    writer.append([(1, bytes(1 << 20))])
    assert sequences(reader) == list(range(6 * numbers + 1, 50 * numbers + 2))
    assert (reader.corrupt, reader.torn, reader.missing) == (1, 0, numbers)


def test_a_damaged_segment_that_is_still_written_is_read_on(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    append(writer, 10)
    damage(segments_of(tmp_path)[0], 2 * RECORD + 3)
    reader = SpoolReader(tmp_path)
    assert sequences(reader) == [1, 2, *range(4, 11)]
    append(writer, 300)
    assert sequences(reader) == list(range(11, 311))
    assert (reader.corrupt, reader.torn, reader.missing) == (1, 0, 1)


def test_a_damaged_record_with_nothing_behind_it_is_waited_at_and_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_in(tmp_path)
    append(writer, 3)
    damage(segments_of(tmp_path)[0], 2 * RECORD + 3)
    reader = SpoolReader(tmp_path)
    assert sequences(reader) == [1, 2]
    with monkeypatch.context() as patched:
        patched.setattr("gateway.predictions.reader.next_behind", lambda *_, number: pytest.fail("nothing has come"))
        for _ in range(3):
            assert reader.read() == []
    position = reader.position()
    append(writer, 3)
    for each in (reader, SpoolReader(tmp_path, position=position)):
        assert sequences(each) == [4, 5, 6]
        assert each.corrupt == 1
    assert (reader.torn, reader.missing) == (0, 1)


def test_what_lies_behind_a_hole_larger_than_what_is_read_at_once_is_read(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, segment_bytes=1 << 24)
    append(writer, 60_000)
    (segment,) = segments_of(tmp_path)
    with segment.open("r+b") as file:
        file.seek(10 * RECORD + 1)
        file.write(bytes(1 << 20))
    reader = SpoolReader(tmp_path)
    last = 10 + -(-((1 << 20) + 1) // RECORD)
    assert sequences(reader) == [*range(1, 11), *range(last + 1, 60_001)]
    assert (reader.corrupt, reader.torn, reader.missing) == (1, 0, last - 10)


@pytest.mark.parametrize("byte", [2, 3])
def test_latest_begins_behind_a_damaged_length_with_what_comes_next(tmp_path: Path, byte: int) -> None:
    writer = writer_in(tmp_path, segment_bytes=1 << 20)
    append(writer, 100)
    damage(segments_of(tmp_path)[0], 10 * RECORD + byte)
    reader = SpoolReader(tmp_path, start="latest")
    append(writer, 2)
    assert sequences(reader) == [101, 102]
    assert reader.corrupt == 0


def test_removed_segments_are_passed_over_and_counted(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    append(writer, 1000)
    reader = SpoolReader(tmp_path)
    assert sequences(reader, 3) == [1, 2, 3]
    position = reader.position()
    names = segments_of(tmp_path)
    for path in names[:3]:
        path.unlink()
    still_open = sequences(reader)
    assert still_open[:1] == [4]
    assert reader.missing == 1000 - 3 - len(still_open)
    again = SpoolReader(tmp_path, position=position)
    got = sequences(again)
    assert got[-1] == 1000
    assert again.removed == 1
    assert again.read() == []
    assert again.removed == 1


def test_a_spool_whose_segments_are_all_gone_waits_for_new_ones(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    append(writer, 10)
    reader = SpoolReader(tmp_path)
    position = {"front-0": ("00000000000000-0000000001.seg", 4)}
    assert len(sequences(SpoolReader(tmp_path, position=position))) == 10
    for path in segments_of(tmp_path):
        path.unlink()
    for _ in range(2):
        assert reader.read() == []
    writer.close()
    append(writer_in(tmp_path), 1)
    assert sequences(reader) == [1]


def test_a_record_larger_than_a_block_is_read_whole_also_when_it_comes_in_two_writes(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, segment_bytes=2**24)
    large = os.urandom(700_000)
    writer.append([(1, b"small"), (1, large), (1, b"small")])
    (segment,) = segments_of(tmp_path)
    whole = segment.read_bytes()
    segment.write_bytes(whole[:400_000])
    reader = SpoolReader(tmp_path)
    assert [len(record.payload) for record in reader.read()] == [5]
    assert reader.read() == []
    segment.write_bytes(whole)
    assert [record.payload for record in reader.read()] == [large, b"small"]
    assert (reader.corrupt, reader.torn) == (0, 0)


def test_bytes_that_were_cut_off_and_written_anew_are_read_as_they_are_now(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    append(writer, 1)
    (segment,) = segments_of(tmp_path)
    reader = SpoolReader(tmp_path)
    with open(segment, "ab") as file:
        file.write(b"\x20\0\0\0torn off in the middle")
    assert sequences(reader) == [1]
    os.truncate(segment, RECORD)
    append(writer, 2)
    assert sequences(reader) == [2, 3]
    assert (reader.corrupt, reader.torn) == (0, 0)


def test_bytes_behind_counts_down_to_nothing(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    append(writer, 500)
    reader = SpoolReader(tmp_path)
    assert reader.bytes_behind() == 500 * RECORD
    reader.read(100)
    assert reader.bytes_behind() == 400 * RECORD
    reader.read(1000)
    assert reader.bytes_behind() == 0
    assert repr(reader) == "<SpoolReader 1 streams behind=0 corrupt=0 torn=0 removed=0 missing=0>"


def test_reading_while_two_writers_write_gives_every_record_once_and_in_order(tmp_path: Path) -> None:
    total = 20_000
    block = singles(16, width=30).payload()

    def write(slot: int) -> None:
        writer = writer_in(tmp_path, f"front-{slot}", slot=slot, segment_bytes=65_536)
        while writer.next_sequence <= total:
            writer.append([(1, b"%d" % (writer.next_sequence + place)) for place in range(16)])
            writer.append([(KIND_BLOCK, block)])
        writer.close()

    threads = [threading.Thread(target=write, args=(slot,)) for slot in (0, 1)]
    for thread in threads:
        thread.start()
    reader = SpoolReader(tmp_path)
    seen: dict[str, list[int]] = {}
    while True:
        writing = any(thread.is_alive() for thread in threads)
        records = reader.read()
        for record in records:
            single = (record.sequence - 1) % 32 < 16
            assert (b"%d" if single else b'"seq":%d,') % record.sequence in record.payload
            seen.setdefault(record.boot, []).append(record.sequence)
        if not records and not writing:
            break
    for thread in threads:
        thread.join()
    assert sorted(map(len, seen.values())) == [total, total]
    assert all(numbers == list(range(1, total + 1)) for numbers in seen.values())
    assert (reader.corrupt, reader.torn, reader.removed, reader.missing) == (0, 0, 0, 0)
    reader.close()


def test_a_position_that_names_no_segment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'elsewhere' is no segment"):
        SpoolReader(tmp_path, position={"front-0": ("elsewhere", 0)})


def test_a_record_that_comes_between_the_last_look_and_the_next_segment_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_in(tmp_path)
    append(writer, 3)
    reader = SpoolReader(tmp_path)
    assert sequences(reader) == [1, 2, 3]

    listdir = os.listdir

    def looks_late(folder: Path) -> list[str]:
        if writer.next_sequence == 4:
            append(writer, 300)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", looks_late)
    assert sequences(reader) == list(range(4, 304))
    assert (reader.torn, reader.missing) == (0, 0)


def test_a_segment_that_is_gone_is_counted_once_however_long_one_waits(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    append(writer, 1)
    position = SpoolReader(tmp_path, start="latest").position()
    for path in segments_of(tmp_path):
        path.unlink()
    reader = SpoolReader(tmp_path, position=position)
    for _ in range(3):
        assert reader.read() == []
    assert reader.removed == 1


def test_a_block_is_read_whole_and_a_position_is_never_within_one(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, segment_bytes=2**20)
    append(writer, 2)
    block = singles(MAX_BLOCK)
    writer.append([(KIND_BLOCK, block.payload())])
    append(writer, 2)
    reader = SpoolReader(tmp_path)
    assert sequences(reader, 1) == [1]
    found = reader.read(2)
    assert len(found) == 1 + MAX_BLOCK
    assert [record.payload for record in found[1:]] == block.records(3, boot=writer.boot)
    again = SpoolReader(tmp_path, position=reader.position())
    for each in (reader, again):
        assert sequences(each, 1) == [3 + MAX_BLOCK]
        assert sequences(each, 5) == [4 + MAX_BLOCK]
    assert reader.bytes_behind() == 0
    assert (reader.corrupt, reader.torn, reader.missing) == (0, 0, 0)


def test_streams_of_blocks_and_of_single_records_take_turns(tmp_path: Path) -> None:
    blocks, quiet = writer_in(tmp_path, "front-0"), writer_in(tmp_path, "front-1", slot=1)
    late = writer_in(tmp_path, "front-2", slot=2)
    for _ in range(30):
        blocks.append([(KIND_BLOCK, singles(10).payload())])
    append(quiet, 30)
    append(late, 30)
    reader = SpoolReader(tmp_path)
    got: dict[str, int] = {}
    for _ in range(60):
        for record in reader.read(3):
            got[record.boot] = got.get(record.boot, 0) + 1
    assert got == {blocks.boot: 300, quiet.boot: 30, late.boot: 30}


def test_a_stream_of_blocks_is_read_on_while_less_than_asked_for_has_come(tmp_path: Path) -> None:
    blocks, quiet = writer_in(tmp_path, "front-0"), writer_in(tmp_path, "front-1", slot=1)
    for _ in range(30):
        blocks.append([(KIND_BLOCK, singles(7).payload())])
    append(quiet, 3)
    reader = SpoolReader(tmp_path)
    assert 100 <= len(reader.read(100)) <= 106
    assert len(reader.read(200)) >= 107


def test_one_damaged_byte_costs_its_block_at_most(tmp_path: Path) -> None:
    payload = singles(3).payload()
    size = HEADER_BYTES + len(payload)
    for part in range(4, size, 11):
        spool = tmp_path / str(part)
        writer = writer_in(spool)
        for _ in range(3):
            writer.append([(KIND_BLOCK, payload)])
        append(writer, 1)
        damage(segments_of(spool)[0], size + part)
        reader = SpoolReader(spool)
        assert sequences(reader) == [1, 2, 3, 7, 8, 9, 10]
        assert (reader.corrupt, reader.missing) == (1, 3)


def test_a_block_that_checks_and_gives_no_records_counts_as_damaged(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    append(writer, 1)
    writer.append([(KIND_BLOCK, b"\x05\0of a later form"), (1, b"behind"), (KIND_BLOCK, singles(2).payload())])
    reader = SpoolReader(tmp_path)
    assert sequences(reader) == [1, 7, 8, 9]
    assert (reader.corrupt, reader.torn, reader.missing) == (1, 0, 5)
    assert reader.read() == []
    assert reader.corrupt == 1


def test_a_block_cut_at_any_byte_is_waited_for(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    append(writer, 1)
    writer.append([(KIND_BLOCK, singles(3).payload())])
    (segment,) = segments_of(tmp_path)
    whole = segment.read_bytes()
    for cut in range(RECORD, len(whole)):
        segment.write_bytes(whole[:cut])
        reader = SpoolReader(tmp_path)
        assert sequences(reader) == [1]
        assert reader.position()["front-0"] == (segment.name, RECORD)
        segment.write_bytes(whole)
        assert sequences(reader) == [2, 3, 4]
        assert (reader.corrupt, reader.torn, reader.missing) == (0, 0, 0)
        reader.close()


def test_latest_begins_behind_the_last_block(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(KIND_BLOCK, singles(3).payload())])
    reader = SpoolReader(tmp_path, start="latest")
    writer.append([(KIND_BLOCK, singles(2).payload())])
    assert sequences(reader) == [4, 5]


def test_whole_blocks_are_the_records_that_single_ones_come_of_at_the_same_positions(tmp_path: Path) -> None:
    writer, other = writer_in(tmp_path, segment_bytes=8192), writer_in(tmp_path, "front-1", slot=1)
    for count in (5, 1, MAX_BLOCK, 3, 40, 40, 7):
        writer.append([(KIND_BLOCK, singles(count).payload())])
        append(writer, 2)
        other.append([(KIND_BLOCK, singles(count).payload()), (1, b"one")])
    single, whole = SpoolReader(tmp_path), SpoolReader(tmp_path, whole_blocks=True)
    got = 0
    while records := single.read(10):
        blocks = whole.read(10)
        assert [each for block in blocks for each in one_by_one(block)] == records
        assert sum(block.numbers for block in blocks) == len(records)
        assert whole.position() == single.position()
        got += len(records)
    assert whole.read(10) == []
    assert got == 2 * 352 + 14 + 7
    assert (whole.missing, whole.corrupt, whole.torn) == (0, 0, 0)


def one_by_one(record: LogRecord) -> list[LogRecord]:
    return expanded(record) if record.kind == KIND_BLOCK else [record]


def test_damaged_missing_and_spoiled_blocks_count_alike_whether_blocks_are_whole_or_not(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, segment_bytes=1 << 20)
    good = singles(4).payload()
    for payload in (good, good[:-1], good, good, good[:9], good[:9], good):
        writer.append([(KIND_BLOCK, payload)])
    writer.close()
    writer = writer_in(tmp_path)
    for _ in range(3):
        writer.append([(KIND_BLOCK, good)])
    damage(segments_of(tmp_path)[-1], 3 * (HEADER_BYTES + len(good)) - 1)
    single, whole = SpoolReader(tmp_path), SpoolReader(tmp_path, whole_blocks=True)
    expected = single.read(1 << 30)
    assert [each for block in whole.read(1 << 30) for each in one_by_one(block)] == expected
    assert (whole.corrupt, whole.missing, whole.torn) == (single.corrupt, single.missing, single.torn)
    assert (whole.corrupt, whole.missing) == (3, 12)
    assert whole.position() == single.position()
