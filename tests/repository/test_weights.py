"""External weights are found wherever an ONNX file can name them, and only plain neighbours are taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.repository.errors import ModelFileError
from gateway.repository.weights import external_weights

OnnxModel = Callable[..., Path]


def external(name: str, **place: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_initializers(onnx_model: OnnxModel, *tensors: onnx.TensorProto) -> Path:
    path = onnx_model([helper.make_node("Relu", ["x"], ["y"])], inputs=[("x", ["n"])], outputs=[("y", ["n"])])
    model = onnx.load_model(path)
    model.graph.initializer.extend(tensors)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_model_without_external_weights_needs_no_file(onnx_model: OnnxModel) -> None:
    assert external_weights(with_initializers(onnx_model)) == {}


def test_the_bytes_that_are_needed_are_those_of_the_last_tensor(onnx_model: OnnxModel) -> None:
    path = with_initializers(
        onnx_model,
        external("a", location="w.bin", offset="64", length="12"),
        external("b", location="w.bin", offset="0", length="12"),
        external("c", location="./deep/w.bin"),
    )
    assert external_weights(path) == {"w.bin": 76, "deep/w.bin": 0}


def test_weights_are_found_in_attributes_subgraphs_sparse_tensors_and_functions(onnx_model: OnnxModel) -> None:
    path = with_initializers(onnx_model)
    model = onnx.load_model(path)
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external("c", location="attribute.bin")))
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["d"], value=external("d", location="subgraph.bin"))],
        "inner",
        [],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, [3])],
    )
    model.graph.node.append(helper.make_node("If", ["q"], ["e"], then_branch=inner, else_branch=inner))
    model.graph.sparse_initializer.add().values.CopyFrom(external("f", location="sparse.bin"))
    function = model.functions.add(name="F", domain="d")
    function.node.append(helper.make_node("Constant", [], ["g"], value=external("g", location="function.bin")))
    path.write_bytes(model.SerializeToString())
    assert set(external_weights(path)) == {"attribute.bin", "subgraph.bin", "sparse.bin", "function.bin"}


@pytest.mark.parametrize(
    "location",
    ["../w.bin", "a/../../w.bin", "/etc/passwd", "", ".", "a//b", "C:\\w.bin", "a\\b", "w\0.bin", ".hidden", "x" * 200],
)
def test_a_location_that_could_leave_the_folder_is_refused(onnx_model: OnnxModel, location: str) -> None:
    with pytest.raises(ModelFileError, match="weights of 'a' lie in .*: expected a plain relative path"):
        external_weights(with_initializers(onnx_model, external("a", location=location)))


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "profile.json", "card.md", "./card.md"])
def test_a_location_that_is_taken_is_refused(onnx_model: OnnxModel, name: str) -> None:
    with pytest.raises(ModelFileError, match="that name is taken"):
        external_weights(with_initializers(onnx_model, external("a", location=name)))


@pytest.mark.parametrize("place", [{"offset": "-1"}, {"length": "-1"}, {"offset": "many"}])
def test_an_offset_or_length_that_is_no_size_is_refused(onnx_model: OnnxModel, place: dict[str, str]) -> None:
    with pytest.raises(ModelFileError, match="no usable offset and length"):
        external_weights(with_initializers(onnx_model, external("a", location="w.bin", **place)))


def test_a_location_given_twice_is_refused(onnx_model: OnnxModel) -> None:
    tensor = external("a", location="w.bin")
    tensor.external_data.add(key="location", value="v.bin")
    with pytest.raises(ModelFileError, match="plain relative path"):
        external_weights(with_initializers(onnx_model, tensor))


@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04", b"\x08\x07", bytes(range(256))])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match="model.onnx is not an ONNX file"):
        external_weights(tmp_path / "model.onnx")
