"""`gateway models add` and `gateway models verify`, as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from onnx import helper
from typer.testing import CliRunner

from gateway.cli.models import app

OnnxModel = Callable[..., Path]


def gateway_models(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model_file(onnx_model: OnnxModel) -> Path:
    return onnx_model([helper.make_node("Relu", ["x"], ["y"])], inputs=[("x", ["n", 1])], outputs=[("y", ["n", 1])])


def test_a_model_is_added_and_verified(tmp_path: Path, model_file: Path) -> None:
    models = tmp_path / "models"
    (tmp_path / "rows.csv").write_text("x\n1\n2\n")
    (tmp_path / "lineage.toml").write_text('author = "me"\ncreated = "2012-01-01"\n[source]\ncommit = "abc"\n')
    added = gateway_models(
        *("add", "m", model_file, "--models", models, "--version", 3, "--json"),
        *("--reference", tmp_path / "rows.csv", "--lineage", tmp_path / "lineage.toml"),
    )
    assert added.exit_code == 0, added.output
    facts = json.loads(added.stdout)
    assert (facts["model"], facts["version"], facts["batching"]["verdict"]) == ("m", 3, "equal")
    manifest = json.loads((models / "m" / "3" / "manifest.json").read_bytes())
    assert manifest["digest"] == facts["digest"]
    assert manifest["lineage"]["source"] == {"commit": "abc", "dirty": None}
    assert manifest["lineage"]["created"] == "2012-01-01"

    again = gateway_models("add", "m", model_file, "--models", models)
    assert again.exit_code == 0
    assert "added m/4" in again.stdout and "drift of this version cannot be told" in again.stdout

    verified = gateway_models("verify", "--models", models, "--json")
    assert verified.exit_code == 0
    assert [(each["version"], each["error"]) for each in json.loads(verified.stdout)] == [(3, None), (4, None)]


def test_versions_go_where_the_settings_have_models(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gateway.toml").write_text('models = "mine"\n')
    added = gateway_models("add", "m", model_file)
    assert added.exit_code == 0, added.output
    assert (tmp_path / "mine" / "m" / "1" / "manifest.json").exists()
    assert "m/1" in gateway_models("verify").stdout


def test_a_version_that_is_there_is_refused_with_status_1(tmp_path: Path, model_file: Path) -> None:
    arguments = ("add", "m", model_file, "--models", tmp_path / "models", "--version", 1)
    assert gateway_models(*arguments).exit_code == 0
    refused = gateway_models(*arguments)
    assert refused.exit_code == 1
    assert "not added: m/1 is already there" in refused.output


def test_a_wrong_policy_is_refused_with_status_1(tmp_path: Path, model_file: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.toml").write_text("[qualty]\n")
    refused = gateway_models("add", "m", model_file, "--models", tmp_path)
    assert refused.exit_code == 1
    assert "qualty" in refused.output


@pytest.mark.parametrize(
    "arguments", [("add", "m"), ("add", "m", "x", "--version", "0"), ("verify", "m", "one"), ("ad",)]
)
def test_wrong_usage_has_status_2(arguments: tuple[str, ...]) -> None:
    assert gateway_models(*arguments).exit_code == 2


def test_verify_tells_what_is_not_as_it_was_added(tmp_path: Path, model_file: Path) -> None:
    models = tmp_path / "models"
    for _ in range(3):
        assert gateway_models("add", "m", model_file, "--models", models).exit_code == 0
    model = models / "m" / "2" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    (models / "m" / "3" / "card.md").unlink()
    everything = gateway_models("verify", "--models", models)
    assert everything.exit_code == 1
    assert "ok       m/1" in everything.stdout
    assert "2: model.onnx is not as recorded" in everything.stdout
    assert "3: card.md is missing" in everything.stdout
    assert gateway_models("verify", "m", 1, "--models", models).exit_code == 0
    assert gateway_models("verify", "m", 2, "--models", models).exit_code == 1
    assert gateway_models("verify", "m", 3, "--models", models).exit_code == 1


def test_verify_of_what_is_not_there_has_status_1(tmp_path: Path) -> None:
    assert gateway_models("verify", "--models", tmp_path / "nowhere").exit_code == 1
    nothing = gateway_models("verify", "m", "--models", tmp_path)
    assert nothing.exit_code == 1
    assert "no version here" in nothing.stdout
