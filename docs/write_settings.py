"""Writes docs/settings.md from the settings tree and the policy of a model: `python docs/write_settings.py`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.repository import policy
from gateway.settings import Settings

PLACE = Path(__file__).with_name("settings.md")

HEAD = """# Settings

Written by `docs/write_settings.py` from `gateway/settings.py` and `gateway/repository/policy.py`.

## The gateway: `gateway.toml`, or the environment

A key of section `server` is `GATEWAY_SERVER__FRONTS` in the environment, which wins over the file; flags of
`gateway serve` win over both. An unknown key or a wrong value stops the start, with the key, the value and what is
allowed.
"""

POLICY_HEAD = """
## A model: `models/<name>/model.toml`

Read when a process starts or the file changes; `gateway check` says what is wrong with it, and what it names that no
version of the model has. An action is one of `alert`, `pause`, `rollback`, `retrain`.
"""


def settings_page() -> str:
    """The whole page."""
    lines = [HEAD]
    top = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += [f"### `[{name}]`", "", *_table(field.annotation.model_fields), ""]
        else:
            top.append((name, field))
    lines[1:1] = ["### At the top", "", *_table(dict(top)), ""]
    lines.append(POLICY_HEAD)
    for name, field in ((each.name, each) for each in msgspec.structs.fields(policy.ModelPolicy)):
        kind = field.type if not get_args(field.type) else get_args(field.type)[0]
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            title = f"### `[[{name}]]`" if get_args(field.type) else f"### `[{name}]`"
            lines += [title, "", inspect.getdoc(kind) or "", "", *_struct_table(kind), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| key | default | allowed | |", "|---|---|---|---|"]
    for name, field in fields.items():
        rows.append(f"| `{name}` | `{_shown(field.default)}` | {_allowed(field)} | {field.description or ''} |")
    return rows


def _struct_table(kind: type[msgspec.Struct]) -> list[str]:
    rows = ["| key | default | allowed |", "|---|---|---|"]
    info = msgspec.inspect.type_info(kind)
    for field in info.fields if isinstance(info, msgspec.inspect.StructType) else ():
        default = "required" if field.required else f"`{_shown(field.default)}`"
        rows.append(f"| `{field.encode_name}` | {default} | {_allowed_in(field.type)} |")
    return rows


def _allowed_in(kind: msgspec.inspect.Type) -> str:
    if isinstance(kind, msgspec.inspect.VarTupleType):
        each = _allowed_in(kind.item_type)
        return f"each {each}" if each else ""
    if isinstance(kind, msgspec.inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    signs = ((">=", "ge"), (">", "gt"), ("<=", "le"), ("<", "lt"))
    bounds = [(sign, getattr(kind, name, None)) for sign, name in signs]
    return ", ".join(f"{sign} {bound:,}".replace(",", " ") for sign, bound in bounds if bound is not None)


def _allowed(field: FieldInfo) -> str:
    if get_origin(field.annotation) is not None and not isinstance(field.annotation, type):
        choices = [f"`{choice}`" for choice in get_args(field.annotation)]
        return ", ".join(choices)
    bounds = []
    for rule in field.metadata:
        for sign, kind in ((">=", Ge), (">", Gt), ("<=", Le), ("<", Lt)):
            if isinstance(rule, kind):
                bounds.append(f"{sign} {_bound(rule):,}".replace(",", " "))
    return ", ".join(bounds)


def _bound(rule: Any) -> Any:
    return next(getattr(rule, name) for name in ("ge", "gt", "le", "lt") if hasattr(rule, name))


def _shown(value: Any) -> str:
    if isinstance(value, Path | str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value is None or value is msgspec.NODEFAULT else str(value)


if __name__ == "__main__":
    PLACE.write_text(settings_page(), encoding="utf-8")
