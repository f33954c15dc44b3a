"""The gRPC side, by the stock client where it is installed."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Call:
    """One sentence, and what is asked of a `tritonclient.grpc` client."""

    area: str
    says: str
    check: Callable[[Any, Any], bool]


def _inputs(grpc: Any) -> list[Any]:
    import numpy as np

    inputs = [grpc.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    inputs[0].set_data_from_numpy(np.arange(16, dtype=np.int32).reshape(1, 16))
    inputs[1].set_data_from_numpy(np.ones((1, 16), np.int32))
    return inputs


def _inferred(grpc: Any, client: Any) -> bool:
    answer = client.infer("simple", _inputs(grpc), request_id="42")
    return answer.as_numpy("OUTPUT0").tolist() == [list(range(1, 17))] and answer.get_response().id == "42"


def _chosen(grpc: Any, client: Any) -> bool:
    answer = client.infer("simple", _inputs(grpc), outputs=[grpc.InferRequestedOutput("OUTPUT1")])
    return answer.as_numpy("OUTPUT0") is None and answer.as_numpy("OUTPUT1").tolist() == [list(range(-1, 15))]


def _strings(grpc: Any, client: Any) -> bool:
    import numpy as np

    inputs = [grpc.InferInput(name, [1, 16], "BYTES") for name in ("INPUT0", "INPUT1")]
    for given in inputs:
        given.set_data_from_numpy(np.array([[b"7"] * 16], dtype=object))
    return client.infer("simple_string", inputs).as_numpy("OUTPUT0").tolist() == [[b"14"] * 16]


def _not_a_number(grpc: Any, client: Any) -> bool:
    import numpy as np

    given = grpc.InferInput("INPUT0", [1, 4], "FP32")
    given.set_data_from_numpy(np.array([[math.nan, math.inf, -math.inf, -0.0]], np.float32))
    found = client.infer("scores", [given]).as_numpy("OUTPUT0").tobytes()
    return bool(found == struct.pack("<4f", math.nan, math.inf, -math.inf, -0.0))


def _refused(grpc: Any, client: Any) -> bool:
    from tritonclient.utils import InferenceServerException

    try:
        client.infer("no_such_model", _inputs(grpc))
    except InferenceServerException as error:
        return "no_such_model" in str(error)
    return False


CALLS = (
    Call("grpc", "ServerLive and ServerReady say true", lambda _, c: c.is_server_live() and c.is_server_ready()),
    Call("grpc", "ModelReady says true", lambda _, c: c.is_model_ready("simple")),
    Call("grpc", "ServerMetadata has a name", lambda _, c: bool(c.get_server_metadata().name)),
    Call(
        "grpc",
        "ModelMetadata has the model's tensors",
        lambda _, c: [list(t.shape) for t in c.get_model_metadata("simple").inputs] == [[-1, 16]] * 2,
    ),
    Call("grpc", "ModelInfer answers raw contents where raw was sent, with the id", _inferred),
    Call("grpc", "ModelInfer answers the outputs that are asked for", _chosen),
    Call("grpc", "ModelInfer takes strings", _strings),
    Call("grpc", "ModelInfer keeps NaN, infinities and the sign of zero", _not_a_number),
    Call("grpc", "an unknown model is named in the error", _refused),
)


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.says)
@pytest.mark.usefixtures("scored")
def test_the_specification_holds_over_grpc(server: Any, case: Call) -> None:
    if server.grpc_url is None:
        pytest.skip("no --grpc-url")
    grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    client = grpc.InferenceServerClient(server.grpc_url)
    try:
        assert case.check(grpc, client)
    finally:
        client.close()
