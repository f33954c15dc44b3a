"""The tiny models of the conformance kit: `python tests/conformance/models.py DIR --layout triton|mlserver|gateway`.

Needs onnx; the layout `gateway` also needs this project, which writes the manifests.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

__all__ = ("DATATYPES", "HALVES", "MODELS", "TinyModel", "write_gateway", "write_mlserver", "write_triton")

MAX_BATCH_SIZE = 64

DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "BYTES")
"""Datatypes that JSON can carry, each an input `IN_<datatype>` and an output `OUT_<datatype>` of `datatypes`."""
HALVES = ("FP16", "BF16")
"""Datatypes that only bytes can carry, likewise of `halves`."""

_ONNX = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}

Tensors = Sequence[tuple[str, str, tuple[int, ...]]]


@dataclass(frozen=True)
class TinyModel:
    """One model: tensors as (name, V2 datatype, shape), -1 for a free axis; `batched`: the first axis is one."""

    name: str
    inputs: Tensors
    outputs: Tensors
    nodes: tuple[Any, ...]
    batched: bool = True

    def save(self, path: Path) -> Path:
        graph = helper.make_graph(self.nodes, self.name, *[_values(t) for t in (self.inputs, self.outputs)])
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())
        return path

    def config(self) -> str:
        """Triton's config.pbtxt."""
        lines = [f'name: "{self.name}"', 'backend: "onnxruntime"']
        lines.append(f"max_batch_size: {MAX_BATCH_SIZE if self.batched else 0}")
        if self.batched:
            lines.append("dynamic_batching { }")
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for name, datatype, shape in tensors:
                dims = ", ".join(str(axis) for axis in (shape[1:] if self.batched else shape))
                triton = "STRING" if datatype == "BYTES" else datatype
                lines.append(f'{kind} {{ name: "{name}" data_type: TYPE_{triton} dims: [ {dims} ] }}')
        return "\n".join(lines) + "\n"


def _values(tensors: Tensors) -> list[Any]:
    return [
        helper.make_tensor_value_info(
            name, _ONNX[datatype], [f"n{i}" if axis < 0 else axis for i, axis in enumerate(shape)]
        )
        for name, datatype, shape in tensors
    ]


def _identities(name: str, datatypes: Sequence[str]) -> TinyModel:
    return TinyModel(
        name,
        [(f"IN_{datatype}", datatype, (-1, -1)) for datatype in datatypes],
        [(f"OUT_{datatype}", datatype, (-1, -1)) for datatype in datatypes],
        tuple(helper.make_node("Identity", [f"IN_{datatype}"], [f"OUT_{datatype}"]) for datatype in datatypes),
    )


def _sums(name: str, datatype: str) -> TinyModel:
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    cast = "Identity" if datatype == "INT32" else "Cast"
    there: dict[str, Any] = {} if cast == "Identity" else {"to": TensorProto.INT32}
    back: dict[str, Any] = {} if cast == "Identity" else {"to": TensorProto.STRING}
    nodes = [
        helper.make_node(cast, ["INPUT0"], ["a"], **there),
        helper.make_node(cast, ["INPUT1"], ["b"], **there),
        *nodes,
        helper.make_node(cast, ["sum"], ["OUTPUT0"], **back),
        helper.make_node(cast, ["difference"], ["OUTPUT1"], **back),
    ]
    return TinyModel(
        name,
        [(f"INPUT{i}", datatype, (-1, 16)) for i in (0, 1)],
        [(f"OUTPUT{i}", datatype, (-1, 16)) for i in (0, 1)],
        tuple(nodes),
    )


MODELS = (
    _sums("simple", "INT32"),
    _sums("simple_string", "BYTES"),
    _identities("datatypes", DATATYPES),
    _identities("halves", HALVES),
    TinyModel(
        "scores",
        [("INPUT0", "FP32", (-1, 4))],
        [("OUTPUT0", "FP32", (-1, 4))],
        (helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"]),),
    ),
    TinyModel(
        "fixed",
        [("INPUT0", "FP32", (2, 3))],
        [("OUTPUT0", "FP32", (2, 3))],
        (helper.make_node("Neg", ["INPUT0"], ["OUTPUT0"]),),
        batched=False,
    ),
)


def write_triton(folder: Path) -> None:
    """A model repository as Triton reads it: `<model>/config.pbtxt`, `<model>/1/model.onnx`."""
    for model in MODELS:
        (folder / model.name / "1").mkdir(parents=True)
        (folder / model.name / "config.pbtxt").write_text(model.config())
        model.save(folder / model.name / "1" / "model.onnx")


def write_mlserver(folder: Path) -> None:
    """Folders as MLServer reads them: `<model>/model-settings.json`, served by `mlserver_runtime.py`."""
    for model in MODELS:
        (folder / model.name).mkdir(parents=True)
        file = model.save(folder / model.name / "model.onnx").resolve()
        inputs, outputs = (
            [{"name": name, "datatype": datatype, "shape": list(shape)} for name, datatype, shape in tensors]
            for tensors in (model.inputs, model.outputs)
        )
        settings = {
            "name": model.name,
            "implementation": "mlserver_runtime.OnnxModel",
            "platform": "onnx",
            "versions": ["1"],
            "inputs": inputs,
            "outputs": outputs,
            "parameters": {"uri": str(file), "version": "1"},
        }
        (folder / model.name / "model-settings.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_gateway(folder: Path, models: Sequence[TinyModel] = MODELS) -> None:
    """Model folders as this project reads them, approved by digest in their `model.toml`."""
    from gateway.engine.oneshot import open_engine
    from gateway.repository.add import add_version
    from gateway.repository.lineage import Lineage
    from gateway.repository.policy import ModelPolicy

    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        file = model.save(folder / f"{model.name}.onnx")
        added = add_version(folder, model.name, file, open_runner=open_engine, policy=ModelPolicy(), lineage=Lineage())
        file.unlink()
        (folder / model.name / "model.toml").write_text(f'[approvals]\n1 = "{added.manifest.digest}"\n')


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tiny models of the conformance kit.")
    parser.add_argument("folder", type=Path, help="where to; must not hold them yet")
    parser.add_argument("--layout", choices=("triton", "mlserver", "gateway"), default="triton")
    arguments = parser.parse_args()
    {"triton": write_triton, "mlserver": write_mlserver, "gateway": write_gateway}[arguments.layout](arguments.folder)
    print(f"{len(MODELS)} models in {arguments.folder}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
