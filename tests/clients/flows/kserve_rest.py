"""What KServe's InferenceRESTClient does; run as `python kserve_rest.py URL TOKEN`, prints what was done."""

import asyncio
import sys

import numpy as np
from httpx import HTTPStatusError
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), np.int32)


def asked(model="simple", binary=False):
    inputs = []
    for name, value in (("INPUT0", A), ("INPUT1", B)):
        tensor = InferInput(name=name, shape=[1, 16], datatype="INT32")
        tensor.set_data_from_numpy(value, binary_data=binary)
        inputs.append(tensor)
    return InferRequest(model_name=model, infer_inputs=inputs, request_id="42")


def right(answer):
    found = {output.name: output.as_numpy() for output in answer.outputs}
    assert (found["OUTPUT0"] == A + B).all() and (found["OUTPUT1"] == A - B).all() and answer.id == "42"


async def health(client, url):
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, "simple")
    assert not await client.is_model_ready(url, "wrong")


async def infer_in_json(client, url):
    right(await client.infer(url, asked(), model_name="simple"))


async def infer_in_binary(client, url):
    right(await client.infer(url, asked(binary=True), model_name="simple"))


async def unknown_model(client, url):
    try:
        await client.infer(url, asked("wrong"), model_name="wrong")
    except HTTPStatusError as error:
        assert error.response.status_code == 404 and "Request for unknown model" in str(error), error
    else:
        raise AssertionError("an unknown model was answered")


FLOWS = (health, infer_in_json, infer_in_binary, unknown_model)


async def main():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    for flow in FLOWS:
        await flow(client, sys.argv[1])
        print(flow.__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
