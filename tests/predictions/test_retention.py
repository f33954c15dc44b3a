from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.control.outbox import last_published
from gateway.events.addresses import format_id
from gateway.events.encoding import encode
from gateway.events.records import KIND_DECISION, DecisionRecord
from gateway.predictions.reader import SpoolReader
from gateway.predictions.retention import Retention
from gateway.predictions.segments import list_segments, spool_size
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings

NOW = 2_000_000_000.0


def written(spool: Path, stream: str, *, slot: int, newest_age: float, count: int = 400) -> SpoolWriter:
    """A stream of about ten segments, each 100 s older than the next."""
    writer = SpoolWriter(spool / stream, slot=slot, settings=SpoolSettings(segment_bytes=4096))
    for _ in range(count):
        writer.append([(1, b"x" * 83)])
    names = list_segments(spool / stream)
    for age, name in enumerate(reversed(names)):
        moment = NOW - newest_age - 100 * age
        os.utime(spool / stream / name, (moment, moment))
    return writer


def test_only_segments_beyond_the_age_go_and_the_open_one_never(tmp_path: Path) -> None:
    writer = written(tmp_path, "front-0", slot=0, newest_age=0)
    before = list_segments(tmp_path / "front-0")
    removed = Retention(tmp_path).sweep(max_bytes=2**30, max_age_seconds=350, shipped=None, now=NOW)
    assert [path.name for path in removed] == before[:-4]
    assert list_segments(tmp_path / "front-0") == before[-4:]
    Retention(tmp_path).sweep(max_bytes=2**30, max_age_seconds=0, shipped=None, now=NOW + 10**6)
    assert list_segments(tmp_path / "front-0") == before[-1:]
    writer.close()


def test_by_size_the_oldest_of_all_streams_go_first(tmp_path: Path) -> None:
    writers = [written(tmp_path, f"front-{slot}", slot=slot, newest_age=50 * slot) for slot in range(2)]
    size = spool_size(tmp_path)
    max_bytes = size // 2
    removed = Retention(tmp_path).sweep(max_bytes=max_bytes, max_age_seconds=10**9, shipped=None, now=NOW)
    assert spool_size(tmp_path) <= max_bytes - 2 * (max_bytes // 16)
    left = max(len(list_segments(tmp_path / f"front-{slot}")) for slot in range(2))
    assert left - min(len(list_segments(tmp_path / f"front-{slot}")) for slot in range(2)) <= 1
    assert [path.parent.name for path in removed[:2]] == ["front-1", "front-0"]
    for writer in writers:
        writer.close()


def test_with_kafka_only_what_is_acknowledged_goes(tmp_path: Path) -> None:
    writers = [written(tmp_path, f"front-{slot}", slot=slot, newest_age=0) for slot in range(2)]
    names = list_segments(tmp_path / "front-0")
    assert Retention(tmp_path).sweep(max_bytes=2**20, max_age_seconds=0, shipped={}, now=NOW + 10**6) == []
    shipped = {"front-0": (names[3], 17)}
    removed = Retention(tmp_path).sweep(max_bytes=2**20, max_age_seconds=0, shipped=shipped, now=NOW + 10**6)
    assert [path.name for path in removed] == names[:3]
    for writer in writers:
        writer.close()


def test_the_last_segment_of_a_stream_that_was_left_behind_goes_too(tmp_path: Path) -> None:
    writer = written(tmp_path, "front-7", slot=7, newest_age=0)
    writer.close()
    reader = SpoolReader(tmp_path)
    reader.read(1 << 30)
    (segment, offset) = reader.position()["front-7"]
    later = NOW + 10**5
    half_way = {"front-7": (segment, offset - 1)}
    Retention(tmp_path).sweep(max_bytes=2**20, max_age_seconds=0, shipped=half_way, now=later)
    assert list_segments(tmp_path / "front-7") == [segment]
    Retention(tmp_path).sweep(max_bytes=2**20, max_age_seconds=0, shipped=reader.position(), now=later)
    assert list_segments(tmp_path / "front-7") == []


def test_a_writer_that_was_full_finds_room_after_a_sweep(tmp_path: Path) -> None:
    settings = SpoolSettings(max_bytes=2**20, full="drop")
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=settings)
    while not writer.full:
        writer.append([(1, b"x" * 1000)])
    writer.tick()
    assert Retention(tmp_path).sweep(max_bytes=2**20, max_age_seconds=10**9, shipped=None, now=NOW)
    writer.tick()
    assert not writer.full
    dropped = writer.dropped
    writer.append([(1, b"again")])
    assert writer.dropped == dropped


def test_after_a_clock_was_set_back_the_oldest_go_first_all_the_same(tmp_path: Path) -> None:
    for seconds_ahead in (-10, 10**6):
        spool = tmp_path / str(seconds_ahead)
        writer = written(spool, "front-0", slot=0, newest_age=0)
        names = list_segments(spool / "front-0")
        for place, name in enumerate(names[:5]):
            moment = NOW + seconds_ahead + place
            os.utime(spool / "front-0" / name, (moment, moment))
        size = spool_size(spool)
        removed = Retention(spool).sweep(max_bytes=size, max_age_seconds=10**9, shipped=None, now=NOW)
        assert removed and [path.name for path in removed] == names[: len(removed)]
        writer.close()


def test_times_that_are_still_to_come_do_not_keep_a_segment_beyond_the_age(tmp_path: Path) -> None:
    writer = written(tmp_path, "front-0", slot=0, newest_age=0)
    names = list_segments(tmp_path / "front-0")
    for name in names[:5]:
        os.utime(tmp_path / "front-0" / name, (NOW * 2, NOW * 2))
    removed = Retention(tmp_path).sweep(max_bytes=2**30, max_age_seconds=350, shipped=None, now=NOW)
    assert [path.name for path in removed] == names[:-4]
    writer.close()


def test_one_time_of_long_ago_does_not_make_the_segments_before_it_old(tmp_path: Path) -> None:
    writer = written(tmp_path, "front-0", slot=0, newest_age=0)
    names = list_segments(tmp_path / "front-0")
    os.utime(tmp_path / "front-0" / names[-3], (1.0, 1.0))
    removed = Retention(tmp_path).sweep(max_bytes=2**30, max_age_seconds=350, shipped=None, now=NOW)
    assert [path.name for path in removed] == names[:-4]
    writer.close()


def test_the_last_decision_stays_when_the_stream_went_on_to_an_empty_segment(tmp_path: Path) -> None:
    now = NOW
    stream = tmp_path / "decisions"
    writer = SpoolWriter(stream, slot=255, settings=SpoolSettings(), clock=lambda: now)
    for seq in (1, 2, 3):
        writer.append([(KIND_DECISION, encode(decision(writer, seq)))])
        now += 3601
        writer.tick()
    names = list_segments(stream)
    assert len(names) == 4 and (stream / names[-1]).stat().st_size == 0
    removed = Retention(tmp_path).sweep(max_bytes=2**30, max_age_seconds=1, shipped=None, now=NOW + 8 * 86_400)
    assert [path.name for path in removed] == names[:2]
    last = last_published(stream)
    assert last is not None and last.seq == 3
    writer.close()


def decision(writer: SpoolWriter, seq: int) -> DecisionRecord:
    return DecisionRecord(
        seq=seq,
        id=format_id(writer.boot, seq),
        time="2026-01-01T00:00:00Z",
        model="m",
        kind="paused",
        actor="somebody",
        reason="",
        before={},
        after={},
        evidence={},
        prev_hash="",
        hash="",
    )


def test_a_sweep_looks_at_no_more_than_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path, "front-0", slot=0, newest_age=0, count=4000)
    names = list_segments(tmp_path / "front-0")
    assert len(names) > 90
    retention = Retention(tmp_path)
    assert retention.sweep(max_bytes=2**30, max_age_seconds=10**9, shipped=None, now=NOW) == []
    os.utime(tmp_path / "front-0", (1.0, 1.0))
    assert retention.sweep(max_bytes=2**30, max_age_seconds=10**9, shipped=None, now=NOW) == []
    looked = []
    stat, listdir = os.stat, os.listdir
    monkeypatch.setattr(os, "stat", lambda path, **options: looked.append(path) or stat(path, **options))
    monkeypatch.setattr(os, "listdir", lambda path: looked.append(path) or listdir(path))
    assert retention.sweep(max_bytes=2**30, max_age_seconds=10**9, shipped=None, now=NOW) == []
    assert len(looked) < 10, looked
    writer.close()
