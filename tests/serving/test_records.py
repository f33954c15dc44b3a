from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.events.records import FeedbackRecord, PredictionRecord, TensorRecord, Timings
from gateway.protocol.datatypes import TensorSpec
from gateway.protocol.encode import tensor_head
from gateway.serving.records import (
    Kept,
    feedback_record,
    prediction_head,
    prediction_record,
    record_time,
    tensor_records,
)
from gateway.serving.summary import digest_of

HEAD_OF_X = tensor_head(TensorSpec("x", "FP32", (-1, 2)))
HEAD: dict[str, Any] = {
    "gateway": "g-1", "model": "bike-demand", "version": 2, "digest": "sha256:00", "arm": "canary", "weight": 12.5,
    "reason": "sticky",
}  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(TEXT, st.dictionaries(TEXT, TEXT | st.integers(-(2**53), 2**53) | st.booleans(), max_size=3), TEXT)
def test_the_spliced_record_is_the_public_record(request_id: str, parameters: dict[str, Any], error: str) -> None:
    array = np.array([[1.5, 2.0]], "f4")
    spliced = prediction_record(
        prediction_head(**HEAD),
        event_id=b"0196f0c5d2a100-0000000011",
        time=record_time(1332633600.25),
        sequence=17,
        status=500,
        rows=1,
        timings=(1, 2, 3),
        inputs=tensor_records([HEAD_OF_X], [array], [None], kept=Kept(100)),
        outputs=b"[]",
        parameters=parameters,
        request_id=request_id,
        key="0011223344556677",
        error=error,
    )
    assert msgspec.json.decode(spliced, type=PredictionRecord) == PredictionRecord(
        id="0196f0c5d2a100-0000000011",
        time="2012-03-25T00:00:00.250000Z",
        seq=17,
        status=500,
        rows=1,
        timings=Timings(1, 2, 3),
        inputs=[TensorRecord("x", "FP32", (1, 2), data=[1.5, 2.0])],
        outputs=[],
        parameters=parameters,
        request_id=request_id,
        key="0011223344556677",
        error=error,
        **HEAD,
    )
    assert b"\n" not in spliced


def test_a_large_tensor_becomes_digest_and_summary() -> None:
    array = np.array([[1, 2], [np.nan, 4]], "f4")
    [logged] = orjson.loads(tensor_records([HEAD_OF_X], [array], [None], kept=Kept(15)))
    assert "data" not in logged and logged["digest"] == digest_of(array)
    assert logged["summary"] == {"count": 4, "min": 1.0, "max": 4.0, "mean": 7 / 3, "not_finite": 1}


def test_a_large_tensor_has_no_digest_where_none_is_wanted() -> None:
    array = np.array([[1, 2], [3, 4]], "f4")
    [logged] = orjson.loads(tensor_records([HEAD_OF_X], [array], [None], kept=Kept(15, digests=False)))
    assert "data" not in logged and "digest" not in logged
    assert logged["summary"] == {"count": 4, "min": 1.0, "max": 4.0, "mean": 2.5, "not_finite": 0}


def test_a_redacted_tensor_is_named_and_has_no_content() -> None:
    [logged] = orjson.loads(
        tensor_records([HEAD_OF_X], [np.ones((1, 2), "f4")], [b"[1,1]"], kept=Kept(99), redacted=frozenset({0}))
    )
    assert logged == {"name": "x", "datatype": "FP32", "shape": [1, 2], "redacted": True}


def test_the_callers_own_numbers_are_logged_where_their_text_is_known() -> None:
    [logged] = orjson.loads(tensor_records([HEAD_OF_X], [np.array([[0.1, 2]], "f4")], [b"[0.1,2]"], kept=Kept(99)))
    assert logged["data"] == [0.1, 2]


def test_a_number_that_is_not_finite_is_null_in_the_log() -> None:
    [logged] = orjson.loads(tensor_records([HEAD_OF_X], [np.array([[np.inf, 2]], "f4")], [None], kept=Kept(99)))
    assert logged["data"] == [None, 2.0]


def test_feedback_is_the_public_record() -> None:
    raw = feedback_record(
        event_id="0196f0c5d2a100-0000000012",
        time=b"2012-03-25T00:00:00.000000Z",
        gateway="g-1",
        sequence=18,
        model="m",
        prediction_id="0196f0c5d2a100-0000000011",
        row=0,
        label=12.5,
    )
    record = msgspec.json.decode(raw, type=FeedbackRecord)
    assert (record.prediction_id, record.row, record.label) == ("0196f0c5d2a100-0000000011", 0, 12.5)
