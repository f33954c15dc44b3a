"""What a person should know of a version that is added all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from gateway.cli.models import app
from gateway.engine.oneshot import open_engine
from gateway.repository.add import add_version
from gateway.repository.lineage import Lineage
from gateway.repository.manifest import ModelVersion, load_version
from gateway.repository.policy import ModelPolicy

OnnxModel = Callable[..., Path]
X = ("x", ["n", 4])
FIVES = {"five": np.array([-1, 5])}


def add(models: Path, model_file: Path) -> ModelVersion:
    return add_version(models, "m", model_file, open_runner=open_engine, policy=ModelPolicy(), lineage=Lineage())


def row_wise(write: OnnxModel) -> Path:
    return write([helper.make_node("Relu", ["x"], ["y"])], inputs=[X], outputs=[("y", ["n", 4])])


def failing(write: OnnxModel) -> Path:
    nodes = [helper.make_node("Reshape", ["x", "five"], ["y"])]
    return write(nodes, inputs=[X], outputs=[("y", ["n", 5])], constants=FIVES)


def two_for_seven(write: OnnxModel) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return write(nodes, inputs=[X], outputs=[("y", ["n", 7])], constants={"w": np.ones((4, 2), np.float32)})


def with_a_sequence(write: OnnxModel) -> Path:
    path = write(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("SequenceConstruct", ["x"], ["z"])],
        inputs=[X],
        outputs=[("y", ["n", 4])],
    )
    model = onnx.load_model(path)
    model.graph.output.append(helper.make_tensor_sequence_value_info("z", TensorProto.FLOAT, None))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("make", "remarks"),
    [
        (row_wise, []),
        (failing, ["the model failed on every row that was tried: [ONNXRuntimeError] : "]),
        (two_for_seven, ["output 'y' is declared with shape [-1, 7], but had shape [1, 2]"]),
        (with_a_sequence, ["output 'z' is never answered: it is seq(tensor(float)), which is no tensor"]),
    ],
)
def test_what_was_seen_is_in_the_manifest(
    tmp_path: Path, onnx_model: OnnxModel, make: Callable[[OnnxModel], Path], remarks: list[str]
) -> None:
    added = add(tmp_path / "models", make(onnx_model))
    told = load_version(added.folder).manifest.remarks
    assert len(told) == len(remarks)
    assert all(one.startswith(other) for one, other in zip(told, remarks, strict=True))
    assert (b'"remarks"' in (added.folder / "manifest.json").read_bytes()) == bool(remarks)


def test_a_version_that_takes_or_gives_otherwise_than_the_newest_beside_it_is_told(
    tmp_path: Path, onnx_model: OnnxModel
) -> None:
    models = tmp_path / "models"
    assert add(models, row_wise(onnx_model)).manifest.remarks == ()
    other = onnx_model([helper.make_node("Relu", ["x"], ["y"])], inputs=[("x", ["n", 5])], outputs=[("y", ["n", 5])])
    assert add(models, other).manifest.remarks == (
        "version 1 has other inputs: a canary beside it needs --allow-signature-change",
        "version 1 has other outputs: a canary beside it needs --allow-signature-change",
    )
    assert add(models, other).manifest.remarks == ()
    (models / "m" / "3" / "card.md").unlink()
    assert add(models, other).manifest.remarks == (), "version 3 is not complete, 2 is the newest that can be served"


def test_who_adds_a_version_is_told_and_so_are_the_faults_of_the_policy(tmp_path: Path, onnx_model: OnnxModel) -> None:
    policy = tmp_path / "models" / "m" / "model.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text('[quality]\noutput = "lable"\n')
    arguments: list[Any] = ["add", "m", two_for_seven(onnx_model), "--models", tmp_path / "models"]
    told = CliRunner().invoke(app, [*map(str, arguments)])
    assert told.exit_code == 0, told.output
    assert "  remark    output 'y' is declared with shape [-1, 7], but had shape [1, 2]\n" in told.stdout
    assert f"  remark    {policy}: quality.output names 'lable', which is no output of any version" in told.stdout
