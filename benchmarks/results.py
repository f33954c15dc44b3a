"""Leaves a run in a folder: table, values, plots."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.cases import Series
from benchmarks.load import can_go_first
from benchmarks.plots import Bar, Line, bars, lines
from benchmarks.ratios import judge
from benchmarks.run import Depth, Outcome
from benchmarks.tables import as_json, as_markdown, median_of

__all__ = ("write_results",)

_OURS = ("uvicorn", "uvloop", "httptools", "onnxruntime", "numpy", "orjson")
_GROWING = {"rows": "rows in a request", "connections": "connections"}


def write_results(outcome: Outcome, folder: Path, *, suite: str, command: str, depth: Depth) -> list[Path]:
    """Write `<suite>.md`, `<suite>.json` and the plots; returns what was written, the table first."""
    folder.mkdir(parents=True, exist_ok=True)
    verdicts, machine = judge(outcome.series), _machine()
    text = as_markdown(outcome, verdicts, command=command, depth=depth, machine=_described(machine))
    drawn = _plots(outcome.series)
    named = {f"{suite}-{name}.svg": plot for name, plot in drawn.items()}
    text += "".join(f"\n![{name}]({name})\n" for name in named)
    values = as_json(outcome, verdicts, command=command, depth=depth, machine=machine)
    files = {f"{suite}.md": text, f"{suite}.json": json.dumps(values, indent=1) + "\n", **named}
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in files]


def _plots(series: Sequence[Series]) -> dict[str, str]:
    drawn: dict[str, str] = {}
    for stage, group in groupby(series, key=lambda each: each.stage):
        in_stage = list(group)
        if stage in _GROWING:
            drawn[stage] = _growing(stage, in_stage)
            continue
        for (workload, connections), case in groupby(in_stage, key=lambda each: (each.workload, each.connections)):
            title = f"{stage}: requests a second, {workload}, connections: {connections}"
            drawn[f"{stage}-{workload}-{connections}".replace(" ", "-")] = bars(title, [_bar(each) for each in case])
    return drawn


def _growing(stage: str, series: Sequence[Series]) -> str:
    curves: dict[str, list[tuple[float, float]]] = {}
    for each in series:
        x = each.rows if stage == "rows" else each.connections
        curves.setdefault(each.server, []).append((x, max(0.1, median_of(each, lambda one: one.cpu_us))))
    drawn = [Line(server, points) for server, points in curves.items()]
    return lines(f"CPU of a request against {_GROWING[stage]}", drawn, across=_GROWING[stage], up="CPU us a request")


def _bar(series: Series) -> Bar:
    rates = [each.load.rate for each in series.rounds]
    ours = series.server.startswith("gateway")
    return Bar(series.server, median_of(series, lambda one: one.load.rate), min(rates), max(rates), ours=ours)


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_goes_first": can_go_first(),
        "ours": {name: version(name) for name in _OURS},
        "peers": {path.stem: _pinned(path) for path in sorted((Path(__file__).parent / "peers").glob("*.txt"))},
    }


def _described(machine: dict[str, Any]) -> str:
    ours = ", ".join(f"{name} {number}" for name, number in machine["ours"].items())
    peers = ", ".join(f"{name} {number}" for name, number in machine["peers"].items())
    load = (
        "" if machine["load_goes_first"] else " The load may not go first: latencies hold what it waited for its core."
    )
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}; {ours}; "
        f"peers: {peers}.{load}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _pinned(requirements: Path) -> str:
    for line in requirements.read_text().splitlines():
        name, _, number = line.partition("==")
        if name == requirements.stem:
            return number.split()[0]
    return ""
