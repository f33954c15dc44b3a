"""The console: one read-only page, made on the server, with nothing from elsewhere and no script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from gateway.control.told import told_change

__all__ = ("STYLE", "page")

REFRESH_SECONDS = 5

STYLE = """\
:root { color-scheme: light dark; --line: #8884; --dim: #888; --bar: #2a7de1; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 500; }
td { white-space: nowrap; }
td.text { min-width: 6rem; max-width: 28rem; overflow-wrap: anywhere; white-space: pre-wrap; }
progress { width: 8rem; accent-color: var(--bar); }
.bad { color: #c33; } .good { color: #2a8f4f; } .dim { color: var(--dim); }
@media (max-width: 62rem) {
  tr:first-child, td:empty { display: none; }
  table, tbody { display: block; }
  tr { border-bottom: 1px solid var(--line); display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr));
    padding: .4rem 0; }
  td, td.text { border: 0; max-width: none; overflow-wrap: anywhere; white-space: pre-wrap; }
  td { padding: .1rem 0 .1rem 5rem; }
  td[data-head="why"] { grid-column: 1 / -1; }
  td::before { color: var(--dim); content: attr(data-head); float: left; margin-left: -5rem; }
}
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


class _Cell(NamedTuple):
    html: str
    look: str = ""  # class of the cell


def page(models: Sequence[Any], rollouts: Sequence[Any], decisions: Sequence[Any], *, seen: Mapping[str, Any]) -> str:
    """The whole page. The arguments are the lists that the API gives for them, and what the monitor sees, by model."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="{REFRESH_SECONDS}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gateway</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/console.css">
</head>
<body>
<h1>Inference gateway</h1>
<h2>Models and traffic</h2>
{_table(("model", "version", "status", "engine", "arm", "traffic", "digest"), map(_version, _versions(models)))}
<h2>Quality and alarms</h2>
{_table(("model", "version", "labels", "miss rate", "alarms"), _watched(seen))}
<h2>Rollouts</h2>
{_table(("model", "stable", "canary", "phase", "step", "weight", "id"), map(_rollout, rollouts))}
<h2>Last decisions</h2>
{_table(("time", "model", "what", "change", "who", "why"), map(_decision, reversed(decisions)))}
<p class="dim">Read only; `gateway --help` lists what changes things. The API is described at
<a href="/openapi.json">/openapi.json</a>.</p>
</body>
</html>
"""


def _versions(models: Iterable[Any]) -> list[Any]:
    return [version for model in models for version in model["versions"]]


def _version(version: Any) -> list[_Cell]:
    weight = float(version["weight"])
    traffic = f'<progress max="100" value="{weight:g}"></progress> {weight:g}\u00a0%' if version["arm"] else ""
    return [
        _text(version["model"]),
        _text(version["version"]),
        _toned(version["status"]),
        _engine(version["engine"]),
        _text(version["arm"] or ""),
        _Cell(traffic),
        _text(version["digest"][:19]),
    ]


def _engine(engine: Any) -> _Cell:
    state = _toned(engine["state"])
    return _Cell(f"{state.html}: {escape(engine['reason'])}", f"{state.look} text") if engine["reason"] else state


def _watched(seen: Mapping[str, Any]) -> Iterator[list[_Cell]]:
    for model, watched in sorted(seen.items()):
        for version, watch in watched["versions"].items():
            quality = watch["quality"]
            has_rate = quality["rows"] and quality["miss_rate"] is not None
            # The newest come first: of each detector the last one stays, however many of others followed.
            since: dict[str, str] = {}
            for alarm in watched["alarms"]:
                if str(alarm["version"]) == version:
                    since.setdefault(alarm["detector"], alarm["since"])
            yield [
                _text(model),
                _text(version),
                _text(quality["rows"]),
                _text(f"{quality['miss_rate']:.1%}".replace("%", "\u00a0%") if has_rate else ""),
                _text("; ".join(f"{detector} since {time}" for detector, time in since.items()), "text"),
            ]


def _rollout(rollout: Any) -> list[_Cell]:
    steps = len(rollout["steps"])
    return [
        _text(rollout["model"]),
        _text(rollout["stable"]),
        _text(rollout["canary"]),
        _toned(rollout["phase"]),
        _text(f"{rollout['step'] + 1} of {steps}"),
        _text(f"{rollout['weight']:g}\u00a0%"),
        _text(rollout["id"]),
    ]


def _decision(decision: Any) -> list[_Cell]:
    return [
        _text(decision["time"]),
        _text(decision["model"]),
        _text(decision["kind"]),
        _text(told_change(decision["before"], decision["after"]), "text"),
        _text(decision["actor"], "text"),
        _text(decision["reason"], "text"),
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[_Cell]]) -> str:
    lines = ["<tr>" + "".join(_td(*pair) for pair in zip(heads, row, strict=True)) + "</tr>" for row in rows]
    if not lines:
        return '<p class="dim">None yet.</p>'
    head = "<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    return '<div class="wide"><table>\n' + "\n".join([head, *lines]) + "\n</table></div>"


def _td(head: str, cell: _Cell) -> str:
    # The head stands beside the cell where the window is narrow.
    look = f' class="{cell.look}"' if cell.look else ""
    return f'<td{look} data-head="{head}">{cell.html}</td>'


def _toned(word: str) -> _Cell:
    return _Cell(escape(word.replace("_", " ")), _TONE.get(word, "dim"))


def _text(value: object, look: str = "") -> _Cell:
    return _Cell(escape(str(value)), look)
