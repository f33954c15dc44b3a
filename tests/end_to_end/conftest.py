"""One gateway for all tests of this folder: two fronts, a copy of the shipped models. Each test sets its own route."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateways import RunningGateway, running_gateway


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), fronts=2) as running:
        yield running
