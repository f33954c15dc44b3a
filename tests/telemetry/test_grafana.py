"""Dashboard, rules, runbook and metrics page speak of the same metrics, and each alert fires when it should."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import warnings
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from gateway.telemetry.catalog import CATALOG
from gateway.telemetry.cells import CellFile
from gateway.telemetry.exposition import render
from tests.panels import DASHBOARD, panel_queries
from tests.prometheus import missing, promtool

ROOT = Path(__file__).parents[2]
RULES = ROOT / "grafana" / "alerts" / "gateway.rules.yml"
RULE_TESTS = ROOT / "grafana" / "alerts" / "gateway.rules.test.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"

SAMPLES = {
    name + suffix: metric
    for name, metric in CATALOG.items()
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}


def names_of(path: Path) -> dict[str, Any]:
    """What a program of the checkout defines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return runpy.run_path(str(path))


@pytest.fixture
def grafana_library() -> None:
    if importlib.util.find_spec("grafana_foundation_sdk") is None:
        missing("grafana-foundation-sdk is not installed (dependency group dashboards)")


def rules() -> list[dict[str, Any]]:
    """Each rule's name, expression and severity; the file is YAML of a shape that promtool has checked."""
    found = []
    for text in RULES.read_text().split("      - alert: ")[1:]:
        name = text.split("\n", 1)[0]
        expression = re.search(r"        expr: (?:\|\n)?(.*?)\n        (?:for|labels):", text, re.S)
        assert expression is not None, name
        found.append({"name": name, "expression": expression[1], "text": text})
    return found


COUNTED_FOR_THE_STATISTICS_EXTENSION = {
    "gateway_batch_seconds_total",
    "gateway_batches_total",
    "gateway_last_inference_timestamp_seconds",
    "gateway_rows_total",
    "gateway_stage_seconds_total",
}

EXPRESSIONS = {**panel_queries(), **{rule["name"]: rule["expression"] for rule in rules()}}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_every_expression_parses(expression):
    promql_parser.parse(expression)


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_every_metric_and_label_in_use_is_in_the_catalog(expression):
    used = re.findall(r"\b(gateway_[a-z_]+)(?:\{([^}]*)\})?", expression)
    assert used or "up{" in expression
    for name, matchers in used:
        assert name in SAMPLES, name
        labels = {matcher.split("=")[0].rstrip("!~") for matcher in matchers.split(",") if matcher}
        assert labels <= {*SAMPLES[name].labels, "le"}, name
        for label, value in re.findall(r'(\w+)!?=~?"([^"]*)"', matchers):
            for one in value.split("|") if label in SAMPLES[name].values else ():
                assert one in SAMPLES[name].values[label]


def test_every_metric_an_operator_looks_for_is_on_the_dashboard():
    shown = " ".join(panel_queries().values())
    not_shown = {name for name in CATALOG if not re.search(rf"\b{name}", shown)}
    about_the_page = {"gateway_build_info", "gateway_metric_files_damaged", "gateway_metric_series_unpublished"}
    assert not_shown == about_the_page | COUNTED_FOR_THE_STATISTICS_EXTENSION


def test_the_panel_of_lost_events_shows_each_state_that_pages():
    alert = next(rule["expression"] for rule in rules() if rule["name"] == "EventsDropped")
    paged = set(re.findall(r'state=~"([^"]*)"', alert))
    assert paged == set(re.findall(r'state=~"([^"]*)"', panel_queries()["Events lost A"]))


def test_the_committed_dashboard_is_what_the_program_writes(grafana_library):
    assert names_of(ROOT / "grafana" / "build.py")["dashboard_json"]() == DASHBOARD.read_text()


def test_the_dashboard_survives_a_round_trip_through_grafanas_types(grafana_library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.cog.plugins import register_default_plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard

        register_default_plugins()
        board = json.loads(DASHBOARD.read_text())
        assert json.loads(JSONEncoder().encode(Dashboard.from_json(board))) == board


@pytest.mark.parametrize(
    "panel",
    [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"],
    ids=lambda panel: panel["title"],
)
def test_every_panel_says_what_it_means_in_a_unit_with_a_legend(panel):
    assert len(panel["description"]) > 30
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["type"] == "stat" or panel["options"]["legend"]["showLegend"]


def test_panels_do_not_overlap():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, panel["title"]
                taken.add((x, y))


def test_panels_have_numbers_of_their_own():
    numbers = [panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(numbers) == len(set(numbers))


def test_every_alert_has_a_severity_and_a_place_in_the_runbook():
    headings = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.M)
    assert headings == [rule["name"] for rule in rules()]
    for rule in rules():
        assert re.search(r"severity: (page|ticket|info)\n", rule["text"]), rule["name"]
        for part in ("summary: ", "description: ", f"runbook: docs/runbook.md#{rule['name'].lower()}\n"):
            assert part in rule["text"], rule["name"]


def test_every_alert_is_tested_to_fire_and_to_be_silent():
    tests = RULE_TESTS.read_text()
    for rule in rules():
        cases = re.findall(
            rf"alertname: {rule['name']}\n        exp_alerts:(.*?)(?=\n  - name|\n      - eval|\Z)", tests, re.S
        )
        assert any("exp_labels" in case for case in cases), f"{rule['name']} never fires"
        assert any(case.strip() == "[]" or case.count("exp_labels") < 2 for case in cases), rule["name"]


def test_promtool_finds_nothing_wrong_with_the_rules_and_the_configuration():
    for arguments in (("check", "rules", RULES), ("check", "config", ROOT / "grafana" / "prometheus.yml")):
        found = promtool(*arguments)
        assert found.returncode == 0, found.stdout + found.stderr


def test_alerts_fire_and_are_silent_as_promised():
    found = promtool("test", "rules", RULE_TESTS)
    assert found.returncode == 0, found.stdout + found.stderr


def test_an_alert_that_never_fires_would_be_noticed(tmp_path):
    (tmp_path / RULES.name).write_text(RULES.read_text().replace("> 0.05", "> 0.95"))
    (tmp_path / RULE_TESTS.name).write_text(RULE_TESTS.read_text())
    found = promtool("test", "rules", tmp_path / RULE_TESTS.name)
    assert found.returncode != 0
    assert "PredictionsFailing" in found.stdout + found.stderr


def test_promtool_finds_nothing_wrong_with_the_page(tmp_path):
    cells = CellFile(tmp_path / "front-0.cells")
    for metric in CATALOG.values():
        labels = {label: metric.values.get(label, ("one",))[0] for label in metric.labels}
        if metric.kind == "counter":
            cells.counter(metric.name, labels).inc()
        elif metric.kind == "gauge":
            cells.gauge(metric.name, labels).set(1)
        else:
            cells.histogram(metric.name, labels).observe(1)
    page, _ = render(tmp_path, None)
    found = promtool("check", "metrics", page=page)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_metrics_page_of_the_documentation_is_what_the_catalog_says():
    assert names_of(ROOT / "docs" / "write_metrics.py")["page"]() == (ROOT / "docs" / "metrics.md").read_text()
