"""Versions appear while the gateway serves; what is incomplete, changed or unapproved does not serve and says so."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.engines import save_doubler
from tests.gateways import ROOT, RunningGateway, call, eventually
from tests.load import ROWS, Load, features

ROW = {"inputs": [features(ROWS[0])]}


def test_a_new_version_and_a_new_model_take_traffic_and_no_request_is_lost(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    gateway.set_route("bike-demand", 1)
    file = ROOT / "models" / "bike-demand" / "2" / "model.onnx"
    with Load(gateway.http_port) as load:
        load.wait(50)
        version = gateway.add("bike-demand", file)
        gateway.set_route("bike-demand", 1, version, 50)
        load.wait(200)
        doubler = gateway.add("doubler", save_doubler(tmp_path / "doubler.onnx"))
        gateway.set_route("doubler", doubler)
        rows = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6.5]}]}
        status, answer = call(f"{gateway.http_url}/v2/models/doubler/infer", rows)
        load.wait(50)
        gateway.set_route("bike-demand", version)
        load.wait(100)
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == [2, 4, 6, 8, 10, 13]
    assert not load.failed and not load.broken
    assert {answer.version for answer in load.answers} == {"1", str(version)}
    assert {answer.version for answer in load.answers[-50:]} == {str(version)}


def test_a_model_is_retired_and_each_request_for_it_is_answered(gateway: RunningGateway, tmp_path: Path) -> None:
    file = save_doubler(tmp_path / "retired.onnx")
    version = gateway.add("retired", file)
    (gateway.models / "retired" / "model.toml").write_text(f"[route]\nstable = {version}\n")
    gateway.set_route("retired", version)
    rows = [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]
    url = f"{gateway.http_url}/v2/models/retired"
    with Load(gateway.http_port, model="retired", inputs=[rows]) as load, Load(gateway.http_port, version=1) as others:
        load.wait(50)
        gateway.cli("route", "remove", "retired", "--reason", "a test")
        eventually(lambda: call(f"{url}/infer", {"inputs": rows})[0] == 404, what="the end of its traffic")
        named = f"{url}/versions/{version}/infer"
        assert call(named, {"inputs": rows})[0] == 200, "its version is there for those who name it"
        # Traffic that a person took away does not come back with a version, whatever model.toml has as first route.
        gateway.add("retired", file)
        load.wait(50)
        assert load.answers[-1].status == 404
        for number in (version, version + 1):
            gateway.cli("models", "reject", "retired", str(number), "--reason", "a test")
        eventually(lambda: not gateway.children("engine retired"), what="the end of its engines")
        assert call(named, {"inputs": rows})[0] == 404
        others.wait(50)
    assert not load.broken and not others.broken and not others.failed
    assert {answer.status for answer in load.answers} == {200, 404}


def test_a_version_that_nobody_approved_is_not_served_and_says_so(gateway: RunningGateway) -> None:
    version = gateway.add("bike-demand", ROOT / "models" / "bike-demand" / "3" / "model.onnx", approve=False)
    eventually(lambda: f" {version} " in gateway.cli("models", "list"), what="the new version in the list")
    status, answer = call(f"{gateway.http_url}/v2/models/bike-demand/versions/{version}/infer", ROW)
    assert status == 404
    assert f"version {version}" in answer["error"]
    refused = gateway.cli("route", "set", "bike-demand", "--stable", str(version), status=1)
    assert "approve" in refused


@pytest.mark.promise("P8")
@pytest.mark.promise("P15")
def test_a_folder_half_copied_or_changed_by_a_byte_is_not_served_and_says_so(gateway: RunningGateway) -> None:
    model = gateway.models / "bike-demand"
    half, changed = 901, 902
    # As a slow copy leaves it: the model is there, the manifest has not come yet.
    (model / str(half)).mkdir()
    shutil.copy(model / "2" / "model.onnx", model / str(half))
    whole = model / ".arriving"
    shutil.copytree(model / "2", whole)
    content = bytearray((whole / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (whole / "model.onnx").write_bytes(content)
    whole.rename(model / str(changed))
    try:
        eventually(lambda: f"bike-demand/{half} is not served" in gateway.output.read_text(), what="a line about it")
        assert "approved" not in gateway.cli("models", "approve", "bike-demand", str(half), "--reason", "x", status=1)
        eventually(lambda: f" {changed} " in gateway.cli("models", "list"), what="the changed version in the list")
        said = gateway.cli("models", "approve", "bike-demand", str(changed), "--reason", "a test", status=1)
        assert "model.onnx" in said
        checked = gateway.cli("models", "verify", "bike-demand", "--models", str(gateway.models), status=1)
        assert f"bike-demand/{changed}" in checked and f"bike-demand/{half}" in checked
        for version in (half, changed):
            status, answer = call(f"{gateway.http_url}/v2/models/bike-demand/versions/{version}/infer", ROW)
            assert status in (404, 503) and f"version {version}" in answer["error"]
        assert call(f"{gateway.http_url}/v2/models/bike-demand/versions/1/infer", ROW)[0] == 200
    finally:
        shutil.rmtree(model / str(half))
        shutil.rmtree(model / str(changed))


def test_an_approved_version_whose_folder_is_changed_or_gone_is_told_once(gateway: RunningGateway) -> None:
    model = gateway.models / "bike-demand"
    version = gateway.add("bike-demand", ROOT / "models" / "bike-demand" / "2" / "model.onnx")
    folder = model / str(version)
    eventually(lambda: f"version {version} is ready" in gateway.output.read_text(), what="its engine")
    folder.rename(model / ".aside")
    gone = f"bike-demand version {version} is approved, but {folder} is not there"
    eventually(lambda: gone in gateway.output.read_text(), what="a line about the missing folder")
    shutil.copytree(model / "1", folder)
    changed = f"bike-demand version {version} is approved with "
    eventually(lambda: changed in gateway.output.read_text(), what="a line about the changed folder")
    time.sleep(3.0)
    told = gateway.output.read_text()
    assert (told.count(gone), told.count(changed)) == (1, 1)
    assert call(f"{gateway.http_url}/v2/models/bike-demand/versions/{version}/infer", ROW)[0] == 200
    shutil.rmtree(folder)
    (model / ".aside").rename(folder)
