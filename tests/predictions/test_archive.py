from __future__ import annotations

import json
import os
import shutil
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.events.addresses import format_id
from gateway.events.records import KIND_BLOCK, KIND_PREDICTION
from gateway.predictions import tail
from gateway.predictions.archive import Archive, ArchiveError
from gateway.predictions.archiver import Archiver, ArchiverBusy, _alone
from gateway.predictions.damage import damaged_path
from gateway.predictions.lookup import LogLookup
from gateway.predictions.reader import SpoolReader
from gateway.predictions.segments import HEADER_BYTES, LogRecord, list_segments
from gateway.predictions.spool import SpoolWriter
from gateway.predictions.tail import ends_of, read_all
from gateway.settings import Settings, SpoolSettings
from tests.blocks import singles

START = 1330560000.0
DAY = 86_400.0


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "archive") if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


def fill(spool: Path, *, count: int = 300) -> list[LogRecord]:
    """Two fronts, six hours between records: predictions of two models, labels, and one that is no UTF-8."""
    written = []
    writers = [
        SpoolWriter(spool / f"front-{slot}", slot=slot, settings=SpoolSettings(segment_bytes=4096)) for slot in (0, 1)
    ]
    for number in range(1, count + 1):
        for slot, writer in enumerate(writers):
            day, hour = divmod(number * 6, 24)
            record: dict[str, Any] = {
                "id": format_id(writer.boot, number),
                "time": f"2012-03-{day % 28 + 1:02d}T{hour:02d}:00:00Z"
                if count < 100
                else f"2012-03-01T{number % 24:02d}:00:00Z",
                "model": f"m{number % 2}",
                "version": 1,
                "status": 200,
            }
            kind = 1
            if number % 5 == 0:
                kind, record["prediction_id"] = 2, format_id(writers[1 - slot].boot, number - 1)
                record["model"] = f"m{(number - 1) % 2}"
            payload = b"\xff no record" if number == 7 else json.dumps(record, ensure_ascii=False).encode()
            written.append(LogRecord(kind, writer.boot, number, payload))
            writer.append([(kind, payload)])
    for writer in writers:
        writer.close()
    return written


def archiver(spool: Path, archive: Archive) -> Archiver:
    settings = Settings.model_validate({"state_dir": spool.parent})
    assert settings.spool_dir == spool
    return Archiver(settings, archive, note=lambda text: None)


def by_address(records: list[LogRecord]) -> list[LogRecord]:
    return sorted(records, key=lambda record: (record.boot, record.sequence))


def test_what_has_moved_is_answered_as_before_byte_for_byte(tmp_path: Path, url: str) -> None:
    spool = tmp_path / "spool"
    written = fill(spool, count=150)
    archive = Archive(url)
    moved = archiver(spool, archive).move_due(max_age_seconds=-1)
    assert moved > 2
    left = sum(len(list_segments(folder)) for folder in spool.iterdir() if folder.is_dir())
    assert left <= 2, "only the last of a stream may stay"
    assert by_address(list(read_all(spool, archive=archive))) == by_address(written)
    lookup = LogLookup(spool, archive)
    for record in written[::11]:
        assert lookup.find(format_id(record.boot, record.sequence)) == record
    for record in written[::3]:
        if record.kind == 2:
            told = json.loads(record.payload)
            labels = lookup.labels_of(told["prediction_id"], model=told["model"], since=START)
            assert labels == [record]
    assert lookup.find(format_id(written[0].boot, 999)) is None


def test_what_has_moved_since_the_archive_was_listed_is_found(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    written = fill(spool, count=150)
    reader = Archive(url)
    first = format_id(written[0].boot, written[0].sequence)
    assert reader.find(first) is None
    archiver(spool, Archive(url)).move_due(max_age_seconds=-1)
    monkeypatch.setattr("gateway.predictions.archive._MISSED_SECONDS", 0.0)
    assert reader.find(first) == written[0]


def test_a_label_that_has_moved_since_the_archive_was_listed_is_found(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    label = next(record for record in fill(spool, count=150) if record.kind == 2)
    told = json.loads(label.payload)
    lookup = LogLookup(spool, Archive(url))
    monkeypatch.setattr("gateway.predictions.archive._MISSED_SECONDS", 0.0)
    for _ in range(2):
        assert lookup.labels_of(told["prediction_id"], model=told["model"], since=START) == [label]
        archiver(spool, Archive(url)).move_due(max_age_seconds=-1)


def test_a_label_that_moves_while_it_is_looked_for_is_found(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    label = next(record for record in fill(spool, count=150) if record.kind == 2)
    told = json.loads(label.payload)
    archive = Archive(url)
    labels_of = archive.labels_of

    def moving(*arguments: Any, **more: Any) -> list[LogRecord]:
        found = labels_of(*arguments, **more)
        archiver(spool, Archive(url)).move_due(max_age_seconds=-1)
        return found

    monkeypatch.setattr(archive, "labels_of", moving)
    assert LogLookup(spool, archive).labels_of(told["prediction_id"], model=told["model"], since=START) == [label]


def test_a_window_of_the_archive_is_the_window_of_the_spool(tmp_path: Path, url: str) -> None:
    spool = tmp_path / "spool"
    fill(spool, count=60)
    window = {"kinds": {1}, "since": START + 2 * DAY, "until": START + 5.3 * DAY}
    before = list(read_all(spool, **window))  # type: ignore[arg-type]
    archive = Archive(url)
    archiver(spool, archive).move_due(max_age_seconds=-1)
    after = list(read_all(spool, archive=archive, **window))  # type: ignore[arg-type]
    assert by_address(after) == by_address(before) and len(before) > 10
    assert [record.payload[60:90] for record in after if record.boot == after[0].boot] == [
        record.payload[60:90] for record in before if record.boot == after[0].boot
    ]


def test_a_window_may_be_wider_than_the_calendar(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    written = fill(spool, count=60)
    archive = Archive(str(tmp_path / "archive"))
    archiver(spool, archive).move_due(max_age_seconds=-1)
    for window in ({"since": -1e11}, {"until": 1e12}, {"since": -1e11, "until": 1e12}):
        assert by_address(list(read_all(spool, archive=archive, **window))) == by_address(written)
    assert list(archive.read(since=1e12)) == list(archive.read(until=-1e11)) == []


def test_nothing_is_twice_there_after_a_crash_between_archive_and_removal(tmp_path: Path, url: str) -> None:
    spool = tmp_path / "spool"
    written = fill(spool)
    archive = Archive(url)
    for folder in (spool / "front-0", spool / "front-1"):
        for name in list_segments(folder)[:3]:
            archive.store(folder / name)
    assert by_address(list(read_all(spool, archive=archive))) == by_address(written)
    archiver(spool, archive).move_due(max_age_seconds=-1)
    assert by_address(list(read_all(spool, archive=archive))) == by_address(written)


def test_what_moves_while_it_is_read_is_read_all_the_same(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    written = fill(spool, count=1500)
    archive = Archive(str(tmp_path / "archive"))
    found = read_all(spool, archive=archive)
    early = [next(found) for _ in range(10)]
    archiver(spool, archive).move_due(max_age_seconds=-1)
    assert by_address([*early, *found]) == by_address(written)


@pytest.mark.parametrize("since", [None, 1.0])
def test_what_moves_while_reading_begins_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: float | None
) -> None:
    spool = tmp_path / "spool"
    written = fill(spool, count=60)
    archive = Archive(str(tmp_path / "archive"))
    first_segment = tail._first_segment

    def moves_before(*given: Any) -> str | None:
        archiver(spool, archive).move_due(max_age_seconds=-1)
        return first_segment(*given)

    monkeypatch.setattr(tail, "_first_segment", moves_before)
    assert by_address(list(read_all(spool, archive=archive, since=since))) == by_address(written)


def test_what_moves_between_two_readings_to_the_same_end_is_read_again(tmp_path: Path, url: str) -> None:
    spool = tmp_path / "spool"
    fill(spool, count=60)
    archive = Archive(url)
    ends = ends_of(spool)
    before = list(read_all(spool, archive=archive, ends=ends))
    with closing(SpoolWriter(spool / "front-0", slot=0, settings=SpoolSettings(segment_bytes=4096))) as writer:
        for _ in range(200):
            writer.append([(1, b'{"time":"2012-03-01T00:00:00Z","model":"m0"}')])
    archiver(spool, archive).move_due(max_age_seconds=-1)
    again = list(read_all(spool, archive=archive, ends=ends))
    assert by_address(again) == by_address(before) and len(before) == 120


def lives_with_gaps(spool: Path, *, lives: int, gaps: int) -> int:
    """A stream of many lives whose writer dropped records again and again; returns how many are there."""
    count = 0
    for _ in range(lives):
        with closing(SpoolWriter(spool / "front-0", slot=0, settings=SpoolSettings(segment_bytes=4096))) as writer:
            for _ in range(gaps):
                writer.next_sequence += 1
                writer.append([(1, b'{"time":"2012-03-01T00:00:00Z","model":"m0"}')] * 5)
                count += 5
    return count


def count_listings(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    listings: list[str] = []
    find = archive._files.find

    def counted(path: str) -> Any:
        listings.append(path)
        return find(path)

    monkeypatch.setattr(archive._files, "find", counted)
    return listings


def test_gaps_and_lives_that_nothing_left_do_not_list_the_archive_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    count = lives_with_gaps(spool, lives=5, gaps=10)
    archive = Archive(str(tmp_path / "archive"))
    listings = count_listings(archive, monkeypatch)
    assert len(list(read_all(spool, archive=archive))) == count
    assert len(listings) == 1


def test_what_leaves_at_once_while_it_is_read_lists_the_archive_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    count = lives_with_gaps(spool, lives=5, gaps=100)
    reader = Archive(str(tmp_path / "archive"))
    listings = count_listings(reader, monkeypatch)
    found = read_all(spool, archive=reader)
    early = [next(found) for _ in range(10)]
    assert archiver(spool, Archive(str(tmp_path / "archive"))).move_due(max_age_seconds=-1) > 20
    assert len([*early, *found]) == count
    assert len(listings) == 2


def test_an_archive_that_takes_nothing_loses_nothing(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    written = fill(spool)
    (tmp_path / "file").write_text("no folder")
    notes: list[str] = []
    mover = Archiver(
        Settings.model_validate({"state_dir": tmp_path}), Archive(str(tmp_path / "file" / "archive")), note=notes.append
    )
    assert mover.move_due(max_age_seconds=-1) == 0 == mover.move_due(max_age_seconds=-1)
    assert len(notes) == 1 and "stays in the spool" in notes[0] and mover.fault
    assert by_address(list(read_all(spool))) == by_address(written)


def test_a_file_that_does_not_read_back_as_written_never_replaces_a_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    fill(spool)
    archive = Archive(str(tmp_path / "archive"))
    write = archive._parquet.write_table

    def half(table: Any, file: Any, **options: Any) -> None:
        write(table.slice(1), file, **options)

    monkeypatch.setattr(archive._parquet, "write_table", half)
    segments = {name for name in list_segments(spool / "front-0")}
    mover = archiver(spool, archive)
    assert mover.move_due(max_age_seconds=-1) == 0 and "does not hold what was written" in mover.fault
    assert set(list_segments(spool / "front-0")) == segments
    assert list((tmp_path / "archive").rglob("*.parquet")) == []


def test_archives_are_removed_by_age_day_by_day(tmp_path: Path, url: str) -> None:
    spool = tmp_path / "spool"
    fill(spool, count=60)
    archive = Archive(url)
    archiver(spool, archive).move_due(max_age_seconds=-1)
    assert archive.remove_older(START + 5 * DAY) > 0
    days = {
        json.loads(record.payload)["time"][:10]
        for _, record in archive.read(kinds={1})
        if b"\xff" not in record.payload
    }
    assert min(days) == "2012-03-06"
    assert archive.remove_older(START + 5 * DAY) == 0


def test_one_archiver_a_spool(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, count=5)
    with _alone(spool), pytest.raises(ArchiverBusy):
        archiver(spool, Archive(str(tmp_path / "archive"))).move_due()


def test_the_archive_holds_the_predictions_of_a_block_one_by_one(tmp_path: Path, url: str) -> None:
    spool = tmp_path / "spool"
    writer = SpoolWriter(spool / "front-0", slot=0, settings=SpoolSettings())
    written = []
    for count, model in ((100, "m1"), (3, "m2"), (200, "m1")):
        first, block = writer.next_sequence, singles(count, model=model)
        written += [
            LogRecord(KIND_PREDICTION, writer.boot, first + place, payload)
            for place, payload in enumerate(block.records(first, boot=writer.boot))
        ]
        writer.append([(KIND_BLOCK, block.payload())])
    writer.append([(KIND_BLOCK, b"\x05\0of a later form"), (2, b"label")])
    written.append(LogRecord(2, writer.boot, 309, b"label"))
    writer.close()
    archive = Archive(url)
    segment = spool / "front-0" / list_segments(spool / "front-0")[0]
    assert archive.store(segment) == (304, [os.path.getsize(segment) - 5 - 17 - 17 - 17])
    shutil.rmtree(spool)
    assert by_address([record for _, record in archive.read()]) == written
    for record in written[::17]:
        assert archive.find(format_id(record.boot, record.sequence)) == record


@pytest.mark.promise("P4")
def test_one_damaged_length_costs_one_record_and_the_segment_is_set_aside_and_told(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    writer = SpoolWriter(spool / "front-0", slot=0, settings=SpoolSettings())
    written = []
    for number in range(1, 950):
        payload = json.dumps({"time": "2012-03-01T00:00:00Z", "model": "m", "number": number}).encode()
        writer.append([(1, payload)])
        written.append(LogRecord(1, writer.boot, number, payload))
    writer.close()
    segment = spool / "front-0" / list_segments(spool / "front-0")[0]
    content = bytearray(segment.read_bytes())
    eleventh = sum(HEADER_BYTES + len(record.payload) for record in written[:10])
    content[eleventh + 1] ^= 0x40
    segment.write_bytes(content)
    os.utime(segment, (1.0, 1.0))
    archive, notes = Archive(str(tmp_path / "archive")), []
    mover = Archiver(Settings.model_validate({"state_dir": tmp_path}), archive, note=notes.append)
    assert mover.move_due(max_age_seconds=-1) == 1
    assert (mover.archived, mover.corrupt) == (948, 1)
    assert by_address([record for _, record in archive.read()]) == written[:10] + written[11:]
    [note] = notes
    assert f"front-0/{segment.name} is damaged at byte {eleventh}: what is whole, 948 records, is archived" in note
    assert damaged_path(segment).read_bytes() == content and not segment.exists()
    assert SpoolReader(spool).read() == [] and mover.move_due(max_age_seconds=-1) == 0


def test_a_segment_that_the_shipper_has_set_aside_leaves_the_spool_all_the_same(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, count=60)
    segment = spool / "front-0" / list_segments(spool / "front-0")[0]
    segment.write_bytes(segment.read_bytes()[:-1])
    os.link(segment, damaged_path(segment))
    assert archiver(spool, Archive(str(tmp_path / "archive"))).move_due(max_age_seconds=-1) > 2
    assert damaged_path(segment).exists() and not segment.exists()


def test_a_segment_that_is_whole_is_not_set_aside(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    fill(spool, count=60)
    mover = archiver(spool, Archive(str(tmp_path / "archive")))
    assert mover.move_due(max_age_seconds=-1) > 2
    assert mover.corrupt == 0 and not list(spool.rglob("*.damaged"))


def test_a_damaged_segment_that_cannot_be_set_aside_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = tmp_path / "spool"
    fill(spool, count=60)
    segment = spool / "front-0" / list_segments(spool / "front-0")[0]
    segment.write_bytes(segment.read_bytes()[:-1])

    def refuses(*_: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuses)
    mover = archiver(spool, Archive(str(tmp_path / "archive")))
    mover.move_due(max_age_seconds=-1)
    assert "Read-only file system" in mover.fault and segment.exists()


def test_a_place_that_is_none_is_named() -> None:
    with pytest.raises(ArchiveError, match="'nosuch://x' is no place for an archive"):
        Archive("nosuch://x")
