"""The flows of tritonclient's gRPC examples; run as `python triton_grpc.py HOST:PORT TOKEN`, prints what was done."""

import asyncio
import queue
import sys

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
from tritonclient.utils import InferenceServerException

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), np.int32)


def tensors(datatype="INT32", values=(A, B)):
    made = []
    for name, value in zip(("INPUT0", "INPUT1"), values, strict=True):
        tensor = grpcclient.InferInput(name, [1, 16], datatype)
        tensor.set_data_from_numpy(value)
        made.append(tensor)
    return made


def right(result):
    assert (result.as_numpy("OUTPUT0") == A + B).all() and (result.as_numpy("OUTPUT1") == A - B).all()


def fails(ask, text, status=None):
    try:
        ask()
    except InferenceServerException as error:
        assert text in error.message(), error
        assert status in (None, error.status().removeprefix("StatusCode.")), error
    else:
        raise AssertionError(f"answered instead of: {text}")


def infer(client, headers):
    right(client.infer("simple", tensors()))
    wanted = [grpcclient.InferRequestedOutput("OUTPUT1")]
    result = client.infer("simple", tensors(), outputs=wanted)
    assert result.as_numpy("OUTPUT0") is None and (result.as_numpy("OUTPUT1") == A - B).all()


def infer_with_all_its_options(client, headers):
    result = client.infer(
        "simple", tensors(), model_version="1", request_id="7", priority=1, timeout=5_000_000, client_timeout=10,
        parameters={"custom": "yes"}, headers={"gateway-routing-key": "k"},
    )  # fmt: skip
    right(result)
    response = result.get_response()
    assert (response.id, response.model_version) == ("7", "1")
    assert response.parameters["prediction_id"].string_param


def infer_asynchronously(client, headers):
    answers = queue.Queue()
    for _ in range(8):
        client.async_infer("simple", tensors(), callback=lambda result, error: answers.put((result, error)))
    for _ in range(8):
        result, error = answers.get(timeout=10)
        assert error is None, error
        right(result)


def stream(client, headers):
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(8):
        client.async_stream_infer("simple", tensors(), request_id=str(number))
    client.async_stream_infer("wrong", tensors(), request_id="wrong")
    for number in range(8):
        result, error = answers.get(timeout=10)
        assert error is None and result.get_response().id == str(number), error
        right(result)
    assert "Request for unknown model" in answers.get(timeout=10)[1].message()
    client.stop_stream()


def compress(client, headers):
    for way in ("gzip", "deflate"):
        right(client.infer("simple", tensors(), compression_algorithm=way))


def strings(client, headers):
    texts = [np.array([[str(n).encode() for n in row[0]]], dtype=object) for row in (A, B)]
    result = client.infer("simple_string", tensors("BYTES", texts))
    assert [int(text) for text in result.as_numpy("OUTPUT0")[0]] == (A + B)[0].tolist()


def half_precision(client, headers):
    tensor = grpcclient.InferInput("IN_FP16", [1, 2], "FP16")
    tensor.set_data_from_numpy(np.array([[0.5, -0.0]], np.float16))
    other = grpcclient.InferInput("IN_BF16", [1, 1], "BF16")
    other._raw_content = b"\xc0\x3f"
    result = client.infer("halves", [tensor, other])
    assert result.as_numpy("OUT_FP16").tobytes() == np.array([0.5, -0.0], np.float16).tobytes()
    assert result.get_response().raw_output_contents[1] == b"\xc0\x3f"


def not_a_number(client, headers):
    value = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    tensor = grpcclient.InferInput("INPUT0", [1, 4], "FP32")
    tensor.set_data_from_numpy(value)
    assert client.infer("scores", [tensor]).as_numpy("OUTPUT0").tobytes() == value.tobytes()


def classify(client, headers):
    tensor = grpcclient.InferInput("INPUT0", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[0.5, 3, -1, 2]], np.float32))
    output = grpcclient.InferRequestedOutput("OUTPUT0", class_count=2)
    classes = client.infer("scores", [tensor], outputs=[output]).as_numpy("OUTPUT0")
    assert [text.decode().split(":")[1] for text in classes[0]] == ["1", "3"], classes


def health_and_metadata(client, headers):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("simple") and client.is_model_ready("simple", "1")
    assert not client.is_model_ready("simple", "9") and not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server.name == "gateway" and "binary_tensor_data" in server.extensions
    assert client.get_model_metadata("simple").name == "simple"
    assert list(client.get_model_metadata("simple", "1").versions) == ["1"]
    assert client.get_model_config("simple").config.max_batch_size > 0
    assert client.get_log_settings().settings["log_info"].bool_param is True


def statistics(client, headers):
    (stats,) = client.get_inference_statistics("simple").model_stats
    assert stats.inference_count >= stats.execution_count > 0
    assert len(client.get_inference_statistics().model_stats) > 1


def errors(client, headers):
    fails(lambda: client.infer("wrong", tensors()), "Request for unknown model: 'wrong' is not found", "NOT_FOUND")
    fails(lambda: client.get_model_metadata("wrong"), "Request for unknown model", "NOT_FOUND")
    fails(lambda: client.infer("simple", tensors()[:1]), "INPUT1", "INVALID_ARGUMENT")
    fails(lambda: client.get_system_shared_memory_status(), "shared memory is not offered", "UNIMPLEMENTED")
    fails(lambda: client.get_trace_settings(), "tracing is not offered", "UNIMPLEMENTED")


def repository(client, headers):
    index = {entry.name: entry.state for entry in client.get_model_repository_index().models}
    assert index["simple"] == "READY", index
    client.load_model("simple", headers=headers)
    fails(lambda: client.load_model("simple"), "admin token", "UNAUTHENTICATED")
    fails(lambda: client.load_model("wrong", headers=headers), "failed to load", "NOT_FOUND")
    fails(lambda: client.load_model("simple", headers=headers, config="{}"), "failed to load", "INVALID_ARGUMENT")
    fails(lambda: client.unload_model("simple", headers=headers), "carries its traffic", "FAILED_PRECONDITION")
    assert client.is_model_ready("simple")


def keep_alive(client, headers):
    options = grpcclient.KeepAliveOptions(
        keepalive_time_ms=20_000, keepalive_timeout_ms=10_000, keepalive_permit_without_calls=True
    )
    with grpcclient.InferenceServerClient(sys.argv[1], keepalive_options=options) as other:
        right(other.infer("simple", tensors()))


def with_asyncio(client, headers):
    async def ask():
        async with aioclient.InferenceServerClient(sys.argv[1]) as other:
            for result in await asyncio.gather(*[other.infer("simple", tensors()) for _ in range(16)]):
                right(result)
            assert await other.is_server_ready()

    asyncio.run(ask())


FLOWS = (
    infer, infer_with_all_its_options, infer_asynchronously, stream, compress, strings, half_precision, not_a_number,
    classify, health_and_metadata, statistics, errors, repository, keep_alive, with_asyncio,
)  # fmt: skip

if __name__ == "__main__":
    with grpcclient.InferenceServerClient(sys.argv[1]) as client:
        for flow in FLOWS:
            flow(client, {"authorization": f"Bearer {sys.argv[2]}"})
            print(flow.__name__, flush=True)
