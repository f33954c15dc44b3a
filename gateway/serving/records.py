"""Prediction and feedback records as bytes, spliced from parts that are JSON already.

The form is `gateway/events/records.py`'s; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import orjson

from gateway.events.records import SCHEMA, Arm
from gateway.protocol.binary import pack_strings
from gateway.protocol.encode import encode_flat
from gateway.serving.summary import digest_of, summary_of

__all__ = (
    "Kept",
    "feedback_record",
    "is_sampled_out",
    "prediction_head",
    "prediction_record",
    "record_time",
    "sampling_of",
    "tensor_records",
)

Array = np.ndarray[Any, np.dtype[Any]]

# The last key of its record, so that it can be told from what a caller wrote.
_SAMPLED_OUT = b',"sampled":false'


class Kept(NamedTuple):
    """What the log keeps of a tensor: its elements up to `max_bytes`, counted as in binary, beyond them a summary.

    Beside the summary stands a digest of the elements, unless `digests` is off.
    """

    max_bytes: int
    digests: bool = True


def record_time(seconds: float) -> bytes:
    """RFC 3339 in UTC with microseconds.

    >>> record_time(1332633600.25)
    b'2012-03-25T00:00:00.250000Z'
    """
    second, microseconds = divmod(round(seconds * 1e6), 1_000_000)
    return b"%b.%06dZ" % (_second(second), microseconds)


@lru_cache(maxsize=8)
def _second(second: int) -> bytes:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def prediction_head(
    *, gateway: str, model: str, version: int, digest: str, arm: Arm, weight: float, reason: str
) -> bytes:
    """The part of a prediction record that is equal for every request on one arm of one route."""
    constant = {
        "schema": SCHEMA,
        "gateway": gateway,
        "model": model,
        "version": version,
        "digest": digest,
        "arm": arm,
        "weight": weight,
        "reason": reason,
    }
    return orjson.dumps(constant)[:-1]


def prediction_record(
    head: bytes,
    *,
    event_id: bytes,
    time: bytes,
    sequence: int,
    status: int,
    rows: int,
    timings: tuple[int, int, int],
    inputs: bytes,
    outputs: bytes,
    parameters: Mapping[str, Any],
    request_id: str | None,
    key: str | None,
    error: str | None,
    sampling: bytes = b"",
) -> bytes:
    """One prediction record.

    Parameters
    ----------
    head : bytes
        From `prediction_head`.
    timings : tuple of int
        Queue, inference and total, in microseconds.
    inputs, outputs : bytes
        From `tensor_records`.
    sampling : bytes
        From `sampling_of`, where not all are logged whole.
    """
    rest = b""
    if request_id is not None:
        rest = b',"request_id":%b' % orjson.dumps(request_id)
    if key is not None:
        rest += b',"key":"%b"' % key.encode()
    if error is not None:
        rest += b',"error":%b' % orjson.dumps(error)
    return (
        b'%b,"id":"%b","time":"%b","seq":%d,"status":%d,"rows":%d,'
        b'"timings":{"queue_us":%d,"inference_us":%d,"total_us":%d},"inputs":%b,"outputs":%b,"parameters":%b%b}'
        % (
            head,
            event_id,
            time,
            sequence,
            status,
            rows,
            *timings,
            inputs,
            outputs,
            orjson.dumps(parameters) if parameters else b"{}",
            rest + sampling,
        )
    )


def tensor_records(
    heads: Sequence[bytes],
    arrays: Sequence[Array],
    flats: Sequence[bytes | None],
    *,
    kept: Kept,
    redacted: frozenset[int] = frozenset(),
    redacted_columns: Mapping[int, dict[str, int]] = MappingProxyType({}),
) -> bytes:
    """Tensors as they are logged.

    Parameters
    ----------
    heads : sequence of bytes
        From `tensor_head`.
    flats : sequence of bytes or None
        The elements as a JSON array where that text is known already.
    kept : Kept
        Of larger tensors.
    redacted : set of int
        Positions of tensors whose content must not be logged.
    redacted_columns : mapping of int to dict
        By position of a tensor of rank 2, the columns whose content must not be logged, each with its place in a row.
    """
    parts = []
    for position, array in enumerate(arrays):
        shape = array.shape
        shown = b"%d,%d" % shape if len(shape) == 2 else b",".join([b"%d" % axis for axis in shape])
        if position in redacted:
            parts.append(b'%b%b],"redacted":true}' % (heads[position], shown))
        elif position in redacted_columns:
            rest = _without_columns(array, redacted_columns[position], max_bytes=kept.max_bytes)
            parts.append(b"%b%b],%b" % (heads[position], shown, rest))
        elif (array.nbytes if array.dtype.kind != "O" else len(pack_strings(array))) > kept.max_bytes:
            # The summary first: BLAKE3 reads in sixteen places at once, which is slow unless they are in a near cache.
            summary = summary_of(array)
            content = {"digest": digest_of(array), "summary": summary} if kept.digests else {"summary": summary}
            parts.append(b"%b%b],%b" % (heads[position], shown, orjson.dumps(content)[1:]))
        else:
            flat = flats[position]
            parts.append(b'%b%b],"data":%b}' % (heads[position], shown, encode_flat(array) if flat is None else flat))
    return b"[%b]" % b",".join(parts)


def sampling_of(sample: float, hashed: str) -> tuple[bool, bytes]:
    """Whether a prediction is logged with its tensors, and what its record says of it.

    Parameters
    ----------
    sample : float
        The share that is, below 1.
    hashed : str
        SHA-256 of the routing key, or of the record's id where there is none, cut to 16 hex digits.

    >>> sampling_of(0.5, "7fffffffffffffff"), sampling_of(0.5, "8000000000000000")
    ((True, b',"sample":0.5'), (False, b',"sample":0.5,"sampled":false'))
    """
    if int(hashed, 16) < sample * 2**64:
        return True, b',"sample":%b' % orjson.dumps(sample)
    return False, b',"sample":%b%b' % (orjson.dumps(sample), _SAMPLED_OUT)


def is_sampled_out(record: bytes) -> bool:
    """Whether a record of `prediction_record` is without its tensors."""
    return record.endswith(_SAMPLED_OUT + b"}")


def feedback_record(
    *, event_id: str, time: bytes, gateway: str, sequence: int, model: str, prediction_id: str, row: int, label: float
) -> bytes:
    """One feedback record."""
    return orjson.dumps(
        {
            "schema": SCHEMA,
            "id": event_id,
            "time": time.decode(),
            "gateway": gateway,
            "seq": sequence,
            "model": model,
            "prediction_id": prediction_id,
            "row": row,
            "label": label,
        }
    )


def _without_columns(array: Array, columns: dict[str, int], *, max_bytes: int) -> bytes:
    """The rest of a tensor object, of which nothing tells what some columns hold."""
    places = list(columns.values())
    if (array.nbytes if array.dtype.kind != "O" else len(pack_strings(array))) > max_bytes:
        # A digest of the whole would tell a column of few values to whoever tries them all.
        content: dict[str, Any] = {"summary": summary_of(np.delete(array, places, axis=1))}
    else:
        flat = orjson.loads(encode_flat(array))
        for place in places:
            flat[place :: array.shape[1]] = [None] * len(array)
        content = {"data": flat}
    return orjson.dumps({**content, "redacted_columns": columns})[1:]
