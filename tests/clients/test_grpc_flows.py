from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.serving.grpc import inference_pb2
from tests.clients.environments import client_python
from tests.conformance.models import MODELS, write_gateway
from tests.gateways import RunningGateway, running_gateway

FLOWS = Path(__file__).parent / "flows"
TOKEN = "a-secret"
KSERVE = ("kserve==0.21.0",)
TRITON = ("tritonclient[grpc]==2.73.0", "numpy<3")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("grpc")
    write_gateway(folder / "models", MODELS)
    with running_gateway(folder, models=folder / "models", environment={"GATEWAY_ADMIN__TOKEN": TOKEN}) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("client", "packages", "flow", "done"),
    [("triton-grpc", TRITON, "triton_grpc.py", 15), ("kserve", KSERVE, "kserve_grpc.py", 4)],
    ids=["tritonclient.grpc", "kserve.InferenceGRPCClient"],
)
@pytest.mark.slow
def test_a_stock_client_runs_its_flows_over_grpc(
    gateway: RunningGateway, client: str, packages: tuple[str, ...], flow: str, done: int
) -> None:
    python = client_python(client, *packages)
    ran = subprocess.run(
        [str(python), "-W", "ignore", str(FLOWS / flow), f"127.0.0.1:{gateway.grpc_port}", TOKEN],
        capture_output=True,
        timeout=120,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    assert len(ran.stdout.split()) == done, ran.stdout


@pytest.mark.slow
def test_what_came_over_grpc_is_logged_as_it_came(gateway: RunningGateway) -> None:
    python = client_python("triton-grpc", *TRITON)
    asked = (
        "import sys, numpy as np, tritonclient.grpc as g; x = g.InferInput('INPUT0', [1, 4], 'FP32');"
        "x.set_data_from_numpy(np.array([[1, 2, 3, 4]], 'f4'));"
        "g.InferenceServerClient(sys.argv[1]).infer('scores', [x], request_id='mine', parameters={'custom': 'yes'})"
    )
    subprocess.run([str(python), "-c", asked, f"127.0.0.1:{gateway.grpc_port}"], check=True, timeout=60)
    (record,) = [each for each in gateway.predictions() if each.request_id == "mine"]
    assert (record.model, record.status, record.parameters) == ("scores", 200, {"custom": "yes"})
    assert record.inputs[0].data == [1, 2, 3, 4]


def test_names_and_numbers_of_our_messages_are_those_of_tritonclient() -> None:
    python = client_python("triton-grpc", *TRITON)
    ran = subprocess.run(
        [str(python), "-W", "ignore", str(FLOWS / "triton_fields.py")],
        input=inference_pb2.DESCRIPTOR.serialized_pb,
        capture_output=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    *differing, compared = ran.stdout.decode().splitlines()
    assert differing == [] and int(compared.split()[0]) > 150, compared
