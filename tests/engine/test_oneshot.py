from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from gateway.engine.errors import EngineGone, EngineStartFailed, RunFailed, RunStopped
from gateway.engine.oneshot import connect_engine, open_engine
from tests.engines import save_divider, save_doubler, save_looper


def test_a_model_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    with open_engine(save_doubler(tmp_path / "m.onnx")) as engine:
        assert engine.hello.pid != os.getpid()
        assert engine.signature.inputs[0].shape == (-1, 3)
        assert engine.run({"x": np.ones((2, 3), "f4")})["y"].tolist() == [[2, 2, 2], [2, 2, 2]]


def test_a_failing_run_is_told_apart_from_a_dead_engine(tmp_path: Path) -> None:
    with open_engine(save_divider(tmp_path / "m.onnx")) as engine:
        with pytest.raises(RunFailed, match="[Zz]ero"):
            engine.run({"a": np.array([1]), "b": np.array([0])})
        assert engine.run({"a": np.array([6]), "b": np.array([3])})["y"].tolist() == [2]


def test_what_lies_in_the_current_directory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    with open_engine(save_doubler(tmp_path / "m.onnx")) as engine:
        assert engine.run({"x": np.ones((1, 3), "f4")})["y"].tolist() == [[2, 2, 2]]


@pytest.mark.promise("P5")
def test_an_input_that_crashes_the_runtime_ends_only_the_engine(tmp_path: Path) -> None:
    with open_engine(save_divider(tmp_path / "m.onnx")) as engine, pytest.raises(EngineGone):
        engine.run({"a": np.array([-(2**63)]), "b": np.array([-1])})


def test_an_engine_that_stops_moving_is_given_up_in_time(tmp_path: Path) -> None:
    with open_engine(save_doubler(tmp_path / "m.onnx"), timeout_seconds=0.3) as engine:
        os.kill(engine.hello.pid, signal.SIGSTOP)
        with pytest.raises(EngineGone, match="did not answer within"):
            engine.run({"x": np.ones((1, 3), "f4")})


def test_a_run_without_end_is_stopped_at_its_deadline_and_the_same_engine_goes_on(tmp_path: Path) -> None:
    with open_engine(save_looper(tmp_path / "m.onnx"), timeout_seconds=0.3) as engine:
        for _ in range(3):
            with pytest.raises(RunStopped):
                engine.run({"n": np.array([2**62])})
            assert engine.run({"n": np.array([5])})["y"].tolist() == [5]


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100], ids=["empty", "text", "zeros"])
def test_a_file_that_is_no_model_is_refused_with_a_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineStartFailed, match=r"m\.onnx"), open_engine(path):
        pass


def test_an_engine_that_is_not_ready_in_time_and_holds_more_than_it_may_is_told_so(tmp_path: Path) -> None:
    path = save_looper(tmp_path / "m.onnx")
    with pytest.raises(EngineStartFailed, match=r"not ready within 0 s$"), open_engine(path, start_timeout_seconds=0):
        pass
    told = "not ready within 0 s, and holds [0-9]+ bytes of memory by then: it needs more than engine.max_res"
    with pytest.raises(EngineStartFailed, match=told), open_engine(path, start_timeout_seconds=0, allowed_bytes=1):
        pass


def test_how_an_engine_that_never_got_ready_ended_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nkill -FPE $$\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("gateway.engine.oneshot.sys.executable", str(tmp_path / "python"))
    with (
        pytest.raises(EngineStartFailed, match="ended by SIGFPE"),
        open_engine(tmp_path / "m.onnx"),
    ):
        pass


def test_nobody_listening_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(EngineGone, match="no engine answers"):
        connect_engine(tmp_path / "none.sock")
