"""The admin API, through HTTP."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from gateway.admin.api import SETTLE_SECONDS
from gateway.admin.endpoints import ENDPOINTS, PREFIX
from gateway.control.store import Store, StoreAway
from gateway.protocol.datatypes import Signature, TensorSpec
from tests.worlds import SIGNATURE, World

API = "/api/v1"


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return str(response.json()["error"])


def test_health_tells_the_revision(client: TestClient, world: World) -> None:
    world.serve(1)
    assert client.get(f"{API}/health").json() == {"status": "ok", "revision": world.store.revision()}


def test_models_are_listed_with_status_engine_and_traffic(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    world.store.register("m", 3, world.add_version(3))
    world.store.set_route("m", stable=1, canary=2, weight=10, actor="ada", reason="")
    (model,) = client.get(f"{API}/models").json()["models"]
    assert model == client.get(f"{API}/models/m").json()
    seen = [
        (one["version"], one["status"], one["engine"]["state"], one["arm"], one["weight"]) for one in model["versions"]
    ]
    assert seen == [
        (1, "approved", "ready", "stable", 90.0),
        (2, "approved", "ready", "canary", 10.0),
        (3, "registered", "stopped", None, 0.0),
    ]


def test_a_version_is_shown_with_manifest_and_lineage(client: TestClient, world: World) -> None:
    digest = world.add_version(1)
    body = client.get(f"{API}/models/m/versions/1").json()
    assert (body["digest"], body["status"], body["profile"]) == (digest, "registered", None)
    assert body["manifest"]["lineage"]["source"]["commit"] == "abc123"


def test_a_version_whose_folder_was_spoiled_says_so(client: TestClient, world: World) -> None:
    world.serve(1)
    (world.settings.models / "m" / "1" / "model.onnx").write_bytes(b"other, longer content")
    body = client.get(f"{API}/models/m/versions/1").json()
    assert body["manifest"] is None
    assert "model.onnx" in body["problem"]


@pytest.mark.parametrize(
    "path",
    [
        "/models/other",
        "/models/m/versions/9",
        "/models/..%2f..%2fetc/versions/1",
        "/routes/m",
        "/rollouts/rollout-9",
        "/drift",
        "/predictions/0196f0c5d2a100-0000000011",
        "/nope",
    ],
)
def test_what_is_not_there_is_404(client: TestClient, world: World, path: str) -> None:
    assert error_of(client.get(API + path), 404)


@pytest.mark.parametrize("name", ["a%00b", "a" * 5000, "%20", "..", "a%0Ab", "%ED%A0%80"])
def test_what_is_no_model_name_is_404_whatever_is_asked_of_it(client: TestClient, world: World, name: str) -> None:
    word = {"reason": "x"}
    for method, path, body in (
        ("PUT", f"/routes/{name}", {"stable": 1}),
        ("GET", f"/routes/{name}", None),
        ("POST", f"/routes/{name}/rollback", {}),
        ("POST", f"/routes/{name}/remove", {}),
        ("POST", f"/models/{name}/versions/1/approve", word),
        ("POST", f"/models/{name}/versions/1/reject", word),
        ("GET", f"/models/{name}/versions/1", None),
        ("GET", f"/drift/{name}", None),
    ):
        assert error_of(client.request(method, API + path, json=body), 404)
    assert error_of(client.post(f"{API}/rollouts/a%00b/pause", json={}), 404)
    assert world.store.revision() == 0


@pytest.mark.parametrize("path", ["decisions", "rollouts", "predictions"])
def test_what_is_no_model_name_in_the_query_is_400(client: TestClient, path: str) -> None:
    assert "name of a model" in error_of(client.get(f"{API}/{path}", params={"model": "a\0b"}), 400)


@pytest.mark.parametrize("version", ["01", "+1", "1.0", "-1", "1e3", "latest", "18446744073709551616"])
def test_what_is_no_version_is_400(client: TestClient, version: str) -> None:
    assert "not a version" in error_of(client.get(f"{API}/models/m/versions/{version}"), 400)


def test_approval_registers_the_folder_and_returns_when_the_engine_is_ready(world: World) -> None:
    digest = world.add_version(1)
    with TestClient(world.app(approve_wait_seconds=20), base_url="http://127.0.0.1:8003") as client:
        timer = threading.Timer(0.3, world.ready, args=(1,))
        timer.start()
        response = client.post(
            f"{API}/models/m/versions/1/approve",
            json={"reason": "tests pass", "digest": digest},
            headers={"gateway-actor": "ad%C3%A4"},
        )
        timer.join()
    assert response.status_code == 200
    assert response.json()["engine"]["state"] == "ready"
    assert [(one.kind, one.actor) for one in world.store.decisions()] == [
        ("version_registered", "gateway"),
        ("version_approved", "adä"),
    ]


def test_approval_says_why_an_engine_failed(world: World) -> None:
    world.add_version(1)
    world.note(1, "failed", "of old")
    with TestClient(world.app(approve_wait_seconds=3600), base_url="http://127.0.0.1:8003") as client:
        timer = threading.Timer(0.3, world.note, args=(1, "failed", "no such operator"))
        timer.start()
        response = client.post(f"{API}/models/m/versions/1/approve", json={"reason": "x"})
        timer.join()
        assert response.json()["engine"] == {"state": "failed", "reason": "no such operator"}
        again = client.post(f"{API}/models/m/versions/1/approve", json={"reason": "x"})
        assert again.json()["engine"]["state"] == "failed", "a second approval need not wait for news"


def test_approval_does_not_take_an_engine_that_is_about_to_end_for_its_own(world: World) -> None:
    world.add_version(1)
    world.note(1, "ready")
    world.ready(1)  # of an approval that was taken back just now
    news: list[str] = []

    def replaced() -> None:
        (world.settings.run_dir / "engine-m-1.json").unlink()
        time.sleep(SETTLE_SECONDS + 0.3)  # while it still answers what was taken for it
        (world.settings.run_dir / "engine-m-1.sock").unlink()
        world.note(1, "starting")
        time.sleep(0.8)
        world.note(1, "ready")
        world.ready(1)
        news.append("ready")

    with TestClient(world.app(approve_wait_seconds=20), base_url="http://127.0.0.1:8003") as client:
        timer = threading.Timer(0.3, replaced)
        timer.start()
        response = client.post(f"{API}/models/m/versions/1/approve", json={"reason": "x"})
        assert news == ["ready"]
        timer.join()
    assert (response.status_code, response.json()["engine"]["state"]) == (200, "ready")


def test_approval_of_an_engine_that_is_still_loading_is_202(client: TestClient, world: World) -> None:
    world.add_version(1)
    world.note(1, "starting")
    response = client.post(f"{API}/models/m/versions/1/approve", json={"reason": "x"})
    assert (response.status_code, response.json()["engine"]["state"]) == (202, "starting")


@pytest.mark.promise("P15")
def test_approval_is_refused_when_the_folder_has_changed(client: TestClient, world: World) -> None:
    digest = world.add_version(1)
    approve = f"{API}/models/m/versions/1/approve"
    assert "look at it again" in error_of(
        client.post(approve, json={"reason": "x", "digest": "sha256:" + "0" * 64}), 409
    )
    world.store.register("m", 1, digest)
    world.store.approve("m", 1, actor="ada", reason="")
    shutil.rmtree(world.settings.models / "m" / "1")
    world.add_version(1, signature=Signature(SIGNATURE.outputs, SIGNATURE.inputs))
    assert digest in error_of(client.post(approve, json={"reason": "x"}), 409)
    assert world.digest("m") == digest


def test_a_folder_without_a_manifest_cannot_be_approved(client: TestClient, world: World) -> None:
    (world.settings.models / "m" / "1").mkdir(parents=True)
    text = error_of(client.post(f"{API}/models/m/versions/1/approve", json={"reason": "x"}), 409)
    assert "manifest.json" in text


def test_a_version_with_traffic_cannot_be_rejected(client: TestClient, world: World) -> None:
    world.serve(1)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    reject = f"{API}/models/m/versions/1/reject"
    assert "stable" in error_of(client.post(reject, json={"reason": "x"}), 409)
    world.serve(2)
    assert client.post(f"{API}/models/m/versions/2/reject", json={"reason": "x"}).json()["status"] == "rejected"


def test_a_route_is_set_and_its_salt_stays_a_secret(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    body = {"stable": 1, "canary": 2, "weight": 10, "reason": "trial"}
    route = client.put(f"{API}/routes/m", json=body).json()
    assert (route["stable"], route["canary"], route["weight"]) == (1, 2, 10)
    assert client.get(f"{API}/routes").json()["routes"] == [route]
    salt = world.store.snapshot().routes["m"].salt
    for path in ("/routes", "/routes/m", "/models", "/decisions"):
        assert salt not in client.get(API + path).text
    assert world.store.decisions()[-1].reason == "trial"


def test_a_route_to_a_version_that_is_not_ready_is_refused(client: TestClient, world: World) -> None:
    world.serve(1)
    world.store.register("m", 2, world.add_version(2))
    put = f"{API}/routes/m"
    assert "not approved" in error_of(client.put(put, json={"stable": 2}), 409)
    world.store.approve("m", 2, actor="ada", reason="")
    world.note(2, "starting")
    assert "its engine is starting" in error_of(client.put(put, json={"stable": 1, "canary": 2, "weight": 5}), 409)
    world.note(2, "circuit_open", "5 crashes in 60 s")
    assert "circuit open: 5 crashes" in error_of(client.put(put, json={"stable": 2}), 409)
    assert "no version 3" in error_of(client.put(put, json={"stable": 3}), 404)
    assert world.store.snapshot().routes == {}


def test_weight_can_be_taken_from_an_engine_that_is_down(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    client.put(f"{API}/routes/m", json={"stable": 1, "canary": 2, "weight": 50})
    (world.settings.run_dir / "engine-m-2.sock").unlink()
    assert client.put(f"{API}/routes/m", json={"stable": 1, "canary": 2, "weight": 5}).status_code == 200
    assert error_of(client.put(f"{API}/routes/m", json={"stable": 1, "canary": 2, "weight": 50}), 409)


def test_a_canary_that_looks_different_to_callers_is_refused_unless_permitted(client: TestClient, world: World) -> None:
    world.serve(1)
    other = Signature(SIGNATURE.inputs, (TensorSpec("z", "FP32", (-1, 1)),))
    world.store.register("m", 2, world.add_version(2, signature=other))
    world.store.approve("m", 2, actor="ada", reason="")
    world.ready(2)
    body = {"stable": 1, "canary": 2, "weight": 5}
    assert "other outputs" in error_of(client.put(f"{API}/routes/m", json=body), 409)
    assert client.put(f"{API}/routes/m", json={**body, "allow_signature_change": True}).status_code == 200


def test_another_stable_version_is_held_against_the_canary_that_stays(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    other = Signature(SIGNATURE.inputs, (TensorSpec("z", "FP32", (-1, 1)),))
    world.store.register("m", 3, world.add_version(3, signature=other))
    world.store.approve("m", 3, actor="ada", reason="")
    world.ready(3)
    body = {"stable": 1, "canary": 2, "weight": 5}
    assert client.put(f"{API}/routes/m", json=body).status_code == 200
    assert "other outputs" in error_of(client.put(f"{API}/routes/m", json={**body, "stable": 3}), 409)
    assert client.put(f"{API}/routes/m", json={"stable": 3}).status_code == 200


@pytest.mark.promise("P15")
def test_signatures_are_compared_of_what_was_approved_and_of_no_other_folder(client: TestClient, world: World) -> None:
    world.serve(1)
    other = Signature(SIGNATURE.inputs, (TensorSpec("z", "FP32", (-1, 1)),))
    world.store.register("m", 2, world.add_version(2, signature=other))
    world.store.approve("m", 2, actor="ada", reason="")
    world.ready(2)
    shutil.rmtree(world.settings.models / "m" / "2")
    world.add_version(2)
    body = {"stable": 1, "canary": 2, "weight": 5}
    assert "not the approved one" in error_of(client.put(f"{API}/routes/m", json=body), 409)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    assert "not the approved one" in error_of(client.post(f"{API}/rollouts", json={"model": "m", "canary": 2}), 409)


@pytest.mark.parametrize(
    "body",
    [
        b'{"stable": 1, "canary": 2, "weight": -1}',
        b'{"stable": 1, "canary": 2, "weight": 101}',
        b'{"stable": 1, "canary": 2, "weight": NaN}',
        b'{"stable": 1, "canary": 2, "weight": 1e400}',
        b'{"stable": 1, "canary": 2, "weight": "50"}',
        b'{"stable": "1"}',
        b'{"stable": 0}',
        b'{"stable": 1, "wieght": 5}',
        b"[]",
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"stable": 1, "reason": "' + b"x" * 2001 + b'"}',
    ],
)
def test_a_body_that_is_no_route_is_400(client: TestClient, world: World, body: bytes) -> None:
    world.serve(1, 2)
    before = world.store.revision()
    response = client.put(f"{API}/routes/m", content=body, headers={"content-type": "application/json"})
    assert error_of(response, 400)
    assert world.store.revision() == before


@pytest.mark.parametrize("steps", [[50, 5], [], [0, 5], [5, 100], list(range(1, 90)), ["5"], [5, 5]])
def test_steps_that_do_not_rise_are_400(client: TestClient, world: World, steps: list[Any]) -> None:
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    body = {"model": "m", "canary": 2, "plan": {"steps": steps}}
    assert error_of(client.post(f"{API}/rollouts", json=body), 400)
    assert world.store.rollouts("m") == []


def test_a_plan_with_an_unknown_field_is_400(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    body = {"model": "m", "canary": 2, "plan": {"stpes": [5]}}
    assert "stpes" in error_of(client.post(f"{API}/rollouts", json=body), 400)


def test_a_rollout_takes_its_plan_from_the_policy_and_is_steered_by_hand(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    (world.settings.models / "m" / "model.toml").write_text("[rollout]\nsteps = [2, 20]\nerrors = 'pause'\n")
    world.store.set_route("m", stable=1, actor="ada", reason="")
    rollout = client.post(f"{API}/rollouts", json={"model": "m", "canary": 2, "plan": {"max_hours": 3}}).json()
    assert (rollout["weight"], rollout["plan"]["steps"], rollout["plan"]["max_hours"]) == (2, [2, 20], 3)
    assert rollout["plan"]["actions"]["errors"] == "pause"
    path = f"{API}/rollouts/{rollout['id']}"
    phases = [client.post(f"{path}/{event}", json={}).json()["phase"] for event in ("pause", "resume")]
    world.store.move_rollout(rollout["id"], "freeze", actor="judge", reason="")
    phases.append(client.post(f"{path}/resume", json={"reason": "mended"}).json()["phase"])
    assert phases == ["paused", "running", "running"]
    assert client.post(f"{path}/promote", json={}).json()["phase"] == "promoted"
    assert client.get(f"{API}/routes/m").json()["stable"] == 2
    for event in ("pause", "resume", "promote", "abort"):
        assert f"takes no {event}" in error_of(client.post(f"{path}/{event}", json={}), 409)
    assert client.get(f"{API}/rollouts", params={"model": "m"}).json()["rollouts"] == [client.get(path).json()]


@pytest.mark.parametrize(
    ("policy", "is_noted"),
    [
        ("", True),
        ("[rollout]\nrequire = ['errors', 'quality']\n", True),
        ("[rollout]\nrequire = ['errors']\n", False),
        ("[quality]\nmiss_above = 3.0\n", False),
        ("[quality]\nloss = 'zero_one'\n", False),
    ],
)
def test_a_rollout_that_no_label_can_take_forward_says_so_at_its_start(
    client: TestClient, world: World, policy: str, is_noted: bool
) -> None:
    world.serve(1, 2)
    (world.settings.models / "m" / "model.toml").write_text(policy)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    notes = client.post(f"{API}/rollouts", json={"model": "m", "canary": 2}).json()["notes"]
    assert len(notes) == is_noted and all("miss_above" in note for note in notes)


def test_a_policy_that_cannot_be_read_stops_a_rollout_and_nothing_else(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    (world.settings.models / "m" / "model.toml").write_text("[rollout]\nstesp = [2]\n")
    world.store.set_route("m", stable=1, actor="ada", reason="")
    assert "stesp" in error_of(client.post(f"{API}/rollouts", json={"model": "m", "canary": 2}), 409)


def test_a_rollback_answers_with_the_route_and_the_decision(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    client.put(f"{API}/routes/m", json={"stable": 1, "canary": 2, "weight": 50})
    body = client.post(f"{API}/routes/m/rollback", json={"version": 2, "reason": "bad"}).json()
    assert (body["route"]["canary"], body["decision"]["kind"]) == (None, "rollback")
    assert "no traffic" in error_of(client.post(f"{API}/routes/m/rollback", json={"version": 2}), 409)


def test_a_rollback_of_a_route_that_has_changed_is_412(client: TestClient, world: World) -> None:
    world.serve(1, 2, 3)
    client.put(f"{API}/routes/m", json={"stable": 1})
    seen = client.put(f"{API}/routes/m", json={"stable": 2, "canary": 3, "weight": 50}).json()["revision"]
    world.store.rollback("m", version=3, actor="gateway monitor", reason="worse")
    stale, fresh = ({"if-match": f'"{revision}"'} for revision in (seen, seen + 1))
    assert "look at it again" in error_of(client.post(f"{API}/routes/m/rollback", json={}, headers=stale), 412)
    assert client.get(f"{API}/routes/m").json()["stable"] == 2
    assert client.post(f"{API}/routes/m/rollback", json={}, headers=fresh).json()["route"]["stable"] == 1


def test_a_route_is_removed_and_the_last_version_can_be_rejected_then(client: TestClient, world: World) -> None:
    world.serve(1)
    revision = client.put(f"{API}/routes/m", json={"stable": 1}).json()["revision"]
    remove, reject = f"{API}/routes/m/remove", f"{API}/models/m/versions/1/reject"
    assert "remove it" in error_of(client.post(reject, json={"reason": "x"}), 409)
    stale = {"if-match": f'"{revision - 1}"'}
    assert error_of(client.post(remove, json={}, headers=stale), 412)
    body = client.post(remove, json={"reason": "retired"}, headers={"if-match": f'"{revision}"'}).json()
    assert (body["decision"]["kind"], body["decision"]["reason"]) == ("route_removed", "retired")
    assert "no route" in error_of(client.get(f"{API}/routes/m"), 404)
    assert "no route" in error_of(client.post(remove, json={}), 404)
    assert client.post(reject, json={"reason": "retired"}).json()["status"] == "rejected"


def test_a_stale_if_match_is_412(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    revision = client.put(f"{API}/routes/m", json={"stable": 1}).json()["revision"]
    put = {"if-match": f'"{revision}"'}
    assert client.put(f"{API}/routes/m", json={"stable": 2}, headers=put).status_code == 200
    assert error_of(client.put(f"{API}/routes/m", json={"stable": 1}, headers=put), 412)
    for header in (b"x", b'"-1"', b"9" * 5000, b"\xb2", b"*", b"", b'""', b"W/"):
        headers = {b"if-match": header}
        assert "If-Match" in error_of(client.put(f"{API}/routes/m", json={"stable": 1}, headers=headers), 400)


def test_who_starts_a_rollout_is_told_of_that_one(
    client: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    start = world.store.start_rollout

    def start_and_be_followed(*arguments: Any, **named: Any) -> Any:
        ours = start(*arguments, **named)
        world.store.move_rollout(ours.after["rollout"]["id"], "abort", actor="eve", reason="")
        start(*arguments, **{**named, "actor": "eve"})
        return ours

    monkeypatch.setattr(world.store, "start_rollout", start_and_be_followed)
    body = client.post(f"{API}/rollouts", json={"model": "m", "canary": 2}).json()
    assert (body["phase"], [one.phase for one in world.store.rollouts("m")]) == ("aborted", ["running", "aborted"])


def test_two_promotes_at_once_are_one_promote(client: TestClient, world: World) -> None:
    world.serve(1, 2)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    rollout = client.post(f"{API}/rollouts", json={"model": "m", "canary": 2}).json()["id"]
    answers: list[int] = []

    def promote() -> None:
        answers.append(client.post(f"{API}/rollouts/{rollout}/promote", json={}).status_code)

    threads = [threading.Thread(target=promote) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409, 409, 409]


def test_a_prediction_is_shown_with_lineage_approval_and_route(client: TestClient, world: World) -> None:
    world.serve(1)
    world.store.set_route("m", stable=1, actor="ada", reason="first")
    later = time.strftime("%Y-%m-%dT%H:%M:%S.999Z", time.gmtime(time.time() + 60))
    (event_id,) = world.predict("m", time=later)
    body = client.get(f"{API}/predictions/{event_id}").json()
    assert body["prediction"]["outputs"][0]["data"] == [12.5]
    assert body["version"]["lineage"]["author"] == "ada"
    assert (body["approval"]["reason"], body["route"]["reason"]) == ("tests pass", "first")


def test_a_prediction_is_shown_with_the_route_that_led_it_though_another_was_made_before_it_was_answered(
    client: TestClient, world: World
) -> None:
    world.serve(1, 2, 3)
    for stable, canary, weight in ((1, None, 0), (3, 2, 10), (1, 2, 10), (1, 2, 50), (3, None, 0)):
        reason = f"{stable} beside {canary} at {weight}"
        world.store.set_route("m", stable=stable, canary=canary, weight=weight, actor="ada", reason=reason)
    (event_id,) = world.predict("m", time=time.strftime("%Y-%m-%dT%H:%M:%S.999Z", time.gmtime(time.time() + 60)))
    body = client.get(f"{API}/predictions/{event_id}").json()
    assert (body["prediction"]["version"], body["prediction"]["weight"]) == (1, 10.0)
    assert body["route"]["reason"] == "1 beside 2 at 10"


def test_a_prediction_of_bytes_that_are_no_longer_there_has_no_lineage(client: TestClient, world: World) -> None:
    world.add_version(1)
    (event_id,) = world.predict("m")
    version = client.get(f"{API}/predictions/{event_id}").json()["version"]
    assert version["lineage"] is None
    assert "now" in version["problem"]


@pytest.mark.parametrize("text", ["x", "0196F0C5D2A100-0000000011", "0196f0c5d2a100-11", "%00", "0" * 5000])
def test_what_is_no_prediction_id_is_400(client: TestClient, text: str) -> None:
    assert "event id" in error_of(client.get(f"{API}/predictions/{text}"), 400)


def test_predictions_are_listed_in_the_order_of_time_and_filtered(client: TestClient, world: World) -> None:
    late = world.predict("m", "n", slot=0, time="2012-03-01T07:00:00.000Z")
    early = world.predict("m", slot=1, time="2012-03-01T06:00:00.000Z")

    def ids(query: dict[str, str]) -> list[str]:
        response = client.get(f"{API}/predictions", params=query)
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line)["id"] for line in response.text.splitlines()]

    assert ids({}) == early + late
    assert ids({"model": "m"}) == [early[0], late[0]]
    assert ids({"from": "2012-03-01T06:30"}) == late
    assert ids({"from": "now"}) == []
    assert "no start" in error_of(client.get(f"{API}/predictions", params={"from": "yesterday"}), 400)
    assert "true or false" in error_of(client.get(f"{API}/predictions", params={"follow": "yes"}), 400)


def test_more_predictions_than_one_block_are_all_listed(client: TestClient, world: World) -> None:
    ids = world.predict(*["m"] * 1203)
    lines = client.get(f"{API}/predictions").text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids


def test_decisions_are_paged(client: TestClient, world: World) -> None:
    world.serve(1, 2)

    def seqs(query: dict[str, str]) -> list[int]:
        return [one["seq"] for one in client.get(f"{API}/decisions", params=query).json()["decisions"]]

    assert seqs({"after": "0"}) == [1, 2, 3, 4]
    assert seqs({"after": "1", "limit": "2"}) == [2, 3]
    assert seqs({"limit": "2"}) == [3, 4]
    assert seqs({"model": "other"}) == []
    for query in ({"limit": "-1"}, {"limit": "1001"}, {"after": "x"}, {"aftr": "1"}, {"limit": "٣"}):
        assert error_of(client.get(f"{API}/decisions", params=query), 400)


@pytest.mark.promise("P14")
def test_tampering_shows(client: TestClient, world: World) -> None:
    world.serve(1)
    assert client.get(f"{API}/audit/verify").json()["ok"] is True
    database = sqlite3.connect(world.settings.state_dir / "store.db")
    database.execute("DROP TRIGGER decisions_refuse_update")
    database.execute("UPDATE decisions SET actor = 'eve' WHERE seq = 2")
    database.commit()
    database.close()
    report = client.get(f"{API}/audit/verify").json()
    assert (report["ok"], report["first_bad"]) == (False, 2)


@pytest.mark.promise("P14")
@pytest.mark.parametrize("edit", ["evidence = '{'", "time = x'ff'", "reason = CAST(x'ff' AS TEXT)"])
def test_a_decision_that_was_made_unreadable_is_shown_as_touched_and_ends_no_page(
    client: TestClient, world: World, edit: str
) -> None:
    world.serve(1)
    database = sqlite3.connect(world.settings.state_dir / "store.db")
    database.execute("DROP TRIGGER decisions_refuse_update")
    database.execute(f"UPDATE decisions SET {edit} WHERE seq = 2")
    database.commit()
    database.close()
    report = client.get(f"{API}/audit/verify").json()
    assert (report["ok"], report["first_bad"]) == (False, 2)
    assert [one["seq"] for one in client.get(f"{API}/decisions").json()["decisions"]] == [1, 2]
    assert client.get("/").status_code == 200


@pytest.mark.promise("P14")
def test_an_approval_without_a_decision_shows(client: TestClient, world: World) -> None:
    world.serve(1)
    database = sqlite3.connect(world.settings.state_dir / "store.db")
    database.execute("INSERT INTO versions VALUES ('m', 2, 'sha256:2', 'approved')")
    database.commit()
    database.close()
    report = client.get(f"{API}/audit/verify").json()
    assert (report["ok"], report["first_bad"]) == (False, None)
    assert report["differences"] == ["version m/2 is in the store, but no decision put it there"]


def test_drift_is_what_the_monitor_wrote(client: TestClient, world: World) -> None:
    status = world.settings.state_dir / "monitor" / "status.json"
    status.parent.mkdir()
    status.write_text('{"time": 1.5, "models": {"m": {"versions": {}}}}')
    assert client.get(f"{API}/drift").json()["time"] == 1.5
    assert client.get(f"{API}/drift/m").json() == {"versions": {}}
    assert "not seen" in error_of(client.get(f"{API}/drift/n"), 404)
    status.write_text("{")
    assert "cannot be read" in error_of(client.get(f"{API}/drift"), 404)


def test_a_store_that_is_away_is_503(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Store) -> int:
        raise StoreAway("the store does not answer")

    monkeypatch.setattr(Store, "revision", away)
    with TestClient(world.app(), base_url="http://127.0.0.1:8003") as client:
        response = client.get(f"{API}/health")
    assert "does not answer" in error_of(response, 503)
    assert response.headers["retry-after"] == "1"


def test_a_failure_of_our_own_is_500_in_the_same_form(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Store) -> int:
        raise RuntimeError("secret")

    monkeypatch.setattr(Store, "revision", broken)
    with TestClient(world.app(), base_url="http://127.0.0.1:8003", raise_server_exceptions=False) as client:
        assert "secret" not in error_of(client.get(f"{API}/health"), 500)


def test_reads_never_change_anything(client: TestClient, world: World) -> None:
    world.serve(1)
    world.store.set_route("m", stable=1, actor="ada", reason="")
    before = (world.store.snapshot(), world.store.decisions())
    for line in ENDPOINTS:
        if line.method == "GET":
            path = line.path.format(model="m", version="1", rollout="rollout-1", prediction="0196f0c5d2a100-0000000011")
            for method in ("GET", "HEAD"):
                client.request(method, PREFIX + path)
    for path in ("/", "/openapi.json", "/console.css"):
        assert client.get(path).status_code == 200
    assert (world.store.snapshot(), world.store.decisions()) == before


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "POST", "TRACE"])
def test_another_method_is_405(client: TestClient, method: str) -> None:
    response = client.request(method, f"{API}/models")
    assert error_of(response, 405)


def test_the_description_has_every_endpoint(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    described = {(method.upper(), path) for path, line in description["paths"].items() for method in line}
    assert described >= {(line.method, PREFIX + line.path) for line in ENDPOINTS}
    assert ("POST", f"{API}/models/{{model}}/versions/{{version}}/approve") in described
    ids = [line["operationId"] for path in description["paths"].values() for line in path.values()]
    assert len(set(ids)) == len(ids)
    text = json.dumps(description)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in description["components"]["schemas"]


def test_so_many_waiting_requests_are_429(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.admin.api.MAX_WAITING", 0)
    with TestClient(world.app(), base_url="http://127.0.0.1:8003") as client:
        response = client.get(f"{API}/models")
    assert error_of(response, 429)
    assert response.headers["retry-after"] == "1"
