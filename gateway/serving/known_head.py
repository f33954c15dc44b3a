"""A head that came before on a connection, told by its bytes: clients repeat theirs, but for the length of the body."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ("LENGTHS", "LENGTH_FIELD", "KnownHead", "known_head", "length_in")

LENGTH_FIELD = re.compile(rb"(?i)(\r\ncontent-length: ?)[0-9]{1,8}(?=\r\n|\Z)")


class KnownHead(NamedTuple):
    """What stands before and behind the digits of its length, and how many bytes these are together."""

    before: bytes
    after: bytes
    size: int


def known_head(head: bytes, end: bytes) -> KnownHead | None:
    """What is the same in heads like this one; None where no length can be told in it.

    Parameters
    ----------
    head : bytes
        Without its last line.
    end : bytes
        Of its last two lines.

    >>> known_head(b"POST / HTTP/1.1\\r\\nContent-Length: 12\\r\\nHost: a", b"\\r\\n\\r\\n")
    KnownHead(before=b'POST / HTTP/1.1\\r\\nContent-Length: ', after=b'\\r\\nHost: a\\r\\n\\r\\n', size=46)
    """
    parts = LENGTH_FIELD.split(head)
    if len(parts) != 3:
        return None
    before, length, after = parts
    return KnownHead(before + length, after + end, len(before) + len(length) + len(after) + len(end))


def length_in(rest: int) -> bytes:
    """The digits of a body's length, where they and the body take `rest` bytes; empty where no length does.

    >>> length_in(1), length_in(10), length_in(11), length_in(12), length_in(0)
    (b'0', b'9', b'', b'10', b'')
    """
    most = len(b"%d" % rest)
    for digits in (most, most - 1):
        length = b"%d" % (rest - digits)
        if len(length) == digits and rest >= digits:
            return length
    return b""


LENGTHS = tuple(length_in(rest) for rest in range(4096))
"""`length_in` of most requests."""
