"""What a run leaves behind."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path

import pytest

from benchmarks.results import write_results
from benchmarks.run import Depth, Outcome
from tests.benchmarks.series import series


def outcome() -> Outcome:
    return Outcome(
        series=[
            series("gateway", 300, 100, 200),
            series("bare handler", 90, 110, 100),
            *[series("gateway", 100, stage="connections", connections=count) for count in (1, 2, 512)],
        ],
        checked=400,
        equal=399,
        answered=600,
        logged=610,
        in_flight=64,
        skipped=[("mosec", "cannot be\ninstalled")],
        faults=[("FastAPI", "answered 500")],
    )


def written(folder: Path) -> list[Path]:
    return write_results(outcome(), folder, suite="quick", command="scripts/bench", depth=Depth(3, 1.0, 400))


def test_the_table_tells_medians_spread_and_memory(tmp_path: Path) -> None:
    table = written(tmp_path)[0].read_text()
    assert "| gateway | one core | 200 (100-300) | 1.00 | 2.00 | 2.0 | 20 | 5 | 50 |" in table


def test_the_table_names_what_was_skipped_what_was_wrong_and_what_was_logged(tmp_path: Path) -> None:
    table = written(tmp_path)[0].read_text()
    assert "- mosec: not measured: cannot be installed" in table
    assert "- FastAPI: answered 500" in table
    assert "answered 600 requests and 610 predictions lie" in table


def test_every_plot_of_the_table_is_there_and_is_an_image(tmp_path: Path) -> None:
    table, *others = written(tmp_path)
    plots = [path for path in others if path.suffix == ".svg"]
    assert [path.name for path in plots] == ["quick-tabular-1-row-64.svg", "quick-connections.svg"]
    for path in plots:
        assert f"]({path.name})" in table.read_text()
        assert xml.etree.ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_values_hold_every_round(tmp_path: Path) -> None:
    written(tmp_path)
    values = json.loads((tmp_path / "quick.json").read_text())
    assert [each["load"]["requests"] for each in values["series"][0]["rounds"]] == [300, 100, 200]
    assert values["answers"] == {"checked": 400, "equal": 399, "answered": 600, "logged": 610, "in_flight": 64}
    judged = {each["text"]: (each["median"], each["verdict"]) for each in values["ratios"]}
    assert judged["everything on / bare handler, 1 row, 64 connections"] == (2.0, "does not hold")


def test_the_table_says_when_the_load_may_have_waited_for_its_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for allowed in (True, False):
        monkeypatch.setattr("benchmarks.results.can_go_first", lambda allowed=allowed: allowed)
        said.append("latencies hold what it waited for its core" in written(tmp_path)[0].read_text())
    assert said == [False, True]
