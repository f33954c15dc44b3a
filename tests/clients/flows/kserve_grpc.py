"""KServe's own gRPC client; run as `python kserve_grpc.py HOST:PORT`, prints what was done."""

import asyncio
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

A = np.arange(16, dtype=np.int32).reshape(1, 16)


def request(binary, model="simple"):
    made = [InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor in made:
        tensor.set_data_from_numpy(A, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=made, request_id="7")


async def health(client):
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("simple")


async def infer_raw(client):
    answer = await client.infer(request(True))
    assert answer.id == "7" and (answer.get_output_by_name("OUTPUT0").as_numpy() == A + A).all()


async def infer_typed(client):
    answer = await client.infer(request(False))
    assert answer.id == "7" and (answer.get_output_by_name("OUTPUT0").as_numpy() == A + A).all()


async def unknown_model(client):
    try:
        await client.infer(request(True, "wrong"))
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND, error
    else:
        raise AssertionError("an unknown model was answered")


async def main():
    client = InferenceGRPCClient(url=sys.argv[1])
    for flow in (health, infer_raw, infer_typed, unknown_model):
        await flow(client)
        print(flow.__name__, flush=True)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
