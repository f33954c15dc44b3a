from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gateway.control.store import Store
from gateway.predictions.spool import SpoolFull
from gateway.protocol.extensions import EXTENSIONS
from gateway.serving.web import create_web, endpoints_of
from tests.serving.fronts import ROW, Door, door, get, post, run

TOKEN = "secret"
BEARER = f"Authorization: Bearer {TOKEN}\r\n"


async def ask(d: Door, request: bytes) -> tuple[int, dict[str, str], Any]:
    [answer] = await d.send(request, read=1)
    return answer


def world(tmp_path: Path, test: Callable[[Door, Store], Awaitable[None]], *, token: str = TOKEN) -> None:
    """A front before a fake engine, and a store that knows m/1 (approved, stable) and m/2 (registered)."""

    async def run_test() -> None:
        store = Store(f"sqlite:///{tmp_path / 'store.db'}")
        store.create()
        for version in (1, 2):
            store.register("m", version, f"sha256:0{version}")
        store.approve("m", 1, actor="ada", reason="good")
        store.set_route("m", stable=1, actor="ada", reason="first")
        store.register("unrouted", 1, "sha256:03")
        try:
            async with door(tmp_path, admin={"token": token}) as d:
                await test(d, store)
        finally:
            store.close()

    run(run_test)


def test_the_server_tells_its_name_and_what_it_speaks_with_and_without_a_slash(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        for path in ("/v2", "/v2/"):
            status, _, body = await ask(d, get(path))
            assert (status, body["name"]) == (200, "gateway")
            assert {*EXTENSIONS, "statistics", "model_repository", "model_configuration"} <= set(body["extensions"])

    world(tmp_path, test)


def test_the_name_of_the_server_is_a_setting(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path, server={"name": "triton"}) as d:
            assert (await ask(d, get("/v2")))[2]["name"] == "triton"

    run(test)


@pytest.mark.parametrize("path", ["/v2/models/m", "/v2/models/m/versions/1"])
def test_a_model_and_a_version_tell_their_tensors_and_that_they_are_ready(tmp_path: Path, path: str) -> None:
    async def test(d: Door, store: Store) -> None:
        tensor = {"datatype": "FP32", "shape": [-1, 3]}
        assert (await ask(d, get(path)))[2] == {
            "name": "m",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", **tensor}],
            "outputs": [{"name": "y", **tensor}],
        }
        assert (await ask(d, get(f"{path}/ready")))[::2] == (200, {"name": "m", "ready": True})

    world(tmp_path, test)


def test_a_configuration_says_how_rows_share_a_run(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        config = (await ask(d, get("/v2/models/m/config")))[2]
        assert (config["name"], config["backend"], config["max_batch_size"]) == ("m", "onnxruntime", 8)
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
        assert config["version_policy"] == {"specific": {"versions": [1]}}
        assert (await ask(d, get("/v2/models/m/versions/1/config")))[2] == config

    world(tmp_path, test)


def test_statistics_count_rows_runs_and_failures(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        d.engine.hold.clear()
        singles = [asyncio.create_task(ask(d, post())) for _ in range(3)]
        while not d.engine.batches:
            await asyncio.sleep(0.001)
        d.engine.hold.set()
        await asyncio.gather(*singles)
        three = {**ROW, "shape": [3, 3], "data": [0.0] * 9}
        assert (await ask(d, post({"inputs": [three]})))[0] == 200
        assert (await ask(d, post({"inputs": []})))[0] == 400
        [entry] = (await ask(d, get("/v2/models/m/stats")))[2]["model_stats"]
        assert (entry["name"], entry["version"], entry["inference_count"]) == ("m", "1", 6)
        assert entry["execution_count"] == len(d.engine.batches)
        times = entry["inference_stats"]
        assert (times["success"]["count"], times["fail"]["count"]) == (4, 1)
        assert times["success"]["ns"] > 0 and times["fail"]["ns"] > 0 and entry["last_inference"] > 1e12
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        assert abs(times["success"]["ns"] - sum(times[part]["ns"] for part in parts)) < 10
        sizes = {batch["batch_size"]: batch["compute_infer"] for batch in entry["batch_stats"]}
        assert sizes.keys() == set(d.engine.batches)
        assert sum(size * count["count"] for size, count in sizes.items()) == 6
        assert all(sizes[size]["ns"] == 1000 * d.engine.batches.count(size) for size in sizes)

    world(tmp_path, test)


def test_statistics_are_those_of_all_models_of_one_or_of_one_version(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        for path in ("/v2/models/stats", "/v2/models/m/stats", "/v2/models/m/versions/1/stats"):
            assert len((await ask(d, get(path)))[2]["model_stats"]) == 1
        for path in ("/v2/models/n/stats", "/v2/models/m/versions/9/stats"):
            status, _, body = await ask(d, get(path))
            assert status == 404 and body["error"].startswith("Request for unknown model")

    world(tmp_path, test)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/%2e%2e",
        "/v2/models/a%00b",
        "/v2/models/a%0d%0ab",
        "/v2/models/a%ffb",
        "/v2/models/" + "m" * 4000,
        "/v2/models/m/versions/01",
        "/v2/models/m/versions/+1",
        "/v2/models/m/versions/1e3",
        "/v2/models/m/versions/18446744073709551616",
        "/v2/models/m/versions/latest",
        "/v2/models/m/versions/2",
        "/v2/nothing",
        "/",
    ],
)
def test_what_is_not_there_is_404_with_a_text(tmp_path: Path, path: str) -> None:
    async def test(d: Door, store: Store) -> None:
        before = len(json.dumps((await ask(d, get("/v2/models/stats")))[2]))
        status, headers, body = await ask(d, get(path))
        assert status == 404 and body["error"] and headers["content-type"] == "application/json"
        assert len(json.dumps((await ask(d, get("/v2/models/stats")))[2])) == before

    world(tmp_path, test)


def test_a_name_that_only_begins_like_a_model_is_another_name(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path) as d:
            long = "m" * 64
            d.front.routes[long] = d.front.routes["m"]
            d.front.versions[long, 1] = d.front.versions["m", 1]
            assert (await ask(d, get(f"/v2/models/{long}")))[0] == 200
            assert (await ask(d, get(f"/v2/models/{long}m")))[0] == 404
            del d.front.versions[long, 1]

    run(test)


@pytest.mark.parametrize(
    "path", ["/v2/trace/setting", "/v2/models/m/trace/setting", "/v2/systemsharedmemory/status", "/v2/cudasharedmemory"]
)
def test_what_is_not_offered_says_so(tmp_path: Path, path: str) -> None:
    async def test(d: Door, store: Store) -> None:
        status, _, body = await ask(d, get(path))
        assert status == 404 and "not offered" in body["error"]

    world(tmp_path, test)


def test_a_wrong_method_is_told_the_right_ones(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        for request, allowed in ((post(path="/v2/models/m"), "GET"), (get("/v2/models/m/infer"), "POST")):
            status, headers, body = await ask(d, request)
            assert (status, body) == (405, {"error": "Method Not Allowed"})
            assert allowed in headers["allow"]
        _, headers, _ = await ask(d, get("/v2/logging").replace(b"GET", b"PUT", 1))
        assert {"GET", "POST"} <= set(headers["allow"].split(", "))

    world(tmp_path, test)


def test_the_index_lists_every_known_version_with_its_state(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        for path in ("/v2/repository/index", "/v2/repository/models/index"):
            index = (await ask(d, post(b"", path=path)))[2]
            assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
                ("m", "1", "READY"),
                ("m", "2", "UNAVAILABLE"),
                ("unrouted", "1", "UNAVAILABLE"),
            ]
            assert "not approved" in index[1]["reason"]
            ready = (await ask(d, post({"ready": True}, path=path)))[2]
            assert [entry["version"] for entry in ready] == ["1"]
        assert (await ask(d, post(b"", path="/v2/repository/other/index")))[0] == 404
        assert (await ask(d, post(b"[]", path="/v2/repository/index")))[0] == 400

    world(tmp_path, test)


@pytest.mark.parametrize("call", ["load", "unload"])
def test_load_and_unload_need_the_admin_token(tmp_path: Path, call: str) -> None:
    path = f"/v2/repository/models/m/{call}"

    async def with_a_token(d: Door, store: Store) -> None:
        for headers in ("", "Authorization: Bearer wrong\r\n", f"Authorization: Basic {TOKEN}\r\n", BEARER * 2):
            status, answer_headers, body = await ask(d, post(b"", path=path, headers=headers))
            assert (status, answer_headers["www-authenticate"]) == (401, "Bearer") and TOKEN not in body["error"]

    async def without(d: Door, store: Store) -> None:
        status, _, body = await ask(d, post(b"", path=path, headers="Authorization: Bearer \r\n"))
        assert status == 403 and "admin.token" in body["error"]

    world(tmp_path, with_a_token)
    (tmp_path / "second").mkdir()
    world(tmp_path / "second", without, token="")


def test_load_answers_when_the_approved_version_is_up_and_says_why_another_is_not(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        async def load(model: str, body: Any = b"") -> tuple[int, Any]:
            path = f"/v2/repository/models/{model}/load"
            status, _, answer = await ask(d, post(body, path=path, headers=BEARER))
            return status, answer

        assert await load("m") == (200, {"name": "m", "load": True})
        status, answer = await load("unrouted")
        assert (status, answer["error"]) == (
            409,
            "failed to load 'unrouted', version 1 is registered, not approved",
        )
        status, answer = await load("nobody")
        assert (status, answer["error"]) == (404, "failed to load 'nobody', failed to poll from model repository")
        for name in ("config", "file:1/model.onnx"):
            status, answer = await load("m", {"parameters": {name: "e30="}})
            assert status == 400 and answer["error"].startswith("failed to load 'm', ") and name in answer["error"]

    world(tmp_path, test)


def test_a_load_whose_engine_does_not_come_up_ends_with_a_text(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        d.engine.die()
        while d.front.versions["m", 1].lane.ready:
            await asyncio.sleep(0.001)
        d.front.versions["m", 1].lane.refuse_waiting("it crashed in /a/place")
        status, _, body = await ask(d, post(b"", path="/v2/repository/models/m/load", headers=BEARER))
        assert (status, body["error"]) == (503, "failed to load 'm', version 1 has no engine that runs")
        [first, *_] = (await ask(d, post(b"", path="/v2/repository/index")))[2]
        assert first["state"] == "UNAVAILABLE" and "/a/place" not in first["reason"]

    world(tmp_path, test)


def test_what_is_routed_to_is_not_unloaded_and_what_is_not_loses_its_approval(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        async def unload(model: str) -> tuple[int, Any]:
            path = f"/v2/repository/models/{model}/unload"
            body = {"parameters": {"unload_dependents": False}}
            status, _, answer = await ask(d, post(body, path=path, headers=BEARER))
            return status, answer

        status, answer = await unload("m")
        assert status == 409 and "version 1 carries its traffic" in answer["error"]
        store.approve("unrouted", 1, actor="ada", reason="good")
        assert await unload("unrouted") == (200, {"name": "unrouted", "unload": True})
        assert store.snapshot().versions["unrouted", 1].status == "rejected"
        assert store.snapshot().versions["m", 1].status == "approved"
        assert store.decisions(model="unrouted")[-1].actor == "repository API"
        assert (await unload("nobody"))[0] == 404

    world(tmp_path, test)


def test_log_settings_can_be_read_and_confirmed_but_not_changed(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        settings = (await ask(d, get("/v2/logging")))[2]
        assert settings["log_verbose_level"] == 0 and settings["log_info"] is True
        assert (await ask(d, post({}, path="/v2/logging")))[0] == 401
        assert (await ask(d, post({"log_info": True}, path="/v2/logging", headers=BEARER)))[::2] == (200, settings)
        for body in ({"log_info": False}, {"log_verbose_level": False}, {"nothing": 1}, [1], b"{"):
            status, _, answer = await ask(d, post(body, path="/v2/logging", headers=BEARER))
            assert status == 400 and answer["error"]

    world(tmp_path, test)


def test_every_route_is_in_the_document_and_the_reverse(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        document = (await ask(d, get("/openapi.json")))[2]
        described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
        app = create_web(d.front, clock=lambda: 0.0, store=store)
        routed = {(route.path, method) for route in app.routes for method in route.methods - {"HEAD"}}  # type: ignore[attr-defined]
        assert described == routed
        used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document["paths"])))
        assert used == set(document["components"]["schemas"])
        names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
        assert len(names) == len(set(names))
        guarded = {path for path, methods in document["paths"].items() if "security" in methods.get("post", {})}
        assert guarded == {e.path for e in endpoints_of(d.front, clock=lambda: 0.0, store=store) if e.guarded}

    world(tmp_path, test)


def test_a_model_describes_its_own_tensors(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        document = (await ask(d, get("/v2/models/m/openapi.json")))[2]
        assert "/v2/models/m/infer" in document["paths"] and "{" not in "".join(document["paths"])
        [tensor] = document["components"]["schemas"]["InferRequest"]["properties"]["inputs"]["items"]["oneOf"]
        properties = tensor["properties"]
        assert (properties["name"], properties["datatype"]) == ({"const": "x"}, {"const": "FP32"})
        assert properties["shape"]["minItems"] == properties["shape"]["maxItems"] == 2
        assert "[-1, 3]" in properties["shape"]["description"]
        pinned = (await ask(d, get("/v2/models/m/versions/1/openapi.json")))[2]
        assert "/v2/models/m/versions/1/infer" in pinned["paths"]

    world(tmp_path, test)


def test_the_page_runs_its_own_script_and_nothing_else(tmp_path: Path) -> None:
    async def test(d: Door, store: Store) -> None:
        status, headers, body = await ask(d, get("/v2/docs"))
        page = body.decode()
        policy = headers["content-security-policy"]
        assert status == 200 and headers["content-type"].startswith("text/html") and "default-src 'none'" in policy
        for tag in ("script", "style"):
            [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "http://" not in page and "https://" not in page and " src=" not in page and " onclick=" not in page

    world(tmp_path, test)


def test_whatever_is_answered_with_503_says_when_to_ask_again(tmp_path: Path) -> None:
    label = {"prediction_id": "0196f0c5d2a100-0000000001", "row": 0, "label": 1.0}

    async def test(d: Door, store: Store) -> None:
        d.front.spool.append = mock.Mock(side_effect=SpoolFull("no space left"))  # type: ignore[method-assign]
        d.engine.die()
        while d.front.versions["m", 1].lane.ready:
            await asyncio.sleep(0.001)
        d.front.versions["m", 1].lane.refuse_waiting("it crashed")
        for request in (
            get("/v2/health/ready"),
            get("/v2/models/m/ready"),
            post(b"", path="/v2/repository/models/m/load", headers=BEARER),
            post(label, path="/v2/models/m/feedback"),
            post(),
        ):
            status, headers, body = await ask(d, request)
            assert (status, headers["retry-after"]) == (503, "1"), body
        assert "retry-after" not in (await ask(d, get("/v2/models/nobody")))[1]

    world(tmp_path, test)


def test_the_repository_calls_survive_a_store_that_is_away(tmp_path: Path) -> None:
    async def test() -> None:
        async with door(tmp_path, store={"url": "postgresql+psycopg://nobody@127.0.0.1:9/none"}) as d:
            status, _, body = await ask(d, post(b"", path="/v2/repository/index"))
            assert status == 503 and "127.0.0.1" not in body["error"]
            assert (await ask(d, post()))[0] == 200

    run(test)
