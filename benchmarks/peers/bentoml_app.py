"""A BentoML service. Run by: bentoml serve bentoml_app:Model, with the model's path in BENCHMARK_MODEL"""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Model:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session: Any = onnxruntime.InferenceSession(
            os.environ["BENCHMARK_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.name = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name

    @bentoml.api
    async def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        tensor = inputs[0]
        rows = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        result = self.session.run([self.output], {self.name: rows})[0]
        answer = {"name": self.output, "datatype": "FP32", "shape": list(result.shape), "data": result.ravel().tolist()}
        return {"model_name": "bentoml", "outputs": [answer]}
