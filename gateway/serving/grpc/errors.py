"""Our errors as gRPC statuses."""

from __future__ import annotations

import grpc

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

__all__ = ("CODE_OF", "CODE_OF_STATUS", "code_of", "details_of")

MAX_DETAILS = 1024
"""Characters of a status' text; it travels in a header, of which clients take 8 KiB."""

CODE_OF: dict[type[GatewayError], grpc.StatusCode] = {
    CallerError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    BodyTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    EncodingNotSupported: grpc.StatusCode.UNIMPLEMENTED,
    ModelFailed: grpc.StatusCode.INTERNAL,
    Overloaded: grpc.StatusCode.UNAVAILABLE,
    EngineUnavailable: grpc.StatusCode.UNAVAILABLE,
    LogUnavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""Error class to gRPC status, as `STATUS_OF` has it for HTTP: 503 is UNAVAILABLE, which clients may send again."""

CODE_OF_STATUS: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""HTTP status of a refused repository call to gRPC status."""


def code_of(error: GatewayError) -> grpc.StatusCode:
    """The gRPC status of an error.

    >>> code_of(UnknownModel("no such model")).name
    'NOT_FOUND'
    """
    return CODE_OF[type(error)]


def details_of(error: Exception) -> str:
    """The text of an error, as much of it as a status takes."""
    text = str(error)
    return text if len(text) <= MAX_DETAILS else text[: MAX_DETAILS - 3] + "..."
