"""The demo on one screen: where the story is, who gets the traffic, how good each version is, and what was decided."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gateway.cli.screen import clean
from gateway.demo.chart import axis, bars, mark_row
from gateway.demo.report import finding_of
from gateway.demo.scene import ACTS, Scene

__all__ = ("COLOURS", "draw", "line_of", "told")

COLOURS = {1: "cyan", 2: "green", 3: "magenta"}
SHOWN_DECISIONS = 7
HIGHEST_RATE = 0.8
"""Share of misses at which a bar of the chart is full."""
_BAR_WIDTH = 14
_WIDE = 100
"""Columns from which on nothing is left out."""
_TALL = 29
"""Rows from which on the bars of the chart are two rows high."""
_VERBS = {
    "harm": ("bold yellow", "decays"),
    "retrain_requested": ("yellow", "wants training"),
    "world_changed": ("blue", "the world changed"),
    "drift_alarm": ("blue", "drift"),
    "rollout_started": ("white", "rollout started"),
    "rollout_advanced": ("green", "goes on"),
    "rollout_promoted": ("bold green", "takes over"),
    "rollout_paused": ("yellow", "paused"),
    "rollout_resumed": ("white", "resumed"),
    "rollback": ("bold red", "rolled back"),
    "version_approved": ("white", "approved"),
    "route_set": ("white", "route set"),
}
_HIDDEN = ("version_registered", "warning")
"""Warnings carry no promise and come often; the log has them."""


def draw(scene: Scene, *, width: int, height: int) -> RenderableType:
    """The whole screen, which fits 80 columns and 24 rows.

    Parameters
    ----------
    width, height : int
        Columns and rows there are.
    """
    tall = height >= _TALL
    return Group(
        _head(scene, width),
        _panel("misses a week   ! reported  ▷ on trial  ▲ took over  ▼ rolled back", _chart(scene, width, tall=tall)),
        _panel("evidence, as a share of the line at which it counts", _evidence(scene, width)),
        _panel("decisions", _decisions(scene, width, rows=max(1, min(height - (22 if tall else 19), SHOWN_DECISIONS)))),
        _foot(scene, width),
    )


def line_of(scene: Scene) -> str:
    """The screen as one line, for a log."""
    answers, route = scene.answers, _route_text(scene).plain
    return (
        f"{scene.now[:10] or scene.note}  {route}  answered {answers.answered}, logged {scene.logged}, "
        f"labels {answers.labels}, {scene.pace:.0f} requests/s"
    )


def told(scene: Scene, decision: dict[str, Any]) -> str:
    """One decision as one line, for a log."""
    when = scene.data_time(decision["time"])[:10] or "at the start"
    return clean(f"{when}  {decision['actor']}: {decision['kind']}: {decision['reason']}")


def _panel(title: str, inner: RenderableType) -> Panel:
    return Panel(inner, title=f"[bold]{title}", title_align="left", box=ROUNDED, border_style="dim", padding=(0, 1))


def _head(scene: Scene, width: int) -> RenderableType:
    act = scene.act
    title = (("bike-demand", "bold"), ("  Washington, D.C.   ", "dim")) if width >= _WIDE else ()
    left = Text.assemble(
        *title,
        (scene.now[:10] or "          ", "bold"),
        "   " if title else "  ",
        (f"act {act.number} of {len(ACTS)}: {act.title}" if act else scene.note, "bold yellow"),
    )
    right = Text(f"{time.time() - scene.began:5.1f} s", style="dim")
    pace = Text(f"{scene.pace:.0f} requests/s", style="dim")
    # A bar by itself ends no line.
    progress = Table.grid()
    progress.add_row(ProgressBar(total=max(scene.days_total, 1), completed=scene.days_done, width=width))
    return Group(_apart(left, right), _apart(_route_text(scene), pace), progress)


def _apart(left: Text, right: Text) -> Table:
    line = Table.grid(expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    line.add_column(no_wrap=True, justify="right")
    line.add_row(left, right)
    return line


def _route_text(scene: Scene) -> Text:
    route = scene.route
    if not route:
        return Text("no route yet", style="dim")
    stable, canary, weight = int(route["stable"]), route["canary"], float(route["weight"])
    text = Text.assemble(
        "stable ",
        (f"version {stable}", f"bold {COLOURS.get(stable, 'white')}"),
        f" {100 - weight:g} %",
    )
    if canary is not None:
        text.append("   canary ")
        text.append(f"version {canary}", style=f"bold {COLOURS.get(int(canary), 'white')}")
        text.append(f" {weight:g} %")
    phase = (scene.seen.get("rollout") or {}).get("phase")
    if phase in ("running", "paused", "frozen") and canary is not None:
        text.append(f"   rollout {phase}", style="yellow" if phase != "running" else "dim")
    return text


def _chart(scene: Scene, width: int, *, tall: bool) -> RenderableType:
    label, around = 11, 11
    weeks = scene.weeks
    columns = max(min(width - label - around, len(weeks)), 10)
    rows = []
    for version in COLOURS:
        rates = [scene.answers.weeks.rate(week, version) for week in weeks]
        # A bar that is one row high is the lower half of one twice as high.
        upper, lower = bars(rates, columns, highest=HIGHEST_RATE if tall else 2 * HIGHEST_RATE)
        last = next((rate for rate in reversed(rates) if rate is not None), None)
        shown = "" if last is None else f"{last:5.0%}"
        colour = COLOURS[version]
        if tall:
            rows.append(Text.assemble(" " * label, (upper, colour)))
        serves = version in (scene.route.get("stable"), scene.route.get("canary"))
        known = (shown, "bold" if serves else "dim")
        rows.append(Text.assemble((f"version {version}".ljust(label), colour), (lower, colour), " ", known))
    rows.append(Text(" " * label + mark_row(weeks, columns, scene.marks()), style="bold yellow"))
    rows.append(Text(" " * label + axis(weeks, columns), style="dim"))
    return Group(*rows)


def _evidence(scene: Scene, width: int) -> RenderableType:
    bar_width = max(1, min(_BAR_WIDTH, (width - 18) // 3 - 13))  # beside borders, arm, gaps, name and share
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(no_wrap=True)
    route, versions = scene.seen.get("route") or {}, scene.seen.get("versions") or {}
    for arm in ("stable", "canary"):
        version = route.get(arm)
        watch: dict[str, Any] | None = versions.get(str(version))
        cells: list[RenderableType] = [Text(f"{arm} {version or '–'}", style="bold" if version else "dim")]
        for detector in ("inputs", "outputs", "quality"):
            known = watch["evidence"].get(detector, 0.0) / watch["line"] if watch else None
            cells.append(_bar(detector, known, bar_width, bad=True))
        table.add_row(*cells)
    readings = (scene.seen.get("trial") or {}).get("readings", [])
    shares = {(each["metric"], each["direction"]): _share(each) for each in readings}
    harm = max((share for (_, way), share in shares.items() if way == "harm"), default=None)
    table.add_row(
        Text("trial", style="bold" if readings else "dim"),
        _bar("harm", harm, bar_width, bad=True),
        _bar("as good", shares.get(("quality", "good")), bar_width, bad=False),
        "",
    )
    return Group(table, Text(_needs(scene), style="dim", no_wrap=True, overflow="ellipsis"))


def _bar(name: str, share: float | None, width: int, *, bad: bool) -> Text:
    """Evidence as a share of the line at which it counts; None where there is nothing to judge."""
    if share is None:
        return Text(f"{name:<8}" + " " * (width + 5), style="bright_black")
    full = min(max(share, 0.0), 1.0)
    filled = round(full * width)
    colour = ("red" if bad else "green") if full >= 1.0 else "yellow" if full >= 0.5 else "white"
    return Text.assemble(
        (f"{name:<8}", "dim"),
        ("━" * filled, colour),
        ("─" * (width - filled), "bright_black"),
        (f" {'over' if full >= 1.0 else format(full, '4.0%')}", colour if full >= 0.5 else "dim"),
    )


def _share(reading: dict[str, Any]) -> float:
    return float(reading["log_evidence"] / reading["threshold"]) if reading["threshold"] else 0.0


def _needs(scene: Scene) -> str:
    verdict = (scene.seen.get("trial") or {}).get("verdict") or {}
    if not verdict:
        return "no trial"
    return clean(f"{verdict['kind']}: {verdict.get('needs') or verdict.get('reason')}")


def _decisions(scene: Scene, width: int, *, rows: int) -> RenderableType:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    shown = [each for each in scene.decisions if each["kind"] not in _HIDDEN][-rows:]
    for decision in shown:
        style, verb = _VERBS.get(decision["kind"], ("white", decision["kind"].replace("_", " ")))
        when = scene.data_time(decision["time"])[:10] or "start"
        table.add_row(when, Text(verb, style=style), Text(clean(_reason(scene, decision, width))))
    for _ in range(rows - len(shown)):
        table.add_row("", "", "")
    return table


def _reason(scene: Scene, decision: dict[str, Any], width: int) -> str:
    found = finding_of(scene, decision)
    if found is None:
        return str(decision["reason"])
    since = f" since the week of {found.since_week}" if found.since_week and width >= _WIDE else ""
    return f"version {found.version}{since}: {found.evidence}"


def _foot(scene: Scene, width: int) -> RenderableType:
    answers = scene.answers
    even = scene.logged >= len(answers.by_id)
    cells: Sequence[tuple[str, str]] = (
        (f"answered {answers.answered:,}", "bold"),
        (f"refused {answers.refused}", "dim"),
        (f"in the log {scene.logged:,}", "bold green" if even else "bold"),
        (f"labels {answers.labels:,}", "dim"),
        (f"read by the monitor {scene.read:,}" if width >= _WIDE else f"monitor {scene.read:,}", "dim"),
    )
    gap = " " * (5 if width >= _WIDE else 2)
    foot = Text(gap[:2], no_wrap=True, overflow="ellipsis")
    return foot.append_text(Text(gap).join(Text(text, style=style) for text, style in cells))
