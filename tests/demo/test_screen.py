"""The screen fits, and says what is so."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from gateway.demo.chart import axis, bars, mark_row
from gateway.demo.closing import print_report
from gateway.demo.ledger import Proof
from gateway.demo.report import report_of
from gateway.demo.scene import ACTS, Scene
from gateway.demo.screen import draw
from gateway.demo.stage import PlainStage
from gateway.demo.traffic import Answer


def rendered(scene: Scene, width: int, height: int = 40) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height, force_terminal=False)
    console.print(draw(scene, width=width, height=height))
    return stream.getvalue().splitlines()


def rollback() -> dict[str, Any]:
    return {
        "seq": 1,
        "kind": "rollback",
        "actor": "gateway monitor",
        "reason": "bad \x1b[31m reason",
        "time": "2027-01-15T08:00:01Z",
        "before": {"stable": 2, "canary": 3},
        "after": {},
        "evidence": {"metric": "quality", "log_evidence": 5.0, "log_threshold": 4.6},
    }


@pytest.fixture
def played(scene: Scene, make_answer: Callable[..., Answer]) -> Scene:
    """A scene in the middle of things."""
    scene.act = ACTS[2]
    scene.answers.add([make_answer(number) for number in range(40)])
    scene.reach("2012-01-03T15:00", 1_800_000_000.0)
    scene.logged, scene.days_total = 40, 100
    scene.route = {"stable": 2, "canary": 3, "weight": 10.0}
    evidence = {"inputs": 3.0, "outputs": 40.0, "quality": -1.0}
    reading = {"metric": "quality", "direction": "good", "log_evidence": 1.5, "threshold": 3.0}
    scene.seen = {
        "route": scene.route,
        "rollout": {"phase": "paused"},
        "versions": {"2": {"line": 17.0, "evidence": evidence}},
        "trial": {"readings": [reading], "verdict": {"kind": "hold", "needs": "more labels", "reason": ""}},
    }
    scene.decisions = [rollback()]
    return scene


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 28), (100, 29), (120, 40), (200, 60)])
def test_the_screen_fits_a_terminal(played: Scene, scene: Scene, width: int, height: int) -> None:
    for each in (scene, played):
        lines = rendered(each, width, height)
        assert len(lines) <= height and max(map(len, lines)) <= width


def test_on_a_small_terminal_evidence_is_read_and_the_newest_decision_is_seen(played: Scene) -> None:
    older = {**rollback(), "kind": "route_set", "evidence": {}, "reason": "older"}
    played.decisions, played.began = [older] * 9 + [rollback()], time.time() - 66.9
    lines = rendered(played, 80, 24)
    text = "\n".join(lines)
    for shown in ("inputs  ━", " 18%", "over", "as good ━", " 50%", "hold: more labels", "rolled back", "monitor 0"):
        assert shown in text
    assert text.count("older") == 4 and "…" not in "".join(lines[:16]) and "decisions" in lines[16]


def test_the_screen_tells_route_act_and_counts(played: Scene) -> None:
    text = "\n".join(rendered(played, 120))
    for shown in ("act 3 of 3: version 3", "version 2 90 %", "version 3 10 %", "rollout paused", "rolled back"):
        assert shown in text
    assert "answered 40" in text and "in the log 40" in text and "as good ━━━━━━━─────── " in text


def test_foreign_text_does_not_reach_the_terminal_raw(played: Scene) -> None:
    played.decisions[0]["actor"] = "somebody"
    assert "\x1b[31m" not in "".join(rendered(played, 200))


def test_without_a_terminal_each_decision_is_one_line_once(played: Scene) -> None:
    stream = io.StringIO()
    with PlainStage(stream) as stage:
        stage.show(played)
        stage.show(played)
    assert stream.getvalue().count("rollback") == 1


def test_the_closing_report_says_whether_the_proof_holds(played: Scene) -> None:
    for logged, mark in ((1, "✓"), (0, "✗")):
        stream = io.StringIO()
        report = report_of(
            played, Proof(1, logged, 0, 0, 1 - logged, 0, 0, 0, 0, 0, 0), audit_ok=True, labels_sent=True, seconds=1.0
        )
        print_report(report, Console(file=stream, width=140))
        assert f"{mark} answered 1 = logged {logged}" in stream.getvalue()
        assert "version 3 is rolled back" in stream.getvalue()


def test_rows_of_a_chart_are_as_wide_as_asked_for() -> None:
    weeks = [f"2012-{month:02d}-02" for month in range(1, 13)]
    for columns in (3, 12, 30):
        upper, lower = bars([0.5] * 12, columns, highest=1.0)
        assert len(upper) == len(lower) == len(mark_row(weeks, columns, {})) == len(axis(weeks, columns)) == columns
