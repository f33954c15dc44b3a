"""Our errors as gRPC statuses."""

from __future__ import annotations

from enum import IntEnum

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
from gateway.serving.repository_calls import CallRefused

__all__ = ("CODE_OF", "CODE_OF_STATUS", "CallFailed", "StatusCode", "code_of", "details_of")

MAX_DETAILS = 1024
"""Characters of a status' text; it travels in a header, of which clients take 8 KiB."""


class StatusCode(IntEnum):
    """How a call ended (gRPC, "Status codes and their use in gRPC"), as far as calls end like that here."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class CallFailed(Exception):
    """Raised where a call ends with a status of its own.

    Parameters
    ----------
    code : StatusCode
    text : str
    """

    def __init__(self, code: StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


CODE_OF: dict[type[GatewayError], StatusCode] = {
    CallerError: StatusCode.INVALID_ARGUMENT,
    UnknownModel: StatusCode.NOT_FOUND,
    BodyTooLarge: StatusCode.RESOURCE_EXHAUSTED,
    EncodingNotSupported: StatusCode.UNIMPLEMENTED,
    ModelFailed: StatusCode.INTERNAL,
    Overloaded: StatusCode.UNAVAILABLE,
    EngineUnavailable: StatusCode.UNAVAILABLE,
    LogUnavailable: StatusCode.UNAVAILABLE,
    DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
}
"""Error class to gRPC status, as `STATUS_OF` has it for HTTP: 503 is UNAVAILABLE, which clients may send again."""

CODE_OF_STATUS: dict[int, StatusCode] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    409: StatusCode.FAILED_PRECONDITION,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
}
"""HTTP status of a refused repository call to gRPC status."""


def code_of(error: Exception) -> StatusCode | None:
    """The status that an error is; None for what nobody foresaw.

    >>> code_of(UnknownModel("no such model")).name
    'NOT_FOUND'
    """
    if isinstance(error, CallFailed):
        return error.code
    if isinstance(error, CallRefused):
        return CODE_OF_STATUS[error.status]
    return CODE_OF[type(error)] if isinstance(error, GatewayError) else None


def details_of(error: Exception) -> str:
    """The text of an error, as much of it as a status takes."""
    text = str(error)
    return text if len(text) <= MAX_DETAILS else text[: MAX_DETAILS - 3] + "..."
