"""The flows of tritonclient's asyncio HTTP examples; run as `python triton_aio.py URL TOKEN`, prints what was done."""

import asyncio
import sys

import numpy as np
import tritonclient.http.aio as httpclient
from tritonclient.utils import InferenceServerException

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), np.int32)


def tensors(binary=True):
    made = []
    for name, value in (("INPUT0", A), ("INPUT1", B)):
        tensor = httpclient.InferInput(name, [1, 16], "INT32")
        tensor.set_data_from_numpy(value, binary_data=binary)
        made.append(tensor)
    return made


def right(result):
    assert (result.as_numpy("OUTPUT0") == A + B).all() and (result.as_numpy("OUTPUT1") == A - B).all()


async def infer(client, headers):
    for binary in (True, False):
        wanted = [httpclient.InferRequestedOutput(f"OUTPUT{i}", binary_data=binary) for i in (0, 1)]
        right(await client.infer("simple", tensors(binary), outputs=wanted))
    for result in await asyncio.gather(*[client.infer("simple", tensors()) for _ in range(16)]):
        right(result)


async def infer_mixed(client, headers):
    mixed = [tensors(True)[0], tensors(False)[1]]
    wanted = [httpclient.InferRequestedOutput(f"OUTPUT{i}", binary_data=bool(i)) for i in (0, 1)]
    right(await client.infer("simple", mixed, outputs=wanted))


async def strings(client, headers):
    given = []
    for name, value in (("INPUT0", A), ("INPUT1", B)):
        given.append(httpclient.InferInput(name, [1, 16], "BYTES"))
        given[-1].set_data_from_numpy(np.array([[str(n).encode() for n in value[0]]], dtype=object))
    result = await client.infer("simple_string", given)
    assert [int(text) for text in result.as_numpy("OUTPUT0")[0]] == (A + B)[0].tolist()


async def classify(client, headers):
    tensor = httpclient.InferInput("INPUT0", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[0.5, 3.0, -1.0, 2.0]], np.float32))
    for binary in (True, False):
        output = httpclient.InferRequestedOutput("OUTPUT0", binary_data=binary, class_count=2)
        found = (await client.infer("scores", [tensor], outputs=[output])).as_numpy("OUTPUT0")
        texts = [text.decode() if isinstance(text, bytes) else text for text in found.ravel().tolist()]
        assert [text.split(":")[1] for text in texts] == ["1", "3"], texts


async def compress(client, headers):
    for way in ("gzip", "deflate"):
        right(
            await client.infer(
                "simple", tensors(), request_compression_algorithm=way, response_compression_algorithm=way
            )
        )


async def health_and_metadata(client, headers):
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("simple")
    assert (await client.get_server_metadata())["name"] == "gateway"
    assert len((await client.get_model_metadata("datatypes"))["inputs"]) == 12
    assert (await client.get_model_config("simple"))["name"] == "simple"


async def statistics_and_repository(client, headers):
    assert len((await client.get_inference_statistics("simple"))["model_stats"]) == 1
    assert any(entry["name"] == "simple" for entry in await client.get_model_repository_index())
    await client.load_model("simple", headers=headers)


async def errors(client, headers):
    for ask, text in (
        (client.infer("wrong", tensors()), "Request for unknown model"),
        (client.infer("simple", tensors()[:1]), "INPUT1"),
        (client.load_model("wrong", headers=headers), "failed to load"),
        (client.load_model("simple"), "admin token"),
        (client.unload_model("simple", headers=headers), "route"),
    ):
        try:
            await ask
        except InferenceServerException as error:
            assert text in error.message(), error
        else:
            raise AssertionError(text)


FLOWS = (infer, infer_mixed, strings, classify, compress, health_and_metadata, statistics_and_repository, errors)


async def main():
    async with httpclient.InferenceServerClient(sys.argv[1].removeprefix("http://")) as client:
        for flow in FLOWS:
            await flow(client, {"Authorization": f"Bearer {sys.argv[2]}"})
            print(flow.__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
