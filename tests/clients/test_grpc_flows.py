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
TRITON = ("tritonclient[grpc]==2.73.0", "numpy<3")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("grpc")
    write_gateway(folder / "models", MODELS)
    with running_gateway(folder, models=folder / "models", environment={"GATEWAY_ADMIN__TOKEN": TOKEN}) as gateway:
        yield gateway


@pytest.mark.slow
def test_tritonclient_runs_its_flows_over_grpc(gateway: RunningGateway) -> None:
    python = client_python("triton-grpc", *TRITON)
    ran = subprocess.run(
        [str(python), "-W", "ignore", str(FLOWS / "triton_grpc.py"), f"127.0.0.1:{gateway.grpc_port}", TOKEN],
        capture_output=True,
        timeout=120,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    assert len(ran.stdout.split()) == 15, ran.stdout
    logged = gateway.predictions()
    assert {record.status for record in logged} == {200, 400}
    assert any(record.parameters == {"custom": "yes", "priority": 1, "timeout": 5_000_000} for record in logged)


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
