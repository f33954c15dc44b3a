"""What is wrong in a document, told by its key and what is allowed there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest

from gateway.protocol.mistakes import told_mistake


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    share: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    risk: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner
    action: Literal["alert", "pause"] = "alert"
    rows: Annotated[int, msgspec.Meta(ge=1)] | None = None
    least: Annotated[int, msgspec.Meta(le=-1)] = -1
    steps: tuple[float, ...] = ()
    each: dict[Literal["errors", "outputs"], Literal["alert", "pause"]] = {}
    inners: list[Inner] = []
    why: Annotated[str, msgspec.Meta(min_length=1, max_length=9, description="Why.")] = "x"
    words: Annotated[str, msgspec.Meta(max_length=9)] = ""
    digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]$")] = "0"
    exact: bool = False


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({}, "inner is missing"),
        ({"inner": {}}, "inner.name is missing"),
        ({"inner": 5}, "inner: expected keys with values"),
        ({"inner": {"name": "n", "nam": 1}}, "inner.nam: no such key; expected one of name, share, risk"),
        ({"inner": {"name": 1}}, "inner.name: expected a text"),
        ({"inner": {"name": "n", "share": 101}}, "inner.share: expected a number from 0 to 100"),
        ({"inner": {"name": "n", "risk": 1.0}}, "inner.risk: expected a number above 0 and below 1"),
        ({"action": "explode"}, "action = 'explode': expected one of alert, pause"),
        ({"rows": 0}, "rows: expected a whole number from 1"),
        ({"rows": "many"}, "rows: expected a whole number from 1"),
        ({"least": 0}, "least: expected a whole number up to -1"),
        ({"steps": 5}, "steps: expected a list"),
        ({"steps": [5, "x"]}, "steps[1]: expected a number"),
        ({"each": {"error": "alert"}}, "a key of each = 'error': expected one of errors, outputs"),
        ({"each": {"errors": "shout"}}, "each = 'shout': expected one of alert, pause"),
        ({"each": {"errors": 5}}, "each: expected one of alert, pause"),
        ({"inners": [{"name": "n"}, {"name": "n", "share": "x"}]}, "inners[1].share: expected a number from 0 to 100"),
        ({"why": ""}, "why: expected a text of 1 to 9 characters"),
        ({"words": "too many of them"}, "words: expected a text of at most 9 characters"),
        ({"digest": "abc"}, "digest: expected a text that matches ^[0-9a-f]$"),
        ({"exact": 1}, "exact: expected true or false"),
        ([], "expected keys with values"),
    ],
)
def test_a_mistake_is_told_by_its_key_and_what_is_allowed(document: Any, told: str) -> None:
    if isinstance(document, dict) and document and "inner" not in document:
        document = document | {"inner": {"name": "n"}}
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(document), type=Outer)
    assert told_mistake(caught.value, Outer) == told


@pytest.mark.parametrize(("text", "told"), [(b"", "it ends too early"), (b"{]", "JSON is malformed")])
def test_what_is_no_document_at_all_is_told_too(text: bytes, told: str) -> None:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(text, type=Outer)
    assert told in told_mistake(caught.value, Outer)


def test_a_key_that_looks_like_an_error_is_a_key() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(b'{"a - at `$.b`": 1}', type=Outer)
    assert "no such key" in told_mistake(caught.value, Outer)
