"""Labels meet predictions whatever the order they come in."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.control.join import FEEDBACK_STATES, JoinState, LabelJoin, LabelledRow, event_time_of
from gateway.control.kept import Kept
from gateway.events.records import FeedbackRecord, PredictionRecord, TensorRecord, Timings


def prediction(number: int, values: list[Any], **changes: Any) -> PredictionRecord:
    fields: dict[str, Any] = {
        "id": f"{1:014x}-{number:010x}",
        "time": "2026-01-01T00:00:00.000Z",
        "gateway": "g",
        "seq": number,
        "model": "m",
        "version": 1,
        "digest": "sha256:0",
        "arm": "stable",
        "weight": 0.0,
        "reason": "drawn",
        "status": 200,
        "rows": len(values),
        "timings": Timings(),
        "inputs": [TensorRecord("x", "FP64", (len(values), 1), [0.5] * len(values))],
        "outputs": [TensorRecord("y", "FP64", (len(values), 1), values)],
        "parameters": {},
    }
    return PredictionRecord(**(fields | changes))


def label(number: int, row: int, value: float, **changes: Any) -> FeedbackRecord:
    fields: dict[str, Any] = {
        "id": f"{2:014x}-{number:010x}",
        "time": "2026-01-01T01:00:00.000Z",
        "gateway": "g",
        "seq": number,
        "model": "m",
        "prediction_id": f"{1:014x}-{number:010x}",
        "row": row,
        "label": value,
    }
    return FeedbackRecord(**(fields | changes))


def join(**limits: Any) -> LabelJoin:
    return LabelJoin(lambda model: "y", **limits)


def test_a_label_sent_to_another_model_is_invalid_there_and_nothing_here() -> None:
    labels = join()
    labels.add_prediction(prediction(1, [1.0, 2.0]), b"payload")
    assert labels.add_feedback(label(1, 0, 5.0), now=0.0) is not None
    for value, row in ((5.0, 0), (6.0, 0), (6.0, 1)):
        assert labels.add_feedback(label(1, row, value, model="other"), now=0.0) is None
    assert labels.counts["other"] == dict.fromkeys(FEEDBACK_STATES, 0) | {"invalid": 3}
    assert labels.add_feedback(label(1, 1, 5.0), now=0.0) is not None


def test_a_label_meets_its_row() -> None:
    labels = join()
    labels.add_prediction(
        prediction(
            1, [1.0, 2.0], version=3, arm="canary", weight=10.0, key="k", parameters={"event_time": "2012-03-04"}
        ),
        b"payload",
    )
    row = labels.add_feedback(label(1, 1, 5.0), now=0.0)
    assert row == LabelledRow(
        "m",
        3,
        "canary",
        10.0,
        "k",
        f"{1:014x}-{1:010x}",
        1,
        (2.0,),
        5.0,
        "2026-01-01T00:00:00.000Z",
        "2012-03-04T00:00:00",
        3600.0,
        b"payload",
    )


def test_the_same_label_again_is_ignored_and_another_value_never_replaces_the_first() -> None:
    labels = join()
    labels.add_prediction(prediction(1, [1.0]))
    assert labels.add_feedback(label(1, 0, 5.0), now=0.0) is not None
    assert labels.add_feedback(label(1, 0, 5.0), now=0.0) is None
    assert labels.add_feedback(label(1, 0, 6.0), now=0.0) is None
    assert (labels.counts["m"]["joined"], labels.counts["m"]["repeated"], labels.counts["m"]["corrected"]) == (1, 1, 1)


def test_a_label_before_its_prediction_waits_for_it() -> None:
    labels = join()
    assert labels.add_feedback(label(1, 0, 5.0), now=0.0) is None
    assert labels.waiting == 1
    [row] = labels.add_prediction(prediction(1, [1.0]))
    assert (row.label, labels.waiting, labels.counts["m"]["joined"]) == (5.0, 0, 1)


def test_a_label_is_an_orphan_only_after_its_prediction_was_looked_up() -> None:
    labels = join(wait_seconds=5.0)
    labels.add_feedback(label(1, 0, 5.0), now=0.0)
    labels.add_feedback(label(2, 0, 6.0), now=4.0)
    assert labels.overdue(4.9) == []
    assert labels.overdue(5.0) == [f"{1:014x}-{1:010x}"]
    [row] = labels.resolve(f"{1:014x}-{1:010x}", prediction(1, [1.0]))
    assert row.label == 5.0
    assert labels.resolve(f"{1:014x}-{2:010x}", None) == []
    assert (labels.counts["m"]["joined"], labels.counts["m"]["orphan"], labels.waiting) == (1, 1, 0)


def test_a_label_looked_up_and_sent_again_counts_once() -> None:
    labels = join()
    labels.add_feedback(label(1, 0, 5.0), now=0.0)
    labels.resolve(f"{1:014x}-{1:010x}", prediction(1, [1.0]))
    labels.add_feedback(label(1, 0, 5.0), now=9.0)
    assert (labels.counts["m"]["joined"], labels.counts["m"]["repeated"], labels.waiting) == (1, 1, 0)


@pytest.mark.parametrize(
    ("record", "feedback"),
    [
        (prediction(1, [1.0]), label(1, 1, 5.0)),
        (prediction(1, [1.0]), label(1, -1, 5.0)),
        (prediction(1, [1.0]), label(1, 0, math.nan)),
        (prediction(1, [1.0]), label(1, 0, 5.0, model="other")),
        (prediction(1, [None]), label(1, 0, 5.0)),
        (prediction(1, ["a"]), label(1, 0, 5.0)),
        (prediction(1, [1.0], status=500), label(1, 0, 5.0)),
        (prediction(1, [1.0], rows=0), label(1, 0, 5.0)),
        (prediction(1, [1.0], outputs=[]), label(1, 0, 5.0)),
        (prediction(1, [1.0], outputs=[TensorRecord("y", "FP64", (1, 1), digest="blake3:0")]), label(1, 0, 5.0)),
    ],
)
def test_a_label_that_fits_no_row_is_invalid(record: PredictionRecord, feedback: FeedbackRecord) -> None:
    labels = join()
    labels.add_prediction(record)
    assert labels.add_feedback(feedback, now=0.0) is None
    assert sum(counts["invalid"] for counts in labels.counts.values()) == 1


def test_memory_is_bounded_in_predictions_labels_and_bytes() -> None:
    labels = join(max_predictions=10)
    for number in range(1, 101):
        labels.add_prediction(prediction(number, [1.0]), b"x" * 4096)
        labels.add_feedback(label(number, 0, 1.0), now=0.0)
        labels.add_feedback(label(number + 1000, 0, 1.0), now=0.0)
    assert len(labels._kept) == 10
    assert labels._labelled_rows == len(labels._labelled) == 10
    assert labels.waiting == 10
    kept = labels._kept
    entries = [entry for entry in kept._entries.values() if isinstance(entry, Kept)]
    assert kept._payload_bytes == sum(len(entry.payload or b"") for entry in entries) <= 10 * 1024
    assert labels.counts["m"]["orphan"] == 90


def test_a_state_taken_over_joins_as_before() -> None:
    labels = join()
    labels.add_prediction(prediction(1, [1.0, 2.0]))
    labels.add_feedback(label(1, 0, 5.0), now=0.0)
    labels.add_feedback(label(2, 0, 6.0), now=0.0)
    after = join()
    after.restore(labels.state(), now=100.0)
    assert after.add_feedback(label(1, 0, 5.0), now=100.0) is None
    assert after.add_feedback(label(1, 1, 5.0), now=100.0) is not None
    assert len(after.add_prediction(prediction(2, [1.0]))) == 1
    assert after.counts["m"] == dict.fromkeys(FEEDBACK_STATES, 0) | {"joined": 3, "repeated": 1}


def test_an_event_time_that_is_no_time_is_not_used() -> None:
    for wrong in ("yesterday", 5, None, "2012-03-04" + "x" * 100):
        assert event_time_of(prediction(1, [1.0], parameters={"event_time": wrong})) == "2026-01-01T00:00:00.000Z"


@pytest.mark.promise("P12")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("2012-03-04T05:00:00", "2012-03-04T05:00:00"),
        ("2012-03-04 05:00:00.250Z", "2012-03-04T05:00:00.250000Z"),
        ("20120304T050000+0100", "2012-03-04T05:00:00+01:00"),
        ("2012-03-04\x1b05:00:00+00:00", "2012-03-04T05:00:00Z"),
        ("2012-03-04\x0005:00", "2012-03-04T05:00:00"),
        ("2012-03-04\u202e05:00", "2012-03-04T05:00:00"),
    ],
)
def test_an_event_time_is_told_in_our_own_characters(given: str, told: str) -> None:
    assert event_time_of(prediction(1, [1.0], parameters={"event_time": given})) == told


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), max_size=30),
    st.randoms(use_true_random=False),
)
def test_any_order_of_arrival_joins_the_same_rows(sent: list[tuple[int, int]], order: Any) -> None:
    events: list[Any] = [prediction(number, [1.0, 2.0, 3.0]) for number in range(1, 5)]
    events += [label(number, row, float(number * 10 + row)) for number, row in sent]
    expected = {(number, row) for number, row in sent if number < 5}
    order.shuffle(events)
    labels = join()
    joined: list[LabelledRow] = []
    for event in events:
        if isinstance(event, PredictionRecord):
            joined += labels.add_prediction(event)
        elif (row := labels.add_feedback(event, now=0.0)) is not None:
            joined.append(row)
    assert sorted((int(row.prediction_id[15:], 16), row.row) for row in joined) == sorted(expected)
    assert all(row.label == int(row.prediction_id[15:], 16) * 10 + row.row for row in joined)
    assert sum(labels.counts.get("m", {}).values()) + labels.waiting == len(sent)


def test_what_forgets_its_oldest_all_the_time_is_kept_in_a_dict_made_for_that() -> None:
    # At the front of a plain dict the look for the oldest entry steps over all those that were removed before.
    labels, after = join(), join()
    after.restore(labels.state(), now=0.0)
    for each in (labels, after):
        assert all(isinstance(kept, OrderedDict) for kept in (each._kept._entries, each._labelled, each._waiting))


def test_a_state_that_was_written_before_blocks_were_kept_is_taken_over() -> None:
    labels = join()
    labels.add_prediction(prediction(1, [1.0]))
    written = msgspec.msgpack.decode(msgspec.msgpack.encode(labels.state()))
    del written["blocks"]
    after = join()
    after.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(written), type=JoinState), now=0.0)
    assert after.add_feedback(label(1, 0, 5.0), now=0.0) is not None
