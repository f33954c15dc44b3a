"""gzip and deflate of bodies, bounded while inflating.

Source: RFC 9110, sections 8.4 and 12.5.3; RFC 1950; RFC 1952.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from gateway.protocol.binary import Octets
from gateway.protocol.errors import BodyTooLarge, CallerError, EncodingNotSupported

__all__ = ("ENCODINGS", "accepted_encoding", "compress", "content_encoding", "inflate")

ENCODINGS = ("gzip", "deflate")

_WINDOW = {"gzip": 31, "deflate": 15}
_LEVEL = 1  # an answer is not worth more of the front's time
_PIECE_BYTES = 64 * 1024


def content_encoding(value: bytes) -> str | None:
    """The encoding that a `Content-Encoding` header names, or None for none.

    >>> content_encoding(b"GZIP"), content_encoding(b"identity")
    ('gzip', None)

    Raises
    ------
    EncodingNotSupported
    """
    name = value.strip().lower().decode("latin-1")
    if name in ENCODINGS:
        return name
    if name in ("identity", ""):
        return None
    raise EncodingNotSupported(f"content-encoding '{name[:32]}' is not supported; expected gzip, deflate or identity")


def accepted_encoding(value: bytes) -> str | None:
    """The encoding to answer in, for an `Accept-Encoding` header: gzip or deflate if named and preferred, else None.

    >>> [accepted_encoding(value) for value in (b"deflate;q=0.5, gzip, br", b"gzip;q=0.5, identity", b"*")]
    ['gzip', None, None]
    """
    weights = {"gzip": 0.0, "deflate": 0.0, "identity": 0.0}
    for item in value.lower().split(b","):
        name, _, parameter = item.partition(b";")
        coding = name.strip().decode("latin-1")
        if coding in weights:
            weights[coding] = _weight(parameter)
    best = max(ENCODINGS, key=weights.__getitem__)
    return best if weights[best] > 0 and weights[best] >= weights["identity"] else None


def inflate(pieces: Iterable[Octets], encoding: str, *, max_bytes: int) -> bytes:
    """The content of a compressed body; never more than `max_bytes` of it are held.

    Raises
    ------
    CallerError
        The body is not one whole stream of this encoding and nothing else.
    BodyTooLarge
    """
    stream = zlib.decompressobj(_WINDOW[encoding])
    inflated: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            rest: Octets = piece
            while rest:
                if stream.eof:
                    raise CallerError(f"the request body has bytes after the end of its {encoding} stream")
                part = stream.decompress(rest, _PIECE_BYTES)
                rest = stream.unused_data or stream.unconsumed_tail
                size += len(part)
                if size > max_bytes:
                    raise BodyTooLarge(
                        f"the request body inflates to more than {max_bytes} bytes (limits.max_body_bytes)"
                    )
                inflated.append(part)
    except zlib.error:
        raise CallerError(f"the request body is not valid {encoding}") from None
    if not stream.eof:
        raise CallerError(f"the {encoding} stream of the request body ends too early")
    return b"".join(inflated)


def compress(pieces: Iterable[bytes | memoryview], encoding: str) -> bytes:
    """Pieces of an answer, compressed as one body."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[encoding])
    return b"".join([stream.compress(piece) for piece in pieces] + [stream.flush()])


def _weight(parameter: bytes) -> float:
    name, _, value = parameter.strip().partition(b"=")
    if name.strip() != b"q":
        return 1.0
    try:
        weight = float(value)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0
