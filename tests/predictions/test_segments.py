from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from gateway.events.records import KIND_BLOCK, KIND_PREDICTION
from gateway.predictions.backlog import Backlog
from gateway.predictions.index import INDEX_SUFFIX
from gateway.predictions.reader import SpoolReader
from gateway.predictions.salvage import end_of_records, whole_bytes
from gateway.predictions.segments import (
    HEADER_BYTES,
    LogRecord,
    SegmentNames,
    SpoolSize,
    list_segments,
    numbers_of,
    scan,
    segment_name,
    spool_size,
)
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings
from tests.blocks import singles


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("aged", [False, True])
def test_a_spool_looked_at_again_is_as_one_looked_at_anew(tmp_path: Path, seed: int, aged: bool) -> None:
    draw = random.Random(seed)
    size = SpoolSize(tmp_path)
    folders = [tmp_path / "front-0", tmp_path / "front-1"]
    listed = {folder: SegmentNames(folder) for folder in folders}
    for step in range(150):
        folder = draw.choice(folders)
        folder.mkdir(exist_ok=True)
        names = list_segments(folder)
        match draw.randrange(6):
            case 0:
                (folder / segment_name("0" * 14, step)).write_bytes(bytes(draw.randrange(100)))
            case 1 if names:
                with (folder / names[-1]).open("ab") as file:
                    file.write(bytes(draw.randrange(50)))
            case 2 if len(names) > 1:
                (folder / names[0]).unlink()
                (folder / (names[0] + INDEX_SUFFIX)).unlink(missing_ok=True)
            case 3 if len(names) > 1 and not (folder / (names[-2] + INDEX_SUFFIX)).exists():
                (folder / (names[-2] + INDEX_SUFFIX)).write_bytes(bytes(draw.randrange(30)))
            case 4:
                with (tmp_path / "dead-letters.jsonl").open("ab") as file:
                    file.write(bytes(draw.randrange(50)))
            case 5 if draw.random() < 0.1:
                shutil.rmtree(folder)
        if aged:
            for path in (tmp_path, *filter(Path.exists, folders)):
                # What was changed just now is looked at again; this was long ago, and at another time than before.
                changed = int(path.stat().st_mtime) % 10**6
                os.utime(path, (changed, changed + step) if path.stat().st_mtime > 10**8 else (changed, changed))
        assert size.count() == spool_size(tmp_path)
        assert all(listed[folder].look() == list_segments(folder) for folder in folders)


def test_closed_segments_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "front-0"
    folder.mkdir()
    for number in range(50):
        (folder / segment_name("0" * 14, number)).write_bytes(bytes(10))
    for path in (tmp_path, folder):
        os.utime(path, (1.0, 1.0))
    size = SpoolSize(tmp_path)
    assert size.count() == 500
    looked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: looked.append(path) or stat(path, **options))
    (folder / segment_name("0" * 14, 50)).write_bytes(bytes(7))
    assert size.count() == 507
    assert len([path for path in looked if str(path).endswith(".seg")]) <= 3


def test_who_waits_for_records_lists_a_folder_only_when_names_have_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(1, b"first")])
    reader, backlog = SpoolReader(tmp_path), Backlog(tmp_path)
    assert len(reader.read()) == 1
    os.utime(tmp_path / "front-0", (1.0, 1.0))
    listed = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    for _ in range(20):
        assert reader.read() == []
        assert backlog.count(reader.position()) == 0
    assert len(listed) == 2, "one for the reader, one for the backlog"
    writer.append([(1, b"in the same segment")])
    assert len(reader.read()) == 1
    assert len(listed) == 2
    (tmp_path / "front-0" / segment_name(writer.boot, 3)).touch()
    assert reader.read() == []
    assert reader.position()["front-0"][0] == segment_name(writer.boot, 3)


def test_opening_a_large_spool_reads_one_segment_of_it(tmp_path: Path) -> None:
    settings = SpoolSettings(segment_bytes=2**16)
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=settings)
    while len(list_segments(tmp_path / "front-0")) < 40:
        writer.append([(1, bytes(1000))] * 10)
    writer.close()
    read = bytes_read()
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=settings)
    reader = SpoolReader(tmp_path, start="latest")
    writer.append([(1, b"next")])
    assert [record.payload for record in reader.read()] == [b"next"]
    assert bytes_read() - read < 4 * 2**16
    assert spool_size(tmp_path) > 30 * 2**16
    reader.close()
    writer.close()


def segment_of(folder: Path, *entries: tuple[int, bytes]) -> Path:
    writer = SpoolWriter(folder / "front-0", slot=0, settings=SpoolSettings())
    writer.append(entries)
    writer.close()
    return folder / "front-0" / list_segments(folder / "front-0")[-1]


def test_a_scan_gives_the_predictions_of_a_block_or_the_block(tmp_path: Path) -> None:
    block = singles(3)
    content = segment_of(tmp_path, (2, b"label"), (KIND_BLOCK, block.payload()), (1, b"behind")).read_bytes()
    label, behind = LogRecord(2, "b", 1, b"label"), LogRecord(1, "b", 5, b"behind")
    predictions = [
        LogRecord(KIND_PREDICTION, "b", 2 + place, payload) for place, payload in enumerate(block.records(2, boot="b"))
    ]
    assert scan(content, "b") == ([label, *predictions, behind], len(content), 0, False)
    assert scan(content, "b", blocks="unread").records == [
        label,
        LogRecord(KIND_BLOCK, "b", 2, block.payload()),
        behind,
    ]
    for most, records in ((1, [label]), (2, [label, *predictions]), (5, [label, *predictions, behind])):
        assert scan(content, "b", max_records=most).records == records


def test_a_record_tells_how_many_numbers_it_takes(tmp_path: Path) -> None:
    entries = [(2, b"\x09\0"), (KIND_BLOCK, singles(3).payload()), (KIND_BLOCK, b"\x05\0"), (1, b"")]
    content, offset, numbers = segment_of(tmp_path, *entries).read_bytes(), 0, []
    for _, payload in entries:
        numbers.append(numbers_of(content, offset))
        offset += HEADER_BYTES + len(payload)
    assert numbers == [1, 3, 5, 1]
    for payload in (b"", b"\7", b"\0\0", b"\xff\xff"):
        record = len(payload).to_bytes(4, "little") + bytes(12) + bytes([KIND_BLOCK]) + payload
        assert numbers_of(record + b"\x07\0", 0) == 1, "what follows is another record's"


def test_a_block_that_checks_is_whole_whatever_it_holds(tmp_path: Path) -> None:
    path = segment_of(tmp_path, (KIND_BLOCK, singles(3).payload()), (KIND_BLOCK, b"\x05\0of a later form"))
    with path.open("r+b") as file:
        assert whole_bytes(file.fileno()) == path.stat().st_size == end_of_records(path)
        file.seek(0, os.SEEK_END)
        file.write(b"torn")
        file.flush()
        assert whole_bytes(file.fileno()) == path.stat().st_size - 4 == end_of_records(path)


def bytes_read() -> int:
    """What this process has asked of files so far, from the page cache or not."""
    counts = Path("/proc/self/io").read_text().split()
    return int(counts[counts.index("rchar:") + 1])
