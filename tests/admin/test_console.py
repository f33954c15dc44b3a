"""The console page."""

from __future__ import annotations

import json
import re

import pytest
from starlette.testclient import TestClient

from tests.worlds import World

HOSTILE = '<script>alert("x")</script>\'><img src=x onerror=alert(1)>'


def test_the_page_shows_models_routes_rollouts_and_decisions(client: TestClient, world: World) -> None:
    assert "None yet." in client.get("/").text
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="ada", reason="first")
    world.store.start_rollout("m", 2, plan={"steps": [5, 20]}, actor="ada", reason="trial of two")
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    told = "stable 1 -&gt; stable 1, canary 2 at 5 %, step 1"
    for text in ("approved", "ready", "canary", "95\u00a0%", "running", "1 of 2", "trial of two", "ada", told):
        assert text in page.text


def test_each_cell_stands_under_its_head_also_where_an_engine_has_a_reason(client: TestClient, world: World) -> None:
    digest = world.add_version(1)
    world.store.register("m", 1, digest)
    world.store.approve("m", 1, actor="ada", reason="tests pass")
    world.store.set_route("m", stable=1, actor="ada", reason="first")
    world.note(1, "failed", "no memory")
    models = client.get("/").text.split("<h2>")[1]
    heads = re.findall(r"<th>(.*?)</th>", models)
    cells = re.findall(r'<td[^>]* data-head="(.*?)">(.*?)</td>', models)
    assert [head for head, _ in cells] == heads and models.count("<td") == len(heads)
    assert dict(cells)["engine"] == "failed: no memory" and dict(cells)["traffic"].endswith("100\u00a0%")


def test_the_page_shows_quality_and_the_last_alarm_of_each_detector(client: TestClient, world: World) -> None:
    quality = {"rows": 800, "miss_rate": 0.4126}
    unlabelled = {"rows": 0, "miss_rate": None}
    alarms = [
        ("inputs", "2012-03-02T00:00:00Z"),
        ("quality", "2012-02-01T00:00:00Z"),
        ("inputs", "2012-01-01T00:00:00Z"),
    ]
    seen = {
        "versions": {"1": {"quality": quality}, "2": {"quality": unlabelled}},
        "alarms": [{"version": 1, "detector": detector, "since": since} for detector, since in alarms],
    }
    status = world.settings.state_dir / "monitor" / "status.json"
    status.parent.mkdir()
    status.write_text(json.dumps({"models": {"m": seen}}))
    table = client.get("/").text.partition("<h2>Quality and alarms</h2>")[2].partition("<h2>")[0]
    assert re.findall(r"<td[^>]*>(.*?)</td>", table) == [
        *("m", "1", "800", "41.3\u00a0%", "inputs since 2012-03-02T00:00:00Z; quality since 2012-02-01T00:00:00Z"),
        *("m", "2", "0", "", ""),
    ]


@pytest.mark.parametrize("where", ["actor", "reason"])
def test_foreign_text_is_shown_as_text(client: TestClient, world: World, where: str) -> None:
    world.serve(1)
    words = {"actor": "ada", "reason": "", where: HOSTILE}
    world.store.set_route("m", stable=1, **words)  # type: ignore[arg-type]
    page = client.get("/").text
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;" in page


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_script(client: TestClient, world: World) -> None:
    world.serve(1)
    page = client.get("/").text
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert loaded == ["data:,", "/console.css", "/openapi.json"]
    assert "style=" not in page and "onclick" not in page and "<form" not in page
    assert client.get("/console.css").headers["content-type"].startswith("text/css")
