"""The records that cross a boundary: prediction, feedback, decision.

One record is one JSON object in the log. `docs/records.md` shows an example of each. A reader ignores keys it does
not know; a writer never changes the meaning of a key within one `schema` number.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = (
    "KIND_BLOCK",
    "KIND_DECISION",
    "KIND_FEEDBACK",
    "KIND_PREDICTION",
    "SCHEMA",
    "Arm",
    "DecisionRecord",
    "FeedbackRecord",
    "PredictionRecord",
    "TensorRecord",
    "Timings",
)

SCHEMA = 1

KIND_PREDICTION = 1
KIND_FEEDBACK = 2
KIND_DECISION = 3
KIND_BLOCK = 4
"""Of a frame of the spool that holds many predictions (`gateway/events/blocks.py`); no record has it."""

Arm = Literal["stable", "canary", "shadow", "pinned"]


class TensorRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tensor as it was logged.

    `data` is flat and row-major. A tensor beyond `log.max_tensor_bytes` has no `data` but a `summary` (count, min, max,
    mean, not_finite) and, unless `log.tensor_digests` is off, a `digest` of its little-endian bytes (`blake3:` and 64
    hex digits). A `redacted` one has none of these. NaN and infinities are null. `redacted_columns` tells which columns
    of `data` are null because they must not be logged, by name and place in a row; a summary leaves them out, and has
    no `digest` beside it. `sha256` (64 hex digits) stands in older records instead of `digest`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None = None
    digest: str | None = None
    summary: dict[str, float] | None = None
    redacted: bool = False
    redacted_columns: dict[str, int] | None = None
    sha256: str | None = None


class Timings(msgspec.Struct, frozen=True):
    """Microseconds spent waiting for the engine, in the model, and in the front altogether."""

    queue_us: int = 0
    inference_us: int = 0
    total_us: int = 0


class PredictionRecord(msgspec.Struct, frozen=True):
    """One answered request.

    `id` is `<boot>-<seq>`: `boot` names one life of one front (14 hex digits, sorting by time), `seq` counts its
    records from 1 without a gap (10 hex digits in the id), so a missing record can be told by anyone who reads the
    log. `weight` is the canary's share in percent when the request was routed. `key` is the SHA-256 of the routing
    key, cut to 16 hex digits. `sample` is the share of such records that are logged with their tensors; one that is
    not `sampled` has everything but them. `parameters.event_time`, where the caller gave it, is the time the request
    speaks of.
    """

    id: str
    time: str
    gateway: str
    seq: int
    model: str
    version: int
    digest: str
    arm: Arm
    weight: float
    reason: str
    status: int
    rows: int
    timings: Timings
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]
    parameters: dict[str, Any]
    request_id: str | None = None
    key: str | None = None
    error: str | None = None
    sample: float = 1.0
    sampled: bool = True
    schema: int = SCHEMA


class FeedbackRecord(msgspec.Struct, frozen=True):
    """A label that arrived for one row of one prediction; `id` is `<boot>-<seq>` of the front that took it."""

    id: str
    time: str
    gateway: str
    seq: int
    model: str
    prediction_id: str
    row: int
    label: float
    schema: int = SCHEMA


class DecisionRecord(msgspec.Struct, frozen=True):
    """What the system or a person did, with its certificate.

    `hash` is SHA-256 over `prev_hash` and the canonical JSON of every other field, so the decisions form a chain.
    """

    seq: int
    id: str
    time: str
    model: str
    kind: str
    actor: str
    reason: str
    before: dict[str, Any]
    after: dict[str, Any]
    evidence: dict[str, Any]
    prev_hash: str
    hash: str
    schema: int = SCHEMA
