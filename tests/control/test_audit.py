"""The chain of decisions: what it lets through and what it shows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.audit import GENESIS, canonical, seal, verify
from gateway.events.records import DecisionRecord

TOUCHED = ("id", "time", "model", "kind", "actor", "reason", "before", "after", "evidence")
TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=20,
)


def chain(length: int) -> list[DecisionRecord]:
    records: list[DecisionRecord] = []
    for seq in range(1, length + 1):
        previous = records[-1].hash if records else GENESIS
        records.append(
            seal(
                DecisionRecord(
                    seq=seq,
                    id=f"e47e00a30a3122-{seq:010x}",
                    time="2012-03-01T00:00:00.000Z",
                    model="bike-demand",
                    kind="route_set",
                    actor="ada",
                    reason="a trial",
                    before={"weight": seq - 1},
                    after={"weight": float(seq), "canary": None},
                    evidence={},
                    prev_hash=previous,
                    hash="",
                )
            )
        )
    return records


def end_of(records: list[DecisionRecord]) -> dict[str, Any]:
    return {"last_seq": len(records), "last_hash": records[-1].hash}


def test_a_chain_as_it_was_written_is_whole() -> None:
    records = chain(5)
    assert verify(records) is None
    assert verify(records, **end_of(records)) is None
    assert verify([], last_seq=0, last_hash=GENESIS) is None


@pytest.mark.promise("P14")
@pytest.mark.parametrize("field", TOUCHED)
def test_an_edit_of_any_field_shows(field: str) -> None:
    records = chain(5)
    value: Any = {"weight": 99.0} if field in ("before", "after", "evidence") else "edited"
    records[2] = msgspec.structs.replace(records[2], **{field: value})
    assert verify(records) == 3


def test_an_edit_that_is_sealed_again_shows_at_the_next_decision() -> None:
    records = chain(5)
    records[2] = seal(msgspec.structs.replace(records[2], reason="another reason"))
    assert verify(records) == 4


def test_an_edit_of_the_last_decision_that_is_sealed_again_shows_against_the_head() -> None:
    records = chain(5)
    end = end_of(records)
    records[4] = seal(msgspec.structs.replace(records[4], reason="another reason"))
    assert verify(records) is None
    assert verify(records, **end) == 5


@pytest.mark.promise("P14")
@pytest.mark.parametrize("removed", range(1, 5))
def test_a_removed_decision_shows(removed: int) -> None:
    records = chain(5)
    del records[removed - 1]
    assert verify(records) == removed


def test_a_new_order_shows() -> None:
    records = chain(5)
    records[1], records[2] = records[2], records[1]
    assert verify(records) == 2


@pytest.mark.promise("P14")
@pytest.mark.parametrize("kept", range(5))
def test_a_chain_cut_at_its_end_shows_against_the_head(kept: int) -> None:
    records = chain(5)
    assert verify(records[:kept], **end_of(records)) == kept + 1


def test_decisions_beyond_the_head_show() -> None:
    records = chain(5)
    assert verify(records, last_seq=3, last_hash=records[2].hash) == 4


@given(VALUES)
def test_the_canonical_text_of_what_was_read_is_the_text_that_was_read(value: Any) -> None:
    text = canonical(value)
    assert canonical(msgspec.json.decode(text)) == text


def test_what_has_no_json_form_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no JSON form"):
        canonical({"a": object()})
