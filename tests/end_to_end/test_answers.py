"""A V2 client that knows nothing of this gateway gets right answers and clear errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.gateways import RunningGateway
from tests.load import ROWS

FEATURES = np.asarray(ROWS, dtype=np.float32)


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[triton.InferenceServerClient]:
    gateway.set_route("bike-demand", 1, 2, 10)
    with triton.InferenceServerClient(f"127.0.0.1:{gateway.http_port}") as made:
        yield made


def ask(
    client: triton.InferenceServerClient, rows: np.ndarray, *, model: str = "bike-demand", version: str = ""
) -> triton.InferResult:
    tensor = triton.InferInput("features", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=False)
    output = triton.InferRequestedOutput("count", binary_data=False)
    return client.infer(model, [tensor], model_version=version, outputs=[output], request_id="a-request")


def run_directly(gateway: RunningGateway, version: str, rows: np.ndarray) -> np.ndarray:
    path = gateway.models / "bike-demand" / version / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["count"], {"features": rows})[0])


def test_a_stock_client_finds_the_server_live_ready_and_described(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"].startswith("gateway")
    assert client.is_model_ready("bike-demand")
    assert client.is_model_ready("bike-demand", "2")
    assert client.get_model_metadata("bike-demand") == {
        "name": "bike-demand",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 6]}],
        "outputs": [{"name": "count", "datatype": "FP32", "shape": [-1, 1]}],
    }


@pytest.mark.parametrize("version", ["1", "2"])
def test_answers_are_those_of_onnxruntime_bit_for_bit(
    gateway: RunningGateway, client: triton.InferenceServerClient, version: str
) -> None:
    draw = np.random.default_rng(7)
    rows = np.concatenate([FEATURES, draw.uniform(0, 90, size=(40, 6)).astype(np.float32)])
    expected = run_directly(gateway, version, rows)
    together = ask(client, rows, version=version)
    assert together.as_numpy("count").tobytes() == expected.tobytes()
    assert together.get_response()["model_version"] == version
    assert together.get_response()["id"] == "a-request"
    for row, answer in zip(rows[:12], expected, strict=False):
        assert ask(client, row[None, :], version=version).as_numpy("count").tobytes() == answer.tobytes()


def test_without_a_version_the_route_chooses_and_the_answer_says_which(
    gateway: RunningGateway, client: triton.InferenceServerClient
) -> None:
    expected = {version: run_directly(gateway, version, FEATURES).tobytes() for version in ("1", "2")}
    seen = set()
    for _ in range(20):
        answer = ask(client, FEATURES)
        version = answer.get_response()["model_version"]
        assert answer.as_numpy("count").tobytes() == expected[version]
        assert answer.get_response()["parameters"]["prediction_id"]
        seen.add(version)
    assert seen <= {"1", "2"}


@pytest.mark.parametrize(
    ("model", "version", "text"),
    [
        ("no-such-model", "", "Request for unknown model: 'no-such-model' is not found"),
        ("bike-demand", "99", "Request for unknown model: 'bike-demand' version 99 is not found"),
    ],
)
def test_an_unknown_model_or_version_is_an_error_that_names_it(
    client: triton.InferenceServerClient, model: str, version: str, text: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask(client, FEATURES, model=model, version=version)
    assert refused.value.message() == text
    assert refused.value.status() == "404"
    with pytest.raises(InferenceServerException) as refused:
        client.get_model_metadata(model, version)
    assert refused.value.message() == text
    assert not client.is_model_ready(model, version)


def test_a_tensor_of_the_wrong_shape_or_type_is_an_error_that_says_what_is_expected(
    client: triton.InferenceServerClient,
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask(client, FEATURES[:, :5])
    assert refused.value.status() == "400"
    assert "[-1,6]" in refused.value.message().replace(" ", "")
    tensor = triton.InferInput("features", [1, 6], "FP64")
    tensor.set_data_from_numpy(FEATURES[:1].astype(np.float64), binary_data=False)
    with pytest.raises(InferenceServerException) as refused:
        client.infer("bike-demand", [tensor])
    assert refused.value.status() == "400"
    assert "FP32" in refused.value.message()
