from __future__ import annotations

import os
from pathlib import Path

from gateway.events.records import KIND_BLOCK
from gateway.predictions.spool import SpoolWriter
from gateway.predictions.tail import read_all
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
