"""A bare ASGI callable on uvicorn that reads the request and answers the same bytes. Usage: constant.py MODEL PORT"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

ANSWER = b'{"model_name":"constant","outputs":[{"name":"y","datatype":"FP32","shape":[1,1],"data":[0.0]}]}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="error", lifespan="off")
