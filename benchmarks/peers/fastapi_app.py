"""FastAPI as one writes it by hand: pydantic models in and out, onnxruntime inline. Usage: fastapi_app.py MODEL PORT"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferRequest(BaseModel):
    inputs: list[Tensor]


class InferResponse(BaseModel):
    model_name: str
    outputs: list[Tensor]


options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session: Any = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
output = session.get_outputs()[0].name
app = FastAPI()


@app.get("/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/infer")
async def infer(request: InferRequest) -> InferResponse:
    tensor = request.inputs[0]
    rows = np.array(tensor.data, np.float32).reshape(tensor.shape)
    result = session.run([output], {name: rows})[0]
    answer = Tensor(name=output, shape=list(result.shape), datatype="FP32", data=result.ravel().tolist())
    return InferResponse(model_name="fastapi", outputs=[answer])


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="error")
