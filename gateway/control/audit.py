"""The hash chain of the decisions: what makes an edit, a removal or a new order show.

It is tamper-evident, not tamper-proof: whoever can rewrite the whole database can rewrite the whole chain. Therefore
each decision is also published with the log, where its hash can be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec
import orjson

from gateway.events.records import DecisionRecord

__all__ = ("GENESIS", "canonical", "seal", "verify")

GENESIS = "0" * 64
"""What stands in `prev_hash` of the first decision."""

_LINKS = frozenset({"prev_hash", "hash"})


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: UTF-8, keys sorted, no blanks, shortest round-trip numbers.

    >>> canonical({"b": 1.50, "a": [None, "x"]})
    b'{"a":[null,"x"],"b":1.5}'

    Raises
    ------
    ValueError
        The value has no JSON form.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise ValueError(f"no JSON form: {error}") from None


def seal(record: DecisionRecord) -> DecisionRecord:
    """The record with its `hash`: SHA-256 over `prev_hash` and the canonical JSON of every other field."""
    return msgspec.structs.replace(record, hash=_hash(record))


def verify(records: Iterable[DecisionRecord], *, last_seq: int | None = None, last_hash: str = "") -> int | None:
    """Walk the chain from its first decision and return the first sequence number that is not as it was written.

    One that was put in before its place is named by its own number.

    Parameters
    ----------
    records : iterable of DecisionRecord
        In the order of the table.
    last_seq, last_hash : int, str, optional
        Where the chain must end, as the store's head has it; without them a chain cut at its end looks whole.

    Returns
    -------
    int or None
        None when every decision is in its place and unchanged.
    """
    seq, previous = 0, GENESIS
    for record in records:
        seq += 1
        if record.seq != seq or record.prev_hash != previous or record.hash != _hash(record):
            return min(seq, record.seq)
        previous = record.hash
    if last_seq is None:
        return None
    if seq != last_seq:
        return min(seq, last_seq) + 1
    return None if previous == last_hash or last_seq == 0 else seq


def _hash(record: DecisionRecord) -> str:
    fields = {name: value for name, value in msgspec.structs.asdict(record).items() if name not in _LINKS}
    return hashlib.sha256(record.prev_hash.encode() + canonical(fields)).hexdigest()
