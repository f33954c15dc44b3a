"""The admin app over a small world."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.worlds import World

HERE = "http://127.0.0.1:8003"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(world.app(), base_url=HERE) as client:
        yield client
