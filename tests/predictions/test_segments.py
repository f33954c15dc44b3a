from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from gateway.predictions.index import INDEX_SUFFIX
from gateway.predictions.reader import SpoolReader
from gateway.predictions.segments import SpoolSize, list_segments, segment_name, spool_size
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("aged", [False, True])
def test_a_spool_counted_again_is_as_large_as_one_counted_anew(tmp_path: Path, seed: int, aged: bool) -> None:
    draw = random.Random(seed)
    size = SpoolSize(tmp_path)
    folders = [tmp_path / "front-0", tmp_path / "front-1"]
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


def bytes_read() -> int:
    """What this process has asked of files so far, from the page cache or not."""
    counts = Path("/proc/self/io").read_text().split()
    return int(counts[counts.index("rchar:") + 1])
