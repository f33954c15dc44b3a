from __future__ import annotations

import os
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from gateway.admin.tail import open_tail
from gateway.events.records import KIND_BLOCK
from gateway.predictions.segments import HEADER_BYTES, list_segments
from gateway.predictions.spool import SpoolError, SpoolWriter
from gateway.predictions.tail import ends_of, read_all
from gateway.settings import SpoolSettings
from tests.blocks import singles


def record_at(second: int, name: str = "bike-demand") -> bytes:
    return f'{{"id":"x","time":"2012-03-01T00:00:{second:02d}Z","model":"{name}","more":[1,2]}}'.encode()


START = 1330560000.0


def two_streams(spool: Path) -> list[SpoolWriter]:
    writers = [SpoolWriter(spool / f"front-{slot}", slot=slot, settings=SpoolSettings()) for slot in range(2)]
    for second in range(10):
        writers[second % 2].append([(1 + second % 3, record_at(second))])
    return writers


def test_all_streams_are_merged_in_the_order_of_time(tmp_path: Path) -> None:
    two_streams(tmp_path)
    assert [record.payload for record in read_all(tmp_path)] == [record_at(second) for second in range(10)]


def test_kinds_and_a_time_choose(tmp_path: Path) -> None:
    two_streams(tmp_path)
    chosen = read_all(tmp_path, kinds=(1,), since=START + 3)
    assert [record.payload for record in chosen] == [record_at(second) for second in (3, 6, 9)]


def test_segments_that_were_closed_before_the_time_are_not_opened(tmp_path: Path) -> None:
    writer = two_streams(tmp_path)[0]
    writer.close()
    for path in (tmp_path / "front-0").glob("*.seg"):
        os.utime(path, (START - 1, START - 1))
    assert {record.boot for record in read_all(tmp_path, since=START)} != {writer.boot}
    assert writer.boot not in {record.boot for record in read_all(tmp_path, since=START)}


def test_a_record_without_a_time_is_shown_all_the_same(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(1, b"not json"), (1, record_at(1))])
    assert sorted(record.payload for record in read_all(tmp_path)) == sorted([b"not json", record_at(1)])


def test_predictions_of_a_block_are_merged_by_their_time_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    writers = [SpoolWriter(tmp_path / f"front-{slot}", slot=slot, settings=SpoolSettings()) for slot in range(2)]
    earlier, later = record_at(59), record_at(1).replace(b"2012-03-01", b"2012-03-26")
    block = singles(40)
    writers[0].append([(1, earlier), (1, later)])
    writers[1].append([(KIND_BLOCK, block.payload())])
    records = block.records(1, boot=writers[1].boot)
    assert [record.payload for record in read_all(tmp_path)] == [earlier, *records, later]
    assert list(read_all(tmp_path, kinds=(KIND_BLOCK,))) == []


def test_an_empty_spool_has_nothing_to_show(tmp_path: Path) -> None:
    assert list(read_all(tmp_path / "nowhere")) == []


def test_reading_ends_where_the_log_ended_when_it_began_beside_writers_that_never_rest(tmp_path: Path) -> None:
    writers = two_streams(tmp_path)
    found = []
    for record in islice(read_all(tmp_path), 1000):
        found.append(record.payload)
        for writer in writers:
            writer.append([(1, record_at(59))] * 2)
    assert found == [record_at(second) for second in range(10)]


def test_a_tail_that_does_not_follow_ends_beside_writers_that_never_rest(tmp_path: Path) -> None:
    writers = two_streams(tmp_path)
    for writer in writers:
        writer.append([(1, record_at(30))] * 400)
    tail = open_tail(tmp_path, model=None, start="start", follow=False)
    found = 0
    for _ in range(100):
        found += len(tail.read())
        if tail.at_end:
            break
        for writer in writers:
            writer.append([(1, record_at(59))] * 400)
    assert tail.at_end and found == 804, "four of the first ten are predictions"
    tail.close()


def test_the_same_end_gives_the_same_records_again_over_segments_lives_and_new_streams(tmp_path: Path) -> None:
    settings = SpoolSettings(segment_bytes=4096)
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=settings)
    for second in range(60):
        writer.append([(1, record_at(second))] * 5)
    ends = ends_of(tmp_path)
    assert ends == {"front-0": (writer.boot, 300)}
    before = list(read_all(tmp_path, ends=ends))
    for _ in range(60):
        writer.append([(1, record_at(30))])
    writer.close()
    for slot in (0, 1):
        with closing(SpoolWriter(tmp_path / f"front-{slot}", slot=slot, settings=settings)) as later:
            later.append([(1, record_at(30))])
    assert len(before) == 300 and list(read_all(tmp_path, ends=ends)) == before


def test_a_stream_ends_with_the_last_number_of_a_block_whatever_is_damaged_before_and_torn_behind(
    tmp_path: Path,
) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(1, record_at(0)), (1, record_at(1)), (KIND_BLOCK, singles(40).payload())])
    [name] = list_segments(tmp_path / "front-0")
    segment = tmp_path / "front-0" / name
    content = bytearray(segment.read_bytes())
    content[HEADER_BYTES + 3] ^= 1
    segment.write_bytes(bytes(content) + content[:30])
    assert ends_of(tmp_path) == {"front-0": (writer.boot, 42)}
    assert [record.sequence for record in read_all(tmp_path)] == list(range(2, 43))
    segment.write_bytes(b"")
    assert ends_of(tmp_path) == {"front-0": (writer.boot, 0)}
    assert list(read_all(tmp_path)) == []


@pytest.mark.parametrize("byte", [2, 3])
def test_a_stream_ends_behind_a_damaged_length_too(tmp_path: Path, byte: int) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    for second in range(20):
        writer.append([(1, record_at(second))])
    segment = tmp_path / "front-0" / list_segments(tmp_path / "front-0")[0]
    content = bytearray(segment.read_bytes())
    content[5 * (HEADER_BYTES + len(record_at(0))) + byte] ^= 0xFF
    segment.write_bytes(content)
    assert ends_of(tmp_path) == {"front-0": (writer.boot, 20)}
    writer.close()
    SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings()).append([(1, record_at(20))])
    assert [record.payload for record in read_all(tmp_path)] == [record_at(s) for s in range(21) if s != 5]


def test_an_end_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    name = list_segments(two_streams(tmp_path)[0].directory)[0]
    (tmp_path / "front-0" / name).unlink()
    (tmp_path / "front-0" / name).mkdir()
    with pytest.raises(SpoolError, match=f"cannot read .*{name}: Is a directory"):
        ends_of(tmp_path)
