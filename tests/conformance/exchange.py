"""One HTTP exchange with the server under test, and request bodies in the protocol's two forms."""

from __future__ import annotations

import http.client
import json
import struct
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

__all__ = ("HEADER_LENGTH", "Answer", "Request", "binary", "floats", "infer", "strings", "tensor")

HEADER_LENGTH = "Inference-Header-Content-Length"
SECONDS = 30.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """What is sent. `body` is bytes as they are, or JSON."""

    method: str
    path: str
    body: bytes | Json | None = None
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False

    def send(self, url: str) -> Answer:
        """Exchange it with the server at `url` on a connection of its own."""
        at = urlsplit(url)
        connection = http.client.HTTPConnection(at.hostname or "127.0.0.1", at.port or 80, timeout=SECONDS)
        content = json.dumps(self.body).encode() if isinstance(self.body, dict) else self.body
        pieces: Any = content
        if self.chunked and content:
            pieces = [content[start : start + 11] for start in range(0, len(content), 11)]
        try:
            connection.request(
                self.method, at.path.rstrip("/") + self.path, pieces, self.headers, encode_chunked=self.chunked
            )
            got = connection.getresponse()
            return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        finally:
            connection.close()


@dataclass(frozen=True)
class Answer:
    """What came back; header names are in lower case."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """The JSON of the answer: all of it, or what stands before the binary tensors."""
        return json.loads(self.content[: self.json_bytes])

    @property
    def json_bytes(self) -> int:
        return int(self.headers.get(HEADER_LENGTH.lower(), len(self.content)))

    def output(self, name: str) -> Json:
        """One output, which must be there once."""
        found = [output for output in self.json["outputs"] if output["name"] == name]
        assert len(found) == 1, f"{len(found)} outputs are called {name}"
        return dict(found[0])

    def raw(self, name: str) -> bytes:
        """The bytes of one binary output."""
        start = self.json_bytes
        for output in self.json["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if output["name"] == name:
                assert isinstance(size, int), f"output {name} is not binary: {output}"
                return self.content[start : start + size]
            start += size or 0
        raise AssertionError(f"there is no output {name}")


def tensor(name: str, datatype: str, shape: list[int], data: list[Any], **parameters: Any) -> Json:
    """An input in JSON."""
    made = {"name": name, "shape": shape, "datatype": datatype, "data": data}
    return {**made, "parameters": parameters} if parameters else made


def infer(model: str, *inputs: Json, version: int | None = None, **rest: Any) -> Request:
    """An inference in JSON; `rest` are further keys of the body."""
    path = f"/v2/models/{model}/infer" if version is None else f"/v2/models/{model}/versions/{version}/infer"
    return Request("POST", path, {**rest, "inputs": list(inputs)}, {"Content-Type": "application/json"})


def binary(model: str, *inputs: tuple[str, str, list[int], bytes] | Json, tail: bytes = b"", **rest: Any) -> Request:
    """An inference whose inputs (name, datatype, shape, bytes) are binary; those in JSON may stand between them."""
    described, blocks = [], []
    for given in inputs:
        if isinstance(given, dict):
            described.append(given)
            continue
        name, datatype, shape, block = given
        size = {"binary_data_size": len(block)}
        described.append({"name": name, "datatype": datatype, "shape": shape, "parameters": size})
        blocks.append(block)
    head = json.dumps({**rest, "inputs": described}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return Request("POST", f"/v2/models/{model}/infer", head + b"".join(blocks) + tail, headers)


def floats(*values: float) -> bytes:
    """FP32 as bytes."""
    return struct.pack(f"<{len(values)}f", *values)


def strings(*values: bytes) -> bytes:
    """BYTES as bytes: each with its length before it."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)
