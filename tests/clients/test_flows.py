from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import client_python
from tests.conformance.models import MODELS, write_gateway
from tests.gateways import RunningGateway, eventually, running_gateway

FLOWS = Path(__file__).parent / "flows"
TOKEN = "a-secret"
TRITON = ("tritonclient[http]==2.73.0", "numpy<3")
KSERVE = ("kserve==0.21.0",)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """The kit's models, and `spare`, which is approved and has no route."""
    folder = tmp_path_factory.mktemp("clients")
    models = folder / "models"
    write_gateway(models, (*MODELS, dataclasses.replace(MODELS[0], name="spare")))
    policy = models / "spare" / "model.toml"
    policy.write_text(policy.read_text() + "\n[route]\nstable = 2\n")
    with running_gateway(folder, models=models, fronts=2, environment={"GATEWAY_ADMIN__TOKEN": TOKEN}) as gateway:
        eventually(lambda: gateway.get(f"{gateway.http_url}/v2/models/spare/versions/1/ready").get("ready"))
        yield gateway


@pytest.mark.parametrize(
    ("client", "packages", "flow", "done"),
    [
        ("triton", TRITON, "triton_http.py", 13),
        ("triton", TRITON, "triton_aio.py", 8),
        ("kserve", KSERVE, "kserve_rest.py", 4),
    ],
    ids=["tritonclient.http", "tritonclient.http.aio", "kserve.InferenceRESTClient"],
)
@pytest.mark.slow
def test_a_stock_client_runs_its_flows(
    gateway: RunningGateway, client: str, packages: tuple[str, ...], flow: str, done: int
) -> None:
    python = client_python(client, *packages)
    ran = subprocess.run(
        [str(python), "-W", "ignore", str(FLOWS / flow), gateway.http_url, TOKEN],
        capture_output=True,
        timeout=120,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    assert len(ran.stdout.split()) == done, ran.stdout
