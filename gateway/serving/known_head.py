"""A head that came before on a connection, told by its bytes: clients repeat theirs, but for the length of the body."""

from __future__ import annotations

import functools
import re
from sys import getsizeof

__all__ = ("KnownHead", "known_head")

MAX_HELD_BYTES = 8 * 1024
_LENGTH_FIELD = re.compile(rb"(?i)(\r\ncontent-length: ?)[0-9]{1,8}(?=\r\n)")


class KnownHead(dict[int, bytes]):
    """The head with which a read of so many bytes begins, if it is this one and the rest is the body it speaks of.

    Empty for a size that no head and body have. Heads that were asked for are kept, up to `MAX_HELD_BYTES`.

    Parameters
    ----------
    before, after : bytes
        What stands before and behind the digits of the length.

    >>> known = KnownHead(b"POST / HTTP/1.1\\r\\nContent-Length: ", b"\\r\\n\\r\\n")
    >>> known[50], known[60]
    (b'POST / HTTP/1.1\\r\\nContent-Length: 11\\r\\n\\r\\n', b'POST / HTTP/1.1\\r\\nContent-Length: 21\\r\\n\\r\\n')
    """

    def __init__(self, before: bytes, after: bytes) -> None:
        super().__init__()
        self._before, self._after = before, after
        self._held = 0

    def __missing__(self, size: int) -> bytes:
        length = _length_in(size - len(self._before) - len(self._after))
        head = self._before + length + self._after if length else b""
        held = getsizeof(head) + getsizeof(size)
        if self._held + held > MAX_HELD_BYTES:
            self.clear()
            self._held = 0
        if held <= MAX_HELD_BYTES:
            self._held += held
            self[size] = head
        return head


def known_head(head: bytes) -> KnownHead | None:
    """What is the same in heads like this one, for all connections that have it; None where no length is told in it."""
    parts = _LENGTH_FIELD.split(head)
    if len(parts) != 3:
        return None
    before, length, after = parts
    return _shared(before + length, after)


_shared = functools.lru_cache(maxsize=64)(KnownHead)


def _length_in(rest: int) -> bytes:
    """The digits of a body's length, where they and the body take `rest` bytes; empty where no length does.

    >>> _length_in(1), _length_in(10), _length_in(11), _length_in(12), _length_in(0), _length_in(-5)
    (b'0', b'9', b'', b'10', b'', b'')
    """
    most = len(b"%d" % rest)
    for digits in (most, most - 1):
        length = b"%d" % (rest - digits)
        if len(length) == digits and rest >= digits:
            return length
    return b""
