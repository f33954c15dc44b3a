"""The console page."""

from __future__ import annotations

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
