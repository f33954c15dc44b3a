"""What an operator's request can get wrong, and the one table from errors to HTTP."""

from __future__ import annotations

from gateway.control.errors import Conflict, NotKnown, Refused, StoreAway, StoreError
from gateway.events.addresses import AddressError
from gateway.predictions.archive import ArchiveError
from gateway.predictions.spool import SpoolError
from gateway.repository.errors import RepositoryError
from gateway.repository.policy import PolicyError

__all__ = (
    "OURS",
    "AdminError",
    "BadRequest",
    "Busy",
    "Forbidden",
    "NotFound",
    "TooLarge",
    "Unauthorized",
    "WrongType",
    "status_of",
)


class AdminError(Exception):
    """A request that is not carried out; the text says why."""

    status = 500


class BadRequest(AdminError):
    status = 400


class Unauthorized(AdminError):
    status = 401


class Forbidden(AdminError):
    status = 403


class NotFound(AdminError):
    status = 404


class TooLarge(AdminError):
    status = 413


class WrongType(AdminError):
    status = 415


class Busy(AdminError):
    status = 429


_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotKnown, 404),
    (Conflict, 412),
    (Refused, 409),
    (StoreAway, 503),
    (StoreError, 500),
    (AddressError, 400),
    (SpoolError, 503),
    (ArchiveError, 503),
    (RepositoryError, 409),
    (PolicyError, 409),
)


OURS: tuple[type[Exception], ...] = (AdminError, *(kind for kind, _ in _STATUS))
"""Every error that has a status."""


def status_of(error: Exception) -> int | None:
    """The HTTP status an error stands for; None when it is none of ours.

    >>> status_of(NotKnown("no such model")), status_of(KeyError("x"))
    (404, None)
    """
    if isinstance(error, AdminError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), None)
