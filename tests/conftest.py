"""Fixtures that more than one room's tests need."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import hypothesis.internal.conjecture.optimiser
import hypothesis.internal.conjecture.shrinker
import pytest

# The test kits are imported as `tests.brokers` however pytest was started.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.brokers import KafkaBroker

# No test asserts a time. The two modules above are imported late otherwise, deep in a test's own stack, where Python
# 3.11 can fail to parse them (a SystemError about the recursion depth of its AST).
hypothesis.settings.register_profile("no clock", deadline=None)
hypothesis.settings.load_profile("no clock")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    asyncio.run(
        pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters})
    )
    return True


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The `host:port` of an Apache Kafka that lives for the whole session; give each test its own topic prefix."""
    given = os.environ.get("GATEWAY_TEST_KAFKA", "")
    if given and not Path(given).is_dir():
        yield given
        return
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"))
    broker.start()
    yield broker.bootstrap_servers
    broker.kill()


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A started Apache Kafka of this test alone, to be killed, frozen and restarted."""
    broker = KafkaBroker(tmp_path / "kafka")
    broker.start()
    yield broker
    broker.kill()
