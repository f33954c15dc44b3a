"""One gateway for the faults that it shall survive. What ends it has a gateway of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateways import RunningGateway, running_gateway

SETTINGS = {"GATEWAY_ENGINE__HANG_SECONDS": "3"}


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), fronts=2, environment=SETTINGS) as running:
        yield running
