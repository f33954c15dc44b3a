"""JSON Schemas of the records, as committed under `docs/schemas/`."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from gateway.events.records import (
    KIND_DECISION,
    KIND_FEEDBACK,
    KIND_PREDICTION,
    DecisionRecord,
    FeedbackRecord,
    PredictionRecord,
)

__all__ = ("SCHEMA_NAMES", "schema_of", "schema_text")

SCHEMA_NAMES = {KIND_PREDICTION: "prediction", KIND_FEEDBACK: "feedback", KIND_DECISION: "decision"}
_RECORDS = {KIND_PREDICTION: PredictionRecord, KIND_FEEDBACK: FeedbackRecord, KIND_DECISION: DecisionRecord}


def schema_of(kind: int) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a kind of record.

    >>> schema_of(2)["$ref"]
    '#/$defs/FeedbackRecord'
    """
    schema = msgspec.json.schema(_RECORDS[kind])
    for definition in schema["$defs"].values():
        definition["description"] = inspect.cleandoc(definition["description"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def schema_text(kind: int) -> str:
    """Return the schema as the committed file holds it."""
    return msgspec.json.format(msgspec.json.encode(schema_of(kind)), indent=2).decode() + "\n"
