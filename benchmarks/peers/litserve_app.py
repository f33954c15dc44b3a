"""A LitServe API with one worker. Usage: litserve_app.py MODEL PORT"""

from __future__ import annotations

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Model(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session: Any = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name

    # LitServe gives the parsed body only where nothing says what it is.
    def decode_request(self, request) -> Any:  # type: ignore[no-untyped-def]
        tensor = request["inputs"][0]
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])

    def predict(self, x: Any) -> Any:
        return self.session.run([self.output], {self.name: x})[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        tensor = {"name": self.output, "datatype": "FP32", "shape": list(output.shape), "data": output.ravel().tolist()}
        return {"model_name": "litserve", "outputs": [tensor]}


if __name__ == "__main__":
    server = litserve.LitServer(Model(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="error", generate_client_file=False)
