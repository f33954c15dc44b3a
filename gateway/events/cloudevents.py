"""Records as CloudEvents 1.0 in Kafka's binary mode: attributes are headers, the value is the record's JSON.

Source: CloudEvents 1.0.2, and its Kafka Protocol Binding 1.0.2, section 3.2.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

from gateway.events.encoding import Envelope
from gateway.events.records import KIND_DECISION, KIND_FEEDBACK, KIND_PREDICTION

__all__ = (
    "CONTENT_TYPE",
    "Headers",
    "common_headers_of",
    "headers_with",
    "kind_of",
    "topic_of",
    "type_of",
)

_Header = tuple[str, bytes]
Headers = tuple[_Header, ...]

CONTENT_TYPE = "application/json"

_TYPES = {
    KIND_PREDICTION: "gateway.prediction.v1",
    KIND_FEEDBACK: "gateway.feedback.v1",
    KIND_DECISION: "gateway.decision.v1",
}
_KINDS = {name: kind for kind, name in _TYPES.items()}
_SPECVERSION = ("ce_specversion", b"1.0")
_CONTENT_TYPE_HEADER = ("content-type", CONTENT_TYPE.encode())
_TYPE_HEADERS = {kind: ("ce_type", name.encode()) for kind, name in _TYPES.items()}
_TOPICS = {KIND_PREDICTION: "predictions", KIND_FEEDBACK: "feedback", KIND_DECISION: "decisions"}


def type_of(kind: int) -> str:
    """Return the CloudEvents type of a kind of record.

    >>> type_of(1)
    'gateway.prediction.v1'
    """
    return _TYPES[kind]


def kind_of(event_type: str) -> int | None:
    """Return the kind of record with this CloudEvents type, None for a type of somebody else."""
    return _KINDS.get(event_type)


def topic_of(kind: int, prefix: str) -> str:
    """Return the topic of a kind of record.

    >>> topic_of(3, "gateway")
    'gateway.decisions'
    """
    return f"{prefix}.{_TOPICS[kind]}"


def common_headers_of(kind: int, envelope: Envelope) -> Headers:
    """Return the Kafka headers of a record beside `ce_specversion` and `ce_id`, the same for a whole block.

    `ce_source` names the gateway, `ce_subject` the model and, where the record speaks of one, the version.

    >>> common_headers_of(2, Envelope(id="x", time="2012-03-01T00:00:00Z", model="bike-demand"))[2]
    ('ce_subject', b'bike-demand')
    """
    source, subject = _names(envelope.gateway, envelope.model, envelope.version)
    return source, _TYPE_HEADERS[kind], subject, ("ce_time", envelope.time.encode()), _CONTENT_TYPE_HEADER


def headers_with(identity: bytes, common: Headers) -> list[_Header]:
    """Return all Kafka headers of the record of this id."""
    return [_SPECVERSION, ("ce_id", identity), *common]


@lru_cache(maxsize=1024)
def _names(gateway: str, model: str, version: int | None) -> tuple[_Header, _Header]:
    source = f"/gateway/{quote(gateway or 'gateway', safe='')}"
    subject = model if version is None else f"{model}/{version}"
    return ("ce_source", source.encode()), ("ce_subject", subject.encode())
