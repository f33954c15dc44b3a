from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.events.addresses import format_id
from gateway.events.records import KIND_BLOCK
from gateway.predictions.index import SegmentIndex, index_closed, index_path, read_index
from gateway.predictions.lookup import LogLookup, find
from gateway.predictions.retention import Retention
from gateway.predictions.segments import list_segments
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings
from tests.blocks import singles


def label_of(prediction_id: str, label: float, **more: str) -> bytes:
    return json.dumps({"prediction_id": prediction_id, "row": 0, "label": label, **more}).encode()


def two_fronts(spool: Path) -> list[SpoolWriter]:
    """Two streams of several segments: each third record is a label of one some records before, of the other front."""
    writers = [
        SpoolWriter(spool / f"front-{slot}", slot=slot, settings=SpoolSettings(segment_bytes=4096)) for slot in (0, 1)
    ]
    for number in range(1, 301):
        for writer, other in (writers, writers[::-1]):
            if number % 3:
                writer.append([(1, b"p" * 60)])
            else:
                writer.append([(2, label_of(format_id(other.boot, number - 2), number))])
    return writers


@pytest.mark.parametrize("indexed", [False, True])
def test_records_and_labels_are_found_with_and_without_indexes(tmp_path: Path, indexed: bool) -> None:
    writers = two_fronts(tmp_path)
    if indexed:
        assert index_closed(tmp_path, seconds=60) == sum(len(list_segments(w.directory)) - 1 for w in writers) > 4
        assert index_closed(tmp_path, seconds=60) == 0
    lookup = LogLookup(tmp_path)
    for number in range(1, 301):
        found = find(tmp_path, format_id(writers[0].boot, number))
        assert found is not None and (found.sequence, found.kind) == (number, 1 if number % 3 else 2)
        labels = lookup.labels_of(format_id(writers[0].boot, number))
        assert [json.loads(label.payload)["label"] for label in labels] == ([number + 2] if number % 3 == 1 else [])


@pytest.mark.parametrize("indexed", [False, True])
def test_predictions_in_blocks_and_their_labels_are_found_with_and_without_indexes(
    tmp_path: Path, indexed: bool
) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings(segment_bytes=2**16))
    written: dict[int, bytes] = {}
    while len(list_segments(writer.directory)) < 4:
        first = writer.next_sequence
        block = singles(1 + first % 6, first=first)
        written |= enumerate(block.records(first, boot=writer.boot), first)
        label = label_of(format_id(writer.boot, first), first)
        written[first + len(block.inputs)] = label
        writer.append([(KIND_BLOCK, block.payload()), (2, label)])
        writer.next_sequence += first % 3  # dropped, as the log was full for a moment
    if indexed:
        assert index_closed(tmp_path, seconds=60) == 3
    lookup = LogLookup(tmp_path)
    for number in range(1, writer.next_sequence + 1):
        found = find(tmp_path, format_id(writer.boot, number))
        assert (found.payload if found is not None else None) == written.get(number), number
    for number in list(written)[::20]:
        labels = lookup.labels_of(format_id(writer.boot, number))
        assert [label.payload for label in labels] == [
            payload for payload in (label_of(format_id(writer.boot, number), number),) if payload in written.values()
        ]


def test_what_lies_between_two_marks_is_small_also_where_blocks_are_large(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    payload = singles(32, width=30).payload()
    for _ in range(100):
        writer.append([(KIND_BLOCK, payload)])
    index = SegmentIndex(writer.directory / list_segments(writer.directory)[0])
    index.extend()
    for number in range(1, writer.next_sequence, 17):
        begin, end = index.place_before(number) or (0, 1 << 30)
        assert end - begin < 32 * 1024 + 2 * len(payload)


def test_what_is_written_later_is_found_by_the_same_lookup(tmp_path: Path) -> None:
    writers = two_fronts(tmp_path)
    lookup = LogLookup(tmp_path)
    wanted = format_id(writers[0].boot, 2)
    assert lookup.labels_of(wanted) == []
    for count in range(1, 100):
        writers[1].append([(2, label_of(wanted, count))])
        assert len(lookup.labels_of(wanted)) == count


def test_labels_come_in_the_order_of_time_whichever_front_took_them(tmp_path: Path) -> None:
    writers = two_fronts(tmp_path)
    wanted = format_id(writers[0].boot, 2)
    for front, second in ((0, 4), (1, 1), (1, 3), (0, 2)):
        time = f"2012-03-01T00:00:0{second}.000000Z"
        writers[front].append([(2, label_of(wanted, second, id=str(second), time=time, model="m"))])
    labels = LogLookup(tmp_path).labels_of(wanted)
    assert [json.loads(label.payload)["label"] for label in labels] == [1, 2, 3, 4]


def test_a_label_sent_to_another_model_is_none_of_a_prediction(tmp_path: Path) -> None:
    [writer, _] = two_fronts(tmp_path)
    wanted = format_id(writer.boot, 2)
    for number, model in enumerate(("other", "m", "mm")):
        told = label_of(wanted, number, id="1", time="2012-03-01T00:00:00.000000Z", model=model)
        writer.append([(2, told)])
    labels = LogLookup(tmp_path).labels_of(wanted, model="m")
    assert [json.loads(label.payload)["label"] for label in labels] == [1]


def test_numbers_missing_within_a_segment_hide_nothing_behind_them(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(1, b"first")])
    writer.next_sequence = 8  # seven were dropped, as the log was full for a moment
    writer.append([(1, b"eighth"), (1, b"ninth")])
    for sequence, payload in ((1, b"first"), (8, b"eighth"), (9, b"ninth")):
        found = find(tmp_path, format_id(writer.boot, sequence))
        assert found is not None and found.payload == payload
    for sequence in (2, 7, 10):
        assert find(tmp_path, format_id(writer.boot, sequence)) is None


def test_an_index_that_cannot_be_read_is_none_and_is_made_again(tmp_path: Path) -> None:
    writer = two_fronts(tmp_path)[0]
    index_closed(tmp_path, seconds=60)
    segment = writer.directory / list_segments(writer.directory)[0]
    for content in (b"", b"\xc1", index_path(segment).read_bytes()[:-3]):
        index_path(segment).write_bytes(content)
        assert read_index(segment) is None
        assert find(tmp_path, format_id(writer.boot, 2)) is not None


def test_indexes_go_with_their_segments(tmp_path: Path) -> None:
    for writer in two_fronts(tmp_path):
        writer.close()
    index_closed(tmp_path, seconds=60)
    first = tmp_path / "front-0" / list_segments(tmp_path / "front-0")[0]
    first.unlink()
    index_closed(tmp_path, seconds=60)
    assert not index_path(first).exists()
    later = first.stat().st_mtime if first.exists() else 4e9
    Retention(tmp_path).sweep(max_bytes=2**30, max_age_seconds=1, shipped=None, now=later)
    assert list(tmp_path.rglob("*.idx")) == []


def test_no_time_is_no_work(tmp_path: Path) -> None:
    two_fronts(tmp_path)
    assert index_closed(tmp_path, seconds=-1) == 0


def test_a_segment_that_cannot_be_read_keeps_no_other_from_its_index(tmp_path: Path) -> None:
    writer = two_fronts(tmp_path)[0]
    names = list_segments(writer.directory)
    (writer.directory / names[0]).unlink()
    (writer.directory / names[0]).symlink_to(names[0])
    for done in (sum(len(list_segments(tmp_path / front)) - 1 for front in ("front-0", "front-1")) - 1, 0):
        assert index_closed(tmp_path, seconds=60) == done
    assert not index_path(writer.directory / names[0]).exists() and index_path(writer.directory / names[1]).exists()
