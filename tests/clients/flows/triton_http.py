"""The flows of tritonclient's HTTP examples; run as `python triton_http.py URL TOKEN`, prints what was done."""

import sys

import numpy as np
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), np.int32)


def tensors(datatype="INT32", binary=(True, True), values=(A, B)):
    made = []
    for name, value, as_bytes in zip(("INPUT0", "INPUT1"), values, binary, strict=True):
        tensor = httpclient.InferInput(name, [1, 16], datatype)
        tensor.set_data_from_numpy(value, binary_data=as_bytes)
        made.append(tensor)
    return made


def outputs(*binary):
    return [httpclient.InferRequestedOutput(f"OUTPUT{i}", binary_data=b) for i, b in enumerate(binary)]


def right(result):
    assert (result.as_numpy("OUTPUT0") == A + B).all() and (result.as_numpy("OUTPUT1") == A - B).all()


def infer_in_binary(client, headers):
    right(client.infer("simple", tensors()))
    right(client.infer("simple", tensors(), outputs=outputs(True, True)))


def infer_in_json(client, headers):
    right(client.infer("simple", tensors(binary=(False, False)), outputs=outputs(False, False)))


def infer_mixed(client, headers):
    right(client.infer("simple", tensors(binary=(True, False)), outputs=outputs(False, True)))


def infer_with_all_its_options(client, headers):
    result = client.infer(
        "simple", tensors(), model_version="1", request_id="7", priority=1, timeout=5_000_000,
        query_params={"test_1": 1, "test_2": 2}, parameters={"custom": "yes"}, headers={"Gateway-Routing-Key": "k"},
    )  # fmt: skip
    right(result)
    response = result.get_response()
    assert (response["id"], response["model_version"]) == ("7", "1")


def infer_asynchronously(client, headers):
    for waiting in [client.async_infer("simple", tensors()) for _ in range(8)]:
        right(waiting.get_result())


def compress(client, headers):
    for way in ("gzip", "deflate"):
        right(client.infer("simple", tensors(), request_compression_algorithm=way))
        right(client.infer("simple", tensors(), response_compression_algorithm=way))
        right(client.infer("simple", tensors(), request_compression_algorithm=way, response_compression_algorithm=way))


def strings(client, headers):
    texts = [np.array([[str(n).encode() for n in row[0]]], dtype=object) for row in (A, B)]
    for binary in (True, False):
        given = tensors("BYTES", binary=(binary, binary), values=texts)
        result = client.infer("simple_string", given, outputs=outputs(binary, binary))
        assert [int(text) for text in result.as_numpy("OUTPUT0")[0]] == (A + B)[0].tolist()


def not_a_number(client, headers):
    value = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    tensor = httpclient.InferInput("INPUT0", [1, 4], "FP32")
    for binary in (True, False):
        tensor.set_data_from_numpy(value, binary_data=binary)
        output = httpclient.InferRequestedOutput("OUTPUT0", binary_data=binary)
        found = client.infer("scores", [tensor], outputs=[output]).as_numpy("OUTPUT0")
        assert np.array_equal(found, value, equal_nan=True), found


def classify(client, headers):
    tensor = httpclient.InferInput("INPUT0", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[0.5, 3, -1, 2]], np.float32))
    output = httpclient.InferRequestedOutput("OUTPUT0", class_count=2)
    classes = client.infer("scores", [tensor], outputs=[output]).as_numpy("OUTPUT0")
    found = [(text.decode() if isinstance(text, bytes) else text).split(":")[1] for text in classes[0]]
    assert found == ["1", "3"], classes


def health_and_metadata(client, headers):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("simple") and client.is_model_ready("simple", "1")
    assert not client.is_model_ready("simple", "9") and not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "gateway" and "binary_tensor_data" in server["extensions"]
    assert client.get_model_metadata("simple")["name"] == "simple"
    assert client.get_model_metadata("simple", "1")["versions"] == ["1"]
    assert client.get_model_config("simple")["max_batch_size"] > 0
    assert client.get_log_settings()["log_info"] is True


def statistics(client, headers):
    stats = client.get_inference_statistics("simple")["model_stats"]
    assert len(stats) == 1 and stats[0]["inference_count"] >= stats[0]["execution_count"] > 0
    assert len(client.get_inference_statistics()["model_stats"]) > 1


def unknown_model(client, headers):
    for ask in (lambda: client.infer("wrong", tensors()), lambda: client.get_model_metadata("wrong")):
        try:
            ask()
        except InferenceServerException as error:
            assert error.message().startswith("Request for unknown model"), error
        else:
            raise AssertionError("an unknown model was answered")


def repository(client, headers):
    index = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
    assert index["simple"] == "READY", index
    client.load_model("simple", headers=headers)
    for name, options in (("wrong", {}), ("simple", {"config": '{"max_batch_size": 1}'})):
        try:
            client.load_model(name, headers=headers, **options)
        except InferenceServerException as error:
            assert "failed to load" in error.message(), error
        else:
            raise AssertionError(f"{name} was loaded")
    client.load_model("spare", headers=headers)
    assert client.is_model_ready("spare", "1")
    client.unload_model("spare", headers=headers)
    try:
        client.unload_model("simple", headers=headers)
    except InferenceServerException as error:
        assert "carries its traffic" in error.message(), error
    else:
        raise AssertionError("what carries traffic was unloaded")
    assert client.is_model_ready("simple")


FLOWS = (
    infer_in_binary,
    infer_in_json,
    infer_mixed,
    infer_with_all_its_options,
    infer_asynchronously,
    compress,
    strings,
    not_a_number,
    classify,
    health_and_metadata,
    statistics,
    unknown_model,
    repository,
)

if __name__ == "__main__":
    client = httpclient.InferenceServerClient(sys.argv[1].removeprefix("http://"), concurrency=4)
    for flow in FLOWS:
        flow(client, {"Authorization": f"Bearer {sys.argv[2]}"})
        print(flow.__name__, flush=True)
    client.close()
