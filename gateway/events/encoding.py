"""The public JSON form of the records: one object each, UTF-8, keys in the order of the structs."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from gateway.events.records import (
    KIND_DECISION,
    KIND_FEEDBACK,
    KIND_PREDICTION,
    DecisionRecord,
    FeedbackRecord,
    PredictionRecord,
)

__all__ = ("Envelope", "Record", "RecordError", "decode", "encode", "read_envelope", "seconds_of")

Record = PredictionRecord | FeedbackRecord | DecisionRecord


class RecordError(ValueError):
    """Raised when bytes are no record, or a record cannot be written as JSON."""


class Envelope(msgspec.Struct, frozen=True):
    """What every record has in common; the rest of its keys are passed over."""

    id: str
    time: str
    model: str
    gateway: str = ""
    version: int | None = None
    arm: str = ""


_envelopes = msgspec.json.Decoder(Envelope)
_predictions = msgspec.json.Decoder(PredictionRecord)
_feedback = msgspec.json.Decoder(FeedbackRecord)
_decisions = msgspec.json.Decoder(DecisionRecord)
_encoder = msgspec.json.Encoder()


def encode(record: Record) -> bytes:
    """Return a record's JSON; a number that is not finite becomes null.

    Raises
    ------
    RecordError
        When a value has no JSON form, such as a text with a lone surrogate.
    """
    try:
        return _encoder.encode(record)
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"record {record.id} has no JSON form: {error}") from None


def decode(kind: int, payload: bytes) -> Record:
    """Return the record that `payload` is, by its kind; keys of a later version are passed over.

    Raises
    ------
    RecordError
        When the kind is unknown or the payload is no such record.
    """
    try:
        if kind == KIND_PREDICTION:
            return _predictions.decode(payload)
        if kind == KIND_FEEDBACK:
            return _feedback.decode(payload)
        if kind == KIND_DECISION:
            return _decisions.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"no record of kind {kind}: {error}") from None
    raise RecordError(f"no such kind of record: {kind}; expected 1 (prediction), 2 (feedback) or 3 (decision)")


def read_envelope(payload: bytes) -> Envelope:
    """Return id, time and model of any record, without reading the rest.

    Raises
    ------
    RecordError
        When the payload is no record.
    """
    try:
        return _envelopes.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"not a record: {error}") from None


def seconds_of(time: str) -> float:
    """Return a record's time as seconds since 1970; a time without a zone is taken as UTC.

    >>> seconds_of("2012-03-01T00:00:00.250Z")
    1330560000.25

    Raises
    ------
    RecordError
        When `time` is not ISO 8601.
    """
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise RecordError(f"{time[:64]!r} is no time; expected ISO 8601, such as 2012-03-01T00:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
