"""Writes `docs/schemas/*.json` from the records: `python docs/write_schemas.py`."""

from __future__ import annotations

from pathlib import Path

from gateway.events.schema import SCHEMA_NAMES, schema_text

if __name__ == "__main__":
    folder = Path(__file__).parent / "schemas"
    folder.mkdir(exist_ok=True)
    for kind, name in SCHEMA_NAMES.items():
        (folder / f"{name}.json").write_text(schema_text(kind), encoding="utf-8")
