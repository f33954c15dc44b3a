from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events.cloudevents import common_headers_of, headers_with, kind_of, topic_of, type_of
from gateway.events.encoding import RecordError, decode, encode, read_envelope, seconds_of
from gateway.events.records import (
    KIND_DECISION,
    KIND_FEEDBACK,
    KIND_PREDICTION,
    DecisionRecord,
    FeedbackRecord,
    PredictionRecord,
    TensorRecord,
    Timings,
)
from gateway.events.schema import SCHEMA_NAMES, schema_text

DOCS = Path(__file__).parents[2] / "docs"
KINDS = {
    KIND_PREDICTION: PredictionRecord,
    KIND_FEEDBACK: FeedbackRecord,
    KIND_DECISION: DecisionRecord,
}
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def examples() -> list[tuple[int, dict[str, Any]]]:
    blocks = re.findall(r"```json\n(.*?)```", (DOCS / "records.md").read_text(encoding="utf-8"), re.DOTALL)
    return list(zip(KINDS, map(json.loads, blocks), strict=True))


def prediction(**changes: Any) -> PredictionRecord:
    fields: dict[str, Any] = {
        "id": "01a20738c4d000-00000000a7",
        "time": "2024-03-01T08:30:00.250000Z",
        "gateway": "gateway",
        "seq": 167,
        "model": "bike-demand",
        "version": 1,
        "digest": "sha256:00",
        "arm": "stable",
        "weight": 0.0,
        "reason": "draw",
        "status": 200,
        "rows": 1,
        "timings": Timings(1, 2, 3),
        "inputs": [],
        "outputs": [],
        "parameters": {},
    }
    return PredictionRecord(**(fields | changes))


@pytest.mark.parametrize(("kind", "example"), examples())
def test_the_documented_examples_are_records_and_show_every_required_key(kind: int, example: dict[str, Any]) -> None:
    record = decode(kind, json.dumps(example).encode())
    again = json.loads(encode(record))
    assert {key: again[key] for key in example} == example
    names = {field.encode_name for field in msgspec.structs.fields(KINDS[kind])}
    assert set(example) <= names
    assert {field.encode_name for field in msgspec.structs.fields(KINDS[kind]) if field.required} <= set(example)


@pytest.mark.parametrize(("kind", "name"), SCHEMA_NAMES.items())
def test_the_committed_schemas_are_those_of_the_records(kind: int, name: str) -> None:
    assert (DOCS / "schemas" / f"{name}.json").read_text(encoding="utf-8") == schema_text(kind)


@given(
    words=WORDS,
    weight=st.floats(0, 100),
    data=st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.booleans(), WORDS, st.floats(allow_nan=False))),
    parameters=st.dictionaries(WORDS, st.one_of(WORDS, st.none(), st.integers(-(2**53), 2**53))),
)
def test_a_record_comes_back_as_it_was_written(
    words: str, weight: float, data: list[Any], parameters: dict[str, Any]
) -> None:
    finite = [None if isinstance(value, float) and math.isinf(value) else value for value in data]
    tensor = TensorRecord("features", "FP32", (len(data),), data)
    record = prediction(reason=words, error=words, weight=weight, inputs=[tensor], parameters=parameters)
    read = decode(KIND_PREDICTION, encode(record))
    assert isinstance(read, PredictionRecord)
    assert read.inputs[0].data == finite
    assert msgspec.structs.replace(read, inputs=[tensor]) == record


def test_a_record_from_before_digests_named_their_algorithm_is_still_read() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "sha256": "0" * 64, "summary": {"count": 2}}
    raw = json.loads(encode(prediction())) | {"inputs": [tensor]}
    read = decode(KIND_PREDICTION, json.dumps(raw).encode())
    assert isinstance(read, PredictionRecord)
    assert read.inputs == [TensorRecord("x", "FP32", (2,), sha256="0" * 64, summary={"count": 2})]
    assert json.loads(encode(read))["inputs"] == [tensor]


def test_numbers_that_are_not_finite_become_null() -> None:
    tensor = TensorRecord("count", "FP32", (3,), [math.nan, math.inf, -math.inf])
    assert json.loads(encode(prediction(outputs=[tensor])))["outputs"][0]["data"] == [None, None, None]


def test_keys_of_a_later_version_are_passed_over() -> None:
    written = json.loads(encode(prediction())) | {"later": {"deep": [1, 2]}}
    assert decode(KIND_PREDICTION, json.dumps(written).encode()) == prediction()


def test_a_text_without_a_json_form_is_refused() -> None:
    with pytest.raises(RecordError, match="01a20738c4d000-00000000a7 has no JSON form"):
        encode(prediction(error="\ud800"))


@pytest.mark.parametrize("payload", [b"", b"null", b"[]", b"{", b'{"id":1}', b"\xff", b'{"id":"\xff"}', b"NaN"])
def test_bytes_that_are_no_record_are_refused_with_a_text(payload: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(RecordError, match="no record of kind"):
            decode(kind, payload)
    with pytest.raises(RecordError, match="not a record"):
        read_envelope(payload)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RecordError, match="no such kind of record: 9; expected 1"):
        decode(9, b"{}")


@given(payload=st.binary(max_size=60))
def test_any_bytes_are_a_record_or_a_record_error(payload: bytes) -> None:
    for kind in KINDS:
        try:
            decode(kind, payload)
        except RecordError:
            continue


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2012-03-01T00:00:00Z", 1330560000.0),
        ("2012-03-01T00:00:00.250000Z", 1330560000.25),
        ("2012-03-01T01:00:00+01:00", 1330560000.0),
        ("2012-03-01T00:00:00", 1330560000.0),
    ],
)
def test_times_are_read_with_and_without_a_zone(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "yesterday", "2012-13-01T00:00:00Z", "1330560000"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RecordError, match="is no time; expected ISO 8601"):
        seconds_of(text)


def test_headers_are_cloudevents_in_binary_mode() -> None:
    envelope = read_envelope(encode(prediction(gateway="east/1 ä")))
    headers = headers_with(envelope.id.encode(), common_headers_of(KIND_PREDICTION, envelope))
    assert dict(headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"01a20738c4d000-00000000a7",
        "ce_source": b"/gateway/east%2F1%20%C3%A4",
        "ce_type": b"gateway.prediction.v1",
        "ce_subject": b"bike-demand/1",
        "ce_time": b"2024-03-01T08:30:00.250000Z",
        "content-type": b"application/json",
    }


def test_types_and_topics_are_one_to_one() -> None:
    assert [kind_of(type_of(kind)) for kind in KINDS] == list(KINDS)
    assert kind_of("com.example.other") is None
    assert [topic_of(kind, "east") for kind in KINDS] == ["east.predictions", "east.feedback", "east.decisions"]
