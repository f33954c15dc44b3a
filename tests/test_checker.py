"""The judge of the log itself: a good world passes, and each way of being wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway.events.records import PredictionRecord, TensorRecord, Timings
from gateway.predictions.dead_letters import write_dead_letters
from gateway.predictions.segments import LogRecord
from gateway.predictions.spool import SpoolWriter
from gateway.settings import SpoolSettings
from gateway.telemetry.cells import CellFile
from tests.checker import (
    Entry,
    History,
    Operation,
    check,
    check_counts,
    counts_of,
    dead_letters,
    read_history,
    spooled,
)

BOOT = "0196f0c5d2a100"


def record(sequence: int, *, request: str | None = None, output: float = 1.5, status: int = 200) -> PredictionRecord:
    return PredictionRecord(
        id=f"{BOOT}-{sequence:010x}",
        time="2012-03-01T06:00:00.000Z",
        gateway="here",
        seq=sequence,
        model="m",
        version=1,
        digest="sha256:01",
        arm="stable",
        weight=0.0,
        reason="weight",
        status=status,
        rows=1,
        timings=Timings(),
        inputs=[],
        outputs=[TensorRecord("y", "FP32", (1,), [output])],
        parameters={},
        request_id=request or f"load1-0-{sequence}",
    )


def entry(sequence: int, *, place: str = "spool", lane: str = "front-0", output: float = 1.5) -> Entry:
    found = record(sequence, output=output)
    return Entry(place, lane, found.id, 1, msgspec.json.encode(found))


def operation(sequence: int, **changes: object) -> Operation:
    told = {"status": 200, "prediction_id": f"{BOOT}-{sequence:010x}", "outputs": [[1.5]], "received": 2.0}
    return Operation(f"load1-0-{sequence}", 1.0, **(told | changes))


GOOD = ([operation(1), operation(2), operation(3, status=None, prediction_id="", outputs=None)], [entry(1), entry(2)])


def test_what_was_answered_and_logged_passes_and_is_counted() -> None:
    operations, entries = GOOD
    verdict = check(operations, [*entries, entry(3), *[entry(n, place="topic", lane="t/0") for n in (1, 2, 1, 2, 3)]])
    assert verdict.faults == []
    assert str(verdict) == (
        "3 sent, 2 answered with a prediction, 1 without an answer; 3 logged, 2 repetitions, 0 of others, "
        "0 gaps; 0 faults"
    )
    assert check(operations, [entry(2), entry(4)]).gaps == 2


@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        ("answered and not logged", lambda o, e: (o, e[:1])),
        ("answered and not logged", lambda o, e: ([*o, operation(9)], e)),
        ("no id", lambda o, e: ([operation(1, prediction_id=""), *o[1:]], e)),
        ("another record", lambda o, e: ([operation(1, status=500), *o[1:]], e)),
        ("another record", lambda o, e: ([operation(1, prediction_id=e[1].id), *o[1:]], e)),
        ("other outputs", lambda o, e: ([operation(1, outputs=[[1.25]]), *o[1:]], e)),
        ("never sent", lambda o, e: (o[:1], e)),
        ("twice in the spool", lambda o, e: (o, [*e, e[0]])),
        ("out of order", lambda o, e: (o, e[::-1])),
        ("unequal repetitions", lambda o, e: (o, [*e, entry(2, place="topic", lane="t/0", output=2.5)])),
        ("in another lane", lambda o, e: (o, [*e, entry(3, lane="front-1")])),
        ("answered twice", lambda o, e: (o, [*e, e[0]._replace(id=f"{BOOT}-{4:010x}")])),
        ("wrong number", lambda o, e: (o, [*e, e[0]._replace(id=f"{BOOT}-{4:010x}")])),
    ],
)
def test_each_way_of_being_wrong_is_named(
    fault: str, broken: Callable[[list[Operation], list[Entry]], tuple[list[Operation], list[Entry]]]
) -> None:
    verdict = check(*broken(list(GOOD[0]), list(GOOD[1])))
    assert fault in {line.partition(":")[0] for line in verdict.faults}, verdict.faults


def test_the_requests_of_others_are_theirs_unless_nobody_else_was_there() -> None:
    foreign = msgspec.json.encode(record(3, request="other-1"))
    entries = [*GOOD[1], Entry("spool", "front-0", f"{BOOT}-0000000003", 1, foreign)]
    assert check(GOOD[0], entries).others == 1
    assert check(GOOD[0], entries).faults == []
    assert [line.partition(":")[0] for line in check(GOOD[0], entries, alone=True).faults] == ["never sent"]


def test_a_request_refused_before_it_was_read_has_no_name_in_the_log() -> None:
    refused = record(3, status=503)
    content = msgspec.json.encode(msgspec.structs.replace(refused, request_id=None))
    entries = [*GOOD[1], Entry("spool", "front-0", refused.id, 1, content)]
    operations = [*GOOD[0][:2], operation(3, status=503, outputs=None)]
    assert check(operations, entries, alone=True).faults == []
    assert check([*operations[:2], operation(3)], entries).faults != []


def test_faults_beyond_ten_of_a_sort_are_counted_only() -> None:
    verdict = check([operation(number) for number in range(1, 31)], [])
    assert len(verdict.faults) == 10
    assert "30 faults" in str(verdict)


def test_a_history_is_read_as_it_was_written_and_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    history = History(tmp_path / "client.jsonl")
    for request in ("a-1", "a-2"):
        history.sent(request, at=1.0)
    body = {"outputs": [{"name": "y", "data": [1.5]}]}
    history.answered("a-1", sent=1.0, received=2.0, status=200, prediction_id="p", body=body)
    history.close()
    with open(tmp_path / "client.jsonl", "ab") as file:
        file.write(b'{"request_id":"a-3"')
    assert read_history(tmp_path / "client.jsonl") == [
        Operation("a-1", 1.0, 2.0, 200, "p", [[1.5]]),
        Operation("a-2", 1.0),
    ]


def test_spool_and_dead_letters_are_read_with_their_bytes(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "front-0", slot=0, settings=SpoolSettings())
    writer.append([(1, b"{}"), (2, b"[]")])
    write_dead_letters(tmp_path, [(LogRecord(1, writer.boot, 1, b"{}"), "too large")], max_bytes=1000)
    write_dead_letters(tmp_path, [(LogRecord(1, writer.boot, 2, b"\xff"), "no text")], max_bytes=1000)
    assert spooled(tmp_path) == [
        Entry("spool", "front-0", f"{writer.boot}-0000000001", 1, b"{}"),
        Entry("spool", "front-0", f"{writer.boot}-0000000002", 2, b"[]"),
    ]
    assert [found.content for found in dead_letters(tmp_path)] == [b"{}", b"\xff"]
    assert dead_letters(tmp_path / "front-0") == []
    writer.close()


def test_served_is_logged_or_the_difference_is_told(tmp_path: Path) -> None:
    (tmp_path / "run" / "metrics").mkdir(parents=True)
    cells = CellFile(tmp_path / "run" / "metrics" / "front-0.cells")
    answered = {"model": "m", "version": "1", "arm": "stable"}
    cells.counter("gateway_requests_total", answered | {"outcome": "ok"}).inc(2)
    cells.counter("gateway_requests_total", answered | {"outcome": "unavailable"}).inc(5)
    cells.counter("gateway_log_events_total", {"state": "spooled"}).inc(2)
    counts = counts_of(tmp_path)
    cells.close()
    assert counts == (2, 2, 0, 0, 0, 0, 0, 0, 0)
    assert check_counts(counts, GOOD[1]) == []
    assert check_counts(counts, [*GOOD[1], entry(3)]) == [
        "served 2, logged 3, dropped 0, 0 kills",
        "counted as spooled 2, in the spool 3, 0 kills",
    ]
    assert check_counts(counts, [*GOOD[1], entry(3)], kills=1) == []
    assert len(check_counts(counts, GOOD[1][:1], kills=9)) == 2
    assert check_counts(counts._replace(served=3, dropped=1), GOOD[1]) == []
