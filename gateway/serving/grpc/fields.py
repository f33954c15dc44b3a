"""Blocks of header fields: read with HPACK, and written without a table, so that nothing has to be remembered.

Source: RFC 7541; RFC 9113, sections 8.2 and 8.3; gRPC over HTTP/2, "Responses".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar
from urllib.parse import quote_from_bytes

from hpack import Decoder
from hpack.exceptions import HPACKError
from hpack.table import HeaderTable

from gateway.serving.grpc.frames import ConnectionFault, ErrorCode

__all__ = ("NO_TABLE", "FieldReader", "Fields", "Malformed", "block", "check_fields", "message_text", "size_of")

Fields = tuple[tuple[bytes, bytes], ...]
Head = TypeVar("Head")

NO_TABLE = b"\x20"
"""Before a block: no table is kept, as its reader allows a smaller one now (RFC 7541, section 4.2)."""

_KEPT_BLOCKS = 8
_SHORT_BLOCK = 512
_FIELD_OVERHEAD = 32  # RFC 9113, section 6.5.2
_STATUS_NAME = 8  # `:status` in the static table; the same number with its high bit is `:status: 200`
_OF_CONNECTIONS = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_MANY_SIZES = re.compile(rb"(?:[\x20-\x3e]|\x3f[\x80-\xff]*[\0-\x7f]){3}")  # RFC 7541, section 4.2: two at most
_NAME = re.compile(rb"[!-9;-@\[-~]+")  # RFC 9113, section 8.2.1
_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_TEXT = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Malformed(Exception):
    """Raised when the fields of a request are none that a request has; its stream ends."""


class _WatchedTable(HeaderTable):
    """Counts what it is given."""

    additions = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.additions += 1
        super().add(name, value)


class FieldReader(Generic[Head]):
    """Reads the blocks of one connection, in their order.

    Clients send the same block again and again, once what is in it is in the table that both ends keep. What it was
    read as is remembered until that table changes.

    Parameters
    ----------
    understand : callable
        What a block's fields mean.
    max_bytes : int
        Of a block, unpacked.
    """

    def __init__(self, understand: Callable[[Fields], Head], *, max_bytes: int) -> None:
        self._understand = understand
        self._table = _WatchedTable()
        self._decoder = Decoder(max_header_list_size=max_bytes)
        self._decoder.header_table = self._table
        self._known: dict[bytes, Head] = {}

    def __repr__(self) -> str:
        return f"<FieldReader {len(self._known)} blocks known>"

    def read(self, packed: bytes) -> Head:
        """What a block says.

        Raises
        ------
        ConnectionFault
            It cannot be unpacked, after which no other can.
        Malformed
            `understand` does.
        """
        known = self._known.get(packed)
        if known is not None:
            return known
        before = self._table.additions
        head = self._understand(self.unpack(packed))
        if self._table.additions == before and not _resizes(packed) and len(packed) <= _SHORT_BLOCK:
            if len(self._known) >= _KEPT_BLOCKS:
                self._known.clear()
            self._known[packed] = head
        return head

    def unpack(self, packed: bytes) -> Fields:
        """The fields of a block.

        Raises
        ------
        ConnectionFault
        """
        before = self._table.additions
        if _MANY_SIZES.match(packed):
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a block changes the size of the table three times")
        try:
            return tuple([(name, value) for name, value in self._decoder.decode(packed, raw=True)])
        except HPACKError:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "the header fields cannot be read") from None
        finally:
            if self._table.additions != before or _resizes(packed):
                self._known.clear()


def size_of(fields: Fields) -> int:
    """Bytes of fields as HTTP/2 counts them."""
    return sum([len(name) + len(value) + _FIELD_OVERHEAD for name, value in fields])


def check_fields(fields: Fields) -> dict[bytes, bytes]:
    """The pseudo-fields of a request, all of whose fields are as they must be.

    Raises
    ------
    Malformed
    """
    pseudo: dict[bytes, bytes] = {}
    regular = False
    for name, value in fields:
        if name.startswith(b":"):
            if regular or name in pseudo or name not in _PSEUDO:
                raise Malformed
            pseudo[name] = value
        else:
            regular = True
            check_field(name, value)
    if not (pseudo.get(b":method") and pseudo.get(b":scheme") and pseudo.get(b":path")):
        raise Malformed
    return pseudo


def check_field(name: bytes, value: bytes) -> None:
    """A field that is no pseudo-field, in a request or behind it.

    Raises
    ------
    Malformed
    """
    if not _NAME.fullmatch(name) or name in _OF_CONNECTIONS:
        raise Malformed
    if name == b"te" and value != b"trailers":
        raise Malformed
    if b"\0" in value or b"\r" in value or b"\n" in value:
        raise Malformed


def block(fields: Iterable[tuple[bytes, bytes]], *, status: int | None = None) -> bytes:
    """A block that neither needs nor changes the table of who reads it.

    >>> block([(b"grpc-status", b"0")], status=200)
    b'\\x88\\x00\\x0bgrpc-status\\x010'
    """
    parts = []
    if status == 200:
        parts.append(bytes((0x80 | _STATUS_NAME,)))
    elif status is not None:
        parts.append(bytes((_STATUS_NAME,)) + _string(b"%d" % status))
    parts += [b"\0" + _string(name) + _string(value) for name, value in fields]
    return b"".join(parts)


def message_text(text: str) -> bytes:
    """The text of a status as its field carries it.

    >>> message_text("100 %: größer")
    b'100 %25: gr%C3%B6%C3%9Fer'
    """
    return quote_from_bytes(text.encode(errors="replace"), safe=_TEXT).encode()


def _resizes(packed: bytes) -> bool:
    # Where the table changes its size, a block says so first (RFC 7541, section 4.2).
    return packed[:1] >= b"\x20" and packed[:1] < b"\x40"


def _string(value: bytes) -> bytes:
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    size -= 127
    length = bytearray((127,))
    while size >= 128:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return bytes(length) + value
