"""Disks that are full, read-only, broken, slow or emptied: what was chosen is done and counted, without a restart."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.events.records import KIND_PREDICTION
from gateway.predictions.segments import HEADER_BYTES, list_segments
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings
from tests.checker import Counts, History, check, check_counts, counts_of, read_history, spooled
from tests.faults.faulty_disk import FaultyDisk
from tests.gateways import RunningGateway, call, eventually, running_gateway, start_gateway
from tests.load import Load


@contextlib.contextmanager
def gateway_on(place: Path, **spool: str) -> Iterator[tuple[RunningGateway, FaultyDisk]]:
    folder = place / "faulty"
    folder.mkdir()
    disk = FaultyDisk(folder)
    variables = {f"GATEWAY_SPOOL__{name.upper()}": value for name, value in spool.items()}
    started = start_gateway(place, environment=disk.environment | variables)
    try:
        yield started, disk
    finally:
        started.stop()


def counted(gateway: RunningGateway) -> Counts:
    return counts_of(gateway.state_dir)


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.promise("P4")
def test_with_block_a_failing_disk_refuses_and_serves_again_when_it_works(tmp_path: Path) -> None:
    history = History(tmp_path / "client.jsonl")
    with gateway_on(tmp_path, fsync="always", full="block") as (gateway, disk):
        before = gateway.titles()
        with Load(gateway.http_port, history=history) as load:
            load.wait(30)
            with disk.fails("fdatasync", "0.5"):
                load.wait(30, seconds=120)
                assert call(f"{gateway.http_url}/v2/health/ready")[0] == 200, "slow is not broken"
            assert not load.failed
            for syscall, error in (("write", "ENOSPC"), ("write", "EIO"), ("open", "EROFS"), ("fdatasync", "EIO")):
                with disk.fails(syscall, error):
                    if syscall == "open":
                        # A writer opens files when it begins a segment; what lies open is still written to.
                        shutil.rmtree(gateway.state_dir / "spool" / "front-0")
                    eventually(lambda: call(f"{gateway.http_url}/v2/health/ready")[0] == 503, what="not ready")
                    load.wait(20)
                    assert load.answers[-1].status == 503, error
                eventually(gateway.is_ready, what=f"recovery from {error}")
                load.wait(20)
                assert load.answers[-1].status == 200, error
                if syscall == "write":
                    entries = spooled(gateway.state_dir / "spool")
        statuses = {answer.status for answer in load.failed}
        assert gateway.titles() == before, "nothing was started again"
        counts = counted(gateway)
    history.close()
    assert not load.broken and statuses == {503}
    operations = read_history(history.path)
    written = {entry.id for entry in entries}
    verdict = check([each for each in operations if each.prediction_id in written], entries)
    assert not verdict.faults and verdict.gaps == 0
    print(f"{verdict}; {len(load.failed)} refused, {counts}")
    # The folder that was removed took its records with it, and so did its open file within the second until it shows.
    lost = {each.prediction_id for each in operations if each.status == 200} - written
    later = spooled(gateway.state_dir / "spool")
    assert {entry.id for entry in later} & lost, "what came after is there"
    assert counts.unsynced > 0 and counts.refused > 0 and counts.dropped == 0


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.promise("P4")
def test_with_drop_a_full_disk_answers_counts_and_logs_again_when_there_is_room(tmp_path: Path) -> None:
    history = History(tmp_path / "client.jsonl")
    with gateway_on(tmp_path, fsync="never", full="drop") as (gateway, disk):
        spool_dir = gateway.state_dir / "spool"
        with Load(gateway.http_port, history=history) as load:
            load.wait(30)
            with disk.fails("write", "ENOSPC"):
                eventually(lambda: counted(gateway).dropped > 20, what="dropped events")
                assert gateway.is_ready()
            dropped = counted(gateway).dropped
            load.wait(50)
        assert not load.failed and not load.broken
    history.close()
    entries, counts = spooled(spool_dir), counts_of(gateway.state_dir)
    verdict = check(read_history(history.path), entries, alone=True)
    print(f"{verdict}; {counts}")
    assert counts.dropped >= dropped > 20
    assert verdict.gaps == counts.dropped, "the gap shows in the log"
    assert {fault.partition(":")[0] for fault in verdict.faults} == {"answered and not logged"}
    assert len(load.answers) - verdict.logged == counts.dropped, "and nothing else is missing"
    assert not check_counts(counts, entries)


@pytest.mark.fault
@pytest.mark.promise("P4")
def test_a_disk_that_has_changed_bytes_is_told_of_and_counted(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "state" / "spool" / "front-7", slot=7, settings=SpoolSettings(segment_bytes=4096))
    for _ in range(60):
        writer.append([(KIND_PREDICTION, bytes(200))])
    writer.close()
    name = list_segments(writer.directory)[0]
    with (writer.directory / name).open("r+b") as segment:
        segment.seek(3 * (HEADER_BYTES + 200) + 3)
        segment.write(b"\xff")
    with running_gateway(tmp_path) as gateway:
        eventually(lambda: counted(gateway).corrupt == 1, what="the damage among the metrics")
        assert counted(gateway).missing >= 1
    said = gateway.output.read_text()
    assert said.count(f"front-7/{name} is damaged at byte {3 * (HEADER_BYTES + 200)}") == 1


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.promise("P4")
def test_a_file_system_without_space_refuses_until_something_is_removed(tmp_path: Path) -> None:
    spool_dir = tmp_path / "state" / "spool"
    spool_dir.mkdir(parents=True)
    with tmpfs(spool_dir, mebibytes=8):
        started = start_gateway(tmp_path, environment={"GATEWAY_SPOOL__MAX_BYTES": str(2**24)})
        try:
            history = History(tmp_path / "client.jsonl")
            with Load(started.http_port, history=history) as load:
                load.wait(20)
                filler = spool_dir / "filler"
                with contextlib.suppress(OSError), filler.open("wb") as file:
                    while True:
                        file.write(bytes(2**16))
                eventually(lambda: load.failed, what="a refusal")
                eventually(lambda: not started.is_ready(), what="not ready")
                filler.unlink()
                eventually(started.is_ready, what="recovery")
                load.wait(30)
            history.close()
            entries = spooled(spool_dir)
        finally:
            started.stop()
    verdict = check(read_history(history.path), entries, alone=True)
    print(f"{verdict}; {len(load.failed)} refused")
    assert not verdict.faults and verdict.gaps == 0
    assert {answer.status for answer in load.failed} == {503}


@contextlib.contextmanager
def tmpfs(folder: Path, *, mebibytes: int) -> Iterator[None]:
    """A file system of so many MiB at `folder`; skips where none can be mounted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=True)
