"""What is sent, what is answered: the hostile table, row by row.

The numbers group what attackers and careless clients send: 1 to 30 transport, 31 to 49 encodings and JSON, 50 to 75
tensors, 76 to 88 the binary extension, 89 to 97 names, headers, logs and metrics. `docs/limits.md` tells them in
words, and where the answer is a matter of choice, why it is this one.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.hostile.world import binary, infer, inputs, raw_input, tensor
from tests.serving.fronts import get, post

__all__ = ("ELSEWHERE", "GROUPS", "ROWS", "Elsewhere", "Row")

GROUPS = {
    "transport": range(1, 31),
    "encoding": range(31, 50),
    "tensors": range(50, 76),
    "binary": range(76, 89),
    "names": range(89, 98),
}

Cases = dict[str, bytes | Callable[[], bytes]]

FEW = 5
"""Repeats of what is megabytes large."""


@dataclass(frozen=True)
class Row:
    """One input.

    Parameters
    ----------
    number : int
    name : str
    send : bytes or callable
        Bytes, or what makes them, where they are many.
    answers : tuple of int
        Statuses, in order.
    text : str
        In the error of the last answer.
    closes : bool
        The front closes the connection then; otherwise it goes on.
    records : int
        Predictions in the log then.
    repeats : int
    """

    number: int
    name: str
    send: bytes | Callable[[], bytes]
    answers: tuple[int, ...]
    text: str = ""
    closes: bool = False
    records: int = 0
    repeats: int = 100

    @property
    def raw(self) -> bytes:
        return self.send if isinstance(self.send, bytes) else self.send()


@dataclass(frozen=True)
class Elsewhere:
    """A row that bytes on one connection cannot tell: the test that proves it, or why there is none."""

    number: int
    file: str
    test: str
    why: str


def _closed(number: int, status: int, text: str, cases: Cases, **more: Any) -> list[Row]:
    return [Row(number, name, send, (status,), text, closes=True, **more) for name, send in cases.items()]


def _refused(number: int, text: str, cases: Cases, **more: Any) -> list[Row]:
    return [Row(number, name, send, (400,), text, records=1, **more) for name, send in cases.items()]


def _taken(number: int, cases: Cases, **more: Any) -> list[Row]:
    return [Row(number, name, send, (200,), records=1, **more) for name, send in cases.items()]


def _head(*fields: str, line: str = "POST /v2/models/m/infer HTTP/1.1", host: str = "Host: a") -> bytes:
    return "\r\n".join([line, *([host] if host else []), *fields, "", ""]).encode("latin-1")


def _chunked(body: bytes, *, coding: str = "chunked") -> bytes:
    return _head(f"Transfer-Encoding: {coding}") + body


def _line(line: str) -> bytes:
    return _head(line=line)


GOOD = json.dumps(inputs()).encode()
_RTSP = post().replace(b"HTTP/1.1", b"RTSP/1.1")
CHUNKS = b"%x\r\n%b\r\n0\r\n" % (len(GOOD), GOOD)

TRANSPORT = [
    *_closed(7, 400, "not valid HTTP/1.1", {
        "length, then coding": _head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        "coding, then length": _head("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n",
    }),
    *_closed(8, 400, "Content-Length", {
        "the same length twice": _head("Content-Length: 3", "Content-Length: 3") + b"abc",
        "a list of lengths": _head("Content-Length: 3, 3") + b"abc",
    }),
    *_closed(9, 400, "Content-Length", {"two lengths": _head("Content-Length: 3", "Content-Length: 4") + b"abcd"}),
    *_closed(10, 400, "Content-Length", {
        f"length {said!r}": _head(f"Content-Length: {said}") + b"abc" for said in ("+3", "-1", "0x3", "1_0", "", "\xb2")
    }),
    *_closed(11, 400, "overflow", {"length 2^64": _head("Content-Length: 18446744073709551616")}),
    *_closed(11, 413, "limits.max_body_bytes", {"length 10^18": _head(f"Content-Length: {10**18}")}, records=1),
    *_closed(11, 413, "limits.max_body_bytes", {
        "length 10^18 of feedback": _head(f"Content-Length: {10**18}", line="POST /v2/models/m/feedback HTTP/1.1")
    }),
    *_closed(12, 400, "", {
        f"coding {coding!r}": _chunked(CHUNKS + b"\r\n", coding=coding)
        for coding in ("gzip, chunked", "chunked, identity", "xchunked", "chunked, chunked", "identity", "")
    }),
    *_closed(12, 400, "", {
        "chunked in two fields": _head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + CHUNKS,
        "gzip and chunked in two fields": _head("Transfer-Encoding: gzip", "Transfer-Encoding: chunked") + CHUNKS,
        "chunked in HTTP/1.0": _head("Transfer-Encoding: chunked", line="POST /v2 HTTP/1.0") + CHUNKS,
    }),
    *_closed(13, 400, "overflow", {"a chunk of 2^72 bytes": _chunked(b"FFFFFFFFFFFFFFFFFF\r\n")}),
    *_closed(14, 400, "chunk", {
        f"chunk {line!r}": _chunked(line)
        for line in (b"-1\r\nabc\r\n", b"0x3\r\nabc\r\n", b"3 ;\r\nabc\r\n", b"3\r\nabc0\r\n", b"3\nabc\n", b"+3\r\n")
    }),
    *_closed(15, 400, "limits.max_chunk_overhead_bytes", {
        "an extension of 1 MiB": lambda: _chunked(b"3;" + b"x" * 2**20 + b"\r\nabc\r\n0\r\n\r\n")
    }, repeats=FEW),
    *_closed(16, 400, "limits.max_chunks", {
        "65 537 chunks": lambda: _chunked(b"1\r\n \r\n" * 65_537 + b"0\r\n\r\n")
    }, repeats=FEW),
    *_taken(17, {
        f"trailer {field}": _chunked(CHUNKS + field.encode() + b"\r\n\r\n")
        for field in ("Inference-Header-Content-Length: 5", "Authorization: Bearer x", "Gateway-Version: 9")
    }),
    *_closed(18, 400, "not valid HTTP/1.1", {
        "a space before the colon": _head("X : a"),
        "a folded line": _head("X: a\r\n b"),
        "NUL in a value": _head("X: a\0b"),
        "a bare CR in a value": _head("X: a\rb"),
        "bare LF between fields": _head("X: a\nY: b"),
        "bare LF everywhere": b"GET /v2 HTTP/1.1\nHost: a\n\n",
        "a field without a name": _head(": a"),
        "a field without a colon": _head("abc"),
    }),
    *_closed(19, 400, "Host", {
        "no Host": _head(host=""),
        "two Hosts": _head("Host: b"),
        "the same Host twice": _head("Host: a"),
        "Host a/b?c": _head(host="Host: a/b?c"),
        "Host with a user": _head(host="Host: a@b"),
        "Host with a space": _head(host="Host: a b"),
    }),
    *_closed(20, 431, "", {
        "a header of 20 KiB": lambda: _head("X: " + "a" * 20_480),
        "a header of 5 MB": lambda: _head("X: " + "a" * 5_000_000),
        "100 000 headers": lambda: _head(*["X: a"] * 100_000),
        "101 headers": _head(*["X: a"] * 100),
    }, repeats=FEW),
    *_closed(21, 414, "target", {"a target of 1 MiB": lambda: get("/" + "a" * 2**20)}, repeats=FEW),
    *_closed(21, 414, "target", {"a target of 5 KiB": get("/" + "a" * 5120)}),
    *_closed(22, 505, "is not spoken", {
        "HTTP/0.9": b"GET /v2\r\n\r\n",
        "HTTP/2.0": _line("GET /v2 HTTP/2.0"),
        "HTTP/2.0, kept alive": _head("Connection: keep-alive", line="GET /v2 HTTP/2.0"),
        "RTSP": _line("GET /v2 RTSP/1.1"),
        "RTSP/1.0 for an inference": _line("POST /v2/models/m/infer RTSP/1.0"),
    }),
    Row(22, "HTTP, then RTSP", post() * 2 + _RTSP, (200, 200, 505), "RTSP", closes=True, records=2),
    *_closed(22, 400, "not valid HTTP/1.1", {
        "HTTP/1.9": _line("GET /v2 HTTP/1.9"),
        "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "a hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    }),
    *_closed(23, 405, "TRACE", {"TRACE": _line("TRACE /v2 HTTP/1.1")}),
    *_closed(23, 400, "", {
        "CONNECT": _line("CONNECT evil:80 HTTP/1.1"),
        "OPTIONS *": _line("OPTIONS * HTTP/1.1"),
        "a method of 1000 letters": _line("A" * 1000 + " /v2 HTTP/1.1"),
        "a method in lower case": _line("get /v2 HTTP/1.1"),
    }),
    Row(23, "a method of no endpoint", _line("DELETE /v2 HTTP/1.1"), (405,), "Method Not Allowed"),
    *_closed(24, 400, "must be a path", {
        "a target of another scheme": _line("GET ftp://a/v2/health/live HTTP/1.1"),
        "an absolute target without a host": _line("GET http:///v2 HTTP/1.1"),
        "an absolute target with a port alone": _line("GET http://:80/v2 HTTP/1.1"),
        "a fragment": _line("GET /v2#a HTTP/1.1"),
        "a fragment of an absolute target": _line("GET http://a/v2#a HTTP/1.1"),
    }),
    *_closed(24, 400, "", {
        "an absolute target with a login": _line("GET http://ada:secret@a/v2 HTTP/1.1"),
        "an absolute target with a port beyond all": _line("GET http://a:123456/v2 HTTP/1.1"),
        "an absolute target and no Host": _head(line="GET http://a/v2 HTTP/1.1", host=""),
        "an absolute target and two Hosts": _head("Host: b", line="GET http://a/v2 HTTP/1.1"),
    }),
    Row(24, "an absolute target", _line("GET http://evil/v2/health/live HTTP/1.1"), (200,)),
    *_taken(24, {"an inference by an absolute target": post(path="http://evil:80/v2/models/m/infer")}),
    *_closed(24, 505, "RTSP", {"RTSP by an absolute target": _line("GET http://a/v2 RTSP/1.1")}),
    Row(25, "a good request, then a bad one", post() + b"nonsense\r\n\r\n", (200, 400), closes=True, records=1),
    *_closed(26, 413, "limits.max_body_bytes", {
        "100-continue with 20 MB": _head("Expect: 100-continue", "Content-Length: 20000000"),
    }, records=1),
    *_closed(27, 417, "100-continue", {"another expectation": post(headers="Expect: 200-ok\r\n")}),
    *_taken(28, {
        "an upgrade to HTTP/2": post(headers="Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\n"),
        "an upgrade to a websocket": post(headers="Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        "an upgrade before chunks": post(headers="Connection: Upgrade\r\nUpgrade: h2c\r\n", chunked=True),
    }),
]  # fmt: skip


def _bomb() -> bytes:
    return infer(gzip.compress(bytes(64 * 2**20), 9), headers="Content-Encoding: gzip\r\n")


def _encoded(content: bytes, coding: str = "gzip") -> bytes:
    return infer(content, headers=f"Content-Encoding: {coding}\r\n")


def _numbers(rows: int) -> bytes:
    data = ",".join(["1,2,3"] * rows)
    return infer(f'{{"inputs":[{{"name":"x","shape":[{rows},3],"datatype":"FP32","data":[{data}]}}]}}')


def _in_data(text: str, model: str = "m", shape: str = "[1,3]", datatype: str = "FP32") -> bytes:
    return infer(f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":[{text}]}}]}}', model=model)


def _deep(levels: int) -> str:
    return '{"extra":' + "[" * (levels - 1) + "]" * (levels - 1) + "," + GOOD.decode()[1:]


ENCODING = [
    *_refused(31, "", {
        "no body": infer(b""),
        "spaces": infer(b"    "),
        "half an object": infer(GOOD[:-5]),
        "text behind the object": infer(GOOD + b" x"),
    }),
    *_refused(32, "must be a JSON object", {text: infer(text) for text in ("[]", "3", '"a"', "null")}),
    *_taken(33, {
        "Content-Type text/xml": infer(GOOD, headers="Content-Type: text/xml\r\n"),
        "no Content-Type": infer(GOOD),
        "two Content-Types": infer(GOOD, headers="Content-Type: text/xml\r\nContent-Type: application/json\r\n"),
    }),
    *[
        Row(34, f"coding {coding}", _encoded(gzip.compress(GOOD), coding), (415,), "content-encoding", records=1)
        for coding in ("br", "gzip, gzip", "identity, gzip", "gzip\r\nContent-Encoding: gzip")
    ],
    Row(35, "64 KiB that inflate to 64 MiB", _bomb, (413,), "inflates to more", records=1, repeats=FEW),
    *_refused(36, "gzip", {
        "no gzip at all": _encoded(b"nonsense"),
        "half a gzip": _encoded(gzip.compress(GOOD)[:-9]),
        "a wrong checksum": _encoded(gzip.compress(GOOD)[:-8] + bytes(8)),
        "bytes behind the end": _encoded(gzip.compress(GOOD) + b"x"),
        "two members": _encoded(gzip.compress(GOOD) * 2),
        "deflate called gzip": _encoded(zlib.compress(GOOD)),
    }),
    *_refused(37, "not valid JSON", {
        "bytes that are no UTF-8": infer(GOOD[:-1] + b',"a":"\xff"}'),
        "UTF-16": infer(GOOD.decode().encode("utf-16")),
        "a byte order mark": infer(b"\xef\xbb\xbf" + GOOD),
    }),
    *_refused(38, "", {
        "101 levels": infer(_deep(101)),
        "100 000 levels": lambda: infer(_deep(100_000)),
        "250 000 opening brackets": lambda: infer("[" * 250_000),
        "100 000 levels and NaN": lambda: infer('{"a":' * 100_000 + "NaN"),
    }, repeats=20),
    *_taken(38, {"100 levels": infer(_deep(100))}),
    *_taken(38, {
        "101 brackets in 4 MiB of text": lambda: infer(inputs(extra="[" * 101 + "a" * 2**22)),
        "4 MiB of spaces before the numbers": lambda: _in_data(" " * 2**22 + "1,2,3"),
        "4 MiB of spaces before a text": lambda: infer(GOOD[:-1] + b',"data":[%b"a"]}' % (b" " * 2**22)),
    }, repeats=FEW),
    *_refused(39, "no datatype holds", {
        "5 000 digits": _in_data("9" * 5000 + ",2,3"),
        "10^6 digits": lambda: _in_data("9" * 10**6 + ",2,3"),
    }, repeats=20),
    *_refused(39, "no datatype holds", {
        "10^6 digits and NaN": lambda: _in_data("9" * 10**6 + ",2,NaN"),
    }, repeats=20),
    *_taken(40, {"NaN and infinities in FP32": _in_data("NaN,Infinity,-Infinity")}),
    *_refused(40, "", {
        "NaN in INT64": _in_data("NaN", "ints", "[1]", "INT64"),
        "NaN as id": infer('{"id":NaN,' + GOOD.decode()[1:]),
        "nan": _in_data("nan,2,3"),
        "+Infinity": _in_data("+Infinity,2,3"),
    }),
    *_refused(41, "no datatype holds", {"1e400": _in_data("1e400,2,3"), "1e400 and NaN": _in_data("1e400,2,NaN")}),
    *_refused(42, "twice", {
        "inputs twice": infer('{"inputs":[],' + GOOD.decode()[1:]),
        "name twice": infer(GOOD.replace(b'"name"', b'"name":"x","name"')),
    }),
    *_refused(42, "not valid JSON", {"inputs twice and NaN": infer('{"inputs":[NaN],' + GOOD.decode()[1:])}),
    *_taken(43, {
        "a key nobody knows": infer(inputs(extra={"a": 1})),
        "a parameter nobody knows": infer(inputs(parameters={"extra": 1})),
    }),
    *_refused(44, "keys", {
        "100 000 keys": lambda: infer(inputs(**{f"k{number}": 1 for number in range(100_000)})),
        "100 000 keys of an input": lambda: infer(inputs(tensor(**{f"k{number}": 1 for number in range(100_000)}))),
    }, repeats=FEW),
    *_refused(44, "at most 64 members", {
        "65 parameters": infer(inputs(parameters={f"k{number}": 1 for number in range(65)})),
    }),
    *_refused(45, "", {
        "a lone surrogate": infer('{"id":"\\ud800",' + GOOD.decode()[1:]),
        "a lone surrogate and NaN": infer(b'{"id":"\\ud800",' + GOOD.replace(b"3.0", b"NaN")[1:]),
    }),
    *_refused(46, "printable ASCII", {
        "an id of 1 MiB": lambda: infer(inputs(id="a" * 2**20)),
        **{f"id {value!r}": infer(inputs(id=value)) for value in (1, {}, None, "a\nb", "\x1b[31m", "a\0b", "\u202e")},
    }, repeats=20),
    *_refused(47, "printable ASCII", {"an id of 15 MiB": lambda: infer(inputs(id="a" * 15 * 2**20))}, repeats=FEW),
    Row(47, "an id of 16 MiB", lambda: infer(inputs(id="a" * 2**24)), (413,), closes=True, records=1, repeats=FEW),
    *_taken(48, {"3 999 999 numbers": lambda: _numbers(1_333_333)}, repeats=1),
    *_refused(49, "more than 4000000 elements", {"4 000 002 numbers": lambda: _numbers(1_333_334)}, repeats=1),
]  # fmt: skip

HUGE = 2**60 + 2

TENSORS = [
    *_refused(50, "", {
        "no inputs": infer({}),
        "an empty list of inputs": infer({"inputs": []}),
        "inputs that are no list": infer({"inputs": {}}),
        "65 inputs": infer({"inputs": [tensor()] * 65}),
    }),
    *_refused(51, "'b'", {
        "an input is missing": infer(inputs(tensor(name="a", shape=[1, 2], data=[1, 2])), model="pair")
    }),
    *_refused(51, "", {
        "an input too many": infer(inputs(tensor(), tensor(name="z"))),
        "the same input twice": infer(inputs(tensor(), tensor())),
    }),
    *_refused(52, "'shape'", {
        f"shape {json.dumps(shape)}": infer(inputs(tensor(shape=shape)))
        for shape in ("4", [1.0, 3], [True, 3], [None, 3], [[1], 3], None, {}, 3)
    }),
    *_refused(52, "'shape'", {"no shape": infer(inputs(tensor(shape=...)))}),
    *_refused(53, "integers from 0", {
        f"shape {shape}": infer(inputs(tensor(shape=shape))) for shape in ([-1, 3], [2, -5], [-(2**63), 3])
    }),
    *_refused(54, "", {"elements that wrap to 32": infer(inputs(tensor(shape=[16, HUGE])))}),
    *_refused(55, "", {"bytes that wrap": infer(inputs(tensor(shape=[4, HUGE])))}),
    *_refused(56, "", {"a product of 0 in 64 bits": infer(inputs(tensor(shape=[2**32, 2**32], data=[])))}),
    *_refused(57, "integers from 0", {
        "a huge axis beside an empty one": infer(inputs(tensor(shape=[2**62, 0, 1], data=[])), model="free")
    }),
    *_refused(57, "too many elements", {
        "long axes beside an empty one": infer(inputs(tensor(shape=[2**31 - 1, 0, 2**31 - 1], data=[])), model="free")
    }),
    *_refused(57, "rows without elements in them, more than 1024", {
        "60 million empty rows": infer(inputs(tensor(shape=[60_000_000, 0, 1], data=[])), model="free"),
        "1025 empty rows in binary": binary(inputs(raw_input(0, shape=[1025, 0, 1])), model="free"),
    }),
    *_taken(58, {
        "no rows": infer(inputs(tensor(shape=[0, 3], data=[]))),
        **{
            f"no elements in {shape}": infer(inputs(tensor(shape=shape, data=[])), model="free")
            for shape in ([0, 224, 224], [1, 0, 1], [5, 0, 1], [1024, 0, 3])
        },
    }),
    *_refused(59, "", {
        "rank 9": infer(inputs(tensor(shape=[1] * 9, data=[1]))),
        "rank 100": infer(inputs(tensor(shape=[1] * 100, data=[1]))),
        "rank 0 where 2 is declared": infer(inputs(tensor(shape=[], data=[1]))),
    }),
    *_taken(59, {"rank 0 where it is declared": infer(inputs(tensor(shape=[], data=[1])), model="scalar")}),
    *_refused(60, "", {
        "a huge shape of one number": infer(inputs(tensor(shape=[1000, 1000, 1000], data=[1])), model="free"),
        "a large shape of one number": infer(inputs(tensor(shape=[100, 100, 100], data=[1])), model="free"),
    }),
    *_refused(61, "", {
        "too many numbers": infer(inputs(tensor(data=[1, 2, 3, 4]))),
        "too few numbers": infer(inputs(tensor(data=[1, 2]))),
        "ragged lists": infer(inputs(tensor(shape=[2, 3], data=[[1, 2, 3], [4, 5]]))),
        "a list in the place of a number": infer(inputs(tensor(data=[[], 2, 3]))),
        "lists beside numbers": infer(inputs(tensor(data=[[1, 2, 3], 4]))),
        "a list behind numbers": infer(inputs(tensor(data=[1, 2, [3]]), outputs=[{"name": "y"}])),
        "no number in a list behind numbers": infer(inputs(tensor(data=[1, [], [2, 3]]), id="1")),
        "nested otherwise than its shape": infer(inputs(tensor(shape=[2, 3], data=[[1, 2], [3, 4], [5, 6]]))),
        "an object": infer(inputs(tensor(data={}))),
    }),
    *_refused(62, "", {
        f"datatype {kind!r}": infer(inputs(tensor(datatype=kind)))
        for kind in ("FP31", "fp32", ..., "BF16", None, 1, [])
    }),
    *_refused(62, "via JSON is not supported", {
        "FP16 in JSON": infer(inputs(tensor(datatype="FP16", shape=[3])), model="half")
    }),
    *_refused(63, "'FP64', but model 'm' expects 'FP32'", {"another datatype": infer(inputs(tensor(datatype="FP64")))}),
    *_refused(64, "no FP32", {
        data: _in_data(data) for data in ("null,2,3", "null,2,NaN", "null,null,null")
    }),
    *_refused(65, "no FP32", {text: _in_data(f"{text},2,3") for text in ('"1.5"', '"nan"', "true", "{}")}),
    *_refused(65, "no INT64", {
        text: _in_data(text, "ints", "[1]", "INT64") for text in ("1.9", "1.0", "1e3", "true", "null")
    }),
    *_refused(65, "no BOOL", {text: _in_data(text, "flags", "[1]", "BOOL") for text in ("2", "1", '"false"', "null")}),
    *_refused(66, "UINT8", {text: _in_data(text, "octets", "[1]", "UINT8") for text in ("300", "256", "-1", "1.5")}),
    *_refused(66, "", {text: _in_data(text, "ints", "[1]", "INT64") for text in (str(2**63), str(-(2**63) - 1))}),
    *_refused(67, "out of range for FP32", {text: _in_data(f"{text},2,3") for text in ("1e39", "-1e39", "3.5e38")}),
    *_taken(68, {"16777217 is rounded": _in_data("16777217,2,3")}),
    *_taken(69, {"NaN in raw bytes": binary(inputs(raw_input(12)), b"\x00\x00\xc0\x7f" * 3)}),
    *_taken(70, {"a model that answers NaN": _in_data("1", "nan", "[1]")}),
    *_refused(75, "output", {
        "an output nobody knows": infer(inputs(outputs=[{"name": "q"}])),
        "the same output twice": infer(inputs(outputs=[{"name": "y"}] * 2)),
        "10 000 outputs": infer(inputs(outputs=[{"name": "y"}] * 10_000)),
    }),
]  # fmt: skip

ROW = b"\x00\x00\x80\x3f" * 3


def _texts(block: bytes, *, count: int = 1) -> bytes:
    return binary(inputs(raw_input(len(block), shape=[count], datatype="BYTES")), block, model="texts")


BINARY = [
    *_refused(76, "in range", {"a length of 99999999999": binary(inputs(raw_input(12)), ROW, length=99999999999)}),
    *_refused(77, "Unable to parse", {
        f"length {said!r}": binary(inputs(raw_input(12)), ROW, length=said)
        for said in ("-5", "+5", "5.0", "0x5", "1_0", "\xb2", "", "5 5", "9" * 20)
    }),
    *_refused(77, "Unable to parse", {
        "two lengths": infer(GOOD, headers="Inference-Header-Content-Length: 5\r\n" * 2),
    }),
    *_refused(78, "", {
        "a length beyond the body": binary(inputs(raw_input(12)), ROW, length=5000),
        "JSON where a raw tensor was said to be": infer(GOOD, headers="Inference-Header-Content-Length: 0\r\n"),
        "a length that cuts a character": binary(b'{"id":"\xc3\xa9"}', length=8),
    }),
    *_refused(79, "", {"bytes that no input takes": binary(inputs(), b"abcde")}),
    *_refused(80, "binary_data_size", {
        f"size {json.dumps(size)}": binary(inputs(raw_input(size)), ROW) for size in (-1, -(2**63), 12.0, "12", True)
    }),
    *_refused(80, "", {
        "size 2^63": binary(inputs(raw_input(2**63)), ROW),
        "size null": binary(inputs(raw_input(None)), ROW),
        "no size and no data": binary(inputs(tensor(data=...)), ROW),
    }),
    *_refused(81, "", {
        "sizes beyond the end": binary(inputs(raw_input(24, shape=[2, 3])), ROW),
        "sizes short of the end": binary(inputs(raw_input(12)), ROW + ROW),
        "two inputs on the bytes of one": binary(
            inputs(raw_input(8, name="a", shape=[1, 2]), raw_input(8, name="b", shape=[1, 2])), ROW[:8], model="pair"
        ),
    }),
    *_refused(82, "Expected 12, got 13", {"no multiple of an element": binary(inputs(raw_input(13)), ROW + b"x")}),
    *_refused(82, "Expected 12, got 24", {"another size than the shape's": binary(inputs(raw_input(24)), ROW * 2)}),
    *_refused(83, "only one", {
        "data and raw bytes": binary(inputs(tensor(parameters={"binary_data_size": 12})), ROW),
    }),
    *_refused(84, "", {
        "a string of 2^32-1 bytes": _texts(b"\xff\xff\xff\xffabc"),
        "a string beyond the end": _texts(b"\x04\x00\x00\x00abc"),
        "three bytes of a length": _texts(b"\x00\x00\x00"),
        "fewer strings than the shape": _texts(b"\x00\x00\x00\x00", count=2),
        "more strings than the shape": _texts(b"\x00\x00\x00\x00" * 2),
        "a shape of 2^26 strings": _texts(b"\x00\x00\x00\x00", count=2**26),
    }),
    *_taken(85, {
        "an empty string": _texts(b"\x00\x00\x00\x00"),
        "NUL and control characters": _texts(b"\x05\x00\x00\x00a\x00\n\x1b["),
    }),
    *_refused(85, "not UTF-8", {"a string that is no UTF-8": _texts(b"\x02\x00\x00\x00\xff\xfe")}),
    *_refused(86, "expected 0 or 1", {
        "a BOOL of 2": binary(inputs(raw_input(2, shape=[2], datatype="BOOL")), b"\x01\x02", model="flags")
    }),
    *_refused(87, "must only have 1 input", {"raw, of two inputs": binary(b"", ROW, length=0, model="pair")}),
    *_refused(87, "can not be deduced", {"raw, of three free axes": binary(b"", ROW, length=0, model="free")}),
    *_refused(88, "in range", {
        "a length of 9999999 of a gzip": infer(
            gzip.compress(GOOD), headers="Content-Encoding: gzip\r\nInference-Header-Content-Length: 9999999\r\n"
        )
    }),
]  # fmt: skip


def _unknown(number: int, names: Sequence[str]) -> list[Row]:
    rows = []
    for name in names:
        rows.append(Row(number, f"GET {name}", get(f"/v2/models/{name}"), (404,)))
        rows.append(Row(number, f"POST {name}", post(path=f"/v2/models/{name}/infer"), (404,)))
    return rows


NAMES = [
    *_unknown(89, ("..", "%2e%2e", "a%2fb", "/etc/passwd", "%20..", "a/../b", "con", ".hidden", "__proto__")),
    *_unknown(90, ("a%00b", "a%0d%0ab", "a%ffb", "n" * 3900, "%e2%80%aem", "%d0%bc", "m%20", "M")),
    *_closed(90, 400, "", {"a name with bytes that are no ASCII": get("/v2/models/a").replace(b"/a ", b"/\xff ")}),
    *[
        Row(91, f"version {said}", post(path=f"/v2/models/m/versions/{said}/infer"), (404,))
        for said in ("01", "+1", "1.0", "-1", "1e3", "18446744073709551616", "latest", "%31", "1%00", "0")
    ],
    *[
        Row(93, f"User-Agent {said[:12]!r}", get("/v2/models/none", headers=f"User-Agent: {said}\r\n"), (404,))
        for said in ("a%0d%0aHTTP/1.1 200", '{"level":"error","text":"forged"}', "\xff\xfe", "%s%n{0}")
    ],
    *_closed(93, 400, "not valid HTTP/1.1", {
        "User-Agent with ESC": get("/v2/models/none", headers="User-Agent: \x1b[31m\r\n")
    }),
    *_taken(94, {
        f"traceparent {said[:12]!r}": post(headers=f"traceparent: {said}\r\n")
        for said in ("nonsense", "", "0" * 10_240)
    }),
    *_closed(95, 431, "", {
        "a key of 1 MiB": lambda: post(headers=f"Gateway-Routing-Key: {'k' * 2**20}\r\n"),
    }, repeats=FEW),
    *_refused(95, "Gateway-Routing-Key", {
        "a key of 1025 bytes": post(headers=f"Gateway-Routing-Key: {'k' * 1025}\r\n"),
    }),
    *_refused(96, "timeout", {
        f"timeout {json.dumps(said)}": infer(inputs(parameters={"timeout": said}))
        for said in (-1, "abc", 1.5, True, 1e300)
    }),
    *_taken(96, {"timeout 10^12": infer(inputs(parameters={"timeout": 10**12}))}),
    *_refused(96, "Gateway-Timeout-Ms", {
        f"Gateway-Timeout-Ms {said}": post(headers=f"Gateway-Timeout-Ms: {said}\r\n")
        for said in ("-1", "0", "1000000000000", "abc", "1.5", "\xb2", "")
    }),
    *_taken(97, {"X-Forwarded-For of this machine": post(headers="X-Forwarded-For: 127.0.0.1\r\n")}),
    *_closed(97, 400, "Host", {"a Host beside X-Forwarded-Host": _head("X-Forwarded-Host: a", host="")}),
]  # fmt: skip

ROWS = [*TRANSPORT, *ENCODING, *TENSORS, *BINARY, *NAMES]

_SLOW, _ENGINES = "tests/hostile/test_slow_clients.py", "tests/hostile/test_engines.py"

ELSEWHERE = [
    Elsewhere(1, _SLOW, "test_a_silent_client", "needs time"),
    Elsewhere(2, _SLOW, "test_a_head_in_drops", "needs time"),
    Elsewhere(3, _SLOW, "test_half_a_body", "needs time"),
    Elsewhere(4, _SLOW, "test_a_body_in_drops", "needs time"),
    Elsewhere(5, _SLOW, "test_a_client_that_does_not_read", "needs time"),
    Elsewhere(6, _SLOW, "test_more_connections_than_may_be", "needs many connections"),
    Elsewhere(29, _SLOW, "test_clients_that_leave_before_the_answer", "the client closes"),
    Elsewhere(30, _SLOW, "test_clients_that_reset_within_a_body", "the client resets"),
    Elsewhere(71, _ENGINES, "test_an_input_that_crashes_the_runtime", "needs a real engine"),
    Elsewhere(72, _ENGINES, "test_an_output_of_a_tebibyte", "needs a real engine"),
    Elsewhere(73, _ENGINES, "test_a_run_that_asks_for_two_gibibytes", "needs a real engine"),
    Elsewhere(74, _ENGINES, "test_a_value_that_makes_a_loop_run_for_hours", "needs a real engine"),
    Elsewhere(92, "tests/hostile/test_table.py", "test_two_thousand_unknown_names", "needs many names"),
]
