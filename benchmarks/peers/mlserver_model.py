"""An MLServer runtime around onnxruntime; its settings are written beside it by the suite."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class OnnxModel(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session: Any = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name
        self.output = self.session.get_outputs()[0].name
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        tensor = payload.inputs[0]
        rows = np.array(tensor.data.root, np.float32).reshape(tensor.shape)
        result = self.session.run([self.output], {self.input: rows})[0]
        answer = ResponseOutput(
            name=self.output, shape=list(result.shape), datatype="FP32", data=result.ravel().tolist()
        )
        return InferenceResponse(model_name=self.name, outputs=[answer])
