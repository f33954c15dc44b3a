from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.events.addresses import format_id
from gateway.events.blocks import BlockError
from gateway.events.records import KIND_BLOCK, KIND_PREDICTION
from gateway.predictions.disk import FakeDisk, Fault
from gateway.predictions.lookup import find
from gateway.predictions.reader import LogRecord, SpoolReader
from gateway.predictions.segments import HEADER_BYTES, list_segments, split_name
from gateway.predictions.spool import SpoolError, SpoolFull, SpoolWriter
from gateway.settings import SpoolSettings
from tests.blocks import Batch, singles

SMALL = SpoolSettings(segment_bytes=4096)
SINGLES = st.tuples(st.integers(1, 3), st.binary(max_size=300))
# Of each size one, as they take long to make.
BLOCKS = st.sampled_from([singles(count) for count in (1, 2, 5)])
BATCHES = st.lists(SINGLES | BLOCKS, min_size=1, max_size=8)


def writer_in(folder: Path, *, disk: FakeDisk | None = None, **changes: object) -> SpoolWriter:
    settings = SpoolSettings(**{"segment_bytes": 4096} | changes)
    return SpoolWriter(folder / "front-0", slot=0, settings=settings, disk=disk)


def next_step(disk: FakeDisk, error: int, *, taken: int = 0, steps: int = 1) -> Fault:
    return Fault(disk.steps + 1, error, taken=taken, steps=steps)


def read_everything(folder: Path) -> list[LogRecord]:
    reader = SpoolReader(folder)
    try:
        return reader.read(1 << 30)
    finally:
        reader.close()


def test_records_come_back_in_order_with_kind_boot_sequence_and_bytes(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    assert writer.next_sequence == 1
    writer.append([(1, b"one"), (2, b"")])
    writer.append([(3, b"three")])
    assert writer.next_sequence == 4
    assert read_everything(tmp_path) == [
        LogRecord(1, writer.boot, 1, b"one"),
        LogRecord(2, writer.boot, 2, b""),
        LogRecord(3, writer.boot, 3, b"three"),
    ]


def test_a_batch_is_one_write(tmp_path: Path) -> None:
    disk = FakeDisk(tmp_path)
    writer = writer_in(tmp_path, disk=disk)
    writer.append([(1, b"first opens the segment")])
    before = disk.steps
    writer.append([(1, b"abc"), (1, b"defg")])
    assert disk.steps == before + 1


@settings(max_examples=60, deadline=None)
@given(lives=st.lists(st.lists(BATCHES, max_size=12), min_size=1, max_size=3), at_once=st.integers(1, 50))
def test_the_spool_is_a_list(lives: list[list[list[tuple[int, bytes] | Batch]]], at_once: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = []
        for life in lives:
            writer = SpoolWriter(Path(folder) / "front-0", slot=0, settings=SMALL)
            for batch in life:
                sequence = writer.next_sequence
                for entry in batch:
                    records = (
                        [(KIND_PREDICTION, record) for record in entry.records(sequence, boot=writer.boot)]
                        if isinstance(entry, Batch)
                        else [entry]
                    )
                    model += [
                        LogRecord(kind, writer.boot, sequence + place, payload)
                        for place, (kind, payload) in enumerate(records)
                    ]
                    sequence += len(records)
                writer.append([(KIND_BLOCK, entry.payload()) if isinstance(entry, Batch) else entry for entry in batch])
                assert writer.next_sequence == sequence
            writer.close()
        reader = SpoolReader(Path(folder))
        got = []
        while records := reader.read(at_once):
            assert len(records) < at_once + 5, "no more than what is left of a block"
            got += records
            going_on = SpoolReader(Path(folder), position=reader.position())
            reader.close()
            reader = going_on
        assert got == model
        assert (reader.corrupt, reader.torn, reader.removed) == (0, 0, 0)
        reader.close()
        for record in model[:: max(1, len(model) // 10)]:
            assert find(Path(folder), format_id(record.boot, record.sequence)) == record


def test_a_file_cut_at_any_byte_gives_every_record_before_the_cut(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    payloads = [b"a" * 40, b"", b"b" * 70, b"c"]
    for payload in payloads:
        writer.append([(1, payload)])
    writer.close()
    (segment,) = (tmp_path / "front-0").glob("*.seg")
    whole = segment.read_bytes()
    for cut in range(len(whole) + 1):
        segment.write_bytes(whole[:cut])
        reader = SpoolReader(tmp_path)
        got = [record.payload for record in reader.read()]
        ends = [sum(HEADER_BYTES + len(payload) for payload in payloads[: count + 1]) for count in range(4)]
        assert got == payloads[: sum(end <= cut for end in ends)]
        assert reader.corrupt == 0
        segment.write_bytes(whole)
        assert [record.payload for record in reader.read()] == payloads[len(got) :]
        reader.close()


def test_the_torn_tail_of_the_life_before_is_cut_and_told(tmp_path: Path) -> None:
    for tail in (b"\x05", b"\x09\0\0\0half a header", bytes(2000)):
        writer = writer_in(tmp_path)
        assert writer.cut == 0
        writer.append([(1, b"kept")])
        writer.close()
        last = tmp_path / "front-0" / list_segments(tmp_path / "front-0")[-1]
        with last.open("ab") as file:
            file.write(tail)
        second = writer_in(tmp_path)
        assert second.cut == len(tail)
        second.close()
    reader = SpoolReader(tmp_path)
    assert [record.payload for record in reader.read()] == [b"kept"] * 3
    assert (reader.torn, reader.corrupt) == (0, 0)


def test_a_tail_that_cannot_be_cut_does_not_keep_a_writer_from_starting(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"kept"), (1, b"torn")])
    writer.close()
    (segment,) = (tmp_path / "front-0").glob("*.seg")
    os.truncate(segment, segment.stat().st_size - 1)
    second = writer_in(tmp_path, disk=FakeDisk(tmp_path, fault=Fault(1, errno.EIO)))
    assert second.cut == 0
    second.append([(1, b"next life")])
    reader = SpoolReader(tmp_path)
    assert [record.payload for record in reader.read()] == [b"kept", b"next life"]
    assert reader.torn == 1


def test_a_record_that_does_not_check_is_never_cut_off(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"kept"), (1, b"damaged"), (1, b"behind")])
    writer.close()
    (segment,) = (tmp_path / "front-0").glob("*.seg")
    block = bytearray(segment.read_bytes())
    block[block.index(b"damaged")] ^= 1
    segment.write_bytes(block + b"torn")
    assert writer_in(tmp_path).cut == 0
    reader = SpoolReader(tmp_path)
    assert [record.payload for record in reader.read()] == [b"kept", b"behind"]
    assert reader.corrupt == 1


@pytest.mark.promise("P1")
def test_records_behind_a_length_that_goes_beyond_the_end_are_never_cut_off(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"record %d" % number) for number in range(5)] + [(KIND_BLOCK, singles(3).payload()), (1, b"")])
    writer.close()
    segment = writer.directory / list_segments(writer.directory)[0]
    whole = segment.read_bytes()
    for offset, lost in ((0, {1}), (HEADER_BYTES + 8, {2}), (5 * (HEADER_BYTES + 8), {6, 7, 8})):
        damaged = bytearray(whole)
        damaged[offset + 2] ^= 0x01
        segment.write_bytes(damaged)
        with closing(writer_in(tmp_path)) as later:
            assert later.cut == 0
            later.append([(1, b"later")])
        assert segment.read_bytes() == damaged
        got = [record.sequence for record in read_everything(tmp_path) if record.boot == writer.boot]
        assert got == [number for number in range(1, 10) if number not in lost]
        for name in list_segments(writer.directory)[1:]:
            (writer.directory / name).unlink()


def test_an_unfinished_record_that_holds_what_looks_like_a_record_is_cut_off_all_the_same(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"first"), (1, b"second"), (1, b"forged")])
    writer.close()
    segment = writer.directory / list_segments(writer.directory)[0]
    whole = segment.read_bytes()
    first, forged = whole[: HEADER_BYTES + 5], whole[-HEADER_BYTES - 6 :]
    tensor = bytes(100) + forged + bytes(100)
    unfinished = (len(tensor) + 1000).to_bytes(4, "little") + bytes(4) + (2).to_bytes(8, "little") + bytes([1])
    segment.write_bytes(first + unfinished + tensor)
    with closing(writer_in(tmp_path)) as later:
        assert later.cut == HEADER_BYTES + len(tensor)
    assert [record.payload for record in read_everything(tmp_path)] == [b"first"]


def test_a_reader_at_a_tail_that_is_cut_goes_on_behind_it(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"kept"), (1, b"torn")])
    writer.close()
    (segment,) = (tmp_path / "front-0").glob("*.seg")
    os.truncate(segment, segment.stat().st_size - 1)
    reader = SpoolReader(tmp_path)
    assert [record.payload for record in reader.read()] == [b"kept"]
    second = writer_in(tmp_path)
    second.append([(1, b"next life")])
    assert [record.payload for record in reader.read()] == [b"next life"]
    assert (reader.torn, reader.corrupt) == (0, 0)


def test_boots_never_repeat_when_the_clock_stands_or_goes_back(tmp_path: Path) -> None:
    boots = []
    for now in (1000.0, 1000.0, 10.0):
        writer = SpoolWriter(tmp_path / "front-0", slot=255, settings=SMALL, clock=lambda now=now: now)
        writer.append([(1, b"x")])
        boots.append(writer.boot)
        writer.close()
        for name in list_segments(tmp_path / "front-0"):
            (tmp_path / "front-0" / name).unlink()
    assert boots == sorted(set(boots))
    assert all(boot.endswith("ff") and len(boot) == 14 for boot in boots)


def test_a_second_writer_of_a_stream_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    first = writer_in(tmp_path)
    with pytest.raises(SpoolError, match="already has a writer"):
        writer_in(tmp_path)
    first.close()
    first.close()
    writer_in(tmp_path).close()


def test_segments_are_closed_at_their_size_and_named_by_their_first_record(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    for _ in range(100):
        writer.append([(1, b"x" * 200)])
    names = list_segments(tmp_path / "front-0")
    assert len(names) > 3
    assert all((tmp_path / "front-0" / name).stat().st_size <= 4096 for name in names)
    firsts = [split_name(name)[1] for name in names]
    for first in firsts:
        assert find(tmp_path, format_id(writer.boot, first)) is not None
    assert firsts[0] == 1


def fill(writer: SpoolWriter) -> int:
    """Append until the spool refuses; return how many records went in."""
    for count in range(100_000):
        try:
            writer.append([(1, b"x" * 1000)])
        except SpoolFull:
            return count
    raise AssertionError("never full")


def test_a_spool_at_its_limit_blocks_and_goes_on_when_space_is_made(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, max_bytes=2**20, segment_bytes=2**20)
    count = fill(writer)
    assert writer.full
    assert sum(path.stat().st_size for path in (tmp_path / "front-0").iterdir()) < 2**20
    assert len(read_everything(tmp_path)) == count == writer.next_sequence - 1
    writer.tick()
    assert writer.full
    for name in list_segments(tmp_path / "front-0")[:5]:
        (tmp_path / "front-0" / name).unlink()
    writer.tick()
    assert not writer.full
    writer.append([(1, b"again")])
    assert read_everything(tmp_path)[-1] == LogRecord(1, writer.boot, count + 1, b"again")


def test_a_spool_at_its_limit_drops_and_counts_when_told_to(tmp_path: Path) -> None:
    writer = writer_in(tmp_path, max_bytes=2**20, full="drop")
    for _ in range(2000):
        writer.append([(1, b"x" * 1000)])
    kept = read_everything(tmp_path)
    assert writer.dropped > 0
    assert len(kept) + writer.dropped == 2000
    assert writer.next_sequence == 2001
    for name in list_segments(tmp_path / "front-0")[:5]:
        (tmp_path / "front-0" / name).unlink()
    writer.tick()
    reader = SpoolReader(tmp_path)
    reader.read(1 << 30)
    writer.append([(1, b"after the gap")])
    assert [record.sequence for record in reader.read()] == [2001]
    assert reader.missing == writer.dropped


@pytest.mark.parametrize("first", range(0, 3 * (HEADER_BYTES + 10)))
def test_a_write_that_stops_at_any_byte_leaves_whole_records_and_says_how_many(tmp_path: Path, first: int) -> None:
    disk = FakeDisk(tmp_path)
    writer = writer_in(tmp_path, disk=disk)
    writer.append([(1, b"before")])
    batch = [(1, b"0123456789")] * 3
    disk.fault = next_step(disk, errno.ENOSPC, taken=first)
    with pytest.raises(SpoolFull, match="No space left") as refused:
        writer.append(batch)
    whole = first // (HEADER_BYTES + 10)
    assert refused.value.written == whole
    assert writer.full
    assert writer.next_sequence == 2 + whole
    writer.append([(1, b"after")])
    assert not writer.full
    reader = SpoolReader(tmp_path)
    assert [record.payload for record in reader.read()] == [b"before"] + [b"0123456789"] * whole + [b"after"]
    assert (reader.corrupt, reader.torn, reader.missing) == (0, 0, 0)


def test_a_block_takes_a_number_for_each_prediction_and_comes_back_as_single_records(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    batch = singles(5)
    writer.append([(1, b"before"), (KIND_BLOCK, batch.payload()), (2, b"behind")])
    assert writer.next_sequence == 8
    assert read_everything(tmp_path) == [
        LogRecord(1, writer.boot, 1, b"before"),
        *(
            LogRecord(KIND_PREDICTION, writer.boot, 2 + place, payload)
            for place, payload in enumerate(batch.records(2, boot=writer.boot))
        ),
        LogRecord(2, writer.boot, 7, b"behind"),
    ]


def test_what_is_no_block_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    with pytest.raises(BlockError):
        writer.append([(1, b"before"), (KIND_BLOCK, b"\0\0")])
    assert (writer.next_sequence, writer.full, list_segments(tmp_path / "front-0")) == (1, False, [])


@pytest.mark.parametrize("part", range(0, 101, 4))
def test_a_write_that_stops_in_a_block_leaves_nothing_of_it_and_counts_predictions(tmp_path: Path, part: int) -> None:
    disk = FakeDisk(tmp_path)
    writer = writer_in(tmp_path, disk=disk)
    payload = singles(3).payload()
    taken = (HEADER_BYTES + 6) + (HEADER_BYTES + len(payload)) * part // 100
    writer.append([(1, b"opens the segment")])
    disk.fault = next_step(disk, errno.ENOSPC, taken=taken)
    with pytest.raises(SpoolFull) as refused:
        writer.append([(1, b"before"), (KIND_BLOCK, payload), (KIND_BLOCK, payload)])
    assert refused.value.written == (4 if part == 100 else 1)
    writer.append([(1, b"after")])
    reader = SpoolReader(tmp_path)
    sequences = [record.sequence for record in reader.read()]
    assert sequences == list(range(1, refused.value.written + 3))
    assert (reader.corrupt, reader.torn, reader.missing) == (0, 0, 0)


def test_dropped_blocks_count_their_predictions_and_leave_as_large_a_gap(tmp_path: Path) -> None:
    disk = FakeDisk(tmp_path)
    writer = writer_in(tmp_path, disk=disk, full="drop")
    payload = singles(7).payload()
    writer.append([(KIND_BLOCK, payload)])
    disk.fault = next_step(disk, errno.EIO)
    writer.append([(KIND_BLOCK, payload), (1, b"lost")])
    writer.append([(KIND_BLOCK, payload)])
    assert (writer.dropped, writer.next_sequence) == (8, 23)
    reader = SpoolReader(tmp_path)
    assert [record.sequence for record in reader.read()] == [*range(1, 8), *range(16, 23)]
    assert reader.missing == 8


def test_blocks_that_could_not_be_synced_count_their_predictions(tmp_path: Path) -> None:
    disk = FakeDisk(tmp_path)
    writer = writer_in(tmp_path, disk=disk, full="drop", fsync="always")
    writer.append([(KIND_BLOCK, singles(7).payload())])
    disk.fault = Fault(disk.steps + 2, errno.EIO)
    writer.append([(KIND_BLOCK, singles(7).payload()), (1, b"x")])
    assert (writer.unsynced, writer.dropped, writer.next_sequence) == (8, 0, 16)


def test_a_block_cut_by_a_kill_is_cut_off_whole_and_the_blocks_before_it_stay(tmp_path: Path) -> None:
    payload = singles(3).payload()
    for left in range(1, HEADER_BYTES + len(payload), 7):
        folder = tmp_path / str(left)
        writer = writer_in(folder)
        writer.append([(KIND_BLOCK, payload), (KIND_BLOCK, payload)])
        writer.close()
        (segment,) = (folder / "front-0").glob("*.seg")
        os.truncate(segment, segment.stat().st_size - left)
        second = writer_in(folder)
        assert second.cut == HEADER_BYTES + len(payload) - left
        second.append([(KIND_BLOCK, payload)])
        assert [record.sequence for record in read_everything(folder)] == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("first", [1, 20, 40])
def test_a_short_write_is_gone_on_with(tmp_path: Path, first: int) -> None:
    disk = FakeDisk(tmp_path)
    writer = writer_in(tmp_path, disk=disk)
    writer.append([(1, b"before")])
    disk.fault = next_step(disk, 0, taken=first)
    writer.append([(1, b"0123456789")] * 2)
    assert [record.payload for record in read_everything(tmp_path)] == [b"before", b"0123456789", b"0123456789"]


def test_a_file_that_cannot_be_cut_back_is_left_behind(tmp_path: Path) -> None:
    disk = FakeDisk(tmp_path)
    writer = writer_in(tmp_path, disk=disk)
    writer.append([(1, b"before")])
    disk.fault = next_step(disk, errno.ENOSPC, taken=5, steps=2)
    with pytest.raises(SpoolFull):
        writer.append([(1, b"torn")])
    writer.append([(1, b"after")])
    reader = SpoolReader(tmp_path)
    assert [record.payload for record in reader.read()] == [b"before", b"after"]
    assert (reader.corrupt, reader.torn, reader.missing) == (0, 1, 0)


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full here")
@pytest.mark.parametrize("policy", ["block", "drop"])
def test_a_full_device_is_refused_or_dropped_and_the_next_append_finds_space_again(tmp_path: Path, policy: str) -> None:
    writer = writer_in(tmp_path, full=policy)
    writer.append([(1, b"before")])
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._file)
    os.close(full)
    if policy == "block":
        with pytest.raises(SpoolFull):
            writer.append([(1, b"refused")])
        writer._leave_segment()
    else:
        writer.append([(1, b"dropped")])
        assert writer.dropped == 1
        writer._leave_segment()
    assert writer.full
    writer.append([(1, b"after")])
    assert [record.payload for record in read_everything(tmp_path)] == [b"before", b"after"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_disk_fault_is_an_error_and_the_next_append_tries_another_file(tmp_path: Path, number: int) -> None:
    disk = FakeDisk(tmp_path)
    writer = writer_in(tmp_path, disk=disk)
    writer.append([(1, b"before")])
    disk.fault = next_step(disk, number)
    with pytest.raises(SpoolError) as failed:
        writer.append([(1, b"lost")])
    assert not isinstance(failed.value, SpoolFull)
    assert failed.value.written == 0
    writer.append([(1, b"after")])
    assert len(list_segments(tmp_path / "front-0")) == 2
    assert [record.sequence for record in read_everything(tmp_path)] == [1, 2]


def test_a_spool_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"gone")])
    for path in (tmp_path / "front-0").iterdir():
        path.unlink()
    (tmp_path / "front-0").rmdir()
    writer.tick()
    writer.append([(1, b"after")])
    assert [record.payload for record in read_everything(tmp_path)] == [b"after"]


class SyncCounter(FakeDisk):
    """Counts the syncs of files."""

    syncs = 0

    def sync(self, file: int, /) -> None:
        super().sync(file)
        self.syncs += 1


@pytest.mark.parametrize("mode", ["always", "interval", "never"])
def test_fsync_comes_before_the_return_at_the_tick_or_never(tmp_path: Path, mode: str) -> None:
    now = [0.0]
    disk = SyncCounter(tmp_path)
    spool = SpoolSettings(fsync=mode)
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=spool, clock=lambda: now[0], disk=disk)
    writer.append([(1, b"x")])
    after_append = disk.syncs
    now[0] = 0.5
    writer.tick()
    assert disk.syncs == after_append
    now[0] = 2.0
    writer.tick()
    writer.tick()
    assert (after_append, disk.syncs) == {"always": (1, 1), "interval": (0, 1), "never": (0, 0)}[mode]


@pytest.mark.parametrize("policy", ["block", "drop"])
def test_a_failed_fsync_promises_nothing_and_leaves_the_file(tmp_path: Path, policy: str) -> None:
    disk = FakeDisk(tmp_path)
    writer = writer_in(tmp_path, disk=disk, fsync="always", full=policy)
    disk.fault = Fault(3, errno.EIO)
    if policy == "block":
        with pytest.raises(SpoolError) as failed:
            writer.append([(1, b"unsure")])
        assert failed.value.written == 0
    else:
        writer.append([(1, b"unsure")])
        assert (writer.unsynced, writer.dropped) == (1, 0)
    assert writer.full
    writer.append([(1, b"sure")])
    assert not writer.full
    assert len(list_segments(tmp_path / "front-0")) == 2
    assert [record.sequence for record in read_everything(tmp_path)] == [1, 2]


def test_a_disk_that_refused_to_sync_is_tried_again_without_a_record(tmp_path: Path) -> None:
    now = [0.0]
    disk = FakeDisk(tmp_path)
    spool = SpoolSettings(fsync="interval")
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=spool, clock=lambda: now[0], disk=disk)
    writer.append([(1, b"x")])
    disk.fault = next_step(disk, errno.EIO, steps=2)
    now[0] = 2.0
    writer.tick()
    assert writer.full and writer.unsure
    now[0] = 3.0
    writer.tick()
    assert writer.full, "the second failure"
    now[0] = 4.0
    writer.tick()
    assert not writer.full
    assert [path.name for path in (tmp_path / "front-0").iterdir() if path.suffix != ".seg"] == ["writer.lock"]


def test_a_quiet_stream_closes_its_segment_after_an_hour(tmp_path: Path) -> None:
    now = [0.0]
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SMALL, clock=lambda: now[0])
    writer.append([(1, b"x")])
    for now[0] in (1800.0, 3700.0, 7500.0):
        writer.tick()
    assert [split_name(name)[1] for name in list_segments(tmp_path / "front-0")] == [1, 2]
    writer.append([(1, b"y")])
    assert find(tmp_path, format_id(writer.boot, 2)) == LogRecord(1, writer.boot, 2, b"y")


def test_a_record_beyond_the_limit_is_refused_with_its_size(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    with pytest.raises(SpoolError, match=f"has {64 * 2**20 + 1} bytes; expected at most {64 * 2**20}"):
        writer.append([(1, bytes(64 * 2**20 + 1))])
    assert read_everything(tmp_path) == []


def test_repr_tells_the_state(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"x")])
    assert repr(writer).startswith(f"<SpoolWriter front-0 open boot={writer.boot} next=2 segment=18 room=")
    writer.close()
    assert " closed " in repr(writer)


@lru_cache(maxsize=1)
def written_in_block(first: int, boot: str) -> list[bytes]:
    return singles(5, first=first, width=100).records(first, boot=boot)


CHILD = """
import sys
from pathlib import Path
from gateway.events.records import KIND_BLOCK
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings
from tests.blocks import singles
writer = SpoolWriter(Path(sys.argv[1]) / "front-0", slot=0, settings=SpoolSettings(segment_bytes=65536))
while True:
    first = writer.next_sequence
    block = singles(5, first=first + 7, width=100).payload()
    writer.append([*((1, b"%d" % (first + place) * 20) for place in range(7)), (KIND_BLOCK, block)])
    sys.stdout.write(f"{writer.boot} {writer.next_sequence - 1}\\n")
    sys.stdout.flush()
"""


@pytest.mark.fault
@pytest.mark.promise("P1")
def test_kill_9_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    told: dict[str, int] = {}
    for lines in range(5, 155, 15):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(lines):
            boot, last = child.stdout.readline().split()
            told[boot] = int(last)
        child.send_signal(signal.SIGKILL)
        for line in child.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                told[line.split()[0]] = int(line.split()[1])
        child.stdout.close()
        child.wait(timeout=30)
    reader = SpoolReader(tmp_path)
    found: dict[str, list[int]] = {}
    for record in reader.read(1 << 30):
        block, place = divmod(record.sequence - 1, 12)
        if place < 7:
            assert record.payload == b"%d" % record.sequence * 20
        else:
            assert record.payload == written_in_block(12 * block + 8, record.boot)[place - 7]
        found.setdefault(record.boot, []).append(record.sequence)
    assert len(told) == 10
    assert list(found) == sorted(found)
    for boot, last in told.items():
        assert found[boot] == list(range(1, len(found[boot]) + 1))
        assert len(found[boot]) >= last
    assert reader.corrupt == 0
    reader.close()


LIMITED = """
import resource, sys
from pathlib import Path
from gateway.predictions.spool import SpoolFull, SpoolWriter
from gateway.settings import SpoolSettings
folder, policy = Path(sys.argv[1]), sys.argv[2]
writer = SpoolWriter(folder / "front-0", slot=0, settings=SpoolSettings(full=policy))
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
refused = accepted = 0
for _ in range(30):
    try:
        writer.append([(1, b"x" * 500)] * 3)
        accepted += 3
    except SpoolFull as error:
        accepted += error.written
        refused += 3 - error.written
assert writer.full
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
writer.append([(1, b"after")])
assert not writer.full
print(accepted, refused, writer.dropped)
"""


@pytest.mark.fault
@pytest.mark.promise("P4")
@pytest.mark.parametrize("policy", ["block", "drop"])
def test_a_disk_without_space_does_what_was_chosen_and_recovers_without_a_restart(tmp_path: Path, policy: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), policy], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    accepted, refused, dropped = (int(number) for number in done.stdout.split())
    reader = SpoolReader(tmp_path)
    records = reader.read()
    assert records[-1].payload == b"after"
    assert reader.corrupt == 0
    if policy == "block":
        assert len(records) == accepted + 1
        assert refused == 90 - accepted > 0
        assert [record.sequence for record in records] == list(range(1, accepted + 2))
    else:
        assert len(records) + dropped == 91
        assert dropped > 0
        assert reader.missing == dropped
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000


def test_with_interval_a_closed_segment_is_synced_with_the_next_and_its_failure_shows(tmp_path: Path) -> None:
    now = [0.0]
    disk = SyncCounter(tmp_path)
    spool = SpoolSettings(fsync="interval", segment_bytes=4096)
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=spool, clock=lambda: now[0], disk=disk)
    for _ in range(3):
        writer.append([(1, b"x" * 3000)])
    assert disk.syncs == 0
    now[0] = 2.0
    writer.tick()
    assert (disk.syncs, writer.full, writer.owes) == (3, False, False)
    for _ in range(3):
        writer.append([(1, b"y" * 3000)])
    disk.fault = next_step(disk, errno.EIO)
    now[0] = 4.0
    writer.tick()
    assert writer.full
    writer.append([(1, b"after")])
    now[0] = 6.0
    writer.tick()
    assert not writer.full
    assert [record.sequence for record in read_everything(tmp_path)] == list(range(1, 8))


def test_a_closed_writer_writes_no_more(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(1, b"{}")])
    writer.close()
    with pytest.raises(SpoolError, match="closed"):
        writer.append([(1, b"{}")])
