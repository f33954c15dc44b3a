from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from gateway.drift.profile import build_profile, decode_profile
from gateway.engine.errors import EngineStartFailed
from gateway.engine.loading import load_session, warm_up
from gateway.engine.session import ModelSession
from gateway.engine.warmup import ROWS, reference_rows, take_rows
from gateway.protocol.datatypes import NUMPY_OF, Signature, TensorSpec, bfloat16_of, numbers_of
from tests.engines import save_doubler, save_model

BIKE_DEMAND = Path(__file__).parents[2] / "models" / "bike-demand" / "1"


def test_rows_go_from_the_low_values_of_the_reference_to_its_high_ones() -> None:
    profile = decode_profile((BIKE_DEMAND / "profile.json").read_bytes())
    signature = Signature((TensorSpec("features", "FP32", (-1, 6)),), ())
    rows = reference_rows(signature, profile)
    assert rows is not None
    hours = rows["features"][:, 0]
    assert rows["features"].shape == (ROWS, 6) and rows["features"].dtype == np.float32
    assert hours[0] == 0 and hours[-1] == 23 and sorted(hours) == hours.tolist()


@pytest.mark.parametrize("datatype", list(NUMPY_OF))
def test_rows_have_the_datatype_and_shape_of_their_input(datatype: str) -> None:
    seen = (
        np.array([["a", "b"], ["c", "b"]], dtype=object)
        if datatype == "BYTES"
        else bfloat16_of([[0.5, 1], [2, 1]])
        if datatype == "BF16"
        else np.array([[0, 1], [2, 1]], NUMPY_OF[datatype])
    )
    profile = build_profile(inputs={"x": seen}, outputs={}, columns={})
    rows = reference_rows(Signature((TensorSpec("x", datatype, (-1, 2)),), ()), profile)
    assert rows is not None
    assert rows["x"].dtype == NUMPY_OF[datatype] and rows["x"].shape == (ROWS, 2)
    if datatype == "BYTES":
        assert set(rows["x"][:, 0]) == {"a", "c"}
    else:
        assert numbers_of(rows["x"]).max() <= 2 and numbers_of(rows["x"]).min() >= 0


def test_a_tensor_too_wide_for_its_columns_is_filled_with_means_of_rows() -> None:
    images = np.linspace(0, 1, 4 * 3 * 8 * 8, dtype="f4").reshape(4, 3, 8, 8)
    profile = build_profile(inputs={"x": images}, outputs={}, columns={})
    rows = reference_rows(Signature((TensorSpec("x", "FP32", (-1, 3, 8, 8)),), ()), profile)
    assert rows is not None and rows["x"].shape == (ROWS, 3, 8, 8)
    assert rows["x"].min() >= 0 and rows["x"].max() <= 1 and np.ptp(rows["x"]) > 0.5


def test_an_input_the_profile_does_not_know_has_no_rows() -> None:
    profile = build_profile(inputs={"x": np.ones((4, 3), "f4")}, outputs={}, columns={})
    assert reference_rows(Signature((TensorSpec("z", "FP32", (-1, 3)),), ()), profile) is None
    assert reference_rows(Signature((TensorSpec("x", "FP32", (4, 3)),), ()), profile) is None


def test_more_rows_than_there_are_begin_again() -> None:
    rows = {"x": np.arange(ROWS, dtype="f4").reshape(ROWS, 1)}
    assert take_rows(rows, ROWS - 1, 3)["x"].ravel().tolist() == [ROWS - 1, 0, 1]


def test_a_model_is_warmed_up_on_growing_batches_of_its_reference(tmp_path: Path) -> None:
    session = load_session(save_doubler(tmp_path / "m.onnx"), threads=1)
    profile = build_profile(inputs={"x": np.ones((4, 3), "f4")}, outputs={}, columns={})
    warm = warm_up(session, profile=profile, max_rows=20, max_seconds=30)
    assert warm.said == "rows like the reference, up to 16 at once"
    assert warm_up(session, profile=profile, max_rows=1, max_seconds=30).said == "rows like the reference"
    assert warm_up(session, profile=None, max_rows=20, max_seconds=30).said == "zeros"


def refusing(tmp_path: Path) -> ModelSession:
    """Fails on every row: an index into a table of one entry that is always 5 too high."""
    nodes = [helper.make_node("Gather", ["table", "i"], ["y"])]
    table = helper.make_tensor("table", TensorProto.FLOAT, [1], [1.0])
    path = save_model(
        tmp_path / "m.onnx",
        nodes,
        inputs={"i": (TensorProto.INT64, ["n", 1])},
        outputs={"y": (TensorProto.FLOAT, ["n", 1])},
        weights=[table],
    )
    return load_session(path, threads=1)


def test_a_model_that_fails_on_rows_like_its_reference_is_not_served(tmp_path: Path) -> None:
    profile = build_profile(inputs={"i": np.array([[5], [6]])}, outputs={}, columns={})
    with pytest.raises(EngineStartFailed, match="fails on rows like its reference"):
        warm_up(refusing(tmp_path), profile=profile, max_rows=1, max_seconds=30)


def test_rows_of_which_some_run_are_good_enough(tmp_path: Path) -> None:
    profile = build_profile(inputs={"i": np.array([[0], [6]])}, outputs={}, columns={})
    warm = warm_up(refusing(tmp_path), profile=profile, max_rows=8, max_seconds=30)
    assert warm.row["i"].tolist() == [[0]]
