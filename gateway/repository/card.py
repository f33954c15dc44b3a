"""`card.md`: the short model card that is written when none is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.repository.lineage import Lineage
from gateway.repository.manifest import Batching

__all__ = ("write_card",)


def write_card(
    model: str,
    version: int,
    *,
    description: str,
    signature: Signature,
    columns: Mapping[str, tuple[str, ...]],
    batching: Batching,
    lineage: Lineage,
) -> str:
    """A model card in Markdown: what it takes and gives, what it was trained on, how well it did.

    Headings follow M. Mitchell et al., "Model Cards for Model Reporting", 2019, as far as the lineage knows.
    """
    data, reference = lineage.data, lineage.reference
    parts = [
        f"# {model}, version {version}",
        description,
        _table(
            "Model details",
            {
                "Author": lineage.author,
                "Created": lineage.created,
                "Takes over from": f"version {lineage.parent}" if lineage.parent else None,
                "Source": lineage.source.commit and lineage.source.commit + (" (dirty)" * bool(lineage.source.dirty)),
                "Framework": ", ".join(f"{name} {version}" for name, version in sorted(lineage.framework.items())),
            },
        ),
        _table(
            "Inputs and outputs",
            {f"Input `{spec.name}`": _tensor(spec, columns) for spec in signature.inputs}
            | {f"Output `{spec.name}`": _tensor(spec, columns) for spec in signature.outputs}
            | {"Rows in one run": f"{batching.verdict}: {batching.reason}"},
        ),
        _table(
            "Training data",
            {
                "Where": data.uri,
                "SHA-256": data.sha256,
                "Rows": data.rows,
                "Time span": f"{data.start} to {data.end}" if data.start and data.end else None,
                "Reference rows": reference and f"{reference.rows} of `{reference.name}`, SHA-256 {reference.sha256}",
            },
        ),
        _table("Hyperparameters", lineage.hyperparameters),
        _table("Metrics", lineage.metrics),
        f"## Notes\n\n{lineage.notes}" if lineage.notes else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(title: str, rows: Mapping[str, Any]) -> str:
    known = {name: value for name, value in rows.items() if value not in (None, "")}
    if not known:
        return ""
    lines = [f"| {name} | {_cell(value)} |" for name, value in known.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _tensor(spec: TensorSpec, columns: Mapping[str, tuple[str, ...]]) -> str:
    shape = ", ".join("any" if axis < 0 else str(axis) for axis in spec.shape)
    named = columns.get(spec.name, ())
    return f"{spec.datatype} [{shape}]" + (f": {', '.join(named)}" if named else "")
