"""A bare ASGI callable on uvicorn that runs onnxruntime inline: no validation, no log. Usage: bare.py MODEL PORT

Tensors in JSON are decoded by orjson; those in binary are read where they lie.
"""

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
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    answer = b"{}"
    if body:
        length = next((int(value) for key, value in scope["headers"] if key == b"inference-header-content-length"), 0)
        tensor = orjson.loads(body[:length] if length else body)["inputs"][0]
        numbers = np.frombuffer(body, np.float32, offset=length) if length else np.array(tensor["data"], np.float32)
        result = session.run([output], {name: numbers.reshape(tensor["shape"])})[0]
        answer = orjson.dumps(
            {
                "model_name": "bare",
                "outputs": [
                    {"name": output, "datatype": "FP32", "shape": result.shape, "data": result.ravel().tolist()}
                ],
            }
        )
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="error", lifespan="off")
