"""Records as CloudEvents 1.0 in Kafka's binary mode: attributes are headers, the value is the record's JSON.

Source: CloudEvents 1.0.2, and its Kafka Protocol Binding 1.0.2, section 3.2.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

from gateway.events.encoding import Envelope
from gateway.events.records import KIND_DECISION, KIND_FEEDBACK, KIND_PREDICTION

__all__ = ("CONTENT_TYPE", "headers_of", "kind_of", "topic_of", "type_of")

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


def headers_of(kind: int, envelope: Envelope) -> list[tuple[str, bytes]]:
    """Return the Kafka headers of a record.

    `ce_source` names the gateway, `ce_subject` the model and, where the record speaks of one, the version.

    >>> headers_of(2, Envelope(id="0196f0c5d2a100-0000000011", time="2012-03-01T00:00:00Z", model="bike-demand"))[4]
    ('ce_subject', b'bike-demand')
    """
    source, subject = _names(envelope.gateway, envelope.model, envelope.version)
    return [
        _SPECVERSION,
        ("ce_id", envelope.id.encode()),
        source,
        _TYPE_HEADERS[kind],
        subject,
        ("ce_time", envelope.time.encode()),
        _CONTENT_TYPE_HEADER,
    ]


@lru_cache(maxsize=1024)
def _names(gateway: str, model: str, version: int | None) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    source = f"/gateway/{quote(gateway or 'gateway', safe='')}"
    subject = model if version is None else f"{model}/{version}"
    return ("ce_source", source.encode()), ("ce_subject", subject.encode())
