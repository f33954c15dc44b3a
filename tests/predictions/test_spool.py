from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.events.addresses import format_id
from gateway.predictions.lookup import find
from gateway.predictions.reader import LogRecord, SpoolReader
from gateway.predictions.segments import HEADER_BYTES, list_segments, split_name
from gateway.predictions.spool import SpoolError, SpoolFull, SpoolWriter
from gateway.settings import SpoolSettings

SMALL = SpoolSettings(segment_bytes=4096)
PAYLOADS = st.lists(st.tuples(st.integers(1, 3), st.binary(max_size=300)), min_size=1, max_size=8)


def writer_in(folder: Path, **changes: object) -> SpoolWriter:
    return SpoolWriter(folder / "front-0", slot=0, settings=SpoolSettings(**{"segment_bytes": 4096} | changes))


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


def test_a_batch_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"first opens the segment")])
    sizes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, frame: sizes.append(len(frame)) or write(file, frame))
    writer.append([(1, b"abc"), (1, b"defg")])
    assert sizes == [2 * HEADER_BYTES + 7]


@settings(max_examples=60, deadline=None)
@given(lives=st.lists(st.lists(PAYLOADS, max_size=12), min_size=1, max_size=3), block=st.integers(1, 50))
def test_the_spool_is_a_list(lives: list[list[list[tuple[int, bytes]]]], block: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = []
        for life in lives:
            writer = SpoolWriter(Path(folder) / "front-0", slot=0, settings=SMALL)
            for batch in life:
                model += [
                    LogRecord(kind, writer.boot, writer.next_sequence + place, payload)
                    for place, (kind, payload) in enumerate(batch)
                ]
                writer.append(batch)
            writer.close()
        reader = SpoolReader(Path(folder))
        got = []
        while records := reader.read(block):
            assert len(records) <= block
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


def test_a_torn_tail_of_an_older_life_is_passed_over_and_counted(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"kept"), (1, b"torn")])
    writer.close()
    (segment,) = (tmp_path / "front-0").glob("*.seg")
    os.truncate(segment, segment.stat().st_size - 1)
    reader = SpoolReader(tmp_path)
    assert [record.payload for record in reader.read()] == [b"kept"]
    assert reader.torn == 0
    second = writer_in(tmp_path)
    second.append([(1, b"next life")])
    assert [record.payload for record in reader.read()] == [b"next life"]
    assert reader.torn == 1


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


def no_space_after(first: int) -> object:
    """Return a write that takes `first` bytes of the next frame and then finds no space."""
    left = [first]
    write = os.write

    def writes(file: int, frame: bytes) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(file, frame[: left[0]])
        left[0] -= done
        return done

    return writes


@pytest.mark.parametrize("first", range(0, 3 * (HEADER_BYTES + 10)))
def test_a_write_that_stops_at_any_byte_leaves_whole_records_and_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"before")])
    batch = [(1, b"0123456789")] * 3
    with monkeypatch.context() as disk:
        disk.setattr(os, "write", no_space_after(first))
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


def test_a_file_that_cannot_be_cut_back_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"before")])

    def refuses(file: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", no_space_after(5))
        disk.setattr(os, "ftruncate", refuses)
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
        writer._abandon_segment()
    else:
        writer.append([(1, b"dropped")])
        assert writer.dropped == 1
        writer._abandon_segment()
    assert writer.full
    writer.append([(1, b"after")])
    assert [record.payload for record in read_everything(tmp_path)] == [b"before", b"after"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_disk_fault_is_an_error_and_the_next_append_tries_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, b"before")])

    def faulty(file: int, frame: bytes) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", faulty)
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


@pytest.mark.parametrize("mode", ["always", "interval", "never"])
def test_fsync_comes_before_the_return_at_the_tick_or_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    now = [0.0]
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings(fsync=mode), clock=lambda: now[0])
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    writer.append([(1, b"x")])
    after_append = len(synced)
    now[0] = 0.5
    writer.tick()
    assert len(synced) == after_append
    now[0] = 2.0
    writer.tick()
    writer.tick()
    assert (after_append, len(synced)) == {"always": (1, 1), "interval": (0, 1), "never": (0, 0)}[mode]


@pytest.mark.parametrize("policy", ["block", "drop"])
def test_a_failed_fsync_promises_nothing_and_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    writer = writer_in(tmp_path, fsync="always", full=policy)

    def fails(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", fails)
        if policy == "block":
            with pytest.raises(SpoolError) as failed:
                writer.append([(1, b"unsure")])
            assert failed.value.written == 0
        else:
            writer.append([(1, b"unsure")])
            assert (writer.unsynced, writer.dropped) == (1, 0)
    writer.append([(1, b"sure")])
    assert len(list_segments(tmp_path / "front-0")) == 2
    assert [record.sequence for record in read_everything(tmp_path)] == [1, 2]


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


CHILD = """
import sys
from pathlib import Path
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings
writer = SpoolWriter(Path(sys.argv[1]) / "front-0", slot=0, settings=SpoolSettings(segment_bytes=65536))
while True:
    first = writer.next_sequence
    writer.append([(1, b"%d" % (first + place) * 20) for place in range(7)])
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
        assert record.payload == b"%d" % record.sequence * 20
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


@pytest.mark.parametrize("policy", ["block", "drop"])
def test_a_failed_fsync_of_a_closed_segment_refuses_the_batch_that_came_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    writer = writer_in(tmp_path, fsync="interval", full=policy)
    writer.append([(1, b"x" * 3000)])

    def fails(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fdatasync", fails)
        if policy == "block":
            with pytest.raises(SpoolError, match="Input/output error"):
                writer.append([(1, b"y" * 3000)])
        else:
            writer.append([(1, b"y" * 3000)])
    assert writer.dropped == (policy == "drop")
    writer.append([(1, b"after")])
    assert [record.payload[:1] for record in read_everything(tmp_path)] == [b"x", b"a"]


def test_a_closed_writer_writes_no_more(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(1, b"{}")])
    writer.close()
    with pytest.raises(SpoolError, match="closed"):
        writer.append([(1, b"{}")])
