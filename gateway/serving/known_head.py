"""A head that came before on a connection, told by its bytes: clients repeat theirs, but for the length of the body."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

__all__ = ("KnownHead", "known_head", "length_in")

_LENGTH_FIELD = re.compile(rb"(?i)(\r\ncontent-length: ?)[0-9]{1,8}(?=\r\n)")


class KnownHead(NamedTuple):
    """What stands before and behind the digits of its length, and how many bytes these are together."""

    before: bytes
    after: bytes
    size: int


def known_head(head: bytes) -> KnownHead | None:
    """What is the same in heads like this one; None where no length can be told in it.

    >>> known_head(b"POST / HTTP/1.1\\r\\nContent-Length: 12\\r\\nHost: a\\r\\n\\r\\n")
    KnownHead(before=b'POST / HTTP/1.1\\r\\nContent-Length: ', after=b'\\r\\nHost: a\\r\\n\\r\\n', size=46)
    """
    parts = _LENGTH_FIELD.split(head)
    if len(parts) != 3:
        return None
    before, length, after = parts
    return KnownHead(before + length, after, len(before) + len(length) + len(after))


@functools.lru_cache(maxsize=4096)
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
