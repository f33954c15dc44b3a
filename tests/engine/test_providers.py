from __future__ import annotations

from pathlib import Path

import pytest

from gateway.engine.errors import EngineStartFailed
from gateway.engine.providers import CPU, Provider, choose_providers
from gateway.engine.session import ModelSession
from tests.engines import save_doubler

CUDA = "CUDAExecutionProvider"


def test_providers_are_taken_in_the_order_asked_for_with_their_options() -> None:
    chosen, said = choose_providers([CUDA, CPU], options={CUDA: {"device_id": "1"}}, installed=[CPU, CUDA])
    assert chosen == [Provider(CUDA, {"device_id": "1"}), Provider(CPU, {})]
    assert not said


def test_what_is_not_installed_is_passed_over_and_said() -> None:
    chosen, said = choose_providers(["X", CUDA, CPU], options={}, installed=[CPU])
    assert chosen == [Provider(CPU, {})]
    assert said == f"X and {CUDA} were asked for but are not installed"


def test_a_version_with_none_of_its_providers_is_not_served() -> None:
    with pytest.raises(EngineStartFailed, match=f"asks for {CUDA}, of which onnxruntime has none here: it has {CPU}"):
        choose_providers([CUDA], options={}, installed=[CPU])


def test_a_provider_that_onnxruntime_could_not_start_is_not_taken_for_another(tmp_path: Path) -> None:
    # onnxruntime goes on with its CPU provider when one that was asked for does not start.
    with pytest.warns(UserWarning), pytest.raises(EngineStartFailed, match="could not start it"):
        ModelSession(save_doubler(tmp_path / "m.onnx"), providers=[Provider(CUDA, {})])
