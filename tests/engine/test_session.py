from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnxruntime import OrtValue
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from gateway.engine.errors import RunFailed, RunStopped
from gateway.engine.session import ModelSession
from tests.engines import save_doubler, save_looper


def test_a_stop_that_comes_too_late_for_its_run_does_not_harm_the_next(tmp_path: Path) -> None:
    session = ModelSession(save_doubler(tmp_path / "m.onnx"))
    session._stop_run()  # as the watch does when the run ends in that moment
    assert session.run({"x": np.ones((1, 3), "f4")})[0].tolist() == [[2, 2, 2]]


@pytest.mark.parametrize("call", ["run", "run_with_ort_values"])
def test_a_provider_that_fails_in_a_run_does_not_give_way_to_another(tmp_path: Path, call: str) -> None:
    session = ModelSession(save_doubler(tmp_path / "m.onnx"))
    package: Any = session._session

    def fail(*_: object) -> None:
        raise EPFail("the device is lost")

    package._sess = SimpleNamespace(run=fail, run_with_ort_values=fail, is_webgpu_graph_capture_enabled=lambda: False)
    package.set_providers = lambda _: pytest.fail("another provider was asked")
    values: dict[str, Any] = {"x": np.ones((1, 3), "f4")}
    if call == "run_with_ort_values":
        values = {name: OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}
    with pytest.raises(EPFail):
        getattr(package, call)(["y"], values, None)


def test_what_onnxruntime_refuses_is_a_failed_run(tmp_path: Path) -> None:
    session = ModelSession(save_doubler(tmp_path / "m.onnx"))
    right = np.ones((1, 3), "f4")
    wrong = [{}, {"z": right}, {"x": right, "z": right}, {"x": right.astype("f8")}, {"x": right.reshape(1, 3, 1)}]
    for inputs in wrong:
        with pytest.raises(RunFailed):
            session.run(inputs)
    assert session.run({"x": right})[0].tolist() == [[2, 2, 2]]


def test_each_run_has_its_own_deadline(tmp_path: Path) -> None:
    session = ModelSession(save_looper(tmp_path / "m.onnx"))
    for _ in range(3):
        with pytest.raises(RunStopped):
            session.run({"n": np.array([2**62])}, until=time.monotonic() + 0.05)
        assert session.run({"n": np.array([9])}, until=time.monotonic() + 60)[0].tolist() == [9]
