from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from gateway.events.records import KIND_BLOCK
from gateway.predictions.backlog import _PART_BYTES, Backlog
from gateway.predictions.reader import Position, SpoolReader
from gateway.predictions.segments import list_segments
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings
from tests.blocks import singles

BLOCKS = [singles(count).payload() for count in range(1, 6)]


def writer_in(spool: Path, slot: int = 0, *, at: int = 0) -> SpoolWriter:
    settings = SpoolSettings(segment_bytes=4096)
    return SpoolWriter(spool / f"front-{slot}", slot=slot, settings=settings, clock=lambda: 1_700_000_000.0 + at)


def left_by_reading(spool: Path, position: Position) -> int:
    reader = SpoolReader(spool, position=position)
    count = len(reader.read(1 << 30))
    reader.close()
    return count


@given(st.lists(st.tuples(st.sampled_from("wbwbrn"), st.integers(0, 1), st.integers(0, 40)), max_size=30))
def test_the_count_is_what_a_reader_would_get_wherever_it_stands(steps: list[tuple[str, int, int]]) -> None:
    with TemporaryDirectory() as folder:
        spool = Path(folder)
        writers = {slot: writer_in(spool, slot) for slot in range(2)}
        reader, backlog = SpoolReader(spool), Backlog(spool)
        for time, (step, slot, number) in enumerate(steps, start=1):
            if step == "w":
                writers[slot].append([(1, bytes(number * 9))] * number)
            elif step == "b":
                writers[slot].append([(KIND_BLOCK, BLOCKS[number % 5])] * (number % 7) + [(1, b"x")] * (number % 2))
            elif step == "n":
                writers[slot].close()
                writers[slot] = writer_in(spool, slot, at=time)
            else:
                reader.read(number + 1)
            position = reader.position()
            assert backlog.count(position) == left_by_reading(spool, position)
            assert Backlog(spool).count({}) == left_by_reading(spool, {})
        reader.close()
        for writer in writers.values():
            writer.close()


def test_a_torn_tail_is_no_record_and_a_removed_segment_is_not_waited_for(tmp_path: Path) -> None:
    writer = writer_in(tmp_path)
    writer.append([(1, bytes(3000))] * 4)
    writer.close()
    folder = tmp_path / "front-0"
    names = list_segments(folder)
    with (folder / names[-1]).open("r+b") as file:
        file.truncate((folder / names[-1]).stat().st_size - 1)
    backlog = Backlog(tmp_path)
    before = backlog.count({})
    assert before == left_by_reading(tmp_path, {}) == 3
    (folder / names[0]).unlink()
    assert backlog.count({"front-0": (names[0], 17)}) == left_by_reading(tmp_path, {})
    assert backlog.count({"front-0": (names[-1], 0)}) == left_by_reading(tmp_path, {"front-0": (names[-1], 0)})


def test_records_larger_than_a_block_are_passed_over_whole(tmp_path: Path) -> None:
    settings = SpoolSettings(segment_bytes=8 * _PART_BYTES)
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=settings)
    writer.append([(1, bytes(3 * _PART_BYTES)), (1, b"small"), (1, bytes(_PART_BYTES))])
    assert Backlog(tmp_path).count({}) == 3
    writer.close()


def test_blocks_count_their_predictions_also_where_they_are_large_or_damaged(tmp_path: Path) -> None:
    settings = SpoolSettings(segment_bytes=8 * _PART_BYTES)
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=settings)
    large = singles(3, width=_PART_BYTES // 8).payload()
    assert len(large) > _PART_BYTES
    writer.append([(KIND_BLOCK, large)])
    assert Backlog(tmp_path).count({}) == 3 == left_by_reading(tmp_path, {})
    writer.append([(KIND_BLOCK, b"\x05\0of a later form"), (KIND_BLOCK, large)])
    assert Backlog(tmp_path).count({}) == 11 == left_by_reading(tmp_path, {}) + 5
    writer.close()
