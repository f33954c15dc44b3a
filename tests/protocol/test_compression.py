from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.compression import accepted_encoding, compress, content_encoding, inflate
from gateway.protocol.errors import BodyTooLarge, CallerError, EncodingNotSupported

BODY = b'{"inputs":[]}' * 20
GZIP = gzip.compress(BODY)


@given(st.binary(max_size=300_000), st.sampled_from(["gzip", "deflate"]), st.integers(1, 70_000))
def test_what_was_compressed_inflates_to_itself_however_it_was_cut(body: bytes, encoding: str, cut: int) -> None:
    packed = compress([body[:7], memoryview(body)[7:]], encoding)
    pieces = [packed[start : start + cut] for start in range(0, len(packed), cut)]
    assert inflate(pieces, encoding, max_bytes=len(body)) == body


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072, 1 << 20])
@pytest.mark.parametrize("cut", [1, 8, 9, 1 << 20])
def test_a_body_of_the_size_of_a_piece_is_whole(size: int, cut: int) -> None:
    for encoding in ("gzip", "deflate"):
        packed = compress([b"a" * size], encoding)
        pieces = [packed[: len(packed) - cut], packed[len(packed) - cut :]] if cut < len(packed) else [packed]
        assert inflate(pieces, encoding, max_bytes=size) == b"a" * size


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (GZIP[:-1], "gzip"),
        (GZIP[:-8], "gzip"),
        (GZIP[:20], "gzip"),
        (b"", "gzip"),
        (GZIP + b"x", "gzip"),
        (GZIP + GZIP, "gzip"),
        (GZIP[:-5] + b"\0\0\0\0\0", "gzip"),
        (b"{}", "gzip"),
        (zlib.compress(BODY), "gzip"),
        (GZIP, "deflate"),
        (zlib.compress(BODY) + b"x", "deflate"),
        (zlib.compress(BODY)[:-1], "deflate"),
        (zlib.compress(BODY, wbits=-15), "deflate"),
    ],
    ids=range(13),
)
def test_a_stream_that_is_not_whole_or_not_alone_is_refused(body: bytes, encoding: str) -> None:
    with pytest.raises(CallerError, match=encoding):
        inflate([body], encoding, max_bytes=1 << 20)
    with pytest.raises(CallerError, match=encoding):
        inflate([body[start : start + 1] for start in range(len(body))], encoding, max_bytes=1 << 20)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_whatever_the_bytes_are_only_the_callers_error_is_raised(body: bytes, encoding: str) -> None:
    try:
        inflate([GZIP[:12] + body, body], encoding, max_bytes=100)
    except CallerError:
        pass


def test_at_the_limit_is_taken_and_one_more_is_not() -> None:
    packed = gzip.compress(b"x" * 1001)
    assert len(inflate([packed], "gzip", max_bytes=1001)) == 1001
    with pytest.raises(BodyTooLarge, match="more than 1000 bytes"):
        inflate([packed], "gzip", max_bytes=1000)


@pytest.mark.promise("P7")
def test_a_bomb_costs_no_more_than_the_limit() -> None:
    limit = 4 * 2**20
    bomb = gzip.compress(bytes(64 * 2**20), 9)
    assert len(bomb) < 2**17
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            inflate([bomb], "gzip", max_bytes=limit)
        assert tracemalloc.get_traced_memory()[1] < limit + 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [b"br", b"gzip, gzip", b"identity, gzip", b"zstd", b"x" * 1000, b"\xff"])
def test_an_unknown_encoding_is_named(value: bytes) -> None:
    with pytest.raises(EncodingNotSupported, match="content-encoding"):
        content_encoding(value)


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (b"gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"GZip , Deflate", "gzip"),
        (b"gzip, deflate, br", "gzip"),
        (b"gzip;q=0.2, deflate;q=0.3", "deflate"),
        (b"gzip; q=0, deflate", "deflate"),
        (b"gzip;q=0", None),
        (b"gzip;q=nan", None),
        (b"gzip;q=x", None),
        (b"gzip;q=2", None),
        (b"identity, gzip;q=0.9", None),
        (b"br", None),
        (b"*", None),
        (b"", None),
        (b";;,,=\xff", None),
    ],
)
def test_an_answer_is_compressed_only_as_it_was_asked(value: bytes, encoding: str | None) -> None:
    assert accepted_encoding(value) == encoding
