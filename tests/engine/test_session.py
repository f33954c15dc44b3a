from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from gateway.engine.errors import RunStopped
from gateway.engine.session import ModelSession
from tests.engines import save_doubler, save_looper


def test_a_stop_that_comes_too_late_for_its_run_does_not_harm_the_next(tmp_path: Path) -> None:
    session = ModelSession(save_doubler(tmp_path / "m.onnx"))
    session._stop_run()  # as the watch does when the run ends in that moment
    assert session.run({"x": np.ones((1, 3), "f4")})[0].tolist() == [[2, 2, 2]]


def test_each_run_has_its_own_deadline(tmp_path: Path) -> None:
    session = ModelSession(save_looper(tmp_path / "m.onnx"))
    for _ in range(3):
        with pytest.raises(RunStopped):
            session.run({"n": np.array([2**62])}, until=time.monotonic() + 0.05)
        assert session.run({"n": np.array([9])}, until=time.monotonic() + 60)[0].tolist() == [9]
