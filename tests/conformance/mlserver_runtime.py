"""ONNX models in MLServer, to run the kit against it; MLServer has no runtime of its own for them.

`python tests/conformance/models.py DIR --layout mlserver` writes folders that name this class; `docs/conformance.md`
has the commands. Imported by MLServer, in its own environment.
"""

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """One model; tensors go through MLServer's own codecs."""

    async def load(self) -> bool:
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = {}
        for tensor in payload.inputs:
            if tensor.datatype == "BYTES":
                texts = np.array(StringCodec.decode_input(tensor), dtype=object)
                given[tensor.name] = texts.reshape(tensor.shape)
            else:
                given[tensor.name] = NumpyCodec.decode_input(tensor)
        names = [output.name for output in self.session.get_outputs()]
        if payload.outputs:
            names = [output.name for output in payload.outputs]
        outputs = []
        for name, array in zip(names, self.session.run(names, given), strict=True):
            if array.dtype == object:
                encoded = StringCodec.encode_output(name, array.ravel().tolist())
                encoded.shape = list(array.shape)
            else:
                encoded = NumpyCodec.encode_output(name, array)
            outputs.append(encoded)
        return InferenceResponse(model_name=self.name, model_version=self.version, id=payload.id, outputs=outputs)
