"""Event ids: an id is an address in the log."""

from __future__ import annotations

import re

__all__ = ("ID_BYTES", "AddressError", "format_id", "parse_id")

ID_BYTES = 25
"""Length of an event id."""

_ID = re.compile(r"([0-9a-f]{14})-([0-9a-f]{10})")


class AddressError(ValueError):
    """Raised when a text is no event id."""


def format_id(boot: str, sequence: int) -> str:
    """Return the id of record `sequence` (from 1) of the writer's life `boot` (14 hex digits).

    >>> format_id("0196f0c5d2a100", 17)
    '0196f0c5d2a100-0000000011'
    """
    return f"{boot}-{sequence:010x}"


def parse_id(text: str) -> tuple[str, int]:
    """Return boot and sequence of an event id.

    >>> parse_id("0196f0c5d2a100-0000000011")
    ('0196f0c5d2a100', 17)

    Raises
    ------
    AddressError
        When `text` is not 14 hex digits, a dash and 10 hex digits, in lower case.
    """
    match = _ID.fullmatch(text)
    if match is None:
        raise AddressError(f"{text[:64]!r} is no event id; expected <14 hex digits>-<10 hex digits>, in lower case")
    return match[1], int(match[2], 16)
