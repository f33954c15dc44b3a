"""What may be asked of an answer. Each check asserts, and its text tells what came."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tests.conformance.exchange import Answer

__all__ = (
    "Check",
    "all_of",
    "compressed",
    "data",
    "empty_or_json",
    "error",
    "fields",
    "names",
    "ok",
    "raw",
    "shape",
    "singles",
    "status",
    "value",
)

Check = Callable[[Answer], None]


def all_of(*checks: Check) -> Check:
    def check(answer: Answer) -> None:
        for one in checks:
            one(answer)

    return check


def status(*wanted: int) -> Check:
    def check(answer: Answer) -> None:
        assert answer.status in wanted, f"status {answer.status}, not {wanted}: {answer.content[:300]!r}"

    return check


ok = status(200)


def error(*wanted: int, text: str = "") -> Check:
    """A status of 4xx (or one of `wanted`), and a body `{"error": "..."}` that gives nothing of the inside away."""

    def check(answer: Answer) -> None:
        allowed = wanted or range(400, 500)
        assert answer.status in allowed, f"status {answer.status}: {answer.content[:300]!r}"
        said = answer.json
        assert isinstance(said, dict) and isinstance(said.get("error"), str) and said["error"], said
        assert "Traceback" not in said["error"] and "site-packages" not in said["error"], said
        assert text in said["error"], said

    return check


def value(*path: str | int, equals: Any) -> Check:
    """What stands at a path of the JSON."""

    def check(answer: Answer) -> None:
        ok(answer)
        found = answer.json
        for step in path:
            found = found[step]
        assert found == equals and isinstance(found, type(equals)), f"{path}: {found!r}, not {equals!r}"

    return check


def fields(*path: str | int, **kinds: type | tuple[type, ...]) -> Check:
    """The object at a path has these fields, of these kinds."""

    def check(answer: Answer) -> None:
        ok(answer)
        found = answer.json
        for step in path:
            found = found[step]
        for name, kind in kinds.items():
            assert name in found, f"{path} has no {name}: {found}"
            assert isinstance(found[name], kind), f"{name} is {found[name]!r}"

    return check


def names(*wanted: str) -> Check:
    """The outputs, by name."""

    def check(answer: Answer) -> None:
        ok(answer)
        found = [output["name"] for output in answer.json["outputs"]]
        assert sorted(found) == sorted(wanted), f"outputs {found}, not {wanted}"

    return check


def shape(name: str, wanted: list[int], datatype: str) -> Check:
    def check(answer: Answer) -> None:
        ok(answer)
        output = answer.output(name)
        assert (output["shape"], output["datatype"]) == (wanted, datatype), output

    return check


def data(name: str, wanted: list[Any]) -> Check:
    """The elements of an output in JSON, exactly; nested or flat, the order is row-major either way."""

    def check(answer: Answer) -> None:
        ok(answer)
        found = _flat(answer.output(name)["data"])
        assert found == wanted and [type(x) for x in found] == [type(x) for x in wanted], f"{found} is not {wanted}"

    return check


def singles(name: str, wanted: list[float]) -> Check:
    """The elements of an FP32 output in JSON; digits that single precision cannot tell apart may differ."""

    def check(answer: Answer) -> None:
        ok(answer)
        found = _flat(answer.output(name)["data"])
        packed = [struct.pack(f"<{len(values)}f", *values) for values in (found, wanted)]
        assert packed[0] == packed[1], f"{found} is not {wanted}"

    return check


def raw(name: str, wanted: bytes) -> Check:
    """The bytes of a binary output."""

    def check(answer: Answer) -> None:
        ok(answer)
        assert answer.raw(name) == wanted, f"{answer.raw(name)!r}, not {wanted!r}"

    return check


def compressed(encoding: str, inflate: Callable[[bytes], bytes], then: Check) -> Check:
    """The answer is compressed so, and inflated it passes another check."""

    def check(answer: Answer) -> None:
        ok(answer)
        assert answer.headers.get("content-encoding") == encoding, answer.headers
        then(Answer(answer.status, answer.headers, inflate(answer.content)))

    return check


def empty_or_json(answer: Answer) -> None:
    ok(answer)
    assert not answer.content or answer.json is not None


def _flat(values: Any) -> list[Any]:
    if not isinstance(values, list):
        return [values]
    return [element for value in values for element in _flat(value)]
