from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.engine.approved import WIDE_BYTES, rows_written_at_once
from gateway.engine.notes import read_note
from gateway.engine.oneshot import connect_engine
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.serving.aside import SLOW_JSON_BYTES
from tests.engines import save_model
from tests.gateways import eventually
from tests.orders import made, started


def test_an_engine_says_what_it_chose_and_why(tmp_path: Path) -> None:
    policy = '[engine]\nproviders = ["CUDAExecutionProvider", "CPUExecutionProvider"]\n'
    with started(tmp_path, policy) as (_, order, log):
        eventually(Path(order.socket).exists, seconds=60, what="the engine")
        said = log.read_text()
    assert "engine bike-demand/1: warning: CUDAExecutionProvider was asked for but is not installed" in said
    assert "engine bike-demand/1: loaded provider=CPUExecutionProvider" in said
    assert "cores that may be used" in said
    assert 'warmed_up_on="rows like the reference, up to 256 at once"' in said


def test_a_version_with_none_of_its_providers_installed_is_not_served_and_says_so(tmp_path: Path) -> None:
    with started(tmp_path, '[engine]\nproviders = ["CUDAExecutionProvider"]\n') as (process, order, log):
        assert process.wait(60) == 1, log.read_text()
        note = read_note(Path(order.failure))
        assert note is not None and note.state == "failed"
        assert "asks for CUDAExecutionProvider, of which onnxruntime has none here" in note.reason
        assert log.read_text().endswith(f"Z engine bike-demand/1: warning: {note.reason}\n")


@pytest.mark.parametrize("connected", [True, False])
def test_an_engine_that_is_told_to_end_takes_its_socket_away_and_waits_for_who_is_connected(
    tmp_path: Path, connected: bool
) -> None:
    with started(tmp_path) as (process, order, _):
        eventually(Path(order.socket).exists, seconds=60, what="the engine")
        if not connected:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            return
        with connect_engine(Path(order.socket)) as engine:
            process.send_signal(signal.SIGTERM)
            eventually(lambda: not Path(order.socket).exists(), what="the end of the socket")
            row = {"features": np.zeros((1, 6), "f4")}
            assert engine.run(row)["count"].shape[0] == 1
            assert process.poll() is None
        assert process.wait(30) == 0


@pytest.mark.parametrize(("wanted", "greeted"), [(8, 8), (4096, 256)])
def test_a_version_shares_no_larger_runs_than_its_manifest_says_were_tried(
    tmp_path: Path, wanted: int, greeted: int
) -> None:
    with started(tmp_path, f"[batching]\nmax_rows = {wanted}\n") as (_, order, _):
        eventually(Path(order.socket).exists, seconds=60, what="the engine")
        with connect_engine(Path(order.socket)) as engine:
            assert engine.hello.batchable and engine.hello.max_rows == greeted


@pytest.mark.parametrize(("width", "greeted"), [(1, 1024), (100, 2**18 // 400), (1000, 256)])
def test_more_rows_share_a_run_as_far_as_its_answers_are_small(tmp_path: Path, width: int, greeted: int) -> None:
    weights = numpy_helper.from_array(np.ones((2, width), "f4"), "w")
    file = save_model(
        tmp_path / "model.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs={"x": (TensorProto.FLOAT, ["n", 2])},
        outputs={"y": (TensorProto.FLOAT, ["n", width])},
        weights=[weights],
    )
    with started(tmp_path, version=made(tmp_path, file)) as (_, order, log):
        eventually(Path(order.socket).exists, seconds=60, what="the engine")
        with connect_engine(Path(order.socket)) as engine:
            assert engine.hello.max_rows == greeted
        assert f"shared_rows={greeted}" in log.read_text()


@pytest.mark.parametrize(
    ("outputs", "rows"),
    [
        ((("y", "FP32", (-1,)),), 65536),
        ((("y", "FP32", (-1, 64)),), 1024),
        ((("y", "INT64", (-1, 10)), ("z", "BOOL", (-1, 3, 2))), 2**18 // 86),
        ((("y", "FP32", (-1, 2)), ("z", "FP32", (-1, -1))), 0),
        ((("y", "BYTES", (-1, 1)),), 0),
        ((("y", "FP32", (-1, 0)),), 2**18),
    ],
)
def test_rows_are_shared_as_far_as_their_answers_are_surely_written_at_once(outputs: Any, rows: int) -> None:
    signature = Signature((), tuple(TensorSpec(*output) for output in outputs))
    assert rows_written_at_once(signature) == rows


def test_the_bound_is_the_size_from_which_a_front_writes_answers_aside() -> None:
    assert WIDE_BYTES == SLOW_JSON_BYTES
