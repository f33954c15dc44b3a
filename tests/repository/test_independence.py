"""Rows that depend on one another are told from rows that do not, by running them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from gateway.engine.errors import EngineGone, RunFailed, RunStopped
from gateway.engine.oneshot import open_engine
from gateway.engine.session import ModelSession
from gateway.protocol.datatypes import Signature, TensorSpec
from gateway.repository.errors import ModelFileError
from gateway.repository.independence import examine_batching
from gateway.repository.manifest import Batching

Array = np.ndarray[Any, np.dtype[Any]]
OnnxModel = Callable[..., Path]
X, Y = ("x", ["n", 3]), ("y", ["n", 3])
AXIS_0 = {"axis": np.array([0])}


class FunctionRunner:
    """A model that is a Python function of one input `x` [-1, 2] to one output `y`."""

    def __init__(self, function: Callable[[Array], Array], *, datatype: str = "FP32") -> None:
        self.signature = Signature((TensorSpec("x", datatype, (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))
        self._function = function

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": self._function(inputs["x"])}


class SessionRunner:
    """The engine's own session, without the process around it."""

    def __init__(self, model_file: Path) -> None:
        self._session = ModelSession(model_file)
        self.signature = self._session.signature

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [spec.name for spec in self.signature.outputs]
        return dict(zip(names, self._session.run(inputs), strict=True))


def rows(seed: int = 0, *, count: int = 50, width: int = 3, spread: float = 1.0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {"x": (5 + spread * generator.normal(size=(count, width))).astype(np.float32)}


def row_wise(write: OnnxModel) -> Path:
    return write([helper.make_node("Relu", ["x"], ["y"])], inputs=[X], outputs=[Y])


def batch_mean(write: OnnxModel) -> Path:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return write(nodes, inputs=[X], outputs=[Y], constants=AXIS_0)


def slight_batch_mean(write: OnnxModel) -> Path:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "share"], ["part"]),
        helper.make_node("Add", ["x", "part"], ["y"]),
    ]
    return write(nodes, inputs=[X], outputs=[Y], constants={**AXIS_0, "share": np.float32(1e-3)})


def batch_maximum(write: OnnxModel) -> Path:
    nodes = [
        helper.make_node("ReduceMax", ["x", "axis"], ["max"], keepdims=1),
        helper.make_node("Div", ["x", "max"], ["y"]),
    ]
    return write(nodes, inputs=[X], outputs=[Y], constants=AXIS_0)


def running_sum(write: OnnxModel) -> Path:
    nodes = [helper.make_node("CumSum", ["x", "first"], ["y"])]
    return write(nodes, inputs=[X], outputs=[Y], constants={"first": np.array(0)})


def softmax_over_rows(write: OnnxModel) -> Path:
    return write([helper.make_node("Softmax", ["x"], ["y"], axis=0)], inputs=[X], outputs=[Y])


def random_answers(write: OnnxModel) -> Path:
    return write([helper.make_node("RandomNormalLike", ["x"], ["y"])], inputs=[X], outputs=[Y])


def rows_above_nothing(write: OnnxModel) -> Path:
    # Keeps the rows whose first feature is positive: with reference rows that all are, only made-up rows show it.
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "one"], ["first"]),
        helper.make_node("Greater", ["first", "nothing"], ["above"]),
        helper.make_node("Squeeze", ["above", "one"], ["flat"]),
        helper.make_node("NonZero", ["flat"], ["places"]),
        helper.make_node("Squeeze", ["places", "zero"], ["kept"]),
        helper.make_node("Gather", ["x", "kept"], ["y"]),
    ]
    constants = {"zero": np.array([0]), "one": np.array([1]), "nothing": np.float32(0)}
    return write(nodes, inputs=[X], outputs=[("y", ["m", 3])], constants=constants)


def best_rows(write: OnnxModel) -> Path:
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "places"], axis=0)]
    return write(nodes, inputs=[X], outputs=[("y", ["m", 3])], constants={"k": np.array([1])})


def sorted_rows(write: OnnxModel) -> Path:
    nodes = [
        helper.make_node("Shape", ["x"], ["k"], end=1),
        helper.make_node("TopK", ["x", "k"], ["y", "places"], axis=0),
    ]
    return write(nodes, inputs=[X], outputs=[Y])


def fixed_batch(write: OnnxModel) -> Path:
    return write([helper.make_node("Relu", ["x"], ["y"])], inputs=[("x", [1, 3])], outputs=[("y", [1, 3])])


def one_number_for_all(write: OnnxModel) -> Path:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)]
    return write(nodes, inputs=[X], outputs=[("y", [])])


def inner_reshape(write: OnnxModel) -> Path:
    # Free on both ends, but it works for one row only.
    nodes = [
        helper.make_node("Reshape", ["x", "three"], ["flat"]),
        helper.make_node("Reshape", ["flat", "row"], ["y"]),
    ]
    return write(nodes, inputs=[X], outputs=[Y], constants={"three": np.array([3]), "row": np.array([-1, 3])})


VERDICTS = [
    (row_wise, "equal"),
    (batch_mean, "dependent"),
    (slight_batch_mean, "dependent"),
    (batch_maximum, "dependent"),
    (running_sum, "dependent"),
    (softmax_over_rows, "dependent"),
    (sorted_rows, "dependent"),
    (random_answers, "dependent"),
    (rows_above_nothing, "not_batchable"),
    (best_rows, "not_batchable"),
    (fixed_batch, "not_batchable"),
    (one_number_for_all, "not_batchable"),
    (inner_reshape, "not_batchable"),
]


@pytest.mark.parametrize("with_reference", [True, False], ids=["reference", "made up"])
@pytest.mark.parametrize(("model", "verdict"), VERDICTS, ids=lambda value: getattr(value, "__name__", value))
def test_the_verdict_says_whether_rows_may_share_a_run(
    onnx_model: OnnxModel, model: Callable[[OnnxModel], Path], verdict: str, with_reference: bool
) -> None:
    seen = examine_batching(SessionRunner(model(onnx_model)), rows() if with_reference else None)
    assert seen.verdict == verdict, seen
    assert seen.reason
    assert seen.allows(exact=False) == (verdict == "equal")


@pytest.mark.parametrize("model", [row_wise, batch_mean, rows_above_nothing])
def test_an_engine_gives_the_same_verdict_as_its_session(
    onnx_model: OnnxModel, model: Callable[[OnnxModel], Path]
) -> None:
    path = model(onnx_model)
    with open_engine(path) as engine:
        assert examine_batching(engine, rows()) == examine_batching(SessionRunner(path), rows())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    spread=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 1e6]),
    share=st.floats(1e-3, 1.0),
    mixed=st.booleans(),
)
def test_a_share_of_the_batch_mean_is_always_caught_and_its_absence_never_blamed(
    seed: int, count: int, spread: float, share: float, mixed: bool
) -> None:
    weights = np.random.default_rng(seed).normal(size=(2, 2))

    def model(x: Array) -> Array:
        # In double precision and rounded afterwards, so that a row alone gives the bits it gives in company.
        answers = x.astype(np.float64) @ weights
        if mixed:
            answers = answers + share * answers.mean(axis=0)
        return np.round(answers, 6).astype(np.float32)

    seen = examine_batching(FunctionRunner(model), rows(seed, count=count, width=2, spread=spread))
    assert (seen.verdict == "dependent") == mixed, seen


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), layers=st.integers(1, 4), width=st.integers(1, 40))
def test_a_network_of_dense_layers_may_differ_by_rounding_only(
    tmp_path_factory: pytest.TempPathFactory, seed: int, layers: int, width: int
) -> None:
    generator = np.random.default_rng(seed)
    constants = {}
    nodes = []
    sizes = [3, *[width] * layers, 2]
    for layer, (rows_in, columns) in enumerate(zip(sizes, sizes[1:], strict=False)):
        constants[f"w{layer}"] = generator.normal(size=(rows_in, columns)).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [f"h{layer}" if layer else "x", f"w{layer}"], [f"a{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"a{layer}"], [f"h{layer + 1}"]))
    nodes.append(helper.make_node("Identity", [f"h{len(sizes) - 1}"], ["y"]))
    path = _write(tmp_path_factory.mktemp("dense"), nodes, constants)
    seen = examine_batching(SessionRunner(path), rows(seed))
    assert seen.verdict in ("equal", "within")
    assert seen.max_relative_difference <= 1e-5


def _write(folder: Path, nodes: list[Any], constants: dict[str, Array]) -> Path:
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("size", [2, 7, 32, 256, 1024])
def test_dependence_that_shows_in_runs_of_one_size_only_is_caught(size: int) -> None:
    def model(x: Array) -> Array:
        return x + x[:1] if len(x) == size else x

    assert examine_batching(FunctionRunner(model), rows(width=2), max_rows=1024).verdict == "dependent"


@pytest.mark.parametrize("wanted", [1, 256, 257, 1024, 1500])
def test_the_largest_run_that_was_tried_is_stated(wanted: int) -> None:
    sizes = set()

    def model(x: Array) -> Array:
        sizes.add(len(x))
        return x

    seen = examine_batching(FunctionRunner(model), rows(width=2), max_rows=wanted)
    assert seen.verdict == "equal" and seen.most_rows == max(sizes) == max(wanted, 256)
    assert seen.rows == examine_batching(FunctionRunner(model), rows(width=2)).rows
    assert seen.shared_rows(10_000, exact=True) == seen.most_rows
    assert seen.shared_rows(8, exact=True) == 8


@pytest.mark.parametrize("failure", [RunFailed("too many"), RunStopped("too long")])
def test_more_rows_than_a_model_takes_are_not_shared_and_fewer_are(failure: Exception) -> None:
    def model(x: Array) -> Array:
        if len(x) > 600:
            raise failure
        return x

    seen = examine_batching(FunctionRunner(model), rows(width=2), max_rows=10**9)
    assert seen.verdict == "equal" and seen.most_rows == 512


def test_rounding_that_shows_with_many_rows_only_bounds_a_run_and_spoils_no_verdict() -> None:
    def model(x: Array) -> Array:
        return np.nextafter(x, np.float32(np.inf)) if len(x) > 300 else x

    seen = examine_batching(FunctionRunner(model), rows(width=2), max_rows=1024)
    assert seen.verdict == "equal" and seen.most_rows == 256


def test_large_rows_are_tried_as_far_as_they_go_and_no_more_are_shared() -> None:
    sizes = set()

    def model(x: Array) -> Array:
        sizes.add(len(x))
        return x[:, :1]

    runner = FunctionRunner(model)
    runner.signature = Signature((TensorSpec("x", "FP32", (-1, 40_000)),), (TensorSpec("y", "FP32", (-1, 1)),))
    seen = examine_batching(runner, rows(width=40_000, count=3), max_rows=1024)
    assert seen.verdict == "equal" and seen.most_rows == max(sizes) < 256


@pytest.mark.parametrize("axes", [(-1,), (-1, 1)])
def test_long_strings_count_with_all_their_bytes(axes: tuple[int, ...]) -> None:
    sizes = set()

    def model(x: Array) -> Array:
        sizes.add(len(x))
        return np.array([[len(text)] for text in x.ravel()], np.float32)

    runner = FunctionRunner(model)
    runner.signature = Signature((TensorSpec("x", "BYTES", axes),), (TensorSpec("y", "FP32", (-1, 1)),))
    texts = np.array(["a", *[f"{number} {'b' * 40_000}" for number in range(8)]], dtype=object)
    seen = examine_batching(runner, {"x": texts.reshape(-1, *axes[1:])}, max_rows=1024)
    assert seen.verdict == "equal" and seen.most_rows == max(sizes) == 256


def test_where_other_axes_are_free_no_more_rows_are_shared_than_of_every_length_that_was_tried() -> None:
    runner = FunctionRunner(lambda x: x + x[:1] if len(x) > 256 and x.shape[1] > 9 else x)
    free = (TensorSpec("x", "FP32", (-1, -1)),), (TensorSpec("y", "FP32", (-1, -1)),)
    runner.signature = Signature(*free)
    seen = examine_batching(runner, rows(width=3), max_rows=1024)
    assert seen.verdict == "equal" and seen.most_rows <= 256


def test_a_model_that_is_slow_with_many_rows_is_not_run_with_more_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.repository.independence.LARGE_BATCH_SECONDS", 0.1)
    sizes = set()

    def model(x: Array) -> Array:
        sizes.add(len(x))
        time.sleep(0.2 if len(x) == 512 else 0)
        return x

    seen = examine_batching(FunctionRunner(model), rows(width=2), max_rows=1024)
    assert seen.verdict == "equal" and seen.most_rows == max(sizes) == 512


def test_dependence_on_the_place_in_a_run_is_caught() -> None:
    def model(x: Array) -> Array:
        return x + np.arange(len(x), dtype=np.float32)[:, np.newaxis] if len(x) == 32 else x

    assert examine_batching(FunctionRunner(model), rows(width=2)).verdict == "dependent"


def test_rounding_that_depends_on_the_company_is_stated() -> None:
    def model(x: Array) -> Array:
        return np.nextafter(x, np.float32(np.inf)) if len(x) > 1 else x

    seen = examine_batching(FunctionRunner(model), rows(width=2))
    assert seen.verdict == "within"
    assert 0 < seen.max_relative_difference < 1e-6
    assert seen.max_difference > 0
    assert seen.allows(exact=False) and not seen.allows(exact=True)


def test_a_value_that_is_lost_in_company_is_dependence() -> None:
    def model(x: Array) -> Array:
        return np.full_like(x, np.nan) if len(x) > 1 else x

    seen = examine_batching(FunctionRunner(model), rows(width=2))
    assert seen.verdict == "dependent"
    assert np.isfinite(seen.max_difference), "JSON has no infinity"


def test_missing_values_in_the_same_place_are_equal() -> None:
    seen = examine_batching(FunctionRunner(lambda x: np.where(x > 5, x, np.float32(np.nan))), rows(width=2))
    assert seen.verdict == "equal"


def test_whole_numbers_must_be_equal() -> None:
    def model(x: Array) -> Array:
        return np.full((len(x), 2), 10**6 + (len(x) > 1), dtype=np.int64)

    assert examine_batching(FunctionRunner(model), rows(width=2)).verdict == "dependent"


def test_words_are_compared_as_words() -> None:
    def named(x: Array) -> Array:
        return np.array([["high" if value > 5 else "low" for value in row] for row in x], dtype=object)

    def crowd(x: Array) -> Array:
        return np.full((len(x), 2), f"{len(x)} rows", dtype=object)

    assert examine_batching(FunctionRunner(named), rows(width=2)).verdict == "equal"
    assert examine_batching(FunctionRunner(crowd), rows(width=2)).verdict == "dependent"


def test_a_model_that_fails_on_every_reference_row_is_refused() -> None:
    def model(x: Array) -> Array:
        raise RunFailed("index out of range")

    with pytest.raises(ModelFileError, match="fails on the reference rows, each run by itself: index out"):
        examine_batching(FunctionRunner(model), rows(width=2))
    seen = examine_batching(FunctionRunner(model), None)
    assert seen == Batching("not_batchable", reason="no made-up row runs; give reference rows to find out")


def test_an_engine_that_dies_of_a_made_up_row_is_no_reason_to_refuse_the_model() -> None:
    def model(x: Array) -> Array:
        raise EngineGone("divided by zero")

    assert examine_batching(FunctionRunner(model, datatype="INT64"), None).verdict == "not_batchable"
    with pytest.raises(EngineGone):
        examine_batching(FunctionRunner(model), rows(width=2))


def test_rows_that_fail_alone_are_left_out() -> None:
    def model(x: Array) -> Array:
        if (x < 0).any():
            raise RunFailed("a root of a negative number")
        return np.sqrt(x)

    seen = examine_batching(FunctionRunner(model), rows(width=2))
    assert seen.verdict == "equal"
    assert 2 <= seen.rows < 32


def test_other_free_axes_are_guessed(onnx_model: OnnxModel) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=0),
        helper.make_node("Identity", ["mean"], ["y"]),
    ]
    path = onnx_model(
        nodes, inputs=[("x", ["n", 3, "h", "w"])], outputs=[("y", ["n", 3])], constants={"axis": np.array([2, 3])}
    )
    assert examine_batching(SessionRunner(path), None).verdict in ("equal", "within")
