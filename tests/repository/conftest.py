"""Version folders and ONNX files made by hand, so that each test says what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.repository.manifest import digest_of

WriteVersion = Callable[..., Path]


@pytest.fixture
def write_version(tmp_path: Path) -> WriteVersion:
    """Write `models/<model>/<version>` with these files and a manifest that fits; `changes` replace keys of it."""

    def write(
        version: str = "1",
        *,
        model: str = "m",
        files: Mapping[str, bytes] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / "models" / model / version
        folder.mkdir(parents=True)
        files = {"model.onnx": b"a model", "card.md": b"a card"} if files is None else files
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        manifest: dict[str, Any] = {
            "files": [
                {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for path, content in files.items()
            ],
            "signature": msgspec.to_builtins(Signature((TensorSpec("x", "FP32", (-1, 1)),), ())),
            "batching": {"verdict": "equal"},
            "lineage": {},
        }
        manifest |= changes or {}
        manifest.setdefault("digest", digest_of(manifest))
        (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        return folder

    return write


OnnxModel = Callable[..., Path]


@pytest.fixture
def onnx_model(tmp_path: Path) -> OnnxModel:
    """Write an ONNX file of these nodes: `inputs` and `outputs` are (name, shape) of floats, or (name, shape, type)."""

    def write(
        nodes: Sequence[onnx.NodeProto],
        *,
        inputs: Sequence[tuple[Any, ...]],
        outputs: Sequence[tuple[Any, ...]],
        constants: Mapping[str, Any] | None = None,
        name: str = "model.onnx",
    ) -> Path:
        def value(name: str, shape: Sequence[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, kind, shape)

        initializers = [numpy_helper.from_array(np.asarray(array), key) for key, array in (constants or {}).items()]
        graph = helper.make_graph(
            list(nodes), "graph", [value(*each) for each in inputs], [value(*each) for each in outputs], initializers
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(model.SerializeToString())
        return path

    return write
