"""A mosec worker with its batching, JSON by orjson. Usage: mosec_app.py MODEL (mosec reads --port itself)"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
import orjson
from mosec import Server, Worker


class Model(Worker):
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session: Any = onnxruntime.InferenceSession(
            os.environ["BENCHMARK_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        self.name = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name

    def deserialize(self, data: bytes) -> Any:
        tensor = orjson.loads(data)["inputs"][0]
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])

    def forward(self, data: list[Any]) -> list[Any]:
        results = self.session.run([self.output], {self.name: np.concatenate(data)})[0]
        ends = np.cumsum([len(rows) for rows in data])
        return np.split(results, ends[:-1])

    def serialize(self, data: Any) -> bytes:
        tensor = {"name": self.output, "datatype": "FP32", "shape": data.shape, "data": data.ravel().tolist()}
        return orjson.dumps({"model_name": "mosec", "outputs": [tensor]})


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=64, max_wait_time=1)
    server.run()
