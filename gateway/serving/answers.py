"""HTTP answers as bytes: one write each."""

from __future__ import annotations

import http
from collections.abc import Sequence

import orjson

from gateway.protocol.compression import ENCODINGS, compress
from gateway.protocol.errors import (
    BodyTooLarge,
    CallerError,
    DeadlineExceeded,
    EncodingNotSupported,
    EngineUnavailable,
    GatewayError,
    LogUnavailable,
    ModelFailed,
    Overloaded,
    UnknownModel,
)

__all__ = ("OUTCOME_OF", "RETRY_AFTER_SECONDS", "STATUS_OF", "error_answer", "infer_answer", "outcome_of", "status_of")

STATUS_OF: dict[type[GatewayError], int] = {
    CallerError: 400,
    UnknownModel: 404,
    BodyTooLarge: 413,
    EncodingNotSupported: 415,
    ModelFailed: 500,
    Overloaded: 503,
    EngineUnavailable: 503,
    LogUnavailable: 503,
    DeadlineExceeded: 504,
}
"""Error class to HTTP status: the one place where it is decided."""

OUTCOME_OF = {200: "ok", 500: "model_error", 503: "unavailable", 504: "timeout"}
"""HTTP status to the `outcome` label; every other status is `client_error`."""

RETRY_AFTER_SECONDS = 1
"""Whatever a 503 is for, it may be over by then."""

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}
_JSON = b"content-type: application/json\r\n"
_BINARY = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
_CLOSE = b"connection: close\r\n"
_HINTS = {
    405: b"allow: GET, HEAD, POST\r\n",
    415: b"accept-encoding: %b\r\n" % ", ".join(ENCODINGS).encode(),
    503: b"retry-after: %d\r\n" % RETRY_AFTER_SECONDS,
}


def status_of(error: GatewayError) -> int:
    """The HTTP status of an error."""
    return STATUS_OF[type(error)]


def outcome_of(status: int) -> str:
    """The `outcome` label of an HTTP status.

    >>> outcome_of(200), outcome_of(404)
    ('ok', 'client_error')
    """
    return OUTCOME_OF.get(status, "client_error")


def infer_answer(
    body: bytes,
    *,
    prediction_id: bytes,
    version: bytes,
    arm: bytes,
    keep_alive: bool,
    status: int = 200,
    blocks: Sequence[bytes | memoryview] = (),
    encoding: str | None = None,
) -> bytes:
    """An answer with the headers that every answer of a routed request carries.

    Parameters
    ----------
    body : bytes
        JSON.
    blocks : sequence of buffers
        Outputs in binary, which follow the JSON.
    encoding : str, optional
        What the caller accepts; only a success is compressed, since clients read errors as they are.
    """
    kind, length = _JSON, len(body)
    pieces: Sequence[bytes | memoryview] = (body,)
    if blocks:
        kind, pieces = _BINARY % length, (body, *blocks)
        length += sum(map(len, blocks))
    if encoding is not None and status == 200:
        pieces = (compress(pieces, encoding),)
        length = len(pieces[0])
        kind += b"content-encoding: %b\r\nvary: accept-encoding\r\n" % encoding.encode()
    return b"".join(
        (
            _STATUS_LINES[status],
            kind,
            b"gateway-prediction-id: %b\r\ngateway-model-version: %b\r\ngateway-arm: %b\r\ncontent-length: %d\r\n"
            % (prediction_id, version, arm, length),
            b"" if status == 200 else _HINTS.get(status, b""),
            b"\r\n" if keep_alive else b"connection: close\r\n\r\n",
            *pieces,
        )
    )


def error_answer(status: int, text: str, *, keep_alive: bool) -> bytes:
    """An error before a version was chosen: `{"error": text}`."""
    body = orjson.dumps({"error": text})
    return b"".join(
        (
            _STATUS_LINES[status],
            _JSON,
            b"content-length: %d\r\n" % len(body),
            _HINTS.get(status, b""),
            b"" if keep_alive else _CLOSE,
            b"\r\n",
            body,
        )
    )
