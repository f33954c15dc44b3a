"""The peer: a bare ASGI callable on uvicorn that runs onnxruntime inline. Usage: bare_handler.py MODEL.onnx PORT"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime
import orjson
import uvicorn

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
output = session.get_outputs()[0].name


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer = b"{}"
    if body:
        tensor = orjson.loads(body)["inputs"][0]
        rows = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        result = session.run([output], {name: rows})[0]
        answer = orjson.dumps(
            {
                "model_name": "tabular",
                "outputs": [
                    {"name": output, "datatype": "FP32", "shape": result.shape, "data": result.ravel().tolist()}
                ],
            }
        )
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="error", lifespan="off")
