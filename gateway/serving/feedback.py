"""Labels that arrive for predictions: what a feedback request must look like."""

from __future__ import annotations

import msgspec

from gateway.events.addresses import AddressError, parse_id
from gateway.protocol.errors import CallerError
from gateway.protocol.mistakes import told_mistake

__all__ = ("MAX_FEEDBACK", "Feedback", "read_feedback")

MAX_FEEDBACK = 10_000


class Feedback(msgspec.Struct, forbid_unknown_fields=True):
    """One label of one row of a prediction."""

    prediction_id: str
    label: float | bool
    row: int = 0


class _FeedbackBatch(msgspec.Struct, forbid_unknown_fields=True):
    feedback: list[Feedback]


def read_feedback(body: bytes) -> list[Feedback]:
    """Read one label, or a batch of them.

    Raises
    ------
    CallerError
        The body is neither, has more than `MAX_FEEDBACK` labels, or names what cannot be a row of a prediction.
    """
    kind: type[Feedback] | type[_FeedbackBatch] = _FeedbackBatch if b'"feedback"' in body else Feedback
    try:
        read: Feedback | _FeedbackBatch = msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = told_mistake(error, kind) if body.strip() else "the body is empty"
        raise CallerError(
            f'feedback must be {{"prediction_id", "row", "label"}} or {{"feedback": [...]}} of those: {why}'
        ) from None
    items = read.feedback if isinstance(read, _FeedbackBatch) else [read]
    if len(items) > MAX_FEEDBACK:
        raise CallerError(f"{len(items)} labels in one request, more than {MAX_FEEDBACK}")
    for item in items:
        try:
            parse_id(item.prediction_id)
        except AddressError as error:
            raise CallerError(str(error)) from None
        if not 0 <= item.row < 2**31:
            raise CallerError(f"row {item.row} is no row of a prediction")
    return items
