"""What the head of a request must keep to beyond what the parser sees to.

The parser (llhttp) refuses bare line feeds, folded lines, control characters, spaces before a colon, lengths that are
no digits, two lengths, and a length beside a transfer coding. What it lets pass is refused here.
Source: RFC 9112, sections 2.3, 3.2, 6.1; RFC 9110, sections 7.2 and 10.1.1.
"""

from __future__ import annotations

import re

from gateway.engine.job import rank_of
from gateway.protocol.compression import accepted_encoding, content_encoding
from gateway.protocol.errors import CallerError, EncodingNotSupported
from gateway.serving.inference import Inference, parse_pin

__all__ = (
    "METHODS",
    "READ",
    "HeadRefused",
    "check_host",
    "check_version",
    "path_of",
    "read_field",
    "size_of",
    "without_upgrade",
)

MAX_KEY_BYTES = 1024

METHODS = frozenset({b"GET", b"POST", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
"""Methods the app answers, if only with 405; others (CONNECT, TRACE, what WebDAV and RTSP have) are refused."""

READ = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-encoding",
        b"accept-encoding",
        b"connection",
        b"upgrade",
        b"expect",
        b"gateway-priority",
        b"gateway-routing-key",
        b"gateway-timeout-ms",
        b"gateway-version",
        b"inference-header-content-length",
    }
)
"""The fields that mean something here."""

_LENGTH = re.compile(rb"[0-9]{1,19}")
_ABSOLUTE = re.compile(rb"(?i:https?)://((?!:)[^/?#]+)(.*)", re.DOTALL)
_HOST = re.compile(rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")


class HeadRefused(Exception):
    """Raised when a request cannot be read any further; the connection is closed after the answer.

    Parameters
    ----------
    status : int
        Of HTTP.
    text : str
        For the caller.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def check_host(value: bytes) -> None:
    """A host, in its header or in a target, is a name or an address, and perhaps a port.

    >>> check_host(b"[::1]:8000")

    Raises
    ------
    HeadRefused
    """
    if len(value) > 260 or _HOST.fullmatch(value) is None:
        shown = value[:32].decode("latin-1")
        raise HeadRefused(400, f"Host must be a name or an address and perhaps a port, got {shown!r}")


def path_of(target: bytes, *, max_bytes: int) -> bytes:
    """The path of a target, with its query. A server must take one with scheme and host before it, as proxies send it.

    Source: RFC 9112, section 3.2.

    >>> [path_of(target, max_bytes=99) for target in (b"/v2?a", b"http://a:8000/v2?a", b"HTTPS://[::1]")]
    [b'/v2?a', b'/v2?a', b'/']

    Raises
    ------
    HeadRefused
    """
    if len(target) > max_bytes:
        raise HeadRefused(414, f"the request target is longer than {max_bytes} bytes (limits.max_target_bytes)")
    path = target
    if not target.startswith(b"/") and (absolute := _ABSOLUTE.fullmatch(target)) is not None:
        host, path = absolute.groups()
        check_host(host)
        path = path if path.startswith(b"/") else b"/" + path
    if not path.startswith(b"/") or b"#" in path:
        shown = target[:32].decode("latin-1")
        raise HeadRefused(400, f"the request target must be a path, got {shown!r}")
    return path


def check_version(version: str) -> None:
    """HTTP/1.0 and HTTP/1.1 are spoken.

    Raises
    ------
    HeadRefused
    """
    if version not in ("1.1", "1.0"):
        raise HeadRefused(505, f"HTTP/{version} is not spoken here; expected HTTP/1.1 or HTTP/1.0")


def size_of(method: bytes, target: bytes, fields: list[tuple[bytes, bytes]]) -> int:
    """Bytes of a head as it is usually written, with one space after each colon."""
    return len(method) + len(target) + 14 + sum(len(name) + len(value) + 4 for name, value in fields)


def without_upgrade(method: bytes, target: bytes, version: str, fields: list[tuple[bytes, bytes]]) -> bytes:
    """A head again, without its wish for another protocol."""
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    lines += [b"%b: %b" % field for field in fields if field[0] != b"upgrade"]
    return b"\r\n".join([*lines, b"", b""])


def read_field(inference: Inference, name: bytes, value: bytes) -> None:
    """Give an inference what one field of its head, or of a call's metadata, says; `name` in lower case.

    The first error is kept in it.
    """
    try:
        if name == b"accept-encoding":
            inference.accepts = accepted_encoding(value)
        elif name != b"content-encoding":
            _read_gateway_header(inference, name, value)
        elif inference.encoding is not None:
            raise EncodingNotSupported("more than one content-encoding is not supported")
        else:
            inference.encoding = content_encoding(value)
    except CallerError as error:
        if inference.refused is None:
            inference.refused = error.with_traceback(None)


def _read_gateway_header(inference: Inference, name: bytes, value: bytes) -> None:
    if name == b"gateway-routing-key":
        if len(value) > MAX_KEY_BYTES:
            raise CallerError(f"Gateway-Routing-Key is longer than {MAX_KEY_BYTES} bytes")
        inference.key = value.decode("latin-1")
    elif name == b"gateway-version":
        pinned = parse_pin(value)
        if inference.pinned is not None and inference.pinned != pinned:
            raise CallerError(f"the request asks for version {inference.pinned} and Gateway-Version for {pinned}")
        inference.pinned = pinned
    elif name == b"gateway-timeout-ms":
        if not value.isdigit() or len(value) > 9 or int(value) == 0:
            raise CallerError("Gateway-Timeout-Ms must be a positive whole number of milliseconds")
        inference.timeout_ms = int(value)
    elif name == b"gateway-priority":
        if not value.isdigit() or len(value) > 9:
            raise CallerError("Gateway-Priority must be a whole number: 1 is the highest, 0 and 2 are normal")
        inference.rank = rank_of(int(value))
    elif name == b"inference-header-content-length":
        if _LENGTH.fullmatch(value) is None or inference.json_length is not None:
            shown = value[:32].decode("latin-1")
            raise CallerError(f"Unable to parse Inference-Header-Content-Length, got: {shown}")
        inference.json_length = int(value)
