"""Small ONNX models drawn by hypothesis, and requests for them: whatever a first axis can turn out to mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

__all__ = ("FAMILIES", "Drawn", "drawn_models", "save")

Array = np.ndarray[Any, np.dtype[Any]]
Inputs = dict[str, Array]
Node = helper.make_node

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
WORDS = np.array(["red", "green", "blau", "日本", "", "a longer one"], dtype=object)


class Drawn(NamedTuple):
    """One model and the requests it gets, each of which it can run by itself."""

    family: str
    model: onnx.ModelProto
    requests: list[Inputs]
    reference: Inputs | None

    def __repr__(self) -> str:
        shapes = sorted({str({name: array.shape for name, array in each.items()}) for each in self.requests})
        return f"<Drawn {self.family} | reference {self.reference is not None} | {'; '.join(shapes[:6])}>"


class _Draw:
    """What the families draw from; arrays come from numpy, since hypothesis gains nothing by shrinking them."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.whole = lambda low, high: draw(st.integers(low, high))
        self.one_of = lambda *choices: draw(st.sampled_from(choices))
        self.numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.scale = draw(st.sampled_from([1.0, 1e-3, 1e4]))

    def floats(self, *shape: int) -> Array:
        return np.asarray(self.numbers.normal(size=shape) * self.scale, "f4")

    def rows(self) -> int:
        return int(self.one_of(1, 1, 1, 2, 3, 7, 40))

    def times(self) -> range:
        return range(self.whole(12, 32))


Family = Callable[[_Draw], tuple[onnx.ModelProto, list[Inputs], Inputs | None]]


def _model(
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, Array] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "drawn",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, ir_version=10, opset_imports=imports)


def _dense(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    width, hidden, out = draw.whole(1, 64), draw.whole(1, 96), draw.whole(1, 9)
    constants = {
        "w": draw.numbers.normal(size=(width, hidden)).astype("f4"),
        "b": draw.numbers.normal(size=hidden).astype("f4"),
        "v": draw.numbers.normal(size=(hidden, out)).astype("f4"),
    }
    nodes = [
        Node("Gemm", ["x", "w", "b"], ["a"]),
        Node(draw.one_of("Tanh", "Relu", "Sigmoid", "Erf"), ["a"], ["h"]),
        Node("MatMul", ["h", "v"], ["y"]),
    ]
    model = _model(nodes, {"x": (FLOAT, ["n", width])}, {"y": (FLOAT, ["n", out])}, constants)
    return model, [{"x": draw.floats(draw.rows(), width)} for _ in draw.times()], {"x": draw.floats(50, width)}


def _row_wise(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    width = draw.whole(1, 40)
    node = draw.one_of(
        Node("Relu", ["x"], ["y"]),
        Node("Softmax", ["x"], ["y"], axis=1),
        Node("CumSum", ["x", "one"], ["y"]),
        Node("Exp", ["x"], ["y"]),
    )
    shape = (FLOAT, ["n", width])
    model = _model([node], {"x": shape}, {"y": shape}, {"one": np.array(1)})
    return model, [{"x": draw.floats(draw.rows(), width)} for _ in draw.times()], {"x": draw.floats(40, width)}


def _over_the_batch(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    width = draw.whole(1, 12)
    constants = {"axis": np.array([0]), "zero": np.array(0), "share": np.float32(draw.one_of(1.0, 0.01))}
    mean = [
        Node("ReduceMean", ["x", "axis"], ["mean"], keepdims=1),
        Node("Mul", ["mean", "share"], ["part"]),
        Node("Sub", ["x", "part"], ["y"]),
    ]
    nodes = draw.one_of(mean, [Node("CumSum", ["x", "zero"], ["y"])], [Node("Softmax", ["x"], ["y"], axis=0)])
    shape = (FLOAT, ["n", width])
    model = _model(nodes, {"x": shape}, {"y": shape}, constants)
    return model, [{"x": draw.floats(draw.rows(), width)} for _ in draw.times()], {"x": draw.floats(40, width)}


def _non_zero(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    width = draw.whole(1, 6)
    nodes = [Node("Relu", ["x"], ["positive"]), Node("NonZero", ["positive"], ["places"])]
    model = _model(nodes, {"x": (FLOAT, ["n", width])}, {"places": (INT64, [2, "found"])})
    return model, [{"x": draw.floats(draw.rows(), width)} for _ in draw.times()], {"x": draw.floats(40, width)}


def _kept_rows(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    # As many rows come out as are positive: often all of those that went in.
    constants = {"zero": np.array([0]), "nothing": np.float32(-1e6)}
    nodes = [
        Node("Greater", ["x", "nothing"], ["above"]),
        Node("NonZero", ["above"], ["places"]),
        Node("Squeeze", ["places", "zero"], ["kept"]),
        Node("Gather", ["x", "kept"], ["y"]),
    ]
    model = _model(nodes, {"x": (FLOAT, ["n"])}, {"y": (FLOAT, ["m"])}, constants)
    requests = [{"x": draw.floats(draw.rows()) + np.float32(1)} for _ in draw.times()]
    for each in requests[:: draw.whole(3, 9)]:
        each["x"][0] = np.float32(-1e7)
    return model, requests, {"x": draw.floats(40)}


def _fixed_batch(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    rows, width = draw.whole(1, 5), draw.whole(1, 6)
    nodes = [Node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1), Node("Div", ["x", "sum"], ["y"])]
    shape = (FLOAT, [rows, width])
    model = _model(nodes, {"x": shape}, {"y": shape}, {"axis": np.array([0])})
    return model, [{"x": draw.floats(rows, width)} for _ in draw.times()], None


def _no_batch(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    shape = [draw.whole(1, 5) for _ in range(draw.whole(0, 2))]
    node = Node("Neg", ["x"], ["y"])
    model = _model([node], {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)})
    return model, [{"x": draw.floats(*shape)} for _ in draw.times()], None


def _sequences(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    # Several free axes: requests of other lengths come between each other.
    width, out = draw.whole(1, 24), draw.whole(1, 6)
    constants = {"w": draw.numbers.normal(size=(width, out)).astype("f4"), "axis": np.array([1])}
    nodes = [Node("MatMul", ["x", "w"], ["a"]), Node("ReduceMean", ["a", "axis"], ["y"], keepdims=0)]
    model = _model(nodes, {"x": (FLOAT, ["n", "t", width])}, {"y": (FLOAT, ["n", out])}, constants)
    lengths = [draw.whole(1, 70) for _ in range(draw.whole(1, 3))]
    requests = [{"x": draw.floats(draw.rows(), int(draw.numbers.choice(lengths)), width)} for _ in draw.times()]
    return model, requests, {"x": draw.floats(20, draw.whole(1, 40), width)}


def _echo(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    # Two free axes beside the first.
    shape = (FLOAT, ["n", "h", "w"])
    model = _model([Node("Softmax", ["x"], ["y"], axis=2)], {"x": shape}, {"y": shape})
    sides = [(draw.whole(1, 9), draw.whole(1, 9)) for _ in range(2)]
    requests = [{"x": draw.floats(draw.rows(), *draw.one_of(*sides))} for _ in draw.times()]
    return model, requests, {"x": draw.floats(20, 4, 4)}


def _several(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    # Two inputs of other datatypes, three outputs.
    width = draw.whole(1, 9)
    nodes = [
        Node("Cast", ["k"], ["f"], to=FLOAT),
        Node("Mul", ["x", "f"], ["y"]),
        Node("ReduceMax", ["y", "axis"], ["most"], keepdims=1),
        Node("Add", ["k", "k"], ["twice"]),
    ]
    model = _model(
        nodes,
        {"x": (FLOAT, ["n", width]), "k": (INT64, ["n", 1])},
        {"y": (FLOAT, ["n", width]), "most": (FLOAT, ["n", 1]), "twice": (INT64, ["n", 1])},
        {"axis": np.array([1])},
    )

    def request(rows: int) -> Inputs:
        return {"x": draw.floats(rows, width), "k": draw.numbers.integers(-9, 9, (rows, 1))}

    return model, [request(draw.rows()) for _ in draw.times()], request(40)


def _words(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    # Strings in and out; joined along the rows they stay with their callers.
    width = draw.whole(1, 3)
    encoder = Node(
        "LabelEncoder",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        keys_strings=[str(word) for word in WORDS[:4]],
        values_int64s=[1, 2, 3, 4],
        default_int64=-1,
    )
    shape = ["n", width]
    model = _model(
        [encoder, Node("Identity", ["x"], ["same"])],
        {"x": (STRING, shape)},
        {"y": (INT64, shape), "same": (STRING, shape)},
    )
    requests = [{"x": draw.numbers.choice(WORDS, size=(draw.rows(), width))} for _ in draw.times()]
    return model, requests, {"x": draw.numbers.choice(WORDS, size=(30, width))}


def _image(draw: _Draw) -> tuple[onnx.ModelProto, list[Inputs], Inputs | None]:
    channels, out, side = draw.whole(1, 3), draw.whole(1, 5), draw.whole(3, 9)
    constants = {"w": draw.numbers.normal(size=(out, channels, 3, 3)).astype("f4"), "axis": np.array([2, 3])}
    nodes = [
        Node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        Node("Relu", ["a"], ["b"]),
        Node("ReduceMean", ["b", "axis"], ["y"], keepdims=0),
    ]
    model = _model(nodes, {"x": (FLOAT, ["n", channels, side, side])}, {"y": (FLOAT, ["n", out])}, constants)
    requests = [{"x": draw.floats(min(draw.rows(), 7), channels, side, side)} for _ in draw.times()]
    return model, requests, {"x": draw.floats(20, channels, side, side)}


FAMILIES: dict[str, Family] = {
    "dense": _dense,
    "row-wise": _row_wise,
    "over the batch": _over_the_batch,
    "NonZero": _non_zero,
    "kept rows": _kept_rows,
    "fixed batch": _fixed_batch,
    "no batch": _no_batch,
    "sequences": _sequences,
    "several free axes": _echo,
    "several inputs and outputs": _several,
    "words": _words,
    "image": _image,
}


@st.composite
def drawn_models(draw: st.DrawFn, family: str) -> Drawn:
    """A model of a family, requests for it, and perhaps rows to look at it with when it is added."""
    model, requests, reference = FAMILIES[family](_Draw(draw))
    return Drawn(family, model, requests, reference if draw(st.booleans()) else None)


def save(drawn: Drawn, folder: Path) -> list[Path]:
    """Write the model, and its reference if it has one; returns the model's file and the reference's."""
    files = [folder / "model.onnx"]
    onnx.save(drawn.model, str(files[0]))
    if drawn.reference is not None:
        files.append(folder / "rows.npz")
        np.savez(
            files[1],
            **{name: array.astype("U") if array.dtype == object else array for name, array in drawn.reference.items()},
        )
    return files
