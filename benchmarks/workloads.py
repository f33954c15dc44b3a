"""What is asked: bodies in the V2 protocol, and what onnxruntime alone answers to each."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.models import FEATURES, IMAGE_SHAPE

__all__ = (
    "IMAGE_BINARY",
    "IMAGE_JSON",
    "ONE_ROW",
    "ONE_ROW_GRPC",
    "ROWS_32",
    "ROWS_32_GRPC",
    "SLOW",
    "Workload",
    "expected",
    "rows_of",
)

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes
    ----------
    name : str
        As tables show it.
    model : str
        One of `benchmarks.models.MODELS`.
    rows : int
    binary : bool
        The tensor follows the JSON part as bytes.
    over_grpc : bool
        It is sent over gRPC, its tensor raw; `message` has it then.
    """

    name: str
    model: str
    rows: int = 1
    binary: bool = False
    over_grpc: bool = False

    @property
    def tensor_name(self) -> str:
        return "image" if self.model == "image" else "features"

    @property
    def content_type(self) -> str:
        return "application/octet-stream" if self.binary else "application/json"

    def inputs(self, number: int) -> Array:
        """The numbers of one request, other ones for another number: float32, (rows, ...)."""
        shape = (self.rows, *(IMAGE_SHAPE if self.model == "image" else (FEATURES,)))
        drawn: Array = np.random.default_rng(number).uniform(-1.0, 1.0, shape).astype("f4")
        return drawn

    def body(self, number: int) -> tuple[bytes, int | None]:
        """The body of one request and, in binary, the length of its JSON part."""
        inputs = self.inputs(number)
        tensor = {"name": self.tensor_name, "shape": list(inputs.shape), "datatype": "FP32"}
        if not self.binary:
            # The shortest digits of the 32-bit floats, as a client would write them.
            flat = [float(str(value)) for value in inputs.ravel()]
            return json.dumps({"inputs": [{**tensor, "data": flat}]}, separators=(",", ":")).encode(), None
        block = inputs.tobytes()
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(block)}}]}).encode()
        return head + block, len(head)

    def message(self, number: int, *, served_as: str) -> bytes:
        """One request over gRPC: a `ModelInferRequest` for the model of that name."""
        from gateway.serving.grpc import inference_pb2 as messages

        inputs = self.inputs(number)
        message = messages.ModelInferRequest(model_name=served_as)
        message.inputs.add(name=self.tensor_name, datatype="FP32", shape=inputs.shape)
        message.raw_input_contents.append(inputs.tobytes())
        content: bytes = message.SerializeToString()
        return content


def rows_of(count: int) -> Workload:
    """So many rows of 30 features."""
    return Workload(f"{count} row" if count == 1 else f"{count} rows", "tabular", count)


ONE_ROW = rows_of(1)
ROWS_32 = rows_of(32)
ONE_ROW_GRPC = Workload("1 row over gRPC", "tabular", over_grpc=True)
ROWS_32_GRPC = Workload("32 rows over gRPC", "tabular", 32, over_grpc=True)
IMAGE_JSON = Workload("image in JSON", "image")
IMAGE_BINARY = Workload("image in binary", "image", binary=True)
SLOW = Workload("3 ms model", "slow")


def expected(model: Path, inputs: Array) -> Array:
    """What onnxruntime says to this request alone."""
    session = _session(model)
    outputs: Array = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return outputs


@functools.cache
def _session(model: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
