"""Requests made up from the OpenAPI documents: none brings a 5xx, an answer that is not as described, or a request
taken that the document forbids."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import client_python
from tests.gateways import RunningGateway, call, running_gateway

TOKEN = "a-secret"
HOOKS = Path(__file__).parent / "schemathesis" / "hooks.py"
SECONDS = 30
# What a shape and its data say together, which tensors a model has, and that steps rise, JSON Schema cannot put: 400
# is right there, for the reasons that `schemathesis/hooks.py` lists and no other. A followed stream has no end.
CONFIG = """
[[operations]]
include-path-regex = "/infer$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]

[[operations]]
include-path = "/api/v1/rollouts"
include-method = "POST"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409"]

[[operations]]
include-path = "/api/v1/predictions"
parameters = { "query.follow" = "false" }
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    environment = {"GATEWAY_ADMIN__TOKEN": TOKEN}
    with running_gateway(tmp_path_factory.mktemp("schemathesis"), environment=environment) as gateway:
        yield gateway


@pytest.mark.parametrize("side", ["inference", "model", "admin"])
@pytest.mark.slow
def test_made_up_requests_find_nothing(gateway: RunningGateway, side: str, tmp_path: Path) -> None:
    python = client_python("schemathesis", "schemathesis==4.32.5")
    document = {
        "inference": f"{gateway.http_url}/openapi.json",
        "model": f"{gateway.http_url}/v2/models/bike-demand/openapi.json",
        "admin": f"{gateway.admin_url}/openapi.json",
    }[side]
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    program = [str(python.parent / "schemathesis"), "--config-file", str(config), "run", document]
    limits = ["--max-examples", "10", "--max-time", str(SECONDS), "--request-timeout", "20", "--seed", "1"]
    what = ["--checks", "all", "--phases", "examples,coverage,fuzzing,stateful", "--no-shrink", "--continue-on-failure"]
    ran = subprocess.run(
        [*program, *limits, *what, "-H", f"Authorization: Bearer {TOKEN}"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)},
        timeout=SECONDS + 60,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert call(f"{gateway.http_url}/v2/health/live")[0] == 200
