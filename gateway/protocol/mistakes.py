"""What msgspec found wrong in a document, in the words of our other errors: the key, and what is allowed there."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import inspect

__all__ = ("told_mistake",)

_PLACED = re.compile(r"(.*) - at (`key` in )?`\$([^`]*)`", re.DOTALL)
_STEP = re.compile(r"\[[^\]]*\]|\.([^.\[]+)")
_FIELD = re.compile(r"(unknown|missing required) field `(.*)`", re.DOTALL)
_VALUE = re.compile(r"Invalid enum value (.*)", re.DOTALL)


def told_mistake(error: Exception, kind: Any) -> str:
    """What is wrong in a document that was read as one of `kind`, where that is what `error` says; else its own text.

    >>> class Limits(msgspec.Struct, forbid_unknown_fields=True):
    ...     rows: int
    >>> for document in (b'{"rows": "x"}', b'{"row": 1}', b"{}"):
    ...     try:
    ...         msgspec.json.decode(document, type=Limits)
    ...     except msgspec.ValidationError as error:
    ...         print(told_mistake(error, Limits))
    rows: expected a whole number
    row: no such key; expected one of rows
    rows is missing
    """
    if not isinstance(error, msgspec.ValidationError):
        return "it ends too early" if "truncated" in str(error) else str(error)
    placed = _PLACED.fullmatch(str(error))
    said, of_key, place = placed.groups() if placed else (str(error), None, "")
    name, found = place.removeprefix(".").replace("[...]", ""), _at(inspect.type_info(kind), place)
    if field := _FIELD.search(said):
        inner = f"{name}.{field[2]}" if name else field[2]
        if field[1] != "unknown":
            return f"{inner} is missing"
        allowed = ", ".join(each.encode_name for each in found.fields) if isinstance(found, inspect.StructType) else ""
        return f"{inner}: no such key" + (f"; expected one of {allowed}" if allowed else "")
    if of_key and isinstance(found, inspect.DictType):
        name, found = f"a key of {name}" if name else "a key", _bare(found.key_type)
    value = _VALUE.match(said)
    return (f"{name} = {value[1]}: " if value else f"{name}: " if name else "") + f"expected {_described(found)}"


def _at(found: inspect.Type, place: str) -> inspect.Type:
    """The type at a path such as `.route.stable` or `.steps[0]`."""
    found = _bare(found)
    for step in _STEP.finditer(place):
        if isinstance(found, inspect.StructType):
            found = next((field.type for field in found.fields if field.encode_name == step[1]), inspect.AnyType())
        elif isinstance(found, inspect.DictType):
            found = found.value_type
        else:
            found = getattr(found, "item_type", inspect.AnyType())
        found = _bare(found)
    return found


def _bare(found: inspect.Type) -> inspect.Type:
    return _bare(found.type) if isinstance(found, inspect.Metadata) else found


def _described(found: inspect.Type) -> str:
    match found:
        case inspect.UnionType():
            return " or ".join(_described(each) for each in map(_bare, found.types) if each != inspect.NoneType())
        case inspect.LiteralType():
            return f"one of {', '.join(map(str, found.values))}"
        case inspect.IntType():
            return "a whole number" + _range(found)
        case inspect.FloatType():
            return "a number" + _range(found)
        case inspect.StrType():
            return "a text" + _length(found)
        case inspect.BoolType():
            return "true or false"
        case inspect.StructType() | inspect.DictType():
            return "keys with values"
    return "a list" if hasattr(found, "item_type") else "another value"


def _range(found: inspect.IntType | inspect.FloatType) -> str:
    low = f" from {found.ge}" if found.ge is not None else f" above {found.gt}" if found.gt is not None else ""
    if found.lt is not None:
        return f"{low} and below {found.lt}" if low else f" below {found.lt}"
    return low if found.le is None else f"{low} to {found.le}" if low else f" up to {found.le}"


def _length(found: inspect.StrType) -> str:
    if found.pattern is not None:
        return f" that matches {found.pattern}"
    if found.max_length is None:
        return ""
    return f" of {f'{found.min_length} to' if found.min_length else 'at most'} {found.max_length} characters"
