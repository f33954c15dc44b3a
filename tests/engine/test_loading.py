from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.engines import save_doubler, save_model


def refusal(model_file: Path, max_resident_bytes: int) -> str:
    command = [sys.executable, "-m", "gateway.engine", str(model_file), str(model_file.with_name("e.sock")), "1"]
    done = subprocess.run([*command, str(max_resident_bytes)], capture_output=True, timeout=60)
    assert done.returncode == 1
    return done.stderr.decode()


def test_a_model_that_needs_more_memory_than_an_engine_may_hold_is_refused_with_both_figures(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((3, 2**22), "f4"), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    shapes = {"x": (TensorProto.FLOAT, ["n", 3])}, {"y": (TensorProto.FLOAT, ["n", 2**22])}
    path = save_model(tmp_path / "m.onnx", [node], inputs=shapes[0], outputs=shapes[1], weights=[weights])
    text = refusal(path, 2**27)
    assert "engine.max_resident_bytes is 134217728" in text
    assert "Traceback" not in text


def test_an_engine_that_holds_more_before_any_model_says_so_too(tmp_path: Path) -> None:
    text = refusal(save_doubler(tmp_path / "m.onnx"), 2**25)
    assert "before the model is loaded; engine.max_resident_bytes is 33554432" in text
    assert "Traceback" not in text
