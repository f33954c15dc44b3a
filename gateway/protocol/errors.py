"""The error tree: who is at fault, in words a caller may read. One table in `serving` maps it to HTTP."""

from __future__ import annotations

__all__ = (
    "BodyTooLarge",
    "CallerError",
    "DeadlineExceeded",
    "EncodingNotSupported",
    "EngineUnavailable",
    "GatewayError",
    "LogUnavailable",
    "ModelFailed",
    "Overloaded",
    "UnknownModel",
)


class GatewayError(Exception):
    """Base of every error that is answered; the text is for the caller.

    What a caller wrote may stand in it, so what is no Unicode (a lone surrogate) is shown escaped.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.encode("utf-8", "backslashreplace").decode())


class CallerError(GatewayError):
    """Raised when the request is not as the protocol or the model's signature asks."""


class UnknownModel(CallerError):
    """Raised when the model or the version is not served."""


class BodyTooLarge(CallerError):
    """Raised when the body is beyond the limit."""


class EncodingNotSupported(CallerError):
    """Raised when the body comes in an encoding that is not spoken."""


class ModelFailed(GatewayError):
    """Raised when the model itself failed on a valid request, or its engine ended while running it."""


class EngineUnavailable(GatewayError):
    """Raised when no engine of the version is ready."""


class Overloaded(GatewayError):
    """Raised when the version's queue is full."""


class LogUnavailable(GatewayError):
    """Raised when the prediction cannot be logged and the policy is to refuse it then."""


class DeadlineExceeded(GatewayError):
    """Raised when no answer could be given in time."""
