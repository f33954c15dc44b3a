"""A run as tables for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from benchmarks.cases import Round, Series
from benchmarks.ratios import Verdict
from benchmarks.run import Depth, Outcome

__all__ = ("as_json", "as_markdown", "median_of")

_HOLDS = {True: "holds", False: "does not hold", None: "not measured"}


def median_of(series: Series, number: Callable[[Round], float]) -> float:
    """The median over a series' rounds."""
    return statistics.median(number(each) for each in series.rounds)


def as_markdown(outcome: Outcome, verdicts: Sequence[Verdict], *, command: str, depth: Depth, machine: str) -> str:
    """The run in Markdown."""
    parts = [
        "# What was measured",
        f"`{command}`: {_count(depth.rounds, 'round')} of {depth.seconds:g} s in turn; medians, and in brackets "
        f"the smallest and the largest round. {machine}",
        _answers(outcome),
        *[f"- {server}: not measured: {_one_line(why)}" for server, why in outcome.skipped],
        *[f"- {server}: {_one_line(what)}" for server, what in outcome.faults],
    ]
    if verdicts:
        parts += ["## Asked and measured", _verdicts(verdicts)]
    for stage, in_stage in groupby(outcome.series, key=lambda each: each.stage):
        parts.append(f"## {stage[0].upper()}{stage[1:]}")
        for (workload, connections), case in groupby(in_stage, key=lambda each: (each.workload, each.connections)):
            parts += [f"### {workload}, {_count(connections, 'connection')}", _case(list(case))]
    return "\n\n".join(parts) + "\n"


def as_json(
    outcome: Outcome, verdicts: Sequence[Verdict], *, command: str, depth: Depth, machine: dict[str, Any]
) -> dict[str, Any]:
    """The run as plain values, every round of it."""
    return {
        "command": command,
        "machine": machine,
        "depth": dataclasses.asdict(depth),
        "answers": {name: getattr(outcome, name) for name in ("checked", "equal", "answered", "logged", "in_flight")},
        "skipped": [{"server": server, "why": why} for server, why in outcome.skipped],
        "faults": [{"server": server, "what": what} for server, what in outcome.faults],
        "ratios": [
            {
                "text": verdict.asked.text,
                "asked": verdict.asked.wording,
                "median": _number(verdict.median),
                "low": _number(verdict.low),
                "high": _number(verdict.high),
                "verdict": _HOLDS[verdict.holds],
            }
            for verdict in verdicts
        ],
        "series": [dataclasses.asdict(each) for each in outcome.series],
    }


def _answers(outcome: Outcome) -> str:
    said = f"{outcome.checked:,} answers were compared with onnxruntime run on each request alone: "
    said += "none was wrong" if not outcome.faults else "see below for what was wrong"
    said += f", {outcome.equal:,} were equal bit for bit."
    if outcome.answered:
        said += (
            f" The gateways answered {outcome.answered:,} requests and {outcome.logged:,} predictions lie in their "
            f"logs; the load ended with at most {outcome.in_flight:,} answers unread."
        )
    return said


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for verdict in verdicts:
        unit = verdict.asked.unit
        form = "{:.0f}" if unit else "{:.2f}"
        measured = "" if verdict.holds is None else form.format(verdict.median) + unit
        spread = "" if verdict.holds is None else f"{form.format(verdict.low)} to {form.format(verdict.high)}"
        rows.append((verdict.asked.text, verdict.asked.wording, measured, spread, _HOLDS[verdict.holds]))
    return _table(("ratio", "asked", "measured", "rounds", "verdict"), rows, left=(0, 1, 4))


def _case(case: Sequence[Series]) -> str:
    rows = []
    for series in case:
        rates = [each.load.rate for each in series.rounds]
        p50, p99 = (median_of(series, measure) for measure in (_p50, _p99))
        rows.append(
            (
                series.server,
                series.placement,
                f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})",
                f"{p50 / 1000:,.2f}",
                f"{p99 / 1000:,.2f}",
                f"{median_of(series, _p99_to_p50):.1f}",
                f"{median_of(series, _cpu):,.0f}",
                f"{median_of(series, _beside):,.0f}",
                f"{series.memory_bytes / 1e6:,.0f}",
            )
        )
    names = ("server", "on", "requests/s", "p50 ms", "p99 ms", "p99/p50", "CPU us", "beside us", "memory MB")
    return _table(names, rows, left=(0, 1))


def _p50(each: Round) -> float:
    return each.load.p50_us


def _p99(each: Round) -> float:
    return each.load.p99_us


def _p99_to_p50(each: Round) -> float:
    return each.load.p99_us / max(each.load.p50_us, 1.0)


def _cpu(each: Round) -> float:
    return each.cpu_us


def _beside(each: Round) -> float:
    return each.beside_us


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[int]) -> str:
    ruler = ["---" if place in left else "---:" for place in range(len(names))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, ruler, *rows))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _number(value: float) -> float | None:
    return None if value != value else round(value, 4)
