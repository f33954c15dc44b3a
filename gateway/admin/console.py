"""The console: one read-only page, made on the server, with nothing from elsewhere and no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

__all__ = ("STYLE", "page")

REFRESH_SECONDS = 5

STYLE = """\
:root { color-scheme: light dark; --line: #8884; --dim: #888; --bar: #2a7de1; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 500; }
td.text { max-width: 28rem; overflow-wrap: anywhere; white-space: pre-wrap; }
progress { width: 8rem; accent-color: var(--bar); }
.bad { color: #c33; } .good { color: #2a8f4f; } .dim { color: var(--dim); }
"""

_TONE = {
    "approved": "good",
    "rejected": "bad",
    "ready": "good",
    "failed": "bad",
    "circuit_open": "bad",
    "promoted": "good",
    "rolled_back": "bad",
}


def page(models: Sequence[Any], rollouts: Sequence[Any], decisions: Sequence[Any]) -> str:
    """The whole page. The arguments are the lists that the API gives for them."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="{REFRESH_SECONDS}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gateway</title>
<link rel="stylesheet" href="/console.css">
</head>
<body>
<h1>Inference gateway</h1>
<h2>Models and traffic</h2>
{_table(("model", "version", "status", "engine", "arm", "traffic", "digest"), map(_version, _versions(models)))}
<h2>Rollouts</h2>
{_table(("model", "stable", "canary", "phase", "step", "weight", "id"), map(_rollout, rollouts))}
<h2>Last decisions</h2>
{_table(("time", "model", "what", "who", "why"), map(_decision, reversed(decisions)))}
<p class="dim">Read only; `gateway --help` lists what changes things. The API is described at
<a href="/openapi.json">/openapi.json</a>.</p>
</body>
</html>
"""


def _versions(models: Iterable[Any]) -> list[Any]:
    return [version for model in models for version in model["versions"]]


def _version(version: Any) -> list[str]:
    weight = float(version["weight"])
    traffic = f'<progress max="100" value="{weight:g}"></progress> {weight:g} %' if version["arm"] else ""
    engine = version["engine"]
    return [
        _text(version["model"]),
        _text(version["version"]),
        _toned(version["status"]),
        _toned(engine["state"]) + (f" {_text(engine['reason'])}" if engine["reason"] else ""),
        _text(version["arm"] or ""),
        f"<td>{traffic}</td>",
        _text(version["digest"][:19]),
    ]


def _rollout(rollout: Any) -> list[str]:
    steps = len(rollout["steps"])
    return [
        _text(rollout["model"]),
        _text(rollout["stable"]),
        _text(rollout["canary"]),
        _toned(rollout["phase"]),
        _text(f"{rollout['step'] + 1} of {steps}"),
        _text(f"{rollout['weight']:g} %"),
        _text(rollout["id"]),
    ]


def _decision(decision: Any) -> list[str]:
    return [_text(decision[name]) for name in ("time", "model", "kind", "actor")] + [
        f'<td class="text">{escape(decision["reason"])}</td>'
    ]


def _table(heads: Sequence[str], rows: Iterable[list[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    lines += ["<tr>" + "".join(row) + "</tr>" for row in rows]
    if len(lines) == 1:
        return '<p class="dim">None yet.</p>'
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _toned(word: str) -> str:
    return f'<td class="{_TONE.get(word, "dim")}">{escape(word.replace("_", " "))}</td>'


def _text(value: object) -> str:
    return f"<td>{escape(str(value))}</td>"
