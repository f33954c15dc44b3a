"""The models that are served, made once and kept below `.cache/benchmarks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ("CLASSES", "FEATURES", "IMAGE_SHAPE", "MODELS", "model_file")

FEATURES = 30
IMAGE_SHAPE = (3, 224, 224)
"""As 32-bit floats 602,112 bytes."""
CLASSES = 10
_OPSET = 17
_IR_VERSION = 8
_SLOW_SIDE, _SLOW_CHANNELS, _SLOW_LAYERS = 32, 80, 4

Array = np.ndarray[Any, np.dtype[Any]]


def model_file(name: str, cache: Path) -> Path:
    """Return the ONNX file of one of `MODELS`, made when missing."""
    path = cache / f"{name}.onnx"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(MODELS[name]())
        partial.replace(path)
    return path


def _tabular() -> bytes:
    """100 boosted trees over 30 features: about 10 us for one row, 50 us for 32."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import GradientBoostingRegressor

    draw = np.random.default_rng(0)
    features = draw.normal(size=(4000, FEATURES)).astype("f4")
    target = features[:, 0] * 2 + np.sin(features[:, 1]) + features[:, 2] * features[:, 3]
    trees = GradientBoostingRegressor(n_estimators=100, max_depth=3, random_state=0).fit(features, target)
    types = [("features", FloatTensorType([None, FEATURES]))]
    return bytes(convert_sklearn(trees, initial_types=types, target_opset=_OPSET).SerializeToString())


def _image() -> bytes:
    """The mean of each colour, then a linear layer: nearly nothing but the reading of 600 KB."""
    weights = np.random.default_rng(1).normal(size=(IMAGE_SHAPE[0], CLASSES)).astype("f4")
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
    ]
    return _model(nodes, {"weights": weights}, given=("image", IMAGE_SHAPE), wanted=("scores", (CLASSES,)))


def _slow() -> bytes:
    """Convolutions over a picture made of 30 features: about 3 ms for one row on one core."""
    draw = np.random.default_rng(2)
    pixels = 3 * _SLOW_SIDE * _SLOW_SIDE
    weights = {
        "spread": draw.normal(size=(FEATURES, pixels)).astype("f4") / FEATURES,
        "shape": np.array([-1, 3, _SLOW_SIDE, _SLOW_SIDE], "i8"),
        "last": draw.normal(size=(_SLOW_CHANNELS, 1)).astype("f4"),
    }
    nodes = [
        helper.make_node("MatMul", ["features", "spread"], ["pixels"]),
        helper.make_node("Reshape", ["pixels", "shape"], ["layer0"]),
    ]
    channels = 3
    for layer in range(_SLOW_LAYERS):
        weights[f"kernel{layer}"] = draw.normal(size=(_SLOW_CHANNELS, channels, 3, 3)).astype("f4") / (3 * channels)
        nodes.append(helper.make_node("Conv", [f"layer{layer}", f"kernel{layer}"], [f"sum{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"sum{layer}"], [f"layer{layer + 1}"]))
        channels = _SLOW_CHANNELS
    nodes += [
        helper.make_node("GlobalAveragePool", [f"layer{_SLOW_LAYERS}"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("MatMul", ["flat", "last"], ["score"]),
    ]
    return _model(nodes, weights, given=("features", (FEATURES,)), wanted=("score", (1,)))


MODELS: dict[str, Callable[[], bytes]] = {"tabular": _tabular, "image": _image, "slow": _slow}


def _model(
    nodes: list[Any],
    weights: dict[str, Array],
    *,
    given: tuple[str, tuple[int, ...]],
    wanted: tuple[str, tuple[int, ...]],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "benchmark",
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, ["rows", *given[1]])],
        [helper.make_tensor_value_info(wanted[0], TensorProto.FLOAT, ["rows", *wanted[1]])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
