"""What the fields of a call say: its method, its metadata, its time, its encoding.

Source: gRPC over HTTP/2, "Requests".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache, partial

from gateway.events.addresses import ID_BYTES
from gateway.protocol.compression import ENCODINGS
from gateway.serving.grpc.errors import CallFailed, StatusCode
from gateway.serving.grpc.fields import Fields, Malformed, block, check_fields, message_text, size_of

__all__ = ("OK_HEAD", "OK_TAIL", "CallHead", "failed_head", "failed_tail", "ok_tail", "other_head", "understanding")

_TYPE = (b"content-type", b"application/grpc")
_ACCEPTED = (b"grpc-accept-encoding", b"identity, deflate, gzip")
_CONTENT_TYPE = re.compile(rb"application/grpc(\+proto)?(;.*)?", re.IGNORECASE | re.DOTALL)
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

OK_HEAD = block([_TYPE, _ACCEPTED], status=200)
OK_TAIL = block([(b"grpc-status", b"0")])


@dataclass(frozen=True)
class CallHead:
    """The head of one call.

    Attributes
    ----------
    method : bytes
        Its path.
    status : int
        Of HTTP: 200 where it is a call at all.
    metadata : tuple of (bytes, bytes)
        Everything but the pseudo-fields.
    seconds : float or None
        For which its client waits.
    encoding : str or None
        Of messages that say they are compressed.
    failure : CallFailed or None
        Why it is not taken.
    declared_bytes : int or None
        Of its content.
    """

    method: bytes
    status: int = 200
    metadata: Fields = ()
    gateway: Fields = ()
    seconds: float | None = None
    encoding: str | None = None
    failure: CallFailed | None = None
    declared_bytes: int | None = None


def understanding(*, max_bytes: int) -> partial[CallHead]:
    """What reads the fields of a call, of which there may be so many bytes."""
    return partial(_call_head, max_bytes=max_bytes)


@lru_cache(maxsize=256)
def ok_tail(version: bytes, arm: bytes) -> bytes:
    """What ends a prediction of this version on this arm, but for its id, which stands behind it."""
    fields = [(b"grpc-status", b"0"), (b"gateway-model-version", version), (b"gateway-arm", arm)]
    return block(fields) + block([(b"gateway-prediction-id", bytes(ID_BYTES))])[:-ID_BYTES]


def failed_tail(code: StatusCode, text: str, trailers: Fields = ()) -> bytes:
    """What ends a call that failed."""
    fields = [(b"grpc-status", b"%d" % code), (b"grpc-message", message_text(text))]
    return block([*fields, *trailers])


def failed_head(code: StatusCode, text: str, trailers: Fields = ()) -> bytes:
    """What answers a call that failed, before anything else was answered to it."""
    return OK_HEAD + failed_tail(code, text, trailers)


def other_head(status: int) -> bytes:
    """What answers a request that is no call."""
    return block([(b"content-length", b"0")], status=status)


def _call_head(fields: Fields, *, max_bytes: int) -> CallHead:
    pseudo = check_fields(fields)
    named = dict(fields)
    declared = named.get(b"content-length")
    if declared is not None and not (declared.isdigit() and len(declared) < 20):
        raise Malformed
    status = 200
    if pseudo[b":method"] != b"POST":
        status = 405
    elif not _CONTENT_TYPE.fullmatch(named.get(b"content-type", b"")):
        status = 415
    metadata = tuple([field for field in fields if not field[0].startswith(b":")])
    failure, seconds, encoding = None, None, None
    try:
        if size_of(fields) > max_bytes:
            metadata = ()
            raise CallFailed(
                StatusCode.RESOURCE_EXHAUSTED, f"the metadata is longer than {max_bytes} bytes (limits.max_head_bytes)"
            )
        seconds = _seconds(named.get(b"grpc-timeout"))
        encoding = _encoding(named.get(b"grpc-encoding", b"identity"))
    except CallFailed as error:
        failure = error
    return CallHead(
        pseudo[b":path"],
        status,
        metadata,
        tuple([field for field in metadata if field[0].startswith(b"gateway-")]),
        seconds,
        encoding,
        failure,
        None if declared is None else int(declared),
    )


def _seconds(value: bytes | None) -> float | None:
    if value is None:
        return None
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise CallFailed(StatusCode.INVALID_ARGUMENT, "grpc-timeout must be up to eight digits and a unit")
    return int(found[1]) * _UNITS[found[2]]


def _encoding(value: bytes) -> str | None:
    name = value.decode("latin-1")
    if name == "identity":
        return None
    if name not in ENCODINGS:
        raise CallFailed(
            StatusCode.UNIMPLEMENTED,
            f"grpc-encoding '{name[:32]}' is not supported; expected gzip, deflate or identity",
        )
    return name
